import itertools
import subprocess
import sys
import warnings

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from points import blobs, noise, objective
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from udmlss._checks import check_not_collapsed
from udmlss.clustering.kmeans import _fill_empty, cluster_means, k_means
from udmlss.clustering.matching import agreement, match_ids

BACKENDS = ("faiss", "scikit-learn")
FEWER = r"`n_clusters=50` needs as many embeddings that differ; going on with 30 clusters"


def same_groups(labels, groups):
    pairs = set(zip(labels.tolist(), groups.tolist(), strict=True))
    return len(pairs) == len(labels.unique()) == len(groups.unique())


@pytest.fixture(params=BACKENDS)
def cluster(request, monkeypatch):
    """`k_means` in each backend."""
    if request.param == "faiss":
        pytest.importorskip("faiss")
        return k_means
    monkeypatch.setitem(sys.modules, "faiss", None)

    def in_sklearn(*args, **keywords):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            labels = k_means(*args, **keywords)
        for each in caught:
            if "k-means runs in scikit-learn" not in str(each.message):
                warnings.warn(each.message, stacklevel=2)
        return labels

    return in_sklearn


INPUTS = {
    "blobs": (blobs(6, 15)[0], 6),
    "noise": (noise(), 10),
    "one dimension": (noise(200, 1), 7),
    "as many clusters as rows": (noise(12, 3), 12),
    "nearly as many clusters as rows": (noise(40, 3), 37),
    "two rows": (noise(2, 5), 2),
    "tiny": (noise() * 1e-12, 10),
    "huge": (noise() * 1e12, 10),
    "far from the origin": (noise() + 100, 10),
    "unit length": (torch.nn.functional.normalize(noise()), 20),
    "one row apart from equal ones": (torch.cat([torch.zeros(50, 2), torch.ones(1, 2)]), 2),
    "double": (noise().double(), 10),
    "half": (noise().half(), 10),
    "bfloat16": (noise().bfloat16(), 10),
}


@pytest.mark.parametrize("name", INPUTS)
def test_every_row_gets_a_cluster_and_every_cluster_a_row(cluster, name):
    points, k = INPUTS[name]
    labels = cluster(points, k)
    assert labels.dtype == torch.int64
    assert labels.shape == (len(points),)
    assert labels.unique().tolist() == list(range(k))


@pytest.mark.parametrize("seed", range(8))
def test_groups_far_apart_are_the_clusters_whatever_the_seed(cluster, seed):
    points, group = blobs(6, 15)
    assert normalized_mutual_info_score(group, cluster(points, 6, seed=seed)) == pytest.approx(1)


def test_groups_far_apart_are_the_clusters_when_started_from_one_row_of_each(cluster):
    points, group = blobs(6, 15)
    start = torch.stack([points[group == each][0] for each in range(6)])
    assert torch.equal(cluster(points, 6, start=start), group)


def test_where_it_ends_every_row_is_nearest_to_the_mean_of_its_own_cluster(cluster):
    points = noise(120, 3)
    labels = cluster(points, 5, max_iter=300)
    means = torch.stack([points[labels == each].mean(dim=0) for each in range(5)])
    for point, label in zip(points, labels.tolist(), strict=True):
        distances = [float((point - mean).norm()) for mean in means]
        assert distances[label] <= min(distances) + 1e-5


def test_the_objective_is_that_of_scikit_learn_from_the_same_start(cluster):
    points = noise(400, 8)
    start = points[:12]
    theirs = KMeans(12, init=start.numpy(), n_init=1, max_iter=25).fit(points.numpy())
    assert objective(points, cluster(points, 12, start=start)) == pytest.approx(theirs.inertia_, rel=0.01)


def test_one_run_comes_near_the_best_of_several_on_points_without_clusters(cluster):
    points = noise(400, 8)
    best = KMeans(12, n_init=5, random_state=0).fit(points.numpy()).inertia_
    assert objective(points, cluster(points, 12)) < 1.08 * best


