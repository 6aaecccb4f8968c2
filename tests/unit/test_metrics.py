import math

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from udmlss import _chunks, metrics
from udmlss.neighbors import search

KS = (1, 2, 5)


def ranking(query, gallery, ignored=None):
    """Return the indices of the gallery by descending cosine with the query."""
    norms = [math.sqrt(sum(value * value for value in row)) for row in gallery]
    cosines = [
        sum(a * b for a, b in zip(query, row, strict=True)) / norm for row, norm in zip(gallery, norms, strict=True)
    ]
    return sorted((index for index in range(len(gallery)) if index != ignored), key=lambda index: -cosines[index])


def scores_by_hand(embeddings, labels, queries=None, query_labels=None, ks=KS):
    """Compute the scores with a loop over the queries and the ranks of each."""
    gallery, classes = embeddings.double().tolist(), labels.tolist()
    own_set = queries is None
    all_queries = gallery if own_set else queries.double().tolist()
    query_classes = classes if own_set else query_labels.tolist()
    recalls, average_precisions, precisions = {k: [] for k in ks}, [], []
    for number, (query, label) in enumerate(zip(all_queries, query_classes, strict=True)):
        order = ranking(query, gallery, number if own_set else None)
        hits = [classes[index] == label for index in order]
        r = sum(hits)
        if r == 0:
            continue
        for k in ks:
            recalls[k].append(any(hits[:k]))
        precisions.append(sum(hits[:r]) / r)
        average_precisions.append(sum(sum(hits[: rank + 1]) / (rank + 1) for rank in range(r) if hits[rank]) / r)
    means = {k: sum(values) / len(values) for k, values in recalls.items()}
    return *means.values(), sum(average_precisions) / len(average_precisions), sum(precisions) / len(precisions)


def as_tuple(scores):
    return *scores.recall_at.values(), scores.map_at_r, scores.r_precision


