"""The labeler of examples/self_paced.py, compared with the criterion image by image."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))  # the examples import each other
from self_paced import SelfPacedLabeler

ROWS = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))


class Fixed:
    """A clusterer that returns the same labels in each round."""

    def __init__(self, labels):
        self.labels = labels

    def fit_predict(self, rows):
        assert len(rows) == len(self.labels)
        return self.labels.numpy()


def random_labels(k):
    """Return three clusterings that differ in some images, with unassigned images in each."""
    middle = torch.randint(0, k, (len(ROWS),))
    middle[torch.randperm(len(ROWS))[:6]] = -1
    found = [middle.clone(), middle, middle.clone()]
    for labels in (found[0], found[2]):
        for cluster in range(0, k, 2):
            changed = (middle == cluster).nonzero().flatten()[:2]
            labels[changed] = torch.randint(-1, k, (len(changed),))
    return found


def members(labels):
    """Return the set of the images in the cluster of each image."""
    clusters = [{j for j, other in enumerate(labels.tolist()) if other == label} for label in labels.tolist()]
    return [{i} if label < 0 else found for i, (label, found) in enumerate(zip(labels.tolist(), clusters, strict=True))]


def naive_labels(tight, middle, loose, threshold):
    """Return which images keep their cluster, and the threshold, that of earlier rounds if there is one."""
    own = members(middle)
    compactness, independence = (
        [1 - len(a & b) / len(a | b) for a, b in zip(own, members(other), strict=True)] for other in (tight, loose)
    )
    least = [(min(compactness[j] for j in cluster), min(independence[j] for j in cluster)) for cluster in own]
    if threshold is None:
        values = sorted(least[min(cluster)][1] for cluster in {frozenset(each) for each in own} if len(cluster) > 1)
        threshold = values[min(len(values) - 1, round(0.9 * len(values)))]
    kept = [
        label >= 0 and compactness[i] <= least[i][0] and least[i][1] <= threshold + 1e-6
        for i, label in enumerate(middle.tolist())
    ]
    return torch.tensor(kept), threshold


@pytest.mark.parametrize("own_classes", [True, False])
def test_images_keep_their_cluster_if_all_three_clusterings_agree_on_it(own_classes):
    labeler = SelfPacedLabeler([Fixed(ROWS[:, 0])] * 3, own_classes=own_classes)
    threshold = None
    for _ in range(3):
        found = random_labels(8)
        labeler.tight, labeler.middle, labeler.loose = map(Fixed, found)
        labels = labeler.label(ROWS).labels
        kept, threshold = naive_labels(*found, threshold)
        assert 0 < kept.sum() < (found[1] >= 0).sum()
        middle, alone = found[1], labels[~kept]
        assert torch.equal(labels[kept][:, None] == labels[kept], middle[kept][:, None] == middle[kept])
        if own_classes:
            assert len(alone.unique()) == len(alone)
            assert not set(alone.tolist()) & set(labels[kept].tolist())
        else:
            assert (alone == -1).all()
    assert labeler.threshold == pytest.approx(threshold)


def test_the_threshold_is_restored_from_a_state():
    one, other = (SelfPacedLabeler(list(map(Fixed, random_labels(8)))) for _ in range(2))
    one.label(ROWS)
    other.load_state_dict(one.state_dict())
    assert other.threshold == one.threshold
    other.tight, other.middle, other.loose = one.tight, one.middle, one.loose
    assert torch.equal(other.label(ROWS).labels, one.label(ROWS).labels)
