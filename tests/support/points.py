"""Points to cluster, and how well they are."""

import torch


def noise(n=300, d=8, seed=3):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def blobs(k=12, each=40, d=6, apart=20):
    """Groups of points around corners far apart, in turn, with the group of each."""
    centers, group = apart * noise(k, d, seed=1), torch.arange(k).repeat(each)
    return centers[group] + noise(len(group), d), group


def objective(points, labels):
    """Return the sum of squared distances to the means, in float64, one cluster after the other."""
    members = [points[labels == each].double() for each in labels.unique()]
    return sum(float((mine - mine.mean(dim=0)).square().sum()) for mine in members)
