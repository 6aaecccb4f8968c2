import math
import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from udmlss import metrics

KS = (1, 2, 5)


def ranking(query, gallery, left_out=None):
    """Return the indices of the gallery by falling cosine with the query."""
    norms = [math.sqrt(sum(value * value for value in row)) for row in gallery]
    cosines = [
        sum(a * b for a, b in zip(query, row, strict=True)) / norm for row, norm in zip(gallery, norms, strict=True)
    ]
    return sorted((index for index in range(len(gallery)) if index != left_out), key=lambda index: -cosines[index])


def scores_by_hand(embeddings, labels, queries=None, query_labels=None, ks=KS):
    """Walk over the queries, and over the ranks of each."""
    gallery, classes = embeddings.double().tolist(), labels.tolist()
    alone = queries is None
    asked = gallery if alone else queries.double().tolist()
    wanted = classes if alone else query_labels.tolist()
    recalls, averages, precisions = {k: [] for k in ks}, [], []
    for number, (query, label) in enumerate(zip(asked, wanted, strict=True)):
        order = ranking(query, gallery, number if alone else None)
        hits = [classes[index] == label for index in order]
        r = sum(hits)
        if r == 0:
            continue
        for k in ks:
            recalls[k].append(any(hits[:k]))
        precisions.append(sum(hits[:r]) / r)
        averages.append(sum(sum(hits[: rank + 1]) / (rank + 1) for rank in range(r) if hits[rank]) / r)
    means = {k: sum(found) / len(found) for k, found in recalls.items()}
    return means, sum(averages) / len(averages), sum(precisions) / len(precisions)


def as_tuple(found):
    return *found.recall_at.values(), found.map_at_r, found.r_precision


@st.composite
def searches(draw, apart=None):
    """A gallery with classes of any sizes, and queries apart from it or not."""
    n, classes = draw(st.integers(6, 25)), draw(st.integers(1, 5))
    shift = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    labels = torch.tensor(draw(st.lists(st.integers(0, classes), min_size=n, max_size=n)))
    labels[:2] = 3  # one pair at least
    embeddings = torch.randn(n, 3, generator=shift) + 0.5 * labels.unsqueeze(1)
    if not (draw(st.booleans()) if apart is None else apart):
        return embeddings, labels, None, None
    q = draw(st.integers(1, 10))
    query_labels = torch.tensor([3, *draw(st.lists(st.integers(0, classes + 1), min_size=q - 1, max_size=q - 1))])
    return embeddings, labels, torch.randn(q, 3, generator=shift), query_labels


@given(searches())
@settings(max_examples=60, deadline=None)
def test_the_scores_are_those_of_a_walk_over_the_ranks(search):
    embeddings, labels, queries, query_labels = search
    apart = {"queries": queries, "query_labels": query_labels}
    recalls, average, precision = scores_by_hand(*search)
    assert metrics.recall_at_k(embeddings, labels, KS, **apart) == pytest.approx(recalls)
    assert metrics.map_at_r(embeddings, labels, **apart) == pytest.approx(average)
    assert metrics.r_precision(embeddings, labels, **apart) == pytest.approx(precision)
    found = metrics.retrieval(embeddings, labels, KS, **apart)
    assert as_tuple(found) == pytest.approx((*recalls.values(), average, precision))


@pytest.mark.parametrize("apart", [False, True])
def test_the_scores_are_those_of_pytorch_metric_learning(apart):
    embeddings = torch.nn.functional.normalize(torch.randn(150, 6))
    labels = torch.randint(0, 12, (150,))
    labels[0] = 99  # nothing to find for this one
    queries, query_labels = (embeddings[:40], labels[:40]) if apart else (None, None)
    gallery, gallery_labels = (embeddings[40:], labels[40:]) if apart else (embeddings, labels)
    names = ("precision_at_1", "mean_average_precision_at_r", "r_precision")
    theirs = AccuracyCalculator(include=names, k="max_bin_count", knn_func=CustomKNN(CosineSimilarity()))
    if apart:
        expected = theirs.get_accuracy(queries, query_labels, gallery, gallery_labels)
    else:
        expected = theirs.get_accuracy(gallery, gallery_labels)
    found = metrics.retrieval(gallery, gallery_labels, (1,), queries=queries, query_labels=query_labels)
    assert as_tuple(found) == pytest.approx([expected[name] for name in names], abs=1e-6)