@st.composite
def searches(draw, with_queries=None):
    """A gallery with classes of any sizes, with or without separate queries."""
    n, n_classes = draw(st.integers(6, 25)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    labels = torch.tensor(draw(st.lists(st.integers(0, n_classes), min_size=n, max_size=n)))
    labels[:2] = 3  # at least one query has an item of its class
    embeddings = torch.randn(n, 3, generator=generator) + 0.5 * labels.unsqueeze(1)
    if not (draw(st.booleans()) if with_queries is None else with_queries):
        return embeddings, labels, None, None
    q = draw(st.integers(1, 10))
    query_labels = torch.tensor([3, *draw(st.lists(st.integers(0, n_classes + 1), min_size=q - 1, max_size=q - 1))])
    return embeddings, labels, torch.randn(q, 3, generator=generator), query_labels


@given(searches(), st.randoms())
@settings(max_examples=60, deadline=None)
def test_rankings_of_all_items_have_the_scores_of_the_embeddings(arguments, random):
    embeddings, labels, queries, query_labels = arguments
    labels = torch.where(torch.tensor([random.random() < 0.2 for _ in labels]) & (labels != 3), -1, labels)
    expected = metrics.retrieval(embeddings, labels, 1, queries=queries, query_labels=query_labels)
    searched = embeddings if queries is None else queries
    rankings = metrics.nearest(embeddings, len(embeddings), queries=searched)[
        1
    ]  # with the query itself, and the ignored
    found = metrics.score_rankings(rankings, labels, 1, query_labels=query_labels)
    assert as_tuple(found) == pytest.approx(as_tuple(expected))


def test_rankings_that_are_too_short_or_have_foreign_positions_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the signature rejects numbers, too
    rankings, labels = torch.tensor([[1, 2], [0, 2], [3, 1], [2, 0]]), [0, 0, 1, 0]
    assert metrics.score_rankings(rankings, labels, ks=(1, 2)).recall_at == {1: 2 / 3, 2: 1.0}
    with pytest.raises(ValueError, match=r"Row 0 of `rankings` must have at least 2 items .*, got 1\. Search for"):
        metrics.score_rankings(rankings[:, :1], labels, ks=1)
    with pytest.raises(ValueError, match=r"must have at least 3 items that are not ignored, got 2\."):
        metrics.score_rankings(rankings, labels, ks=3)
    with pytest.raises(ValueError, match=r"Positions in `rankings` must be from 0 to 3, got 0 to 4\."):
        metrics.score_rankings(rankings + (rankings == 3), labels, ks=1)
    with pytest.raises(ValueError, match=r"must have one row per item, got 3 rows for 4 items"):
        metrics.score_rankings(rankings[:3], labels, ks=1)
    with pytest.raises(ValueError, match=r"must have each item at most once, got an item twice in row 2"):
        metrics.score_rankings(torch.tensor([[1, 2], [0, 2], [3, 3], [2, 0]]), labels, ks=1)
    with pytest.raises(TypeError, match=r"`rankings` must be a tensor \(q, k\) of integers, got torch.float32"):
        metrics.score_rankings(rankings.float(), labels, ks=1)


@given(searches(), st.integers(1, 80), st.integers(1, 25))
@settings(max_examples=60, deadline=None)
def test_the_scores_are_those_by_hand_in_chunks_of_any_size(arguments, n_queries_at_once, n_rows_at_once):
    embeddings, labels, queries, query_labels = arguments
    expected = scores_by_hand(*arguments)
    keywords = {"queries": queries, "query_labels": query_labels}
    assert tuple(metrics.recall_at_k(embeddings, labels, KS, **keywords).values()) == pytest.approx(expected[:-2])
    assert metrics.map_at_r(embeddings, labels, **keywords) == pytest.approx(expected[-2])
    assert metrics.r_precision(embeddings, labels, **keywords) == pytest.approx(expected[-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_QUERIES_PER_CHUNK", n_queries_at_once)
        patch.setattr(_chunks, "_ROWS", n_rows_at_once)
        assert as_tuple(metrics.retrieval(embeddings, labels, KS, **keywords)) == pytest.approx(expected)


@pytest.mark.parametrize("with_queries", [False, True])
def test_the_scores_are_those_of_pytorch_metric_learning(with_queries):
    embeddings = torch.nn.functional.normalize(torch.randn(150, 6))
    labels = torch.randint(0, 12, (150,))
    labels[0] = 99  # this query has no other item of its class
    queries, query_labels = (embeddings[:40], labels[:40]) if with_queries else (None, None)
    gallery, gallery_labels = (embeddings[40:], labels[40:]) if with_queries else (embeddings, labels)
    names = ("precision_at_1", "mean_average_precision_at_r", "r_precision")
    theirs = AccuracyCalculator(include=names, k="max_bin_count", knn_func=CustomKNN(CosineSimilarity()))
    if with_queries:
        expected = theirs.get_accuracy(queries, query_labels, gallery, gallery_labels)
    else:
        expected = theirs.get_accuracy(gallery, gallery_labels)
    found = metrics.retrieval(gallery, gallery_labels, 1, queries=queries, query_labels=query_labels)
    assert as_tuple(found) == pytest.approx([expected[name] for name in names], abs=1e-6)


def test_a_duplicate_counts_and_a_query_without_an_item_of_its_class_does_not():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    assert metrics.recall_at_k(embeddings, [0, 0, 1, 2], 1) == {1: 1.0}
    assert metrics.recall_at_k(embeddings, [0, 1, 0, 1], (1, 3)) == {1: 0.0, 3: 1.0}
    assert metrics.recall_at_k(embeddings[1:], [0, 1, 2], 1, queries=embeddings[:1], query_labels=[0]) == {1: 1.0}
    assert as_tuple(metrics.retrieval(embeddings[1:], [7, 4, 4], (1, 2))) == (1.0, 1.0, 1.0, 1.0)


@given(searches())
@settings(max_examples=30, deadline=None)
def test_recall_rises_with_k_to_1(arguments):
    embeddings, labels, queries, query_labels = arguments
    most = len(embeddings) - (queries is None)
    recalls = metrics.recall_at_k(embeddings, labels, range(1, most + 1), queries=queries, query_labels=query_labels)
    assert list(recalls) == list(range(1, most + 1))
    assert sorted(recalls.values()) == list(recalls.values())
    assert recalls[most] == 1


@given(searches(with_queries=True), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_lengths_the_order_and_the_ids_of_the_classes_do_not_matter(arguments, random):
    embeddings, labels, queries, query_labels = arguments
    expected = as_tuple(metrics.retrieval(embeddings, labels, KS, queries=queries, query_labels=query_labels))
    lengths = 10 ** torch.empty(len(embeddings) + len(queries), 1).uniform_(-6, 6)
    order = torch.tensor(random.sample(range(len(labels)), len(labels)))
    found = metrics.retrieval(
        (embeddings * lengths[: len(embeddings)])[order],
        10**12 - 7 * labels[order],
        KS,
        queries=queries * lengths[len(embeddings) :],
        query_labels=10**12 - 7 * query_labels,
    )
    assert as_tuple(found) == pytest.approx(expected)


def test_embeddings_of_any_floating_type_and_labels_of_any_kind_are_accepted():
    labels = torch.arange(30) % 4
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        embeddings = torch.randn(30, 4).to(dtype)
        expected = metrics.retrieval(embeddings.float(), labels, KS)
        assert metrics.retrieval(embeddings.requires_grad_(), labels.to(torch.int8), KS) == expected
        for convert in (list, np.array):
            found = metrics.retrieval(embeddings, convert(labels.tolist()), list(KS))
            assert found == expected
    query_keywords = {"queries": torch.randn(3, 4), "query_labels": [0, 1, 2]}
    found = metrics.recall_at_k(torch.randn(30, 4), labels.numpy(), np.int64(2), **query_keywords)
    assert list(found) == [2]
    assert metrics.nmi(labels.tolist(), labels.numpy()) == pytest.approx(metrics.nmi(labels, labels))


@given(searches(), st.data())
@settings(max_examples=30, deadline=None)
def test_items_and_queries_with_a_negative_label_are_ignored(arguments, data):
    embeddings, labels, queries, query_labels = arguments
    expected = metrics.retrieval(embeddings, labels, KS, queries=queries, query_labels=query_labels)
    n = len(labels) + data.draw(st.integers(1, 9))
    rows = torch.tensor(sorted(data.draw(st.permutations(range(n)))[: len(labels)]))
    more, more_labels = torch.randn(n, 3), -torch.randint(1, 4, (n,))
    more[rows], more_labels[rows] = embeddings, labels
    if queries is not None:
        queries, query_labels = torch.cat([queries, embeddings[:2]]), torch.cat([query_labels, torch.tensor([-1, -1])])
    assert metrics.retrieval(more, more_labels, KS, queries=queries, query_labels=query_labels) == expected


def test_labels_that_are_all_negative_have_no_scores():
    with pytest.raises(ValueError, match=r"At least one query must have an item of its class, got none of 0 queries"):
        metrics.retrieval(torch.randn(4, 2), [-1, -1, -1, -1], 1)
    with pytest.raises(ValueError, match=r"`ks` must not exceed the number of items with a class .*, 1, got 2\."):
        metrics.retrieval(torch.randn(4, 2), [3, 3, -1, -1], 2)
    for score in (metrics.nmi, metrics.ami):
        with pytest.raises(ValueError, match=r"At least one item must have a class and a cluster, got none of 3 items"):
            score([-1, -1, 2], [0, 1, -1])
        with pytest.raises(ValueError, match=r"`labels` must hold at least one label, got none"):
            score(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64))


def test_items_without_a_class_or_a_cluster_do_not_change_nmi_and_ami():
    labels, clusters = torch.randint(0, 5, (2, 60))
    for score in (metrics.nmi, metrics.ami):
        expected = score(labels, clusters)
        assert score([-1, *labels.tolist(), 2, -7], [3, *clusters.tolist(), -1, -1]) == pytest.approx(expected)


def entropy(counts, n):
    return -sum(count / n * math.log(count / n) for count in counts if count)


groupings = st.integers(1, 60).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 8), min_size=n, max_size=n)] * 2))


