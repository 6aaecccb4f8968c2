"""A labeler that leaves out what lies at the edge of its cluster, for images that may be in the wrong one."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from udmlss import ClusterPseudoLabeler, PseudoLabels


class LeavingOut:
    """Labels as k-means does, and with -1 the images of each cluster that are farthest from its centroid.

    Args:
        labeler: Clusters; every image is in one of them.
        share: Share of each cluster that is left out, rounded down; below 1.
    """

    def __init__(self, labeler: ClusterPseudoLabeler, share: float) -> None:
        self.labeler = labeler
        self.share = share
        self.n_clusters = labeler.n_clusters

    def label(self, embeddings: Tensor) -> PseudoLabels:
        pseudo = self.labeler.label(embeddings)
        labels, sizes = pseudo.labels.clone(), pseudo.sizes
        distance = (embeddings.cpu() - pseudo.centers[labels]).norm(dim=1)
        order = torch.from_numpy(np.lexsort((-distance.numpy(), labels.numpy())))  # cluster by cluster, the far first
        to_device = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[order]]
        n_unassigned = (self.share * sizes).long()
        labels[order[to_device < n_unassigned[labels[order]]]] = -1
        return replace(pseudo, labels=labels, sizes=sizes - n_unassigned)
