"""k-means by Lloyd's algorithm, with starts by k-means++."""

from udmlss.clustering.kmeans.clusters import check_count, cluster_means, cluster_rows, k_means

__all__ = ["check_count", "cluster_means", "cluster_rows", "k_means"]