def test_an_item_is_no_neighbour_of_its_own_and_its_exact_duplicate_is_one():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    assert metrics.recall_at_k(embeddings, torch.tensor([0, 0, 1, 2]), (1,)) == {1: 1.0}
    assert metrics.recall_at_k(embeddings, torch.tensor([0, 1, 0, 1]), (1, 3)) == {1: 0.0, 3: 1.0}
    assert metrics.nearest(embeddings, 1)[1].flatten().tolist() == [1, 0, 3, 2]


def test_many_exact_duplicates_leave_an_item_no_neighbour_of_its_own():
    embeddings = torch.ones(9, 2)
    found = metrics.nearest(embeddings, 3)[1]
    assert found.shape == (9, 3)
    assert not (found == torch.arange(9).unsqueeze(1)).any()
    assert all(len(row.unique()) == 3 for row in found)


@pytest.mark.parametrize("apart", [False, True])
def test_faiss_and_pytorch_find_the_same(apart, monkeypatch):
    embeddings = torch.randn(60, 8)
    queries = torch.randn(20, 8) if apart else None
    found = metrics.nearest(embeddings, 7, queries=queries)[1]
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert torch.equal(metrics.nearest(embeddings, 7, queries=queries)[1], found)


def test_queries_apart_find_their_own_copy_in_the_gallery():
    embeddings, labels = torch.randn(8, 4), torch.arange(8)
    assert metrics.recall_at_k(embeddings, labels, (1,), queries=embeddings, query_labels=labels) == {1: 1.0}
    assert metrics.nearest(embeddings, 1, queries=embeddings)[1].flatten().tolist() == list(range(8))


def test_a_query_with_nothing_to_find_is_not_counted():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    found = metrics.retrieval(embeddings, torch.tensor([4, 4, 7]), (1, 2))
    assert as_tuple(found) == (1.0, 1.0, 1.0, 1.0)


@given(searches())
@settings(max_examples=30, deadline=None)
def test_recall_never_falls_with_k_and_is_1_at_the_whole_gallery(search):
    embeddings, labels, queries, query_labels = search
    most = len(embeddings) - (queries is None)
    ks = range(1, most + 1)
    recalls = metrics.recall_at_k(embeddings, labels, ks, queries=queries, query_labels=query_labels)
    assert list(recalls) == list(ks)
    assert sorted(recalls.values()) == list(recalls.values())
    assert recalls[most] == 1


@given(searches(), st.integers(1, 80))
@settings(max_examples=40, deadline=None)
def test_searching_in_chunks_changes_nothing(search, chunk):
    embeddings, labels, queries, query_labels = search
    whole = metrics.retrieval(embeddings, labels, KS, queries=queries, query_labels=query_labels)
    nearest = metrics.nearest(embeddings, 5, queries=queries)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_QUERIES_PER_CHUNK", chunk)
        parts = metrics.retrieval(embeddings, labels, KS, queries=queries, query_labels=query_labels)
        assert torch.equal(metrics.nearest(embeddings, 5, queries=queries)[1], nearest)
    assert as_tuple(parts) == pytest.approx(as_tuple(whole), abs=1e-12)


@given(searches(apart=True))
@settings(max_examples=30, deadline=None)
def test_the_length_of_a_row_does_not_matter(search):
    embeddings, labels, queries, query_labels = search
    lengths = 10 ** torch.empty(len(embeddings) + len(queries), 1).uniform_(-6, 6)
    scaled = embeddings * lengths[: len(embeddings)], queries * lengths[len(embeddings) :]
    assert torch.equal(
        metrics.nearest(scaled[0], 6, queries=scaled[1])[1], metrics.nearest(embeddings, 6, queries=queries)[1]
    )
    found = metrics.retrieval(scaled[0], labels, KS, queries=scaled[1], query_labels=query_labels)
    expected = metrics.retrieval(embeddings, labels, KS, queries=queries, query_labels=query_labels)
    assert as_tuple(found) == pytest.approx(as_tuple(expected))


