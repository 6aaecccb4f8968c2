"""Points to cluster, and measures of their clusters."""

import torch


def noise(n=300, d=8, seed=3):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def blobs(k=12, each=40, d=6, scale=20):
    """Return points around k random centers of this scale, and the group of each point; the groups alternate."""
    centers, groups = scale * noise(k, d, seed=1), torch.arange(k).repeat(each)
    return centers[groups] + noise(len(groups), d), groups


def objective(points, labels):
    """Return the sum of squared distances to the means in float64, computed cluster by cluster."""
    clusters = [points[labels == label].double() for label in labels.unique()]
    return sum(float((rows - rows.mean(dim=0)).square().sum()) for rows in clusters)


def same_clusters(labels, others):
    """Return whether two labelings are equal up to the ids of the clusters."""
    pairs = set(zip(labels.tolist(), others.tolist(), strict=True))
    return len(pairs) == len(labels.unique()) == len(others.unique())


def corners(k=5, each=12, d=6):
    """Return points near k unit vectors times 5, in random order, and the group of each point."""
    generator = torch.Generator().manual_seed(11)
    groups = torch.arange(k).repeat_interleave(each)[torch.randperm(k * each, generator=generator)]
    return 5 * torch.eye(k, d)[groups] + 0.1 * torch.randn(len(groups), d, generator=generator), groups


def assert_consistent(pseudo, embeddings):
    """Check that sizes count the labels, that no cluster is empty, and that centers are the means."""
    assert len(pseudo.labels) == len(embeddings)
    assert pseudo.labels.min() >= -1
    assert pseudo.labels.max() == pseudo.n_clusters - 1
    assert pseudo.centers.shape == (pseudo.n_clusters, embeddings.shape[1])
    for cluster in range(pseudo.n_clusters):
        members = embeddings[pseudo.labels == cluster]
        assert pseudo.sizes[cluster] == len(members) > 0
        torch.testing.assert_close(pseudo.centers[cluster], members.float().mean(dim=0))
