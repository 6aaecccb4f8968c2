import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from udmlss import ClusterPseudoLabeler, evaluate_embeddings, label_free_scores, metrics
from udmlss.clustering import cluster_means, k_means
from udmlss.neighbors import exact, nearest, search
from udmlss.neighbors.backends import full_precision


def cones(n_cones, n, d, spread):
    """Return n directions in narrow cones around random directions, in random order."""
    centers = torch.nn.functional.normalize(torch.randn(n_cones, d))
    return centers[torch.arange(n) % n_cones] * (1 + spread * torch.randn(n, d))


def lattice(n, d):
    """Return rows of few different numbers, so that many similarities are equal."""
    return torch.randint(0, 3, (n, d)).float() + 1


ROWS = {
    "noise": lambda: torch.randn(300, 16),
    "lengths from 1e-30 to 1e30": lambda: torch.randn(300, 16) * 10 ** torch.empty(300, 1).uniform_(-30, 30),
    "narrow cone": lambda: cones(1, 300, 64, 3e-4),
    "cone of a few units in the last place": lambda: cones(1, 300, 16, 2e-7),
    "five narrow cones": lambda: cones(5, 300, 64, 1e-5),
    "two cones of a few units in the last place": lambda: cones(2, 100, 8, 2e-7),
    "common offset": lambda: torch.randn(300, 16) + 1e4,
    "offset in one column": lambda: torch.randn(300, 16) + 1e5 * torch.eye(16)[3],
    "tiny": lambda: 1e-30 * torch.randn(300, 16),
    "denormal": lambda: 1e-41 * torch.randn(300, 16),
    "huge": lambda: 1e18 * torch.randn(300, 16),
    "largest": lambda: 1e37 * torch.randn(300, 16),
    "tiny narrow cone": lambda: 1e-25 * cones(1, 300, 64, 1e-4),
    "float64 of any scale": lambda: torch.randn(300, 8).double() * 10.0 ** (320 * torch.rand(300, 1).double() - 290),
    "half precision": lambda: torch.randn(300, 16).add(30).half(),
    "duplicates": lambda: torch.randn(60, 16).repeat(5, 1),
    "ties": lambda: lattice(300, 6),
    "one dimension": lambda: torch.randn(300, 1),
}


def squared_distances(rows, others):
    """Return the squared distances of directions, by differences in extended precision."""
    directions = []
    for each in (rows, others):
        values = each.double().numpy().astype(np.longdouble)
        values /= np.abs(values).max(axis=1, keepdims=True)
        directions.append(values / np.sqrt(np.square(values).sum(axis=1, keepdims=True)))
    return np.stack([np.square(directions[1] - row).sum(axis=1) for row in directions[0]])


@pytest.mark.parametrize("name", ROWS)
def test_neighbors_are_exact_wherever_rows_differ(name):
    rows = ROWS[name]()
    for queries in (None, rows[::7] * 1.5):
        squares = squared_distances(rows if queries is None else queries, rows)
        if queries is None:
            np.fill_diagonal(squares, np.inf)
        expected = np.sort(squares, axis=1)[:, :10].astype(np.float64)
        similarities, indices = nearest(rows, 10, queries=queries)
        found = np.take_along_axis(squares, indices.numpy(), axis=1).astype(np.float64)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-28)
        np.testing.assert_allclose(similarities, 1 - expected / 2, rtol=0, atol=3e-6)
        assert (similarities.diff(dim=1) <= 0).all()


def test_rows_of_zeros_are_similar_to_no_row():
    rows = torch.cat([cones(1, 50, 8, 1e-6), torch.zeros(3, 8), -cones(1, 50, 8, 1e-6)])
    similarities, indices = nearest(rows, 49)
    assert (indices[:50] < 50).all()
    assert (similarities[:50] > 0.9).all()
    assert (similarities[50:53] == 0).all()
    assert torch.equal(nearest(rows, 102)[1][0, 49:52].sort().values, torch.tensor([50, 51, 52]))


def test_recall_in_a_narrow_cone_is_that_of_its_shape():
    labels = torch.arange(300) % 30
    shape = torch.randn(30, 64)[labels] + 0.8 * torch.randn(300, 64)
    expected = metrics.retrieval(torch.cat([shape, 10 * torch.ones(300, 1)], dim=1), labels)
    for spread in (3e-4, 1e-5):
        found = metrics.retrieval(1 + spread * shape, labels)
        assert found.recall_at[1] > 0.9
        assert abs(found.map_at_r - expected.map_at_r) < 0.05


def test_only_mixed_neighbors_are_compared_again_for_scores(monkeypatch):
    compared, compare = [], exact._negative_half_squares
    monkeypatch.setattr(exact, "_negative_half_squares", lambda *args: compared.append(len(args[2])) or compare(*args))
    rows, labels = torch.cat([cones(1, 50, 8, 1e-6), -cones(1, 50, 8, 1e-6)]), torch.arange(100) // 50
    scores = metrics.retrieval(rows, labels)
    assert scores.map_at_r == 1
    assert not compared
    assert metrics.retrieval(rows, torch.arange(100) % 2).map_at_r < 0.9
    assert compared