@given(groupings)
@settings(max_examples=60, deadline=None)
def test_nmi_and_ami_are_those_of_scikit_learn_and_nmi_that_by_hand(pair):
    labels, clusters = pair
    n, pairs = len(labels), list(zip(labels, clusters, strict=True))
    total = sum(entropy([each.count(value) for value in set(each)], n) for each in pair)
    joint = entropy([pairs.count(each) for each in set(pairs)], n)
    expected = 1.0 if total == 0 else 2 * (total - joint) / total
    assert metrics.nmi(labels, clusters) == pytest.approx(expected, abs=1e-9)
    assert metrics.nmi(labels, clusters) == pytest.approx(normalized_mutual_info_score(*pair), abs=1e-9)
    assert metrics.ami(labels, clusters) == pytest.approx(adjusted_mutual_info_score(*pair), abs=1e-9)


@pytest.mark.parametrize("score", [metrics.nmi, metrics.ami])
def test_nmi_and_ami_do_not_depend_on_ids(score):
    labels, clusters = torch.randint(0, 7, (2, 200))
    assert score(labels, 100 - clusters) == pytest.approx(score(labels, clusters))
    assert score(labels, 5 * labels) == pytest.approx(1)


@pytest.mark.parametrize("n", [1, 2, 77, 1000, 100_000])
def test_clusterings_with_one_item_per_cluster_agree(n):
    assert metrics.ami(torch.arange(n), torch.arange(n).flip(0)) == 1


