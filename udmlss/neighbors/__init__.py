"""Nearest neighbors of embeddings: exact search, averages of neighbors and pairs of neighbors."""

from udmlss.neighbors.search import average_with_neighbors, nearest, pair_with_neighbors

__all__ = ["average_with_neighbors", "nearest", "pair_with_neighbors"]