def test_the_exact_search_is_that_by_hand_and_compares_all_rows_where_bounds_exclude_none(monkeypatch):
    compared, compare_all = [], exact._compare_all
    monkeypatch.setattr(exact, "_compare_all", lambda *args: compared.append(len(args[0])) or compare_all(*args))
    blobs = torch.randn(200, 5).double()
    for gallery in (blobs, 1e9 + blobs, torch.cat([blobs, 1e12 + blobs]), torch.cat([1e12 + blobs, 1e300 * blobs[:1]])):
        queries = gallery[::11] + 0.1 * torch.randn(len(gallery[::11]), 5)
        squares = (queries.unsqueeze(1) - gallery).square().sum(dim=2)
        distances, indices = exact.exact_euclidean(queries, gallery, 7)
        torch.testing.assert_close(distances, squares.sort(dim=1).values[:, :7])
        torch.testing.assert_close(squares.gather(1, indices), distances)
    assert compared


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_equal_distances_are_ordered_by_row_in_chunks_of_any_size(n, n_queries, n_pairs, seed):
    generator = torch.Generator().manual_seed(seed)
    gallery, queries = (torch.randint(0, 2, (m, 2), generator=generator).double() for m in (n, n_queries))
    expected = (queries.unsqueeze(1) - gallery).square().sum(dim=2).sort(dim=1, stable=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "PAIRS", 4 * n_pairs)
        patch.setattr(exact, "_NUMBERS", n_pairs)
        distances, indices = exact.exact_euclidean(queries, gallery, n)
    assert torch.equal(distances, expected.values)
    assert torch.equal(indices, expected.indices)


@pytest.mark.parametrize("name", ["five narrow cones", "duplicates", "two cones of a few units in the last place"])
def test_chunks_of_any_size_give_the_same_distances(monkeypatch, name):
    rows = ROWS[name]()
    expected = nearest(rows, 6)
    monkeypatch.setattr(search, "_QUERIES_PER_CHUNK", 7)
    monkeypatch.setattr(exact, "_GALLERY_ROWS", 11)
    monkeypatch.setattr(exact, "_NUMBERS", 64)
    found = nearest(rows, 6)
    squares = squared_distances(rows, rows)
    for (similarities, indices), (others, other_indices) in [(found, expected)]:
        torch.testing.assert_close(similarities, others, rtol=0, atol=1e-6)
        distances = [np.take_along_axis(squares, each.numpy(), axis=1) for each in (indices, other_indices)]
        np.testing.assert_allclose(*(each.astype(np.float64) for each in distances), rtol=1e-6, atol=1e-28)


def test_unit_vectors_have_length_1_and_keep_small_differences():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-40, 4e-40], [3e38, 3e38]])
    torch.testing.assert_close(
        exact.unit_vectors(rows).float(),
        torch.tensor([[0.6, 0.8, 0], [0, 0, 1], [0.6, 0.8, 0], [0.5**0.5, 0.5**0.5, 0]]),
    )
    row = torch.tensor([[1.0, 1.0]])
    neighbor = torch.nextafter(row, torch.full_like(row, 2))
    neighbor[0, 0] = 1
    difference = exact.unit_vectors(neighbor) - exact.unit_vectors(row)
    torch.testing.assert_close(difference[0, 1].item(), 2**-23 / 2**0.5 / 2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["noise", "narrow cone", "two cones of a few units in the last place"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_have_full_precision_under_autocast_and_with_low_matmul_precision(monkeypatch, name, dtype):
    rows, labels = ROWS[name](), torch.arange(len(ROWS[name]())) % 5
    functions = {
        "nearest": lambda: torch.cat(nearest(rows, 5), dim=1),
        "k_means": lambda: k_means(rows, 7),
        "cluster_means": lambda: cluster_means(rows, labels, 5),
        "label": lambda: ClusterPseudoLabeler(7, average_neighbors=2).label(rows).centers,
        "scores": lambda: torch.tensor(evaluate_embeddings(rows, labels).map_at_r),
        "rank": lambda: torch.tensor(label_free_scores(rows, rows[:9], range(9)).effective_rank),
    }
    before = torch.get_float32_matmul_precision()
    for function_name, function in functions.items():
        expected = function()
        try:
            torch.set_float32_matmul_precision("medium")
            with torch.autocast("cpu", dtype=dtype):
                found = function()
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision(before)
        assert torch.equal(found, expected), function_name


def test_a_setting_of_tf32_by_backend_is_restored():
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this PyTorch has no `fp32_precision`")
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        with full_precision(torch.device("cpu")):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        nearest(torch.eye(4), 2)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_tf32_is_forbidden_until_the_last_of_two_overlapping_searches_ends():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        first, second = full_precision(torch.device("cpu")), full_precision(torch.device("cpu"))
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "highest"
        second.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
