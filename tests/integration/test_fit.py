import copy
import sys
import weakref
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning import losses, miners
from torch import nn
from torch.utils.data import DataLoader, Dataset

from udmlss import (
    ClusterPseudoLabeler,
    EmbeddingModel,
    Epochs,
    IndexedImages,
    PseudoLabels,
    PseudoLabelSampler,
    RotationPretextHead,
    StopWhenSettled,
    UDMLSSLoss,
    embed,
    evaluate,
    fit,
    parameter_groups,
)
from udmlss.losses import SelfSupervisedRanking, SynthesisRankingLoss
from udmlss.training import fit

CLASSES, EACH, SIDE = 12, 20, 8


def make_images(seed=0):
    """Noisy pictures of classes, of random brightness, which an untrained network confuses."""
    draws = torch.Generator().manual_seed(seed)
    patterns = torch.randn(CLASSES, 3, SIDE, SIDE, generator=draws)
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    noise = torch.randn(len(labels), 3, SIDE, SIDE, generator=draws)
    bright = torch.rand(len(labels), 1, 1, 1, generator=draws)
    return patterns[labels] + noise + bright, labels


IMAGES, LABELS = make_images()


def make_model(seed=0):
    torch.manual_seed(seed)
    trunk = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
    )
    return EmbeddingModel(trunk, nn.Linear(256, 16))


def criterion(loss=None):
    return UDMLSSLoss(loss or losses.MultiSimilarityLoss(2, 40, 0.5))


def short_fit(model, images=IMAGES, **changes):
    settings = {
        "labeler": ClusterPseudoLabeler(16),
        "criterion": criterion(),
        "clusters_per_batch": 8,
        "samples_per_cluster": 4,
        "rotation_images": 8,
        "max_steps": 6,
        "relabel_every": 3,
        "freeze_batch_norm": False,
        "progress": False,
    }
    return fit(model, images, **(settings | changes))


def weights(module):
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


def figures(result):
    return [astuple(report)[:-1] for report in result.history]  # all but the seconds


def test_training_without_labels_makes_classes_easier_to_find():
    model = make_model()
    before = evaluate(model, IMAGES, LABELS).map_at_r
    head, loss = RotationPretextHead(256), criterion()
    optimizer = torch.optim.AdamW(parameter_groups(model, loss, head, trunk_lr=3e-3, lr=3e-3))
    result = short_fit(model, criterion=loss, rotation_head=head, optimizer=optimizer, max_steps=60, relabel_every=15)
    after = evaluate(model, IMAGES, LABELS).map_at_r
    assert after > before + 0.2
    assert result.history[-1].loss < result.history[0].loss
    assert result.history[-1].rotation_accuracy > 0.5


def test_the_true_labels_are_never_looked_at():
    class Labelled(Dataset):
        def __init__(self, labels):
            self.labels = labels

        def __len__(self):
            return len(IMAGES)

        def __getitem__(self, index):
            return {"image": IMAGES[index], "label": self.labels[index]}

    true, wrong = make_model(), make_model()
    short_fit(true, Labelled(LABELS))
    short_fit(wrong, Labelled(LABELS.flip(0)))
    assert torch.equal(weights(true), weights(wrong))


def test_the_same_seed_gives_the_same_weights_and_history_and_another_seed_others():
    runs = [(model := make_model(), short_fit(model, seed=seed)) for seed in (1, 1, 2)]
    assert torch.equal(weights(runs[0][0]), weights(runs[1][0]))
    assert figures(runs[0][1]) == figures(runs[1][1])
    assert not torch.equal(weights(runs[0][0]), weights(runs[2][0]))


def test_random_transforms_follow_the_seed_and_torchs_global_state_is_left_alone():
    class Jittered(Dataset):
        def __len__(self):
            return len(IMAGES)

        def __getitem__(self, index):
            return IMAGES[index] + torch.randn(())

    models = [make_model(), make_model()]
    for number, model in enumerate(models):
        torch.manual_seed(number)
        before = torch.get_rng_state()
        short_fit(model, Jittered())
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(weights(models[0]), weights(models[1]))