def test_by_chance_many_clusters_have_a_high_nmi_and_an_ami_of_0():
    labels, clusters = torch.randint(0, 200, (2, 1000))
    assert metrics.nmi(labels, clusters) > 0.6
    assert abs(metrics.ami(labels, clusters)) < 0.03


ROWS, LABELS = torch.randn(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
OTHERS = {"queries": torch.randn(2, 3), "query_labels": torch.tensor([0, 1])}


@pytest.mark.parametrize(
    ("arguments", "keywords", "kind", "sentence"),
    [
        ((ROWS, LABELS, 6), {}, ValueError, r"`ks` must not exceed the .*, 5, got 6\. Pass smaller numbers"),
        ((ROWS, LABELS, (1, 7)), OTHERS, ValueError, r"`ks` must not exceed the .*, 6, got 7\."),
        ((ROWS, LABELS, (0, 1)), {}, ValueError, r"`ks` must be at least 1, got 0\."),
        ((ROWS, LABELS, ()), {}, ValueError, r"`ks` must hold at least one integer, got \(\)\. Use \(1, 2, 4, 8\)\."),
        ((ROWS, LABELS, (1.0,)), {}, TypeError, r"`ks` must be an integer, got 1\.0 of type float\."),
        (
            (ROWS, range(6)),
            {},
            ValueError,
            r"At least one query must have an item of its class, got none of 6 queries\.",
        ),
        (
            (ROWS, LABELS),
            OTHERS | {"query_labels": None},
            ValueError,
            r"`queries` and `query_labels` must be given together, got only `queries`\. Pass both",
        ),
        ((ROWS, LABELS), OTHERS | {"queries": None}, ValueError, r"must be given together, got only `query_labels`\."),
        (
            (ROWS, LABELS[:5]),
            {},
            ValueError,
            r"`labels` must have shape \(6,\), one label per item, got shape \(5,\)\.",
        ),
        (
            (ROWS, LABELS),
            OTHERS | {"query_labels": LABELS},
            ValueError,
            r"`query_labels` must have shape \(2,\), .* \(6,\)",
        ),
        (
            (ROWS[:, :2], LABELS),
            OTHERS,
            ValueError,
            r"`queries` and `embeddings` must have the same dimension, got 3 and 2",
        ),
        ((ROWS / 0, LABELS), {}, ValueError, r"`embeddings` must be finite, got 6 of 6 rows"),
        ((ROWS, LABELS), OTHERS | {"queries": ROWS[:2] / 0}, ValueError, r"`queries` must be finite, got 2 of 2"),
        ((ROWS[:0], LABELS[:0]), {}, ValueError, r"`embeddings` must be a non-empty 2-D tensor, got shape \(0, 3\)"),
    ],
)
def test_retrieval_rejects_invalid_arguments(arguments, keywords, kind, sentence, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types of the signature reject some before
    with pytest.raises(kind, match=sentence):
        metrics.recall_at_k(*arguments, **keywords)


@pytest.mark.parametrize("score", [metrics.nmi, metrics.ami])
def test_nmi_and_ami_reject_labels_that_do_not_fit(score):
    with pytest.raises(ValueError, match=r"`clusters` must have shape \(6,\), one label per item, got shape \(5,\)"):
        score(LABELS, LABELS[:5])
    with pytest.raises(TypeError, match=r"`clusters` must be integers, got torch\.float32"):
        score(LABELS, LABELS.float())
    with pytest.raises(TypeError, match=r"`labels` must be integers, got torch\.float32"):
        score(LABELS.float(), LABELS)
