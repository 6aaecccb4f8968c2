"""Communities of a weighted graph by the two-level map equation."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import xlogy

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_BATCHES = 8  # batches of nodes in a sweep; the nodes of a batch move at the same time
_MAX_SWEEPS = 50
_MAX_REFINEMENTS = 10
_LEAST_GAIN = 1e-12  # of the code length, in nats


def map_equation_communities(weights: csr_array, *, seed: int = 0) -> Indices:
    """Find the communities of a graph in which a random walk stays longest, by the two-level map equation.

    Nodes move to the community of a neighbor while this shortens the description of a random walk, communities are
    merged in the same way, and the nodes move again. The number of communities follows from the graph. All steps are
    vectorized over nodes and edges: time and memory grow with the number of edges.

    Args:
        weights: Symmetric matrix (n, n) of non-negative weights with an empty diagonal.
        seed: Seed of the order in which nodes move.

    Returns:
        The community of each node (n,), numbered from 0 without gaps. A node without edges is a community of its own.

    References:
        Maps of random walks on complex networks reveal community structure. Rosvall, Bergstrom. 2008.
        https://doi.org/10.1073/pnas.0706851105. The paper moves nodes one by one. Here the nodes of a
        batch move at the same time. If all moves together do not shorten the description, fewer of them are made.
    """
    generator = np.random.default_rng(seed)
    network = _Network.from_matrix(weights)
    communities = np.arange(network.n_nodes)
    length = _Partition.of(network, communities).code_length()
    for _ in range(_MAX_REFINEMENTS):
        found = _merge(network, _compact(_move_nodes(network, communities, generator)), generator)
        new_length = _Partition.of(network, found).code_length()
        if new_length > length - _LEAST_GAIN:
            break
        communities, length = found, new_length
    return communities


def compression(weights: csr_array, communities: Indices) -> float:
    """Return by how much communities shorten the description of a random walk, in nats per step."""
    return -_Partition.of(_Network.from_matrix(weights), communities).code_length()


@dataclass(frozen=True)
class _Network:
    """A graph as lists of neighbors, with weights that sum to 1.

    `flow` is the fraction of time that a random walk spends at each node, and `strength` the weight of the edges to
    other nodes. They differ for nodes that were merged from several.
    """

    starts: Indices
    neighbors: Indices
    weights: Floats
    flow: Floats
    strength: Floats

    @classmethod
    def from_matrix(cls, matrix: csr_array, flow: Floats | None = None) -> "_Network":
        """Normalize a matrix of weights; with `flow` its weights are normalized already."""
        total = float(matrix.sum()) if flow is None else 1.0
        starts = matrix.indptr.astype(np.int64)
        weights = matrix.data / (total or 1.0)
        strength = _sum_by(np.repeat(np.arange(len(starts) - 1), np.diff(starts)), weights, len(starts) - 1)
        return cls(starts, matrix.indices.astype(np.int64), weights, strength if flow is None else flow, strength)

    @property
    def n_nodes(self) -> int:
        return len(self.starts) - 1

    def edges_of(self, nodes: Indices) -> tuple[Indices, Indices]:
        """Return for every edge of the nodes the position of its node in `nodes`, and the number of the edge."""
        counts = self.starts[nodes + 1] - self.starts[nodes]
        owners = np.repeat(np.arange(len(nodes)), counts)
        offsets = self.starts[nodes] - (np.cumsum(counts) - counts)
        return owners, np.arange(counts.sum()) + offsets[owners]

    def weights_to_communities(self, nodes: Indices, communities: Indices) -> tuple[Indices, Indices, Floats]:
        """Return the positions in `nodes`, the communities of their neighbors, and the weights of the edges there."""
        owners, edges = self.edges_of(nodes)
        starts = np.searchsorted(owners, np.arange(len(nodes) + 1))
        targets = communities[self.neighbors[edges]]
        matrix = csr_array((self.weights[edges], targets, starts), shape=(len(nodes), self.n_nodes))
        matrix.sum_duplicates()
        return np.repeat(np.arange(len(nodes)), np.diff(matrix.indptr)), matrix.indices.astype(np.int64), matrix.data

    def merged(self, communities: Indices) -> "_Network":
        """Return the network whose nodes are the communities."""
        k = int(communities.max()) + 1
        sources = np.repeat(communities, np.diff(self.starts))
        targets = communities[self.neighbors]
        between = sources != targets
        matrix = csr_array((self.weights[between], (sources[between], targets[between])), shape=(k, k))
        matrix.sum_duplicates()
        return _Network.from_matrix(matrix, _sum_by(communities, self.flow, k))


@dataclass
class _Partition:
    """Communities, the flow in each, and the flow that leaves each."""

    communities: Indices
    flow: Floats
    leaving: Floats

    @classmethod
    def of(cls, network: _Network, communities: Indices) -> "_Partition":
        n = network.n_nodes
        sources = np.repeat(communities, np.diff(network.starts))
        leaves = sources != communities[network.neighbors]
        leaving = _sum_by(sources[leaves], network.weights[leaves], n)
        return cls(communities.copy(), _sum_by(communities, network.flow, n), leaving)

    def code_length(self) -> float:
        """Return the terms of the map equation that depend on the communities, in nats."""
        total = _plogp(self.leaving.sum())
        return float(total - 2 * _plogp(self.leaving).sum() + _plogp(self.leaving + self.flow).sum())

    def move(self, network: _Network, nodes: Indices, targets: Indices) -> None:
        """Move nodes to communities."""
        owners, edges = network.edges_of(nodes)
        ends = nodes[owners], network.neighbors[edges], network.weights[edges]
        is_moved = np.zeros(network.n_nodes, dtype=bool)
        is_moved[nodes] = True
        self.leaving -= self._leaving_weights(*ends, is_moved)
        np.subtract.at(self.flow, self.communities[nodes], network.flow[nodes])
        self.communities[nodes] = targets
        np.add.at(self.flow, targets, network.flow[nodes])
        self.leaving += self._leaving_weights(*ends, is_moved)
        for sums in (self.flow, self.leaving):
            np.maximum(sums, 0, out=sums)  # rounding may leave a value just below zero

    def _leaving_weights(
        self, sources: Indices, targets: Indices, weights: Floats, is_moved: NDArray[np.bool_]
    ) -> Floats:
        """Return by community the weight of edges that leave it, of edges that touch a moved node."""
        n = len(self.communities)
        from_, to = self.communities[sources], self.communities[targets]
        leaves = from_ != to
        back = leaves & ~is_moved[targets]  # edges between two moved nodes are listed in both directions
        return _sum_by(from_[leaves], weights[leaves], n) + _sum_by(to[back], weights[back], n)


def _move_nodes(network: _Network, communities: Indices, generator: np.random.Generator) -> Indices:
    """Move nodes to the communities of their neighbors until no move shortens the code."""
    partition = _Partition.of(network, communities)
    active = np.ones(network.n_nodes, dtype=bool)
    for _ in range(_MAX_SWEEPS):
        order = generator.permutation(np.flatnonzero(active))
        active[:] = False
        before = partition.code_length()
        for nodes in np.array_split(order, max(1, min(_BATCHES, len(order)))):
            changed = _move_batch(network, partition, nodes)
            active[changed] = True
            active[network.neighbors[network.edges_of(changed)[1]]] = True
        if partition.code_length() > before - _LEAST_GAIN:
            break
    return partition.communities


def _move_batch(network: _Network, partition: _Partition, nodes: Indices) -> Indices:
    """Make the best move of each node of a batch; return the nodes that moved.

    Each move shortens the code, but all moves together may not. The better half is tried then, and so on.
    """
    movers, targets, changes = _best_moves(network, partition, nodes)
    length = partition.code_length()
    while len(movers):
        origins = partition.communities[movers]
        partition.move(network, movers, targets)
        if partition.code_length() < length - _LEAST_GAIN:
            break
        partition.move(network, movers, origins)
        better = np.argsort(changes)[: len(movers) // 2]
        movers, targets, changes = movers[better], targets[better], changes[better]
    return movers


def _best_moves(network: _Network, partition: _Partition, nodes: Indices) -> tuple[Indices, Indices, Floats]:
    """Return the nodes that have a move which shortens the code, its target, and the change of the code length."""
    owners, targets, weights = network.weights_to_communities(nodes, partition.communities)
    stays = targets == partition.communities[nodes[owners]]
    weight_inside = np.zeros(len(nodes))
    weight_inside[owners[stays]] = weights[stays]
    owners, targets, weights = owners[~stays], targets[~stays], weights[~stays]
    changes = _changes(network, partition, nodes[owners], targets, (weight_inside[owners], weights))
    if not len(owners):
        return owners, targets, changes
    is_first = np.diff(owners, prepend=-1) > 0
    least = np.minimum.reduceat(changes, np.flatnonzero(is_first))[np.cumsum(is_first) - 1]
    best = np.flatnonzero((changes == least) & (changes < -_LEAST_GAIN))
    best = best[np.diff(owners[best], prepend=-1) > 0]  # the first of several moves with the same change
    return nodes[owners[best]], targets[best], changes[best]


def _changes(
    network: _Network, partition: _Partition, nodes: Indices, targets: Indices, weights: tuple[Floats, Floats]
) -> Floats:
    """Return the change of the code length for the move of each node to its target, all else unchanged.

    `weights` are those of each node's edges to its present community and to the target.
    """
    origins = partition.communities[nodes]
    flow, strength = network.flow[nodes], network.strength[nodes]
    leaving = partition.leaving[origins], partition.leaving[targets]
    inside = partition.flow[origins], partition.flow[targets]
    new_leaving = leaving[0] - strength + 2 * weights[0], leaving[1] + strength - 2 * weights[1]
    new_inside = inside[0] - flow, inside[1] + flow
    total = partition.leaving.sum()
    change: Floats = _plogp(total + sum(new_leaving) - sum(leaving)) - _plogp(total)
    for old, new, old_flow, new_flow in zip(leaving, new_leaving, inside, new_inside, strict=True):
        change += 2 * (_plogp(old) - _plogp(new)) + _plogp(new + new_flow) - _plogp(old + old_flow)
    return change


def _merge(network: _Network, communities: Indices, generator: np.random.Generator) -> Indices:
    """Merge communities as long as this shortens the code."""
    while True:
        merged = network.merged(communities)
        found = _compact(_move_nodes(merged, np.arange(merged.n_nodes), generator))
        if found.max() + 1 == merged.n_nodes:
            return communities
        communities = found[communities]


def _compact(communities: Indices) -> Indices:
    """Renumber communities from 0 without gaps."""
    return np.unique(communities, return_inverse=True)[1]


def _sum_by(groups: Indices, values: Floats, n_groups: int) -> Floats:
    return np.bincount(groups, values, n_groups).astype(np.float64, copy=False)


def _plogp(value: Any) -> Any:  # noqa: ANN401 (a number or an array)
    value = np.maximum(value, 0)  # rounding may leave a value just below zero
    return xlogy(value, value)