def test_workers_load_the_same_batches():
    alone, helped = make_model(), make_model()
    short_fit(alone)
    short_fit(helped, num_workers=2)
    assert torch.allclose(weights(alone), weights(helped), atol=1e-6)


@pytest.mark.parametrize("options", [{"channels_last": True}, {"precision": "bfloat16"}, {"clip_norm": 1e6}])
def test_a_choice_of_arithmetic_changes_the_result_by_rounding_alone(options):
    plain, chosen = make_model(), make_model()
    one = {"max_steps": 1, "relabel_every": 1}
    reference = short_fit(plain, **one).history[0]
    report = short_fit(chosen, **one, **options).history[0]
    assert report.loss == pytest.approx(reference.loss, rel=0.05)
    assert next(chosen.parameters()).dtype == torch.float32


def test_a_round_takes_as_many_steps_as_asked_and_the_last_one_what_is_left():
    result = short_fit(make_model(), max_steps=7, relabel_every=3)
    assert [report.step for report in result.history] == [3, 6, 7]
    assert [report.round for report in result.history] == [0, 1, 2]
    assert result.ended == "max_steps"


def test_lengths_can_be_counted_in_passes_over_the_data():
    result = short_fit(make_model(), max_steps=Epochs(2), relabel_every=Epochs(1))
    assert [report.step for report in result.history] == [8, 15]  # 240 images in batches of 32


def test_each_batch_is_trained_with_the_labels_of_its_own_images():
    seen = []

    class Spy(nn.Module):
        def forward(self, embeddings, labels):
            seen.append(labels.clone())
            return (embeddings**2).sum()

    class Marked:
        """Labels an image by a mark in its first pixel, so that a stale or shifted index would show."""

        def label(self, embeddings):
            labels = torch.arange(len(embeddings)) % 10
            return PseudoLabels(labels, None, labels.bincount())

    images = torch.zeros(60, 1, 4, 4)
    images[:, 0, 0, 0] = torch.arange(60) % 10
    marks = []

    class Trunk(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, batch):
            if self.training:
                marks.append(batch[:, 0, 0, 0].long())
            return batch.flatten(1) * self.scale + 1

    short_fit(
        EmbeddingModel(Trunk(), nn.Linear(16, 4)),
        images,
        labeler=Marked(),
        criterion=UDMLSSLoss(Spy()),
        clusters_per_batch=4,
        num_workers=1,
    )
    assert len(seen) == len(marks) == 6
    assert all(torch.equal(mark.sort().values, labels) for mark, labels in zip(marks, seen, strict=True))