def test_every_row_takes_part_however_many_there_are(cluster):
    points = torch.cat([noise(6000, 2), torch.tensor([[1000.0, 1000.0]])])  # more than the 256 a cluster faiss takes
    start = torch.stack([points[0], points[-1]])
    assert cluster(points, 2, start=start).bincount().tolist() == [6000, 1]


def test_equal_rows_share_a_cluster_and_too_few_that_differ_give_fewer_clusters_with_a_warning(cluster):
    distinct = noise(30, 8)
    with pytest.warns(UserWarning, match=FEWER):
        labels = cluster(distinct.repeat_interleave(20, dim=0), 50)
    assert labels.unique().tolist() == list(range(30))
    assert same_groups(labels, torch.arange(30).repeat_interleave(20))


def test_a_start_far_from_every_row_leaves_no_cluster_empty(cluster):
    labels = cluster(noise(), 10, start=torch.full((10, 8), 1e3))
    assert (labels.bincount(minlength=10) > 0).all()


@pytest.mark.parametrize("rows", [1, 3, 6])
def test_a_start_may_have_fewer_rows_than_clusters(cluster, rows):
    points, group = blobs(6, 15)
    start = torch.stack([points[group == each].mean(dim=0) for each in range(rows)])
    labels = cluster(points, 6, start=start)
    assert labels.unique().tolist() == list(range(6))
    for each in range(rows):  # a group that had its own start shares its cluster with no other that had
        assert (labels[group == each] == each).any()


@pytest.mark.parametrize("shape", [(7, 4), (6, 3), (6, 5)])
def test_a_start_of_another_shape_is_refused(monkeypatch, shape):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types in the signature refuse some, too
    sentence = rf"`start` must have shape \(6, 4\) or fewer rows, got \({shape[0]}, {shape[1]}\)\. Pass the centroids"
    with pytest.raises(ValueError, match=sentence):
        k_means(noise(90, 4), 6, start=torch.zeros(shape))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_start_that_is_not_finite_is_refused(value):
    start = blobs(6, 15)[0][:6].clone()
    start[2, 1] = value
    with pytest.raises(ValueError, match=r"`start` must be finite, got 1 of 6 rows .* the first is row 2"):
        k_means(blobs(6, 15)[0], 6, start=start)


def test_a_cluster_that_ends_empty_is_given_a_row(monkeypatch):
    points = torch.tensor([[0.0], [0.1], [5.0], [0.3]])
    monkeypatch.setattr(clustering, "lloyd", lambda *_: (torch.tensor([0, 0, 0, 2]), None))
    assert k_means(points, 3).tolist() == [0, 0, 1, 2]


def test_nothing_is_printed_where_clusters_are_small(cluster, capfd):
    cluster(noise(40, 3), 20)
    assert capfd.readouterr() == ("", "")


def test_the_same_seed_gives_the_same_labels_and_another_one_others(cluster):
    points = noise()
    assert torch.equal(cluster(points, 10, seed=5), cluster(points, 10, seed=5))
    assert not same_groups(cluster(points, 10, seed=5), cluster(points, 10, seed=6))


