"""Rules that choose the length of the lists of neighbors without labels, for comparison with the library's rule."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from clustering_scores import score
from frozen_features import Case
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from udmlss.clustering.list_length import LENGTHS, choose_list_length
from udmlss.clustering.map_equation import compression, map_equation_communities
from udmlss.neighbors import nearest, shared_neighbor_graph

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Curve:
    """The communities of each length of the lists.

    Args:
        lengths: The lengths, at most a quarter of the number of images.
        communities: The communities of each length.
        n_found: Number of communities.
        compression: How much the communities shorten the description of a random walk, in nats.
        modularity: Modularity of the communities.
    """

    lengths: list[int]
    communities: list[Labels]
    n_found: Floats
    compression: Floats
    modularity: Floats


@dataclass(frozen=True)
class Lengths:
    """The communities of the images and of random rows for each length, and the length that the library chooses."""

    found: Curve
    random: Curve
    ami: Floats
    chosen: int


def measure_lengths(case: Case) -> Lengths:
    """Find the communities of a case for all lengths, of which the library chooses one."""
    found = _curve(case.rows)
    ami = np.array([score(case.classes, communities).ami for communities in found.communities])
    return Lengths(found, _curve(_random_rows(case.rows)), ami, choose_list_length(case.rows))


def _curve(rows: Tensor) -> Curve:
    lengths = [length for length in LENGTHS if 4 * length <= len(rows)]
    indices = nearest(rows, lengths[-1])[1]
    graphs = [shared_neighbor_graph(indices[:, :length]) for length in lengths]
    found = [map_equation_communities(graph) for graph in graphs]
    pairs = list(zip(graphs, found, strict=True))
    return Curve(
        lengths=lengths,
        communities=found,
        n_found=np.array([communities.max() + 1.0 for communities in found]),
        compression=np.array([compression(*pair) for pair in pairs]),
        modularity=np.array([_modularity(*pair) for pair in pairs]),
    )


def _random_rows(rows: Tensor) -> Tensor:
    """Sample rows from the normal distribution with the mean and the covariance of the given rows."""
    mixing = torch.randn(len(rows), len(rows), generator=torch.Generator().manual_seed(0)) / len(rows) ** 0.5
    sampled: Tensor = rows.mean(dim=0) + mixing @ (rows - rows.mean(dim=0))
    return sampled


def _modularity(graph: csr_array, communities: Labels) -> float:
    """Return the fraction of weight inside of communities, minus that of a random graph with the same strengths."""
    rows, columns = graph.tocoo().coords
    strengths = np.bincount(communities, np.asarray(graph.sum(axis=1)).ravel()) / graph.sum()
    inside = graph.data[communities[rows] == communities[columns]].sum() / graph.sum()
    return float(inside - (strengths**2).sum())


def _gap(lengths: Lengths) -> Floats:
    return lengths.found.compression - lengths.random.compression


def _modularity_gap(lengths: Lengths) -> Floats:
    return lengths.found.modularity - lengths.random.modularity


def _flatness(lengths: Lengths) -> Floats:
    """Return the slope of the logarithm of the number of communities over the logarithm of the length."""
    slopes: Floats = np.gradient(np.log(lengths.found.n_found), np.log(lengths.found.lengths))
    return slopes


# each rule chooses the length with the largest value
RULES: Mapping[str, Callable[[Lengths], Floats]] = {
    "the library's rule": lambda lengths: np.equal(lengths.found.lengths, lengths.chosen).astype(float),
    "largest gap of the compression": _gap,
    "largest gap of the modularity": _modularity_gap,
    "largest compression": lambda lengths: lengths.found.compression,
    "the number of communities falls most slowly": _flatness,
}


def fixed(length: int) -> Callable[[Lengths], Floats]:
    """Return the rule that always chooses a length, or the longest if there are too few images."""
    return lambda lengths: -np.abs(np.subtract(lengths.found.lengths, length)).astype(float)


def position(rule: Callable[[Lengths], Floats], lengths: Lengths) -> int:
    """Return the position of the length that a rule chooses."""
    return int(rule(lengths).argmax())
