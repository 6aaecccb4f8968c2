"""How a loss and its pairs are joined, and that a miner's draws are its own."""

import pytest
import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.distances import CosineSimilarity
from torch.nn import functional

from udmlss.losses.deep_metric.mined_loss import AnchorLoss, MinedLoss, SeededMiner, all_pairs

LABELS = torch.arange(4).repeat_interleave(8)


def build_miner(seed=0):
    return SeededMiner(miners.DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4), seed=seed)


def make_batch(d=6):
    return functional.normalize(torch.randn(len(LABELS), d))


def same(left, right):
    return all(map(torch.equal, left, right))


def test_a_mined_loss_is_the_loss_of_what_its_miner_finds():
    embeddings = make_batch()
    loss, miner = losses.TripletMarginLoss(0.2), miners.BatchHardMiner()
    expected = loss(embeddings, LABELS, miner(embeddings, LABELS))
    assert MinedLoss(loss, miner)(embeddings, LABELS) == expected


@pytest.mark.parametrize("length", [3, 4])
def test_one_pair_or_triplet_counts_once_and_has_its_gradient(length):
    embeddings, labels = torch.tensor([[1.0, 0], [0.6, 0.8], [0.8, 0.6]]), torch.tensor([0, 0, 1])
    one = tuple(torch.tensor([index]) for index in ((0, 1, 2) if length == 3 else (0, 1, 0, 2)))
    loss = MinedLoss(losses.MultiSimilarityLoss(2, 40, 0.5), lambda _rows, _labels: one)
    value = loss(embeddings.requires_grad_(), labels)
    [gradient] = torch.autograd.grad(value, embeddings)
    pull = torch.tensor(-2 * (0.6 - 0.5)).exp().log1p() / 2
    push = torch.tensor(40 * (0.8 - 0.5)).exp().log1p() / 40
    torch.testing.assert_close(value, (pull + push) / 3)
    assert gradient.any()


def test_an_anchor_loss_tells_positives_negatives_and_the_anchor_apart():
    embeddings, labels = make_batch()[:5], torch.tensor([0, 1, 0, 2, 1])
    seen = []

    def of_anchors(similarity, positive, negative):
        seen.append((similarity, positive, negative))
        return similarity[0]

    loss = AnchorLoss(of_anchors, all_pairs)(embeddings, labels)
    [(similarity, positive, negative)] = seen
    torch.testing.assert_close(similarity, CosineSimilarity()(embeddings))
    assert loss == similarity[0].mean()
    for i in range(5):
        for j in range(5):
            assert positive[i, j] == (i != j and labels[i] == labels[j])
            assert negative[i, j] == (labels[i] != labels[j])


def test_draws_depend_on_the_seed_and_the_number_of_calls_alone():
    embeddings = make_batch()
    left, right, other = build_miner(), build_miner(), build_miner(seed=1)
    first = left(embeddings, LABELS)
    torch.rand(7)
    assert same(first, right(embeddings, LABELS))
    assert not same(first, other(embeddings, LABELS))
    assert not same(first, left(embeddings, LABELS))
    other.load_state_dict(left.state_dict())
    other.seed = 0
    assert same(other(embeddings, LABELS), left(embeddings, LABELS))


def test_torchs_random_numbers_are_neither_read_nor_changed():
    embeddings = make_batch()
    before = torch.get_rng_state()
    build_miner()(embeddings, LABELS)
    assert torch.equal(torch.get_rng_state(), before)


def test_negatives_are_drawn_by_the_inverse_of_how_often_their_distance_comes_about():
    d, cutoff, farthest = 6, 0.5, 1.4
    embeddings = make_batch(d)
    drawn, miner = torch.zeros(len(LABELS), len(LABELS)), build_miner()
    for _ in range(300):
        anchors, positives, negatives = miner(embeddings, LABELS)
        assert (LABELS[anchors] == LABELS[positives]).all()
        assert (anchors != positives).all()
        drawn.index_put_((anchors, negatives), torch.ones(()), accumulate=True)
    for i in range(len(LABELS)):
        weights = []
        for j in range(len(LABELS)):
            distance = float((embeddings[i] - embeddings[j]).norm())
            near = max(distance, cutoff)
            often = near ** (d - 2) * (1 - near**2 / 4) ** ((d - 3) / 2)
            weights.append(1 / often if LABELS[i] != LABELS[j] and distance < farthest else 0)
        expected = torch.tensor(weights) / sum(weights)
        assert 0.5 * (drawn[i] / drawn[i].sum() - expected).abs().sum() < 0.05


def test_one_close_pair_of_many_dimensions_does_not_leave_the_other_anchors_without_triplets():
    embeddings = make_batch(d=512)
    embeddings[8] = embeddings[0]  # of another cluster, whose weight of e^370 is beyond float32
    [anchors, *_] = build_miner()(embeddings, LABELS)
    assert len(anchors.unique()) > len(LABELS) / 2
    [in_float32, *_] = miners.DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4)(embeddings, LABELS)
    assert len(in_float32.unique()) == 2