def test_no_global_random_state_is_read_or_changed(cluster):
    numpys, torchs = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002 (the one to leave alone)
    before = cluster(noise(), 10)
    assert np.array_equal(numpys, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(torchs, torch.get_rng_state())
    torch.rand(1)
    np.random.random()  # noqa: NPY002
    assert torch.equal(before, cluster(noise(), 10))


def test_neither_the_embeddings_nor_the_start_are_changed(cluster):
    points, start = noise(), noise()[:10].clone()
    cluster(points, 10, start=start)
    assert torch.equal(points, noise())
    assert torch.equal(start, noise()[:10])


def test_embeddings_with_a_gradient_and_columns_apart_in_memory_are_taken(cluster):
    points = noise()
    expected = cluster(points, 10)
    assert torch.equal(expected, cluster(points.clone().requires_grad_(), 10))
    assert torch.equal(expected, cluster(points.T.contiguous().T, 10))


def test_without_faiss_scikit_learn_stands_in_and_says_so_once_with_the_line_to_type():
    code = """
import sys, torch
sys.modules["faiss"] = None
from udmlss.clustering import k_means
for seed in range(3):
    print(len(k_means(torch.randn(20, 2), 4, seed=seed)))
"""
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 (our own code)
    assert found.stdout == "20\n20\n20\n"
    assert found.stderr.count('faiss is not installed. `pip install "udmlss[faiss-cpu]"`') == 1


@pytest.mark.parametrize(
    ("points", "k", "sentence"),
    [
        (noise(), 1, r"`n_clusters` must be at least 2, got 1\. Raise it\."),
        (noise(5, 2), 6, r"`n_clusters=6` needs at least as many images, got 5\. Lower it, or add images\."),
        (
            torch.ones(9, 3),
            2,
            r"Clustering needs embeddings that differ, got 9 equal rows, .*\[9\].* collapsed\. ",
        ),
        (torch.zeros(9, 3), 2, r"Clustering needs embeddings that differ, got 9 equal rows"),
        (torch.zeros(0, 3), 2, r"`embeddings` must be a non-empty matrix \(n d\), got shape \(0, 3\)\. Flatten"),
        (torch.tensor([[1.0], [torch.nan], [torch.inf]]), 2, r"`embeddings` must be finite, got 2 of 3 .* row 1\. "),
    ],
)
def test_what_cannot_be_clustered_is_refused(points, k, sentence):
    with pytest.raises(ValueError, match=sentence):
        k_means(points, k)


def test_whole_numbers_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types in the signature refuse it, too
    with pytest.raises(TypeError, match=r"`embeddings` must hold floating-point numbers, got torch\.int64\. Call"):
        k_means(torch.arange(6).view(6, 1), 2)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**40])
def test_a_seed_of_more_than_32_bits_is_refused(seed):
    with pytest.raises(ValueError, match=rf"`seed` must lie in 0\.\.4294967295, got {seed}\. Choose a number in"):
        k_means(noise(), 10, seed=seed)


def test_the_largest_seed_is_taken(cluster):
    assert len(cluster(noise(), 10, seed=2**32 - 1)) == 300


def test_rows_equal_to_rounding_are_equal_and_rows_a_thousandth_apart_are_not():
    row = torch.nn.functional.normalize(noise(1, 64))
    with pytest.raises(ValueError, match="embeddings that differ"):
        check_not_collapsed(row + 1e-7 * noise(10, 64) / 8)
    check_not_collapsed(row + 1e-3 * noise(10, 64) / 8)


def filled_by_hand(points, labels, k):
    """Walk the rows from the one farthest from its mean; each leaves for an empty cluster if it leaves none behind."""
    labels = labels.copy()
    means = {each: points[labels == each].mean(axis=0) for each in set(labels.tolist())}
    distance = [float(np.linalg.norm(point - means[label])) for point, label in zip(points, labels, strict=True)]
    empty = [each for each in range(k) if each not in means]
    for row in sorted(range(len(points)), key=lambda each: -distance[each]):
        if empty and distance[row] > 1e-5 * np.linalg.norm(points, axis=1).max() and (labels == labels[row]).sum() > 1:
            labels[row] = empty.pop()
    return labels


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_empty_clusters_are_given_the_rows_farthest_from_their_means(data):
    n, k = data.draw(st.integers(2, 12)), data.draw(st.integers(2, 6))
    points = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(n, 2)).astype(np.float32)
    labels = np.array(data.draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n)))
    before = labels.copy()
    filled = _fill_empty(*map(torch.from_numpy, (points, labels, np.bincount(labels, minlength=k)))).numpy()
    assert np.array_equal(labels, before)
    assert np.array_equal(filled, filled_by_hand(points, labels, k))
    assert set(labels) <= set(filled)
    assert len(set(filled)) <= k


