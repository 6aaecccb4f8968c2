"""Clustering of embeddings into pseudo-labels."""

from udmlss.clustering.communities import Communities
from udmlss.clustering.jaccard_dbscan import JaccardDBSCAN
from udmlss.clustering.kmeans import cluster_means, k_means
from udmlss.clustering.labeler import ClusterPseudoLabeler
from udmlss.clustering.matching import agreement, match_ids
from udmlss.clustering.reliability import label_margins

__all__ = [
    "ClusterPseudoLabeler",
    "Communities",
    "JaccardDBSCAN",
    "agreement",
    "cluster_means",
    "k_means",
    "label_margins",
    "match_ids",
]
