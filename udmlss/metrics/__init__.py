"""Retrieval and clustering scores of embeddings with known classes.

A negative label, such as -1, is not a class but means that the class of the item is unknown. All scores ignore such
items: they are neither queries nor items that are searched, like the images marked as junk in Oxford Buildings and
Market-1501. To count images as distractors, give each a class of its own.
"""

from udmlss.metrics.mutual_information import ami, nmi
from udmlss.metrics.rankings import score_rankings
from udmlss.metrics.retrieval import Retrieval, map_at_r, r_precision, recall_at_k, retrieval
from udmlss.neighbors.search import nearest

__all__ = [
    "Retrieval",
    "ami",
    "map_at_r",
    "nearest",
    "nmi",
    "r_precision",
    "recall_at_k",
    "retrieval",
    "score_rankings",
]