def test_equal_rows_fill_no_empty_cluster():
    labels = torch.tensor([0, 0, 0, 2, 2])
    points = torch.tensor([[1.0, 1], [3, 3]])[[0, 0, 0, 1, 1]]
    assert torch.equal(_fill_empty(points, labels, torch.tensor([3, 0, 2, 0])), labels)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_cluster_means_are_the_means_of_their_members_and_minus_one_counts_nowhere(data):
    n, k = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 5))
    labels = torch.tensor(data.draw(st.lists(st.integers(-1, k - 1), min_size=n, max_size=n)))
    points = torch.randn(n, 3)
    means = cluster_means(points, labels, k)
    assert means.shape == (k, 3)
    for cluster in range(k):
        members = [point for point, label in zip(points, labels.tolist(), strict=True) if label == cluster]
        expected = sum(members) / len(members) if members else torch.zeros(3)
        torch.testing.assert_close(means[cluster], expected)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_means_of_parts_are_the_means_of_all(monkeypatch, rows):
    points, labels = noise() + 10, torch.arange(300) % 7 - 1
    whole = cluster_means(points, labels, 8)
    monkeypatch.setattr(chunking, "_ROWS", rows)
    torch.testing.assert_close(cluster_means(points, labels, 8), whole, rtol=1e-6, atol=0)


def test_a_mean_of_many_does_not_drift():
    points, labels = torch.full((1_000_000, 1), 0.1), torch.zeros(1_000_000, dtype=torch.int64)
    at_once = float(torch.zeros(1, 1).index_add_(0, labels, points)) / 1_000_000  # 0.1010
    assert abs(float(cluster_means(points, labels, 1)) - 0.1) < abs(at_once - 0.1) / 10


def test_a_collapse_is_seen_and_a_single_row_apart_too_when_read_in_parts(monkeypatch):
    monkeypatch.setattr(chunking, "_ROWS", 8)
    points = noise(1, 64).repeat(50, 1)
    with pytest.raises(ValueError, match="embeddings that differ, got 50 equal rows"):
        check_not_collapsed(points)
    points[-1] *= 1.1
    check_not_collapsed(points)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_empty_clusters_are_given_the_same_rows_when_they_are_read_in_parts(data):
    draws = np.random.default_rng(data.draw(st.integers(0, 99)))
    points, labels = torch.from_numpy(draws.normal(size=(30, 2))).float(), torch.from_numpy(draws.integers(4, size=30))
    sizes = labels.bincount(minlength=7)
    whole = _fill_empty(points, labels, sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "_ROWS", data.draw(st.integers(1, 30)))
        assert torch.equal(_fill_empty(points, labels, sizes), whole)


def kept_at_best(labels, previous):
    """Count the rows that keep their id under the best of all ways to name the clusters 0..k-1."""
    k = max(labels) + 1
    return max(
        sum(label >= 0 and names[label] == before for label, before in zip(labels, previous, strict=True))
        for names in itertools.permutations(range(k))
    )


