"""Nearest neighbors of embeddings: search, averages, pairs, and graphs of shared neighbors."""

from udmlss.neighbors.approximate import NeighborLists, neighbor_lists
from udmlss.neighbors.graph import shared_neighbor_graph
from udmlss.neighbors.reciprocal import k_reciprocal_similarity
from udmlss.neighbors.search import average_with_neighbors, nearest, pair_with_neighbors

__all__ = [
    "NeighborLists",
    "average_with_neighbors",
    "k_reciprocal_similarity",
    "nearest",
    "neighbor_lists",
    "pair_with_neighbors",
    "shared_neighbor_graph",
]