@given(searches(apart=False), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_neither_the_order_of_the_items_nor_the_names_of_the_classes_matter(search, draws):
    embeddings, labels, _, _ = search
    order = list(range(len(labels)))
    draws.shuffle(order)
    expected = metrics.retrieval(embeddings, labels, KS)
    assert as_tuple(metrics.retrieval(embeddings[order], labels[order], KS)) == pytest.approx(as_tuple(expected))
    assert as_tuple(metrics.retrieval(embeddings, 10**12 - 7 * labels, KS)) == pytest.approx(as_tuple(expected))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_of_any_floating_type_and_labels_of_any_whole_type_are_taken(dtype):
    embeddings, labels = torch.randn(30, 4).to(dtype), torch.arange(30) % 4
    expected = metrics.retrieval(embeddings.float(), labels, KS)
    assert metrics.retrieval(embeddings.requires_grad_(), labels.to(torch.int8), KS) == expected


def test_the_nearest_are_the_most_similar_best_first():
    embeddings, queries = torch.randn(20, 4), torch.randn(5, 4)
    expected = [ranking(query, embeddings.tolist())[:7] for query in queries.tolist()]
    assert metrics.nearest(embeddings, 7, queries=queries)[1].tolist() == expected
    alone = [ranking(row, embeddings.tolist(), number)[:19] for number, row in enumerate(embeddings.tolist())]
    assert metrics.nearest(embeddings, 19)[1].tolist() == alone


def entropy(counts, n):
    return -sum(count / n * math.log(count / n) for count in counts if count)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=2, max_size=30))
@settings(max_examples=50, deadline=None)
def test_nmi_is_twice_the_shared_entropy_over_the_sum_of_both(pairs):
    labels, clusters = zip(*pairs, strict=True)
    n = len(pairs)
    of_labels, of_clusters = (entropy([each.count(value) for value in set(each)], n) for each in (labels, clusters))
    of_both = entropy([pairs.count(pair) for pair in set(pairs)], n)
    total = of_labels + of_clusters
    expected = 1.0 if total == 0 else 2 * (total - of_both) / total
    assert metrics.nmi(torch.tensor(labels), torch.tensor(clusters)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(metrics.nmi, normalized_mutual_info_score), (metrics.ami, adjusted_mutual_info_score)]
)
def test_nmi_and_ami_are_those_of_scikit_learn_whatever_the_clusters_are_called(ours, theirs):
    labels, clusters = torch.randint(0, 7, (2, 200))
    assert ours(labels, clusters) == pytest.approx(theirs(labels, clusters))
    assert ours(labels, 100 - clusters) == pytest.approx(ours(labels, clusters))
    assert ours(labels, 5 * labels) == pytest.approx(1)


groupings = st.integers(1, 60).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 8), min_size=n, max_size=n)] * 2))


@given(groupings)
def test_ami_is_that_of_scikit_learn_for_any_two_groupings(pair):
    labels, clusters = map(torch.tensor, pair)
    assert metrics.ami(labels, clusters) == pytest.approx(adjusted_mutual_info_score(*pair), abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 100_000])
def test_items_all_alone_in_both_agree(n):
    alone = torch.arange(n)
    assert metrics.ami(alone, alone.flip(0)) == 1


def test_many_clusters_by_chance_have_a_high_nmi_and_an_ami_of_0():
    labels, clusters = torch.randint(0, 200, (2, 1000))
    assert metrics.nmi(labels, clusters) > 0.6
    assert abs(metrics.ami(labels, clusters)) < 0.03


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory where Linux tells it")
def test_twenty_thousand_items_are_searched_without_a_matrix_of_all_similarities():
    code = """
import re, torch
from udmlss import chunking, metrics
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 2**20
embeddings, labels = torch.randn(20_000, 32), torch.arange(20_000) % 2_000
metrics.retrieval(embeddings[:100], labels[:100] % 10)
before = peak()
metrics.retrieval(embeddings, labels)
print(peak() - before)
"""
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 (our own code)
    assert float(found.stdout) < 0.8  # GiB; the whole matrix has 1.5


