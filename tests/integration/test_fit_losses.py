"""`fit` with losses that have parameters, auxiliary losses and losses that follow the cluster centers."""

import copy

import pytest
import torch
from interrupted_training import ChangingClusters
from pytorch_metric_learning import losses
from short_training import (
    IMAGES,
    Augmented,
    criterion,
    figures,
    make_model,
    make_pretrained_model,
    short_fit,
    weights,
)
from torch import nn

from udmlss import BestWeights, ClusterPseudoLabeler, PseudoLabelSampler, RotationPretextHead, embed, parameter_groups
from udmlss.losses import ClusterMemoryLoss, SelfSupervisedRanking, SynthesisRankingLoss


@pytest.mark.parametrize(
    "build",
    [
        lambda: losses.ProxyAnchorLoss(16, 16),
        lambda: losses.SoftTripleLoss(16, 16, centers_per_class=2),
        lambda: losses.ArcFaceLoss(16, 16),
        lambda: losses.CrossBatchMemory(losses.ContrastiveLoss(), 16, memory_size=64),
        lambda: losses.MultipleLosses([losses.ProxyNCALoss(16, 16), losses.SupConLoss()]),
    ],
)
def test_losses_with_a_state_start_each_round_at_the_centers_and_are_trained(build):
    loss, starts = criterion(build()), []
    start_round = loss.start_round

    def record(pseudo_labels, optimizer):
        start_round(pseudo_labels, optimizer)
        starts.append((weights(loss) if list(loss.parameters()) else torch.zeros(0), pseudo_labels))

    loss.start_round = record
    result = short_fit(make_model(), criterion=loss)
    assert len(starts) == 2
    assert all(pseudo_labels.centers.shape == (16, 16) for _, pseudo_labels in starts)
    if list(loss.parameters()):
        assert not torch.equal(weights(loss), starts[-1][0])
    assert result.stop_reason == "max_steps"


@pytest.mark.parametrize("with_head", [True, False])
def test_auxiliary_loss_is_trained_added_and_reported(with_head):
    model, ranking, head = make_model(), SelfSupervisedRanking(256, max_images=8).eval(), RotationPretextHead(256)
    before = weights(ranking)
    result = short_fit(model, auxiliary=ranking, rotation_head=head if with_head else None)
    assert not torch.equal(before, weights(ranking))
    assert not ranking.training
    for report in result.history:
        rotation = 0.1 * report.rotation_loss if with_head else 0
        assert report.auxiliary_loss > 0
        assert report.loss == pytest.approx(report.metric_loss + rotation + report.auxiliary_loss, rel=1e-5)


def test_without_an_auxiliary_loss_none_is_reported():
    assert {report.auxiliary_loss for report in short_fit(make_model()).history} == {None}


class Noise(nn.Module):
    """An auxiliary loss that samples from the global random generator, as dropout does."""

    def forward(self, model, images):
        return 0.1 * model.trunk(images + torch.randn(())).square().mean()


@pytest.mark.parametrize("build", [lambda: SelfSupervisedRanking(256, max_images=8, probability=0.5), Noise])
def test_equal_seeds_give_equal_runs_with_an_auxiliary_loss(build):
    runs = []
    for seed in (1, 1, 2):
        model, auxiliary = make_model(), build()
        result = short_fit(model, auxiliary=auxiliary, seed=seed, max_steps=2)
        runs.append((weights(model), figures(result)))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert not torch.equal(runs[0][0], runs[2][0])


def test_fit_equals_the_same_loop_written_with_the_parts():
    ours, theirs = make_model(), make_model()
    ranking = SelfSupervisedRanking(256, max_images=8)
    their_ranking = copy.deepcopy(ranking)
    short_fit(ours, cluster_on="embeddings", auxiliary=ranking)
    labeler, loss = ClusterPseudoLabeler(16), criterion()
    optimizer = torch.optim.AdamW(parameter_groups(theirs, loss, auxiliary=their_ranking))
    torch.manual_seed(0)
    for number in range(2):
        pseudo_labels = labeler.label(embed(theirs, IMAGES))
        loss.start_round(pseudo_labels)
        sampler = PseudoLabelSampler(pseudo_labels.labels, 8, 4, n_batches=3)
        sampler.set_epoch(number)
        theirs.train()
        for indices in sampler:
            optimizer.zero_grad()
            total = loss(theirs(IMAGES[indices]), pseudo_labels.labels[indices])
            total = total + their_ranking(theirs, IMAGES[indices])
            total.backward()
            optimizer.step()
    assert torch.allclose(weights(ours, ranking), weights(theirs, their_ranking), atol=1e-6)


def test_auxiliary_loss_of_weight_zero_changes_only_the_reports():
    plain, ranked, head = make_pretrained_model(), make_pretrained_model(), RotationPretextHead(256, max_images=8)
    settings = {"freeze_batch_norm": True}
    one = short_fit(plain, rotation_head=copy.deepcopy(head), **settings)
    auxiliary = SelfSupervisedRanking(256, weight=0.0)
    other = short_fit(ranked, rotation_head=head, auxiliary=auxiliary, **settings)
    assert torch.allclose(weights(plain), weights(ranked), atol=1e-6)
    assert one.history[-1].rotation_accuracy == other.history[-1].rotation_accuracy
    assert other.history[-1].auxiliary_loss == 0


def test_best_weights_are_restored_in_the_auxiliary_loss_as_well():
    seen, ranking = [], SelfSupervisedRanking(256, max_images=8)
    start = weights(ranking)
    callbacks = [lambda _report: seen.append(weights(ranking)), BestWeights()]
    settings = {"auxiliary": ranking, "max_steps": 9, "cluster_images": IMAGES}
    result = short_fit(make_model(), Augmented(), callbacks=callbacks, **settings)
    assert torch.equal(weights(ranking), [start, *seen][result.weights_step // 3])


@pytest.mark.parametrize("shared", [True, False])
def test_synthesis_ranking_uses_cluster_centers_or_shared_proxies(shared):
    anchor = losses.ProxyAnchorLoss(16, 16)
    ranking = SynthesisRankingLoss(16, proxies=anchor.proxies if shared else None)
    loss = criterion(losses.MultipleLosses([anchor, ranking], weights=[1, 0.23]))
    before = weights(ranking.layer)
    result = short_fit(make_model(), criterion=loss)
    assert not torch.equal(before, weights(ranking.layer))
    assert ranking.proxies.shape == (16, 16)
    if shared:
        assert ranking.proxies is anchor.proxies
    else:
        assert torch.equal(ranking.proxies, result.pseudo_labels.centers)


def test_losses_follow_a_changing_number_of_clusters():
    memory, anchor, triple = ClusterMemoryLoss(16), losses.ProxyAnchorLoss(2, 16), losses.SoftTripleLoss(2, 16)
    loss = criterion(losses.MultipleLosses([memory, SynthesisRankingLoss(16), anchor, triple]))
    result = short_fit(make_model(), labeler=ChangingClusters(10, 14, 9), criterion=loss, max_steps=9)
    assert [report.n_clusters for report in result.history] == [10, 14, 9]
    assert memory.memory.shape == anchor.proxies.shape == (9, 16)
    assert triple.fc.shape == (16, 90)


def test_cluster_memory_learns_to_separate_the_clusters():
    memory = ClusterMemoryLoss(16)
    result = short_fit(make_model(), criterion=memory, max_steps=60, relabel_every=20)
    assert result.history[-1].loss < 0.7 * result.history[0].loss
    torch.testing.assert_close(memory.memory.norm(dim=1), torch.ones(16))