def test_images_left_out_are_never_trained_on():
    class Half:
        def label(self, embeddings):
            labels = torch.arange(len(embeddings)) % 10
            labels[: len(labels) // 2] = -1
            return PseudoLabels(labels, None, labels[labels >= 0].bincount())

    model, drawn = make_model(), set()

    class Watched(Dataset):
        def __len__(self):
            return len(IMAGES)

        def __getitem__(self, index):
            if model.embedder.training and index:  # not in the looks between rounds, nor the one at item 0 before
                drawn.add(index)
            return IMAGES[index]

    result = short_fit(model, Watched(), cluster_images=IMAGES, labeler=Half())
    assert min(drawn) >= len(IMAGES) // 2
    assert result.history[0].n_unassigned == len(IMAGES) // 2


def test_batch_norm_statistics_stay_when_frozen_and_every_part_gets_its_mode_back():
    model = make_model()
    model.trunk[1].running_mean += 0.5
    statistics = copy.deepcopy(model.trunk[1].state_dict())
    model.eval()
    model.embedder.train()
    short_fit(model, freeze_batch_norm=True, callbacks=[lambda _report: model.train() and None])
    assert torch.equal(model.trunk[1].running_mean, statistics["running_mean"])
    assert not torch.equal(model.trunk[1].weight, statistics["weight"])
    assert not model.trunk.training
    assert model.embedder.training


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
def test_losses_with_a_state_train_and_start_each_round_at_the_centroids(build):
    loss = criterion(build())
    starts = []
    follow = loss.start_round

    def watch(pseudo):
        follow(pseudo)
        starts.append((weights(loss) if list(loss.parameters()) else torch.zeros(0), pseudo))

    loss.start_round = watch
    result = short_fit(make_model(), criterion=loss)
    assert len(starts) == 2
    assert all(pseudo.centers.shape == (16, 16) for _, pseudo in starts)
    if list(loss.parameters()):
        assert not torch.equal(weights(loss), starts[-1][0])  # the last round's steps trained them
    assert result.ended == "max_steps"


def test_a_miner_and_a_scheduler_built_by_the_caller_are_used():
    model, loss = make_model(), UDMLSSLoss(losses.TripletMarginLoss(), miner=miners.BatchHardMiner())
    optimizer = torch.optim.SGD(parameter_groups(model, loss, trunk_lr=0.1, lr=0.1))
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=6)
    short_fit(model, criterion=loss, optimizer=optimizer, scheduler=scheduler)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)


def test_a_callback_sees_every_round_and_true_ends_the_training():
    reports = []
    result = short_fit(make_model(), max_steps=30, callbacks=[reports.append, lambda report: report.round == 1])
    assert [report.round for report in reports] == [0, 1]
    assert tuple(reports) == result.history
    assert result.ended == "callback"


def test_training_stops_once_the_clusters_have_settled():
    result = short_fit(make_model(), max_steps=300, callbacks=[StopWhenSettled(0.05, patience=2)])
    assert result.ended == "callback"
    assert len(result.history) == 3


def test_ctrl_c_keeps_what_was_learnt_and_the_history_so_far():
    calls = []

    class Interrupted(nn.Module):
        def forward(self, embeddings, labels):
            calls.append(len(labels))
            if len(calls) == 5:
                raise KeyboardInterrupt
            return ((embeddings - embeddings.roll(1, 0)) ** 2).mean()

    model = make_model()
    start = weights(model)
    result = short_fit(model, criterion=UDMLSSLoss(Interrupted()))
    assert result.ended == "interrupt"
    assert [report.step for report in result.history] == [3, 4]
    assert result.pseudo_labels is not None
    assert not torch.equal(start, weights(model))


def test_a_loss_that_turns_nan_is_said_with_its_parts_and_step_and_the_weights_stay_finite():
    calls = []

    class Breaks(nn.Module):
        def forward(self, embeddings, labels):
            calls.append(len(labels))
            return embeddings.sum() * (float("nan") if len(calls) == 5 else 1.0)

    model, reports = make_model(), []
    with pytest.raises(FloatingPointError, match=r"found nan \(metric nan\)\. Lower the") as caught:
        short_fit(model, criterion=UDMLSSLoss(Breaks()), callbacks=[reports.append])
    assert "`fit` had done 4 steps in 1 whole rounds" in caught.value.__notes__[-1]
    assert weights(model).isfinite().all()
    assert len(reports) == 1


