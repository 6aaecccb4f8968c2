"""Methods that compare two views of each image, and the loops that they share with examples/reproduce.py."""

from types import SimpleNamespace

import methods
import pooling
import published
import pytest
import setups
import torch
import two_views
from metric_losses import build_loss
from pytorch_metric_learning.losses import NTXentLoss
from torch import nn
from torch.nn import functional

from udmlss import EmbeddingModel
from udmlss.losses import Decoder, SynthesisRankingLoss


class CountedImages(torch.utils.data.Dataset):
    """Images that record which of them were loaded."""

    def __init__(self, images):
        self.images, self.loaded = images, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.loaded.append(index)
        return self.images[index]


def views_of(images, batch, steps=4, **chosen):
    def build(model, others):
        return torch.optim.SGD([*model.parameters(), *others.parameters()], lr=0.1)

    given = {"images": images, "plain": images, "freeze_batch_norm": False, "build_optimizer": build} | chosen
    return two_views.TwoViews(batch=batch, steps=steps, **given)


def model_of(size=8):
    return EmbeddingModel(nn.Sequential(nn.AvgPool2d(2), nn.Flatten()), nn.Linear(3 * (size // 2) ** 2, 4))


@pytest.mark.parametrize("method", methods.WITHOUT_CLUSTERS)
@pytest.mark.parametrize(("p", "k"), [(2, 5), (3, 4)])
def test_step_has_the_same_number_of_views_as_that_of_other_methods(flowers, settings_of, method, p, k):
    settings = settings_of("--clusters-per-batch", str(p), "--samples-per-cluster", str(k))
    data = setups.open_data(settings, flowers)
    train = CountedImages(data.train)
    counted = SimpleNamespace(train=train, plain=data.plain, labels=data.labels)
    methods.METHODS[method](setups.build_model(settings, seed=0), counted, settings, 0)
    assert len(train.loaded) == settings.steps * p * k
    assert {train.loaded.count(index) % 2 for index in train.loaded} == {0} or method == "cbswr"


def test_pairs_of_an_epoch_are_two_views_of_each_image():
    views = views_of(torch.rand(120, 3, 8, 8), batch=40)
    batches = two_views._PairBatches(model_of(), views, 0)(0)
    assert all(batch[:40] == batch[40:] and len(set(batch)) == 40 for batch in batches)
    assert len({index for batch in batches for index in batch}) == 120
    assert batches != two_views._PairBatches(model_of(), views, 0)(1)
    assert batches == two_views._PairBatches(model_of(), views, 0)(0)


def test_second_views_can_be_of_the_nearest_neighbor():
    images = torch.rand(10, 3, 8, 8).repeat(2, 1, 1, 1) + 1e-3 * torch.rand(20, 3, 8, 8)
    [batch] = two_views._PairBatches(model_of(), views_of(images, batch=20), 1)(0)
    assert [index % 10 for index in batch[:20]] == [index % 10 for index in batch[20:]]
    assert not any(first == second for first, second in zip(batch[:20], batch[20:], strict=True))


def test_batches_of_stml_are_images_with_their_nearest_neighbors_in_two_views(monkeypatch):
    images = torch.rand(6, 3, 8, 8).repeat_interleave(4, dim=0) + 1e-3 * torch.rand(24, 3, 8, 8)
    batches = []
    monkeypatch.setattr(
        two_views.TwoViews,
        "run",
        lambda _self, _model, _others, sample_epoch, *_, **__: batches.extend(sample_epoch(0)),
    )
    two_views.train_stml(model_of(), views_of(images, batch=12), neighbors=4)
    assert [len(batch) for batch in batches] == [24, 24]
    for batch in batches:
        assert batch[:12] == batch[12:]
        for start in range(0, 12, 4):
            assert {index // 4 for index in batch[start : start + 4]} == {batch[start] // 4}


def test_schedule_sets_the_learning_rates():
    rates = []

    class RecordingSGD(torch.optim.SGD):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
            super().step()

    views = views_of(
        torch.rand(8, 3, 8, 8),
        batch=4,
        build_optimizer=lambda model, _: RecordingSGD(model.parameters(), lr=1.0),
        schedule=lambda fraction: 1 - fraction,
    )
    two_views.train_instances(model_of(), views, NTXentLoss())
    assert rates == [1, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    ("maps", "image"), [((8, 4, 4), (3, 112, 112)), ((8, 4, 4), (3, 128, 128)), ((16, 2, 2), (1, 32, 32))]
)
def test_decoder_returns_images_of_any_size(maps, image):
    decoder = two_views._decoder(torch.Size(maps), torch.Size(image))
    assert decoder(torch.rand(2, *maps)).shape == (2, *image)
    assert isinstance(decoder, Decoder) == (image[1] != 112)


def test_compute_maps_returns_the_input_of_the_pooling_layer():
    trunk = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(pooling.compute_maps(trunk[1], trunk, images), trunk[0](images))
    assert not trunk[1]._forward_pre_hooks


def test_set_pooling_replaces_the_average_by_average_and_maximum():
    trunk = nn.Sequential(*[nn.Identity()] * 4, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    maps = torch.rand(2, 5, 4, 4)
    average, maximum = maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))
    for name, expected in {"average": average, "maximum": maximum, "average+maximum": average + maximum}.items():
        pooling.set_pooling(trunk, "small", name)
        torch.testing.assert_close(trunk(maps), expected)


def test_teacher_is_the_average_of_the_trunk_and_the_wide_embedder(monkeypatch):
    weights = []

    class RecordingAverage(torch.optim.swa_utils.AveragedModel):
        def update_parameters(self, model):
            super().update_parameters(model)
            weights.append([next(part.trunk.parameters()).detach().clone() for part in (model, self.module)])

    monkeypatch.setattr(two_views, "AveragedModel", RecordingAverage)
    model = model_of()
    model.trunk.append(nn.Linear(48, 48))
    two_views.train_stml(model, views_of(torch.rand(12, 3, 8, 8), batch=6, steps=3), wide_size=6, decay=0.75)
    (first, teacher), *later = weights
    torch.testing.assert_close(teacher, first)
    for student, average in later:
        torch.testing.assert_close(average, 0.75 * teacher + 0.25 * student)
        assert not torch.equal(average, teacher)
        teacher = average
    assert len(weights) == 3


def test_synthesis_is_added_to_the_metric_loss_without_its_anchor_term():
    loss, miner = build_loss("multi-similarity", 6, 8)
    both = published.build_criterion(loss, 8, miner=miner, rotation_weight=0, synthesis_weight=0.23).metric_loss
    assert both.weights == [1, 0.23]
    assert isinstance(both.losses[1], SynthesisRankingLoss)
    assert both.losses[1].anchor_weight == 0
    embeddings, labels = functional.normalize(torch.randn(12, 8)), torch.arange(3).repeat(4)
    assert both.miners[0] is not None
    both.losses[1].set_centers(torch.randn(3, 8))
    assert both(embeddings, labels).isfinite()
