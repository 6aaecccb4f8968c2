"""Losses with their miners, and the random numbers of sampling miners."""

import pytest
import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.distances import CosineSimilarity
from torch.nn import functional

from udmlss.losses.deep_metric.mined_loss import AnchorLoss, MinedLoss, SeededMiner, all_pairs

LABELS = torch.arange(4).repeat_interleave(8)


def build_miner(seed=None):
    return SeededMiner(miners.DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4), seed=seed)


def make_batch(d=6):
    return functional.normalize(torch.randn(len(LABELS), d))


def equal_indices(left, right):
    return all(map(torch.equal, left, right))


def test_mined_loss_is_the_loss_of_the_mined_indices():
    embeddings = make_batch()
    loss, miner = losses.TripletMarginLoss(0.2), miners.BatchHardMiner()
    expected = loss(embeddings, LABELS, miner(embeddings, LABELS))
    assert MinedLoss(loss, miner)(embeddings, LABELS) == expected


@pytest.mark.parametrize("length", [3, 4])
def test_a_single_pair_or_triplet_counts_once_and_has_a_gradient(length):
    embeddings, labels = torch.tensor([[1.0, 0], [0.6, 0.8], [0.8, 0.6]]), torch.tensor([0, 0, 1])
    indices = tuple(torch.tensor([index]) for index in ((0, 1, 2) if length == 3 else (0, 1, 0, 2)))
    loss = MinedLoss(losses.MultiSimilarityLoss(2, 40, 0.5), lambda _rows, _labels: indices)
    value = loss(embeddings.requires_grad_(), labels)
    [gradient] = torch.autograd.grad(value, embeddings)
    positive = torch.tensor(-2 * (0.6 - 0.5)).exp().log1p() / 2
    negative = torch.tensor(40 * (0.8 - 0.5)).exp().log1p() / 40
    torch.testing.assert_close(value, (positive + negative) / 3)
    assert gradient.any()


@pytest.mark.parametrize(
    "loss", [MinedLoss(losses.ContrastiveLoss(), all_pairs), AnchorLoss(lambda rows, *_: rows.sum(1), all_pairs)]
)
def test_labels_may_be_a_list(loss):
    rows = torch.randn(4, 3)
    assert loss(rows, [0, 0, 1, 1]) == loss(rows, torch.tensor([0, 0, 1, 1]))


def test_anchor_loss_receives_masks_of_positives_and_negatives():
    embeddings, labels = make_batch()[:5], torch.tensor([0, 1, 0, 2, 1])
    calls = []

    def anchor_losses(similarity, positive, negative):
        calls.append((similarity, positive, negative))
        return similarity[0]

    loss = AnchorLoss(anchor_losses, all_pairs)(embeddings, labels)
    [(similarity, positive, negative)] = calls
    torch.testing.assert_close(similarity, CosineSimilarity()(embeddings))
    assert loss == similarity[0].mean()
    for i in range(5):
        for j in range(5):
            assert positive[i, j] == (i != j and labels[i] == labels[j])
            assert negative[i, j] == (labels[i] != labels[j])


def test_samples_depend_only_on_the_seed_and_the_number_of_calls():
    embeddings = make_batch()
    left, right, other = build_miner(0), build_miner(), build_miner(1)
    before = torch.get_rng_state()
    first = left(embeddings, LABELS)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert equal_indices(first, right(embeddings, LABELS))
    assert not equal_indices(first, other(embeddings, LABELS))
    assert not equal_indices(first, left(embeddings, LABELS))
    right.load_state_dict(left.state_dict())
    assert equal_indices(right(embeddings, LABELS), left(embeddings, LABELS))


def test_negatives_are_sampled_in_inverse_proportion_to_the_density_of_their_distance():
    d, cutoff, largest = 6, 0.5, 1.4
    embeddings = make_batch(d)
    sampled, miner = torch.zeros(len(LABELS), len(LABELS)), build_miner()
    for _ in range(300):
        anchors, positives, negatives = miner(embeddings, LABELS)
        assert (LABELS[anchors] == LABELS[positives]).all()
        assert (anchors != positives).all()
        sampled.index_put_((anchors, negatives), torch.ones(()), accumulate=True)
    for i in range(len(LABELS)):
        weights = []
        for j in range(len(LABELS)):
            distance = float((embeddings[i] - embeddings[j]).norm())
            clamped = max(distance, cutoff)
            density = clamped ** (d - 2) * (1 - clamped**2 / 4) ** ((d - 3) / 2)
            weights.append(1 / density if LABELS[i] != LABELS[j] and distance < largest else 0)
        expected = torch.tensor(weights) / sum(weights)
        assert 0.5 * (sampled[i] / sampled[i].sum() - expected).abs().sum() < 0.05


def test_one_close_pair_in_many_dimensions_does_not_dominate_the_samples():
    embeddings = make_batch(d=512)
    embeddings[8] = embeddings[0]  # a negative whose weight of e^370 exceeds the range of float32
    [anchors, *_] = build_miner()(embeddings, LABELS)
    assert len(anchors.unique()) > len(LABELS) / 2
    [in_float32, *_] = miners.DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4)(embeddings, LABELS)
    assert len(in_float32.unique()) == 2