def test_a_collapse_in_a_later_round_is_said_with_the_sizes():
    model = make_model()

    class Collapsing(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            with torch.no_grad():
                model.embedder.weight.zero_()
                model.embedder.bias.fill_(1)

    loss = criterion()
    optimizer = Collapsing(parameter_groups(model, loss))
    with pytest.raises(ValueError, match=r"embeddings that differ, got 240 equal rows, one cluster of sizes \[240\]"):
        short_fit(model, criterion=loss, optimizer=optimizer)


def test_too_few_clusters_in_a_later_round_are_said_with_their_sizes():
    class Fewer:
        def __init__(self):
            self.rounds = 0

        def label(self, embeddings):
            self.rounds += 1
            labels = torch.arange(len(embeddings)) % (10 if self.rounds == 1 else 4)
            return PseudoLabels(labels, None, labels.bincount())

    with pytest.raises(ValueError, match=r"`clusters_per_batch=8` needs at least 8 clusters.*found 4 \(the largest"):
        short_fit(make_model(), labeler=Fewer())


def test_the_bar_shows_loss_turns_against_chance_clusters_and_agreement(capsys):
    short_fit(make_model(), rotation_head=RotationPretextHead(256), progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    for word in ("loss", "turns", "(chance 25%)", "16 clusters", "agreement", "6/6"):
        assert word in shown.err


def test_nothing_is_printed_without_the_bar(capsys):
    short_fit(make_model())
    assert capsys.readouterr() == ("", "")


def test_labels_are_said_to_be_ignored_once_in_a_process(capsys):
    labelled = torch.utils.data.TensorDataset(IMAGES, LABELS)
    training._say_labels_are_ignored.cache_clear()
    short_fit(make_model(), IMAGES, progress=True)
    assert "ignored" not in capsys.readouterr().err
    short_fit(make_model(), labelled, progress=True)
    assert "fit: what comes with the images, such as labels, is ignored\n" in capsys.readouterr().err
    short_fit(make_model(), labelled, progress=True)
    assert "ignored" not in capsys.readouterr().err


def test_the_first_round_clusters_features_and_later_ones_embeddings():
    widths = []

    class Watching(ClusterPseudoLabeler):
        def label(self, embeddings):
            widths.append(embeddings.shape[1])
            return super().label(embeddings)

    model = make_model()
    result = short_fit(model, labeler=Watching(16), max_steps=9)
    assert widths == [256, 16, 16]
    assert result.pseudo_labels.centers.shape == (16, 16)
    widths.clear()
    short_fit(model, labeler=Watching(16), first_round="embeddings")
    assert widths == [16, 16]


@pytest.mark.parametrize("auxiliary", [False, True])
def test_fit_equals_the_same_loop_written_with_the_parts(auxiliary):
    ours, theirs = make_model(), make_model()
    ranking, their_ranking = [SelfSupervisedRanking(256, images=8) for _ in range(2)] if auxiliary else (None, None)
    if auxiliary:
        their_ranking.load_state_dict(ranking.state_dict())
    short_fit(ours, first_round="embeddings", auxiliary=ranking)
    labeler, loss = ClusterPseudoLabeler(16), criterion()
    optimizer = torch.optim.AdamW(parameter_groups(theirs, loss, auxiliary=their_ranking))
    for number in range(2):
        pseudo = labeler.label(embed(theirs, IMAGES))
        loss.start_round(pseudo)
        sampler = PseudoLabelSampler(pseudo.labels, 8, 4, n_batches=3)
        sampler.set_epoch(number)
        theirs.train()
        for images, index in DataLoader(IndexedImages(IMAGES), batch_sampler=sampler):
            optimizer.zero_grad()
            total = loss(theirs(images), pseudo.labels[index])
            if auxiliary:
                total = total + their_ranking(theirs, images)
            total.backward()
            optimizer.step()
    assert torch.allclose(weights(ours), weights(theirs), atol=1e-6)
    if auxiliary:
        assert torch.allclose(weights(ranking), weights(their_ranking), atol=1e-6)


@pytest.mark.parametrize("with_head", [True, False])
def test_an_auxiliary_trains_beside_the_other_losses_and_is_reported(with_head, capsys):
    model, ranking, head = make_model(), SelfSupervisedRanking(256, images=8), RotationPretextHead(256)
    before, ranking = weights(ranking), ranking.eval()
    result = short_fit(model, auxiliary=ranking, rotation_head=head if with_head else None, progress=True)
    assert not torch.equal(before, weights(ranking))
    assert not ranking.training
    for report in result.history:
        rotation = 0.1 * report.rotation_loss if with_head else 0
        assert report.auxiliary_loss > 0
        assert report.loss == pytest.approx(report.metric_loss + rotation + report.auxiliary_loss, rel=1e-5)
    assert "auxiliary 0." in capsys.readouterr().err


def test_without_an_auxiliary_none_is_reported(capsys):
    assert {report.auxiliary_loss for report in short_fit(make_model(), progress=True).history} == {None}
    assert "auxiliary" not in capsys.readouterr().err


def test_an_auxiliary_learns_to_order_versions_in_training():
    model, ranking = make_model(), SelfSupervisedRanking(256)
    result = short_fit(model, auxiliary=ranking, max_steps=60, relabel_every=20)
    assert result.history[-1].auxiliary_loss < result.history[0].auxiliary_loss


def test_with_an_auxiliary_the_same_seeds_give_the_same_run_and_others_another():
    class Noisy(nn.Module):
        """Draws from torch's global numbers, as dropout does."""

        def forward(self, model, images):
            return 0.1 * model.trunk(images + torch.randn(())).square().mean()

    for build in (lambda: SelfSupervisedRanking(256, images=8, probability=0.5), Noisy):
        runs = []
        for seed in (1, 1, 2):
            torch.manual_seed(0)
            model, auxiliary = make_model(), build()
            result = short_fit(model, auxiliary=auxiliary, seed=seed)
            runs.append((weights(model), figures(result)))
        assert torch.equal(runs[0][0], runs[1][0])
        assert runs[0][1] == runs[1][1]
        assert not torch.equal(runs[0][0], runs[2][0])


def test_an_auxiliary_without_weight_changes_nothing_but_what_is_reported():
    plain, ranked = make_model(), make_model()
    batches = {"rotation_head": RotationPretextHead(256), "freeze_batch_norm": True}
    for model in (plain, ranked):
        model.trunk[1].running_mean += 0.5
    head = copy.deepcopy(batches["rotation_head"])
    one = short_fit(plain, **batches)
    other = short_fit(ranked, **batches | {"rotation_head": head}, auxiliary=SelfSupervisedRanking(256, weight=0.0))
    assert torch.allclose(weights(plain), weights(ranked), atol=1e-6)
    assert one.history[-1].rotation_accuracy == other.history[-1].rotation_accuracy
    assert other.history[-1].auxiliary_loss == 0


def test_the_best_weights_kept_are_the_auxiliary_s_as_well():
    class Augmented(Dataset):
        def __len__(self):
            return len(IMAGES)

        def __getitem__(self, index):
            return IMAGES[index] + 0.1 * torch.randn(())

    seen, ranking = [], SelfSupervisedRanking(256, images=8)
    start = weights(ranking)

    def watch(report):
        seen.append(weights(ranking))

    settings = {"auxiliary": ranking, "keep": "best", "max_steps": 9, "callbacks": [watch]}
    result = short_fit(make_model(), Augmented(), cluster_images=IMAGES, **settings)
    assert torch.equal(weights(ranking), [start, *seen][result.kept_step // 3])


@pytest.mark.parametrize("shared", [True, False])
def test_synthetic_embeddings_are_ranked_around_centroids_or_shared_proxies(shared):
    anchor = losses.ProxyAnchorLoss(16, 16)
    ranking = SynthesisRankingLoss(16, proxies=anchor.proxies if shared else None)
    loss = criterion(losses.MultipleLosses([anchor, ranking], weights=[1, 0.23]))
    before = weights(ranking.layer)
    result = short_fit(make_model(), criterion=loss)
    assert result.ended == "max_steps"
    assert not torch.equal(before, weights(ranking.layer))
    assert ranking.proxies.shape == (16, 16)
    if shared:
        assert ranking.proxies is anchor.proxies
    else:
        assert torch.equal(ranking.proxies, result.pseudo_labels.centers)


def test_synthetic_embeddings_are_ranked_around_as_many_centroids_as_each_round_finds():
    class Growing:
        def __init__(self):
            self.k = 8

        def label(self, embeddings):
            self.k += 2
            return ClusterPseudoLabeler(self.k).label(embeddings)

    result = short_fit(make_model(), labeler=Growing(), criterion=criterion(SynthesisRankingLoss(16)))
    assert [report.n_clusters for report in result.history] == [10, 12]


def test_real_photographs_train_end_to_end(cub100):
    from torchvision.transforms import v2  # noqa: PLC0415

    from udmlss.data import cub200  # noqa: PLC0415

    plain = v2.Compose([v2.Resize((16, 16)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    images = torch.utils.data.Subset(cub200(cub100, "train", transform=plain), range(0, 2949, 20))
    result = short_fit(make_model(), images, rotation_head=RotationPretextHead(256))
    assert result.history[-1].n_clusters == 16


def test_an_average_is_what_the_steps_weights_average_to():
    model, decay, weights_after = make_model(), 0.7, []

    class Remembering(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            weights_after.append(weights(model))

    loss = criterion()
    optimizer = Remembering(parameter_groups(model, loss, trunk_lr=0.1, lr=0.1))
    short_fit(model, criterion=loss, optimizer=optimizer, ema_decay=decay)
    expected = weights_after[0]
    for one in weights_after[1:]:
        expected = decay * expected + (1 - decay) * one
    assert torch.allclose(weights(model), expected, atol=1e-6)
    assert not torch.allclose(weights(model), weights_after[-1], atol=1e-4)


def test_rounds_look_at_the_average():
    model, seen = make_model(), []

    class Seeing(ClusterPseudoLabeler):
        def label(self, embeddings):
            seen.append(embeddings)
            return super().label(embeddings)

    loss = criterion()
    optimizer = torch.optim.SGD(parameter_groups(model, loss, trunk_lr=0.1, lr=0.1))
    settings = {"criterion": loss, "optimizer": optimizer, "max_steps": 4, "relabel_every": 2, "ema_decay": 0.999}
    short_fit(model, first_round="embeddings", labeler=Seeing(16), **settings)
    one_step = make_model()
    optimizer = torch.optim.SGD(parameter_groups(one_step, loss, trunk_lr=0.1, lr=0.1))
    short_fit(one_step, **settings | {"optimizer": optimizer, "max_steps": 1}, first_round="embeddings")
    assert torch.allclose(seen[1], embed(one_step, IMAGES), atol=1e-2)


def test_each_image_of_a_batch_is_augmented_as_often_as_there_are_views():
    model, taken = make_model(), []

    class Watched(Dataset):
        def __len__(self):
            return len(IMAGES)

        def __getitem__(self, index):
            if model.embedder.training:
                taken.append(index)
            return IMAGES[index] + torch.rand(())

    short_fit(model, Watched(), cluster_images=IMAGES, samples_per_cluster=2, views=3, max_steps=2)
    drawn = torch.tensor(taken[-2 * 48 :]).view(-1, 3)
    assert torch.equal(drawn, drawn[:, :1].expand(-1, 3))
    assert all(len(batch.unique()) == 16 for batch in drawn[:, 0].view(2, 16))


@pytest.mark.parametrize(("first", "later"), [("features", "features"), ("embeddings", "features")])
def test_what_is_clustered_is_what_was_asked_for_at_unit_length(first, later):
    model, seen = make_model(), []
    features, embeddings = embed(model, IMAGES, output="features"), embed(model, IMAGES)

    class Seeing(ClusterPseudoLabeler):
        def label(self, found):
            seen.append(found)
            return super().label(found)

    result = short_fit(model, labeler=Seeing(16), first_round=first, later_rounds=later, max_steps=4)
    expected = nn.functional.normalize(features) if first == "features" else embeddings
    assert torch.allclose(seen[0], expected, atol=1e-5)
    assert seen[1].shape == features.shape
    assert torch.allclose(seen[1].norm(dim=1), torch.ones(len(IMAGES)))
    assert result.pseudo_labels.centers.shape == (16, 16)
    assert result.start.effective_rank > 16  # features were judged


class Recording(ClusterPseudoLabeler):
    """Keeps what it was asked to cluster."""

    def label(self, embeddings):
        self.asked = [*getattr(self, "asked", []), embeddings.clone()]
        return super().label(embeddings)


def test_remembered_embeddings_are_those_of_the_steps_that_last_had_each_image():
    model, labeler = make_model(), Recording(6)
    numbers = torch.arange(len(IMAGES)).view(-1, 1, 1, 1) / 1000
    images = IMAGES + numbers
    of = {images[index].sum().item(): index for index in range(len(images))}
    looked, steps = [], []

    def record(module, inputs, output):
        rows = {of[image.sum().item()]: row for image, row in zip(inputs[0], output.detach(), strict=True)}
        (steps if module.training else looked).append(rows)

    model.register_forward_hook(record)
    result = fit(
        model,
        images,
        labeler=labeler,
        criterion=UDMLSSLoss(losses.ContrastiveLoss()),
        clusters_per_batch=3,
        samples_per_cluster=3,
        max_steps=6,
        relabel_every=2,
        first_round="embeddings",
        later_rounds="remembered",
        freeze_batch_norm=False,
        progress=False,
    )
    expected = labeler.asked[0].clone()
    assert len(labeler.asked) == 3
    for round_, asked in enumerate(labeler.asked[1:]):
        for rows in steps[2 * round_ : 2 * round_ + 2]:
            for index, row in rows.items():
                expected[index] = row
        torch.testing.assert_close(asked, expected, rtol=0, atol=0)
    assert sum(map(len, looked)) == 2 * len(images)  # the first look, and its second views
    assert [report.label_free for report in result.history] == [None] * 3
    assert result.start is not None
    assert result.label_free is None


@pytest.mark.parametrize("later", ["features", "embeddings"])
def test_embeddings_on_a_disk_give_the_same_run_and_leave_no_file(later, tmp_path):
    runs = {}
    for folder in (None, tmp_path):
        model, labeler = make_model(), Recording(16)
        result = short_fit(model, labeler=labeler, later_rounds=later, embeddings_folder=folder)
        runs[folder] = [weights(model), *labeler.asked], figures(result)
    torch.testing.assert_close(runs[tmp_path][0], runs[None][0], rtol=0, atol=0)
    assert runs[tmp_path][1] == runs[None][1]
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is mapped from a file")
@pytest.mark.parametrize("later", ["features", "embeddings"])
def test_what_is_clustered_lies_in_the_folder_asked_for_and_the_file_has_no_name(later, tmp_path):
    seen = []

    class Seeing(ClusterPseudoLabeler):
        def label(self, embeddings):
            seen.append(mapped_from(embeddings) == str(tmp_path) and not list(tmp_path.iterdir()))
            return super().label(embeddings)

    short_fit(make_model(), labeler=Seeing(16), later_rounds=later, embeddings_folder=tmp_path)
    assert seen == [True, True]


def mapped_from(tensor):
    """Return the folder of the file that a tensor's numbers are mapped from, if they are."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(bound, 16) for bound in line.split()[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return line[line.find("/") :].rpartition("/")[0]
    return None


@pytest.mark.parametrize("first", ["features", "embeddings"])
def test_no_embeddings_of_all_images_are_held_while_steps_are_taken(first):
    asked, held = [], []

    class Seeing(ClusterPseudoLabeler):
        def label(self, embeddings):
            asked.append(weakref.ref(embeddings))
            return super().label(embeddings)

    class Loss(losses.ContrastiveLoss):
        def forward(self, *args, **kwargs):
            held.append([rows() is not None for rows in asked])
            return super().forward(*args, **kwargs)

    short_fit(make_model(), labeler=Seeing(16), criterion=criterion(Loss()), first_round=first, max_steps=4)
    assert held == [[False]] * 3 + [[False, False]]