@given(
    st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 5)), min_size=1, max_size=20),
    st.sampled_from([0, clustering._TABLE]),
)
@settings(max_examples=160, deadline=None)
def test_no_other_names_would_let_more_rows_keep_their_id(pairs, table):
    labels, previous = (torch.tensor(each) for each in zip(*pairs, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clustering, "_TABLE", table)  # the largest table that is filled out
        renamed = match_ids(labels, previous)
    assert torch.equal(renamed < 0, labels < 0)
    assert int(renamed.max()) <= int(labels.max())
    assert same_groups(renamed, labels)
    kept = int(((renamed == previous) & (labels >= 0)).sum())
    assert kept == kept_at_best(labels.tolist(), previous.tolist())


@given(st.lists(st.tuples(st.integers(-1, 6), st.integers(-1, 4)), min_size=1, max_size=25))
@settings(max_examples=100, deadline=None)
def test_ids_are_renamed_one_to_one_within_0_to_k_and_minus_one_stays(pairs):
    labels, previous = (torch.tensor(each) for each in zip(*pairs, strict=True))
    renamed = match_ids(labels, previous)
    assert renamed.dtype == torch.int64
    assert torch.equal(renamed < 0, labels < 0)
    assert int(renamed.max()) <= int(labels.max())
    assert same_groups(renamed, labels)


@given(st.lists(st.integers(-1, 5), min_size=1, max_size=40), st.permutations(range(6)))
@settings(max_examples=50, deadline=None)
def test_clusters_that_only_changed_their_names_get_the_old_ones_back(previous, names):
    previous = torch.tensor(previous)
    used = previous[previous >= 0].unique()
    previous = torch.where(previous < 0, -1, torch.searchsorted(used, previous))  # 0..k-1 without gaps
    order = sorted(range(len(used)), key=lambda each: names[each])
    renamed = torch.tensor([*order, -1])[previous]
    assert torch.equal(match_ids(renamed, previous), previous)


def test_a_new_cluster_gets_an_id_that_none_had_and_a_lost_one_frees_its_id():
    old = torch.tensor([0, 0, 0, 1, 1, 1])
    split = torch.tensor([2, 2, 0, 1, 1, 1])
    assert match_ids(split, old).tolist() == [0, 0, 2, 1, 1, 1]
    assert match_ids(old, split).tolist() == [0, 0, 0, 1, 1, 1]


def test_as_many_rows_keep_their_ids_whether_the_table_of_counts_is_filled_out_or_not(monkeypatch):
    previous = torch.randint(60, (3000,))
    labels = torch.where(torch.rand(3000) < 0.5, torch.randint(50, (3000,)), torch.randperm(50)[previous % 50])
    kept = int((match_ids(labels, previous) == previous).sum())
    monkeypatch.setattr(clustering, "_TABLE", 0)
    assert int((match_ids(labels, previous) == previous).sum()) == kept


def test_many_clusters_are_matched_without_a_table_of_their_squares():
    previous = torch.arange(60_000) % 20_000  # which would take 3.2 GB
    names = torch.randperm(20_000)
    assert torch.equal(match_ids(names[previous], previous), previous)


def test_the_inputs_of_the_match_are_left_as_they_are():
    labels, previous = torch.tensor([1, 1, 0, -1]), torch.tensor([0, 0, 1, 1])
    match_ids(labels, previous)
    assert labels.tolist() == [1, 1, 0, -1]
    assert previous.tolist() == [0, 0, 1, 1]


def adjusted_rand_by_hand(labels, previous):
    pairs = [
        (labels[i] == labels[j], previous[i] == previous[j])
        for i, j in itertools.combinations(range(len(labels)), 2)
        if min(labels[i], labels[j], previous[i], previous[j]) >= 0
    ]
    synchronized, apart = pairs.count((True, True)), pairs.count((False, False))
    process_group, parted = pairs.count((True, False)), pairs.count((False, True))
    if not pairs:
        return None
    if process_group == parted == 0:
        return 1.0
    scale = (synchronized + process_group) * (process_group + apart) + (synchronized + parted) * (parted + apart)
    return 2 * (synchronized * apart - process_group * parted) / scale


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 3)), min_size=1, max_size=15))
@settings(max_examples=60, deadline=None)
def test_agreement_is_the_adjusted_rand_index_over_rows_that_both_have_in_a_cluster(pairs):
    labels, previous = (torch.tensor(each) for each in zip(*pairs, strict=True))
    expected = adjusted_rand_by_hand(labels.tolist(), previous.tolist())
    found = agreement(labels, previous)
    assert found is expected is None or found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("labels", "previous"), [([0, 1, -1], [-1, -1, 0]), ([0, 1, -1], [0, -1, -1]), ([0], [0])])
def test_two_rounds_without_a_pair_of_rows_in_common_agree_on_nothing(labels, previous):
    assert agreement(torch.tensor(labels), torch.tensor(previous)) is None


def test_agreement_is_1_for_other_names_of_the_same_clusters():
    labels = torch.randint(0, 20, (500,))
    assert agreement(torch.randperm(20)[labels], labels) == 1


def test_agreement_is_0_for_chance_with_many_clusters_where_nmi_is_high():
    labels, previous = torch.randint(0, 200, (2, 1500))
    assert normalized_mutual_info_score(labels, previous) > 0.6
    assert abs(agreement(labels, previous)) < 0.01
