"""The length of the lists of neighbors, chosen without labels."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from udmlss.clustering.map_equation import compression, map_equation_communities
from udmlss.neighbors.copies import limit_copies
from udmlss.neighbors.graph import shared_neighbor_graph
from udmlss.neighbors.search import search, unit_length

LENGTHS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
LARGEST_SAMPLE = 5000  # rows that the length is chosen on at most, to bound the time
_COPIES = 2  # of a row on which the length is chosen; more would form a community of their own
_TOLERANCE = 0.02  # fraction of the largest gap; of lengths within it the longest is chosen
_WEIGHTS = (0.25, 0.5, 0.25)  # of a length and the two next to it, since gaps of single lengths are noisy


def list_length_for(images_per_cluster: int) -> int:
    """Return the number of neighbors that suits clusters of about this number of images."""
    return min(images_per_cluster // 3 + 2, LENGTHS[-1])


def choose_list_length(
    embeddings: Float[Tensor, "n d"], *, indices: Int64[Tensor, "n k"] | None = None, seed: int = 0
) -> int:
    """Choose the number of neighbors from which the communities of the embeddings are found, by the gap statistic.

    Communities shorten the description of a random walk along the graph of neighbors. They do so even if the rows have
    no clusters. Therefore each length is tried on the embeddings and on random rows with the same mean and covariance.
    The gap is the difference of how much the description shortens, averaged with the gaps of the next shorter and the
    next longer list. The longest list whose gap is within 2 % of the largest is chosen, except lists with which all
    rows form a single community. At most two copies of a row are used. Of more than 5,000 rows, the 5,000 nearest
    neighbors of a random row are used: they contain whole classes, which a random sample of the rows does not.

    Args:
        embeddings: At least three rows of any length.
        indices: The 64 nearest neighbors of each of at most 5,000 rows, or all others if they are fewer. They are
            searched again only if a row has more than two copies. None searches.
        seed: Seed of the random rows.

    Returns:
        A number of neighbors in 2..64, at most a quarter of the number of rows if that is above 2.

    References:
        Estimating the number of clusters in a data set via the gap statistic. Tibshirani, Walther, Hastie. 2001.
        https://doi.org/10.1111/1467-9868.00293. The paper compares distances within clusters for each number of
        clusters.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = _sample(embeddings.detach(), generator)
    lengths = [length for length in LENGTHS if 4 * length <= len(rows)] or [LENGTHS[0]]
    if indices is None or len(rows) != len(embeddings):
        indices = search(rows, lengths[-1])[1]
    random_indices = search(_random_rows(rows, generator), lengths[-1])[1]
    found, random = (_compressions(lists, lengths, seed) for lists in (indices, random_indices))
    gaps = np.convolve(np.pad(found - random, 1, mode="edge"), _WEIGHTS, mode="valid")
    gaps[found <= 0] = -np.inf  # a single community
    is_close = gaps >= gaps.max() - _TOLERANCE * abs(gaps.max())
    return lengths[int(np.flatnonzero(is_close).max())] if (found > 0).any() else lengths[0]


def _sample(embeddings: Float[Tensor, "n d"], generator: torch.Generator) -> Float[Tensor, "m d"]:
    """Return unit-length rows on the CPU, without further copies: all, or a random one and its nearest neighbors."""
    if (copies := limit_copies(embeddings, _COPIES)) is not None:
        embeddings = embeddings[copies[0]]
    if len(embeddings) > LARGEST_SAMPLE:
        query = torch.randint(len(embeddings), (1,), generator=generator).to(embeddings.device)
        embeddings = embeddings[search(embeddings, LARGEST_SAMPLE, embeddings[query])[1][0]]
    return unit_length(embeddings.cpu())


def _random_rows(rows: Float[Tensor, "m d"], generator: torch.Generator) -> Float[Tensor, "m d"]:
    """Sample rows from the normal distribution with the mean and the covariance of the given rows."""
    mean = rows.mean(dim=0)
    mixing = torch.randn(len(rows), len(rows), generator=generator) / len(rows) ** 0.5
    sampled: Tensor = mean + mixing @ (rows - mean)
    return sampled


def _compressions(indices: Int64[Tensor, "m k"], lengths: list[int], seed: int) -> NDArray[np.float64]:
    graphs = [shared_neighbor_graph(indices[:, :length]) for length in lengths]
    return np.array([compression(graph, map_equation_communities(graph, seed=seed)) for graph in graphs])
