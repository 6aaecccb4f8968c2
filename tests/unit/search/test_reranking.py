import pytest
import torch
from torch.nn import functional

from udmlss.neighbors import nearest
from udmlss.search import SearchIndex


def overlapping_classes(n_classes=12, each=25, d=16):
    labels = torch.arange(n_classes).repeat_interleave(each)
    return functional.normalize(torch.randn(n_classes, d)[labels] + 1.3 * torch.randn(len(labels), d)), labels


def test_expanded_queries_are_the_weighted_sums_of_their_definition():
    rows, _ = overlapping_classes()
    queries = functional.normalize(torch.randn(7, 16))
    expected = []
    for query in queries:
        found = torch.stack([row * max(0, float(row @ query)) ** 3 for row in rows])
        nearest_rows = (rows @ query).topk(4).indices
        expected.append(query + found[nearest_rows].sum(dim=0))
    similarities, indices = nearest(rows, 5, queries=torch.stack(expected))
    ids, values = SearchIndex(rows).search(queries, 5, expand_neighbors=4)
    assert ids.tolist() == indices.tolist()
    assert values == pytest.approx(similarities.numpy(), abs=1e-6)


def encode_by_hand(query, rows, k1, is_item):
    """Return the weights of the k-reciprocal neighbors of a query, or of the item `query`, by sets."""

    def nearest_of(row, k, itself=None):
        order = (rows @ row).argsort(descending=True).tolist()
        return [index for index in order if index != itself][:k]

    def mutual(item, k):
        return {item} | {
            other for other in nearest_of(rows[item], k, item) if item in nearest_of(rows[other], k, other)
        }

    if is_item:
        found, row = mutual(query, k1), rows[query]
    else:
        reach = {item: rows[item] @ rows[nearest_of(rows[item], k1, item)[-1]] for item in range(len(rows))}
        found, row = {item for item in nearest_of(query, k1) if rows[item] @ query >= reach[item]}, query
    half = {item: mutual(item, round((k1 + 1) / 2)) for item in found}
    added = [half[item] for item in found if len(found & half[item]) > 2 / 3 * len(half[item])]
    weights = torch.zeros(len(rows), dtype=torch.float64)
    for item in found:
        weights[item] += 1
    for item in (item for each in added for item in each):
        weights[item] += 1
    weights = (weights > 0) * (2 * (rows @ row).double() - 2).exp()
    return weights / weights.sum().clamp(min=1e-12)


def test_reranked_similarities_are_those_of_their_definition():
    rows, _ = overlapping_classes(n_classes=4, each=15)
    queries = functional.normalize(torch.randn(5, 16) + rows[::12])
    k1, k2, n = 10, 3, len(rows)
    ids, similarities = SearchIndex(rows).search(queries, n, rerank_neighbors=k1)
    raw = torch.stack([encode_by_hand(item, rows, k1, is_item=True) for item in range(n)])
    lists = [[item, *nearest(rows, k2 - 1, queries=None)[1][item].tolist()] for item in range(n)]
    averaged = torch.stack([raw[members].mean(dim=0) for members in lists])
    for number, query in enumerate(queries):
        cosines = rows @ query
        members = [encode_by_hand(query, rows, k1, is_item=False), *raw[cosines.topk(k2 - 1).indices]]
        shared = torch.minimum(torch.stack(members).mean(dim=0), averaged).sum(dim=1)
        total = torch.stack(members).mean(dim=0).sum() + averaged.sum(dim=1)
        expected, order = (0.3 * cosines + 0.7 * (shared / (total - shared)).float()).sort(descending=True)
        assert similarities[number] == pytest.approx(expected.numpy(), abs=1e-5)
        assert (ids[number] == order.numpy()).mean() > 0.9  # items that share nothing may be equally similar


@pytest.mark.parametrize("settings", [{"expand_neighbors": 10}, {"rerank_neighbors": 15}])
def test_search_time_neighbors_find_more_images_of_the_class(settings):
    rows, labels = overlapping_classes()
    is_query = torch.arange(len(rows)) % 5 == 0
    gallery, of_gallery = rows[~is_query], labels[~is_query]
    precision = {
        name: float((of_gallery[torch.from_numpy(ids)] == labels[is_query].unsqueeze(1)).double().mean())
        for name, options in (("plain", {}), ("with neighbors", settings))
        for ids, _ in [SearchIndex(gallery).search(rows[is_query], 20, **options)]
    }
    assert precision["with neighbors"] > precision["plain"] + 0.02


def test_all_items_of_a_tiny_index_can_be_candidates():
    ids, similarities = SearchIndex(torch.eye(3)).search(torch.eye(3), 3, expand_neighbors=3, rerank_neighbors=2)
    assert ids[:, 0].tolist() == [0, 1, 2]
    assert sorted(ids[0]) == [0, 1, 2]
    assert (similarities[:, 0] > similarities[:, 1]).all()


def test_reranking_follows_added_and_removed_items():
    rows, _ = overlapping_classes(n_classes=4, each=10)
    index = SearchIndex(rows[:30])
    index.search(rows[:2], 3, rerank_neighbors=5)
    index.add(rows[30:], ids=range(30, 40))
    index.remove(range(5))
    found, expected = (
        each.search(rows[:9], 6, rerank_neighbors=5) for each in (index, SearchIndex(rows[5:], range(5, 40)))
    )
    assert found[0].tolist() == expected[0].tolist()
    assert found[1] == pytest.approx(expected[1])