ROWS, LABELS = torch.randn(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
OTHERS, OTHER_LABELS = torch.randn(2, 3), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("arguments", "keywords", "sentence"),
    [
        (
            (ROWS, LABELS, (1, 6)),
            {},
            r"k=6 must lie between 1 and the number of items to find, got 5\. Use at most 5\.",
        ),
        ((ROWS, LABELS, (7,)), {"queries": OTHERS, "query_labels": OTHER_LABELS}, r"k=7 must lie .*, got 6\. Use"),
        ((ROWS, LABELS, (0, 1)), {}, r"`ks` must .* at least 1, got \[0, 1\]\. "),
        ((ROWS, LABELS, (-1, 2)), {}, r"`ks` must .* at least 1, got \[-1, 2\]\. "),
        ((ROWS, LABELS, ()), {}, r"`ks` must .*, got \[\]\. "),
        ((ROWS, torch.arange(6)), {}, r"A query needs another item of its class, got none for any query\. Look at"),
        (
            (ROWS, LABELS),
            {"queries": OTHERS},
            r"`queries` and `query_labels` go together, got `queries` alone\. Pass",
        ),
        ((ROWS, LABELS), {"query_labels": OTHER_LABELS}, r"go together, got `query_labels` alone\. Pass both, or"),
        ((ROWS, LABELS[:5]), {}, r"`labels` must have shape \(6,\), one label per item, got shape \(5,\)\. Pass one"),
        (
            (ROWS, LABELS),
            {"queries": OTHERS, "query_labels": LABELS},
            r"`query_labels` must have shape \(2,\), .* \(6,\)",
        ),
        (
            (ROWS, LABELS),
            {"queries": OTHERS[:, :2], "query_labels": OTHER_LABELS},
            r"`queries` and `embeddings` must have one dimension, got 2 and 3 dimensions\. Embed both with one",
        ),
        ((ROWS / 0, LABELS), {}, r"`embeddings` must be finite, got 6 of 6 rows"),
        (
            (ROWS, LABELS),
            {"queries": OTHERS / 0, "query_labels": OTHER_LABELS},
            r"`queries` must be finite, got 2 of 2",
        ),
        ((ROWS[:0], LABELS[:0]), {}, r"`embeddings` must be a non-empty matrix \(n d\), got shape \(0, 3\)"),
    ],
)
def test_what_cannot_be_scored_is_refused(arguments, keywords, sentence, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types in the signature refuse some, too
    with pytest.raises(ValueError, match=sentence):
        metrics.recall_at_k(*arguments, **keywords)


@pytest.mark.parametrize("k", [0, 6])
def test_more_nearest_than_there_are_is_refused(k):
    with pytest.raises(ValueError, match=rf"k={k} must lie between 1 and the number of items to find, got 5\."):
        metrics.nearest(ROWS, k)[1]


@pytest.mark.parametrize("score", [metrics.nmi, metrics.ami])
def test_clusters_of_another_number_of_items_are_refused(score, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types in the signature refuse it, too
    with pytest.raises(ValueError, match=r"`clusters` must have shape \(6,\), one label per item, got shape \(5,\)"):
        score(LABELS, LABELS[:5])
    with pytest.raises(TypeError, match=r"`clusters` must be whole numbers, got torch\.float32"):
        score(LABELS, LABELS.float())


@pytest.mark.parametrize("score", [metrics.nmi, metrics.ami])
def test_classes_that_are_no_labels_are_refused(score, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types in the signature refuse it, too
    with pytest.raises(TypeError, match=r"`labels` must be whole numbers, got torch\.float32"):
        score(LABELS.float(), LABELS)
    with pytest.raises(TypeError, match=r"`labels` must be a tensor \(n\), got list"):
        score(LABELS.tolist(), LABELS)


@pytest.mark.parametrize("rows", [4, 9, 40])
@pytest.mark.parametrize(
    ("limit", "most"),
    [("_QUERIES_PER_CHUNK", 1), ("_QUERIES_PER_CHUNK", 9), ("_NEIGHBORS_PER_CHUNK", 1), ("_NEIGHBORS_PER_CHUNK", 90)],
)
@pytest.mark.parametrize("apart", [False, True])
def test_the_size_of_what_is_read_at_once_changes_no_score(monkeypatch, rows, limit, most, apart):
    embeddings, labels = torch.randn(40, 5), torch.arange(40) % 6
    asked = {"queries": torch.randn(7, 5), "query_labels": torch.arange(7) % 6} if apart else {}
    whole = metrics.retrieval(embeddings, labels, (1, 3, 30), **asked)
    order = metrics.nearest(embeddings, 30, queries=asked.get("queries"))[1]
    monkeypatch.setattr(chunking, "_ROWS", rows)
    monkeypatch.setattr(metrics, limit, most)
    assert as_tuple(metrics.retrieval(embeddings, labels, (1, 3, 30), **asked)) == pytest.approx(as_tuple(whole))
    assert torch.equal(metrics.nearest(embeddings, 30, queries=asked.get("queries"))[1], order)
