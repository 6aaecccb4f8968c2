import copy

import pytest
import torch
from pytorch_metric_learning import losses, miners
from short_training import (
    IMAGES,
    LABELS,
    Augmented,
    criterion,
    figures,
    make_model,
    make_pretrained_model,
    short_fit,
    weights,
)
from torch import nn
from torch.utils.data import Dataset, Subset

from udmlss import EmbeddingModel, Epochs, RotationPretextHead, UDMLSSLoss, evaluate, parameter_groups


def test_training_without_labels_improves_retrieval():
    model = make_model()
    before = evaluate(model, IMAGES, LABELS).map_at_r
    head, loss = RotationPretextHead(256, max_images=8), criterion()
    optimizer = torch.optim.AdamW(parameter_groups(model, loss, head, trunk_lr=3e-3, lr=3e-3))
    result = short_fit(model, criterion=loss, rotation_head=head, optimizer=optimizer, max_steps=60, relabel_every=15)
    assert evaluate(model, IMAGES, LABELS).map_at_r > before + 0.2
    assert result.history[-1].loss < result.history[0].loss
    assert result.history[-1].rotation_accuracy > 0.5


def test_true_labels_do_not_change_the_result():
    class Labeled(Dataset):
        def __init__(self, labels):
            self.labels = labels

        def __len__(self):
            return len(IMAGES)

        def __getitem__(self, index):
            return {"image": IMAGES[index], "label": self.labels[index]}

    one, other = make_model(), make_model()
    short_fit(one, Labeled(LABELS))
    short_fit(other, Labeled(LABELS.flip(0)))
    assert torch.equal(weights(one), weights(other))


def test_equal_seeds_give_equal_weights_and_history_and_other_seeds_do_not():
    runs = [(model := make_model(), short_fit(model, seed=seed)) for seed in (1, 1, 2)]
    assert torch.equal(weights(runs[0][0]), weights(runs[1][0]))
    assert figures(runs[0][1]) == figures(runs[1][1])
    assert not torch.equal(weights(runs[0][0]), weights(runs[2][0]))


def test_random_transforms_follow_the_seed_and_the_global_random_state_is_unchanged():
    models = [make_model(), make_model()]
    for number, model in enumerate(models):
        torch.manual_seed(number)
        before = torch.get_rng_state()
        short_fit(model, Augmented())
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(weights(models[0]), weights(models[1]))


@pytest.mark.parametrize(
    ("options", "largest_change"),
    [
        ({"precision": "bfloat16"}, 2e-3),
        ({"precision": "float16"}, 2e-3),
        ({"chunk_size": 7}, 1e-5),
        ({"clip_norm": 1e6}, 1e-5),
        ({"channels_last": True}, 1e-5),
    ],
)
def test_numerical_options_change_the_weights_by_rounding_only(options, largest_change):
    plain, chosen = make_pretrained_model(), make_pretrained_model()
    if options.pop("channels_last", False):
        chosen.to(memory_format=torch.channels_last)
    before = weights(plain)
    for model, changes in ((plain, {}), (chosen, options)):
        settings = {"labeler": lambda _: LABELS, "max_steps": 3, "relabel_every": 3, "freeze_batch_norm": True}
        short_fit(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **settings, **changes)
    assert (weights(plain) - before).abs().max() > 10 * largest_change
    torch.testing.assert_close(weights(chosen), weights(plain), rtol=0, atol=largest_change)
    assert next(chosen.parameters()).dtype == torch.float32


def test_rounds_have_the_given_number_of_steps_and_the_last_has_the_rest():
    result = short_fit(make_model(), max_steps=7, relabel_every=3)
    assert [report.step for report in result.history] == [3, 6, 7]
    assert [report.round for report in result.history] == [0, 1, 2]
    assert result.stop_reason == "max_steps"
    assert result.weights_step == 7


def test_lengths_can_be_given_in_epochs():
    result = short_fit(make_model(), max_steps=Epochs(2), relabel_every=Epochs(1))
    assert [report.step for report in result.history] == [8, 15]  # 240 images in batches of 32


