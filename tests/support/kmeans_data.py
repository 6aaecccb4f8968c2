"""Data sets on which k-means is compared with scikit-learn: ordinary ones, and ones on which rounding decides."""

import torch


def _blobs(k, each, d, spread, scale=10.0):
    """Return points around k random centers, in random order of the groups."""
    centers = scale * (2 * torch.rand(k, d) - 1)
    groups = torch.arange(k * each) % k
    return centers[groups] + spread * torch.randn(k * each, d)


def _with_outlier(points, distance, n=1):
    points = points.clone()
    points[:n] = distance * torch.sign(torch.randn(n, points.shape[1]))
    return points


def _far_groups(n_groups, distance, *, spread=0.1, scale=10.0, d=4):
    """Return groups that are far apart, each of which consists of blobs."""
    parts = [_blobs(4, 30, d, spread, scale) for _ in range(n_groups)]
    offsets = distance * torch.randn(n_groups, d)
    return torch.cat([part + offset for part, offset in zip(parts, offsets, strict=True)])


def _cone(n, d, spread, k):
    groups = torch.arange(n) % k
    directions = torch.randn(k, d)[groups] + 0.3 * torch.randn(n, d)
    return torch.nn.functional.normalize(torch.ones(d) + spread * directions)


def _nested(levels, d, factor):
    """Return blobs of blobs of blobs, each level smaller by a factor."""
    points = torch.zeros(1, d)
    for level in range(levels):
        points = (points.unsqueeze(1) + factor**-level * torch.randn(4, d)).flatten(0, 1)
    return points.repeat_interleave(4, 0) + factor**-levels * torch.randn(4 * len(points), d)


DATA_SETS = {
    # nothing is extreme
    "blobs": (lambda: _blobs(8, 40, 4, 1.0), 8),
    "overlapping blobs": (lambda: _blobs(8, 40, 4, 6.0), 8),
    "more clusters than blobs": (lambda: _blobs(6, 60, 4, 1.0), 20),
    "fewer clusters than blobs": (lambda: _blobs(20, 20, 6, 0.5), 7),
    "normal": (lambda: torch.randn(400, 16), 10),
    "uniform": (lambda: torch.rand(500, 3), 12),
    "one dimension": (lambda: torch.randn(300, 1), 9),
    "many dimensions": (lambda: torch.randn(200, 300), 8),
    "unit length": (lambda: torch.nn.functional.normalize(_blobs(10, 30, 32, 4.0)), 10),
    "sparse": (lambda: torch.relu(torch.randn(400, 30) - 1.5), 10),
    "integers": (lambda: torch.randint(0, 5, (400, 3)).float(), 15),
    "unequal sizes": (lambda: _blobs(10, 40, 3, 0.5)[: 400 - 37].clone()[torch.arange(363) % 10 < 7], 9),
    "unequal variances": (lambda: _blobs(8, 40, 4, 1.0) * torch.logspace(-1, 1, 320).unsqueeze(1), 8),
    "unequal columns": (lambda: torch.randn(400, 6) * torch.tensor([100.0, 30, 10, 3, 1, 0.3]), 10),
    "heavy tails": (lambda: torch.randn(400, 4) / torch.rand(400, 1).clamp(min=1e-2), 10),
    "duplicates": (lambda: torch.randn(25, 5).repeat(12, 1), 10),
    "three rows per cluster": (lambda: torch.randn(90, 4), 30),
    # far outliers
    "outlier at 1e2": (lambda: _with_outlier(_blobs(8, 50, 4, 0.1), 1e2), 9),
    "outlier at 1e4": (lambda: _with_outlier(_blobs(8, 50, 4, 0.1), 1e4), 9),
    "outlier at 1e6": (lambda: _with_outlier(_blobs(8, 50, 4, 0.1), 1e6), 9),
    "outlier at 1e10": (lambda: _with_outlier(_blobs(8, 50, 4, 0.1), 1e10), 9),
    "ten outliers at 1e5": (lambda: _with_outlier(_blobs(8, 50, 4, 0.1), 1e5, 10), 18),
    "outlier and overlapping blobs": (lambda: _with_outlier(_blobs(6, 60, 8, 3.0), 1e5), 12),
    "Cauchy": (lambda: torch.tan(3.1415 * (torch.rand(400, 2) - 0.5)), 12),
    "log-normal": (lambda: torch.exp(3 * torch.randn(400, 2)), 12),
    # groups far apart
    "two groups, 1e3 apart": (lambda: _far_groups(2, 1e3), 8),
    "two groups, 1e5 apart": (lambda: _far_groups(2, 1e5), 8),
    "two groups, 1e7 apart": (lambda: _far_groups(2, 1e7, scale=1e3, spread=10.0), 8),
    "five groups, 1e4 apart": (lambda: _far_groups(5, 1e4), 20),
    "nested groups": (lambda: _nested(3, 3, 30.0), 16),
    # far from the origin
    "offset 1e2": (lambda: _blobs(8, 40, 4, 0.5) + 1e2, 8),
    "offset 1e4": (lambda: _blobs(8, 40, 4, 0.5) + 1e4, 8),
    "offset 1e6": (lambda: _blobs(8, 40, 4, 0.5) + 1e6, 8),
    "offset in one column": (lambda: _blobs(8, 40, 4, 0.5) + torch.tensor([1e5, 0, 0, 0]), 8),
    "narrow cone": (lambda: _cone(400, 32, 1e-3, 10), 10),
    "very narrow cone": (lambda: _cone(400, 32, 1e-5, 10), 10),
    # tiny and huge
    "scale 1e-30": (lambda: 1e-30 * _blobs(8, 40, 4, 1.0), 8),
    "scale 1e-40": (lambda: 1e-40 * _blobs(8, 40, 4, 1.0), 8),
    "scale 1e18": (lambda: 1e18 * _blobs(8, 40, 4, 1.0), 8),
    "scale 1e36": (lambda: 1e36 * _blobs(8, 40, 4, 1.0), 8),
    "far and tiny": (lambda: 1e-25 * (_blobs(8, 40, 4, 0.5) + 1e4), 8),
    "outlier and huge": (lambda: 1e20 * _with_outlier(_blobs(8, 50, 4, 0.1), 1e5), 9),
}


def data_set(name, seed=0):
    """Return the points of a data set, which depend on the seed, and the number of clusters."""
    make, k = DATA_SETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(), k
