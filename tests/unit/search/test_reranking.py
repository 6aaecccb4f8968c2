import pytest
import torch
from torch.nn import functional

from udmlss.neighbors import k_reciprocal_similarity, nearest
from udmlss.search import SearchIndex, reranking


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


@pytest.mark.parametrize("numbers", [2**22, 1])
def test_reranked_similarities_are_those_of_the_set_of_each_query_and_its_candidates(monkeypatch, numbers):
    monkeypatch.setattr(reranking, "_NUMBERS", numbers)
    rows, _ = overlapping_classes()
    queries = functional.normalize(torch.randn(5, 16))
    ids, similarities = SearchIndex(rows).search(queries, 12, rerank_neighbors=10)
    for number, query in enumerate(queries):
        cosines, candidates = nearest(rows, 50, queries=query.unsqueeze(0))
        members = torch.cat([query.unsqueeze(0), rows[candidates[0]]])
        shared = k_reciprocal_similarity(members, nearest(members, 10)[1], k1=11, k2=3).toarray()[0, 1:]
        expected, order = (0.3 * cosines[0] + 0.7 * torch.from_numpy(shared).float()).topk(12)
        assert similarities[number] == pytest.approx(expected.numpy(), abs=1e-6)
        assert ids[number].tolist() == candidates[0, order].tolist()


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
    ids, similarities = SearchIndex(torch.eye(3)).search(torch.eye(3), 3, expand_neighbors=3, rerank_neighbors=3)
    assert ids[:, 0].tolist() == [0, 1, 2]
    assert sorted(ids[0]) == [0, 1, 2]
    assert (similarities[:, 0] > similarities[:, 1]).all()