@pytest.mark.parametrize(
    "lengths", [{"max_steps": 5, "relabel_every": 3}, {"max_steps": Epochs(2), "relabel_every": Epochs(1)}]
)
def test_steps_over_several_batches_are_counted_and_loaded_as_such(lengths):
    trunk, reports = RecordingTrunk(), []
    images = torch.rand(240, 1, 4, 4)
    model = EmbeddingModel(trunk, nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    settings = {
        "accumulate_grad_batches": 3,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "callbacks": reports.append,
    }
    result = short_fit(model, images, **settings, **lengths)
    assert [report.step for report in result.history] == [3, 5]  # 240 images in steps of 3 batches of 32
    assert [len(batch) for batch in trunk.seen] == [32] * 15
    assert scheduler.last_epoch == result.weights_step == 5


class RecordingTrunk(nn.Module):
    """A trunk that stores the first pixel of each image of the training batches."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, images):
        if self.training:
            self.seen.append(images[:, 0, 0, 0].long())
        return images.flatten(1) * self.scale + 1


def test_batches_are_trained_with_the_labels_of_their_images():
    found, trunk = [], RecordingTrunk()

    class RecordingLoss(nn.Module):
        def forward(self, embeddings, labels):
            found.append(labels.clone())
            return (embeddings**2).sum()

    images = torch.zeros(60, 1, 4, 4)
    images[:, 0, 0, 0] = torch.arange(60) % 10
    short_fit(
        EmbeddingModel(trunk, nn.Linear(16, 4)),
        images,
        labeler=lambda embeddings: torch.arange(len(embeddings)) % 10,
        criterion=RecordingLoss(),
        clusters_per_batch=4,
        num_workers=1,
    )
    found = found[1:]  # the first batch is that of the check before training
    assert len(found) == len(trunk.seen) == 6
    assert all(torch.equal(seen.sort().values, labels) for seen, labels in zip(trunk.seen, found, strict=True))


def test_unassigned_images_are_never_trained_on():
    trunk = RecordingTrunk()
    images = torch.rand(60, 1, 4, 4)
    images[:, 0, 0, 0] = torch.arange(60)
    model = EmbeddingModel(trunk, nn.Linear(16, 4))
    result = short_fit(model, images, labeler=lambda _embeddings: [-1] * 30 + [0, 1, 2, 3, 4] * 6, clusters_per_batch=4)
    assert torch.cat(trunk.seen).min() >= 30
    assert result.history[0].n_unassigned == 30
    assert result.history[0].largest_cluster == 6 / 60


def test_batches_hold_each_image_once_per_view():
    trunk = RecordingTrunk()
    images = torch.rand(60, 1, 4, 4)
    images[:, 0, 0, 0] = torch.arange(60)
    model = EmbeddingModel(trunk, nn.Linear(16, 4))
    settings = {"clusters_per_batch": 4, "samples_per_cluster": 2, "max_steps": 2}
    short_fit(model, images, labeler=lambda _embeddings: list(range(10)) * 6, views=3, **settings)
    for batch in torch.stack(trunk.seen).view(2, 8, 3):
        assert torch.equal(batch, batch[:, :1].expand(-1, 3))
        assert len(batch.unique()) == 8


def test_frozen_batch_norm_statistics_do_not_change_and_modes_are_restored():
    model = make_pretrained_model()
    statistics = copy.deepcopy(model.trunk[1].state_dict())
    model.eval()
    model.embedder.train()
    short_fit(model, freeze_batch_norm=True, callbacks=[lambda _report: model.train() and None])
    assert torch.equal(model.trunk[1].running_mean, statistics["running_mean"])
    assert not torch.equal(model.trunk[1].weight, statistics["weight"])
    assert not model.trunk.training
    assert model.embedder.training


def test_given_miner_optimizer_and_scheduler_are_used():
    model, loss = make_model(), UDMLSSLoss(losses.TripletMarginLoss(), miner=miners.BatchHardMiner())
    optimizer = torch.optim.SGD(parameter_groups(model, loss, trunk_lr=0.1, lr=0.1))
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=6)
    short_fit(model, criterion=loss, optimizer=optimizer, scheduler=scheduler)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)


def test_real_photographs_train_end_to_end(cub100):
    from torchvision.transforms import v2  # noqa: PLC0415

    from udmlss.data import cub200  # noqa: PLC0415

    plain = v2.Compose([v2.Resize((16, 16)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    images = Subset(cub200(cub100, "train", transform=plain), range(0, 2949, 20))
    result = short_fit(make_model(), images, rotation_head=RotationPretextHead(256))
    assert result.history[-1].n_clusters == 16
