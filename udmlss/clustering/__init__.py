"""Clustering of embeddings into pseudo-labels."""

from udmlss.clustering.communities import Communities
from udmlss.clustering.kmeans import cluster_means, k_means
from udmlss.clustering.labeler import ClusterPseudoLabeler
from udmlss.clustering.matching import agreement, match_ids

__all__ = ["ClusterPseudoLabeler", "Communities", "agreement", "cluster_means", "k_means", "match_ids"]
