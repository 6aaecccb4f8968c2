"""Search in embeddings: an index that is saved and loaded, and near-duplicates."""

from udmlss.search.duplicates import near_duplicates
from udmlss.search.index import SearchIndex

__all__ = ["SearchIndex", "near_duplicates"]
