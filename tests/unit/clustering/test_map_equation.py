from math import log

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.metrics import adjusted_rand_score

from udmlss.clustering.map_equation import compression, map_equation_communities


def random_graph(groups, inside, between, seed=0):
    """Return weights between nodes, more and larger inside groups than between them."""
    generator = np.random.default_rng(seed)
    same = groups[:, None] == groups[None]
    edges = generator.random(same.shape) < np.where(same, inside, between)
    weights = np.triu(edges * generator.uniform(0.2, 1, same.shape), 1)
    return csr_array(weights + weights.T)


def code_length(weights, communities):
    """Return the two-level map equation in nats, term by term from Rosvall and Bergstrom (2008)."""
    weights = weights.toarray() / weights.sum()
    flow = weights.sum(axis=1)
    exits, codes = [], 0.0
    for community in set(communities.tolist()):
        inside = communities == community
        exits.append(weights[inside][:, ~inside].sum())
        rates = [exits[-1], *flow[inside]]
        codes += -sum(rate * log(rate / sum(rates)) for rate in rates if rate > 0)
    return codes - sum(rate * log(rate / sum(exits)) for rate in exits if rate > 0)


@pytest.mark.parametrize("seed", range(5))
def test_planted_groups_are_found(seed):
    groups = np.repeat(np.arange(8), np.arange(6, 38, 4))
    found = map_equation_communities(random_graph(groups, 0.9, 0.01, seed), seed=seed)
    assert adjusted_rand_score(groups, found) == 1


@pytest.mark.parametrize("seed", range(5))
def test_no_move_of_one_node_and_no_merge_of_two_communities_shortens_the_code(seed):
    weights = random_graph(np.arange(40) % 4, 0.4, 0.1, seed)
    found = map_equation_communities(weights, seed=seed)
    least = code_length(weights, found)
    assert least <= code_length(weights, np.zeros(40, dtype=int)) + 1e-9
    for node in range(40):
        for target in set(found[weights[[node]].indices].tolist()):
            moved = found.copy()
            moved[node] = target
            assert code_length(weights, moved) > least - 1e-9
    for one in set(found.tolist()):
        for other in set(found.tolist()):
            assert code_length(weights, np.where(found == one, other, found)) > least - 1e-9


def test_a_graph_without_edges_and_a_complete_graph_have_communities():
    assert map_equation_communities(csr_array((5, 5))).tolist() == [0, 1, 2, 3, 4]
    assert set(map_equation_communities(csr_array(1 - np.eye(60))).tolist()) == {0}


def test_nodes_without_edges_are_communities_of_their_own():
    weights = csr_array(([1.0, 1.0], ([0, 1], [1, 0])), shape=(4, 4))
    assert map_equation_communities(weights).tolist() == [0, 0, 1, 2]


def test_compression_is_the_length_of_the_description_with_one_community_minus_that_with_the_given_ones():
    weights = random_graph(np.arange(20) % 2, 0.5, 0.2)
    communities = np.arange(20) % 2
    expected = code_length(weights, np.zeros(20, dtype=int)) - code_length(weights, communities)
    assert compression(weights, communities) == pytest.approx(expected)
