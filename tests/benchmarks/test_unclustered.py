"""The methods of two views, and the loops they share with examples/reproduce.py."""

from types import SimpleNamespace

import clustered
import pooling
import pytest
import quality
import setups
import torch
import two_views
import unclustered
from pytorch_metric_learning.losses import NTXentLoss
from torch import nn
from torch.nn import functional

from udmlss import EmbeddingModel
from udmlss.losses import Decoder, SynthesisRankingLoss

METHODS = [unclustered.instance, unclustered.cbswr, unclustered.stml]


class Counted(torch.utils.data.Dataset):
    """Images that tell which were taken."""

    def __init__(self, images):
        self.images, self.taken = images, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.taken.append(index)
        return self.images[index]


def views_of(images, batch, steps=4, **chosen):
    def build(model, parts):
        return torch.optim.SGD([*model.parameters(), *parts.parameters()], lr=0.1)

    given = {"images": images, "plain": images, "freeze_batch_norm": False, "build_optimizer": build} | chosen
    return two_views.TwoViews(batch=batch, steps=steps, **given)


def model_of(size=8):
    return EmbeddingModel(nn.Sequential(nn.AvgPool2d(2), nn.Flatten()), nn.Linear(3 * (size // 2) ** 2, 4))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("p", "k"), [(2, 2), (2, 5), (3, 4)])
def test_a_step_sees_as_many_views_as_those_of_the_other_methods(flowers, options, method, p, k):
    given = [*options, "--clusters-per-batch", str(p), "--samples-per-cluster", str(k)]
    _, settings = quality.parse(quality.build_parser(None), ["--data", str(flowers), *given])
    data = setups.open_data(settings, flowers)
    train = Counted(data.train)
    counted = SimpleNamespace(train=train, plain=data.plain, labels=data.labels)
    method(setups.build_model(settings, seed=0), counted, settings, 0)
    assert len(train.taken) == settings.steps * p * k
    assert {train.taken.count(index) % 2 for index in train.taken} == {0} or method is unclustered.cbswr


def test_pairs_are_two_views_of_each_image_and_pass_over_all():
    views = views_of(torch.rand(120, 3, 8, 8), batch=40)
    batches = two_views._Pairs(model_of(), views, 0)(0)
    assert all(batch[:40] == batch[40:] and len(set(batch)) == 40 for batch in batches)
    assert len({index for batch in batches for index in batch}) == 120
    assert batches != two_views._Pairs(model_of(), views, 0)(1)
    assert batches == two_views._Pairs(model_of(), views, 0)(0)


def test_second_views_may_be_of_the_nearest_neighbour():
    images = torch.rand(10, 3, 8, 8).repeat(2, 1, 1, 1) + 1e-3 * torch.rand(20, 3, 8, 8)
    [batch] = two_views._Pairs(model_of(), views_of(images, batch=20), 1)(0)
    assert [index % 10 for index in batch[:20]] == [index % 10 for index in batch[20:]]
    assert not set(zip(batch[:20], batch[:20], strict=True)) & set(zip(batch[:20], batch[20:], strict=True))


def test_the_batches_of_stml_are_images_with_their_nearest_in_two_views(monkeypatch):
    images = torch.rand(6, 3, 8, 8).repeat_interleave(4, dim=0) + 1e-3 * torch.rand(24, 3, 8, 8)
    drawn = []
    monkeypatch.setattr(two_views.TwoViews, "run", lambda _self, _model, _parts, draw, *_, **__: drawn.extend(draw(0)))
    two_views.train_stml(model_of(), views_of(images, batch=12), neighbors=4)
    assert [len(batch) for batch in drawn] == [24, 24]
    for batch in drawn:
        assert batch[:12] == batch[12:]
        for start in range(0, 12, 4):
            assert {index // 4 for index in batch[start : start + 4]} == {batch[start] // 4}


def test_the_schedule_steers_the_learning_rates(monkeypatch):
    rates = []

    class Noted(torch.optim.SGD):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
            super().step()

    views = views_of(
        torch.rand(8, 3, 8, 8),
        batch=4,
        build_optimizer=lambda model, _: Noted(model.parameters(), lr=1.0),
        schedule=lambda share: 1 - share,
    )
    two_views.train_instances(model_of(), views, NTXentLoss())
    assert rates == [1, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    ("maps", "image"), [((8, 4, 4), (3, 112, 112)), ((8, 4, 4), (3, 128, 128)), ((16, 2, 2), (1, 32, 32))]
)
def test_a_decoder_makes_images_of_any_size(maps, image):
    decoder = two_views._decoder(torch.Size(maps), torch.Size(image))
    assert decoder(torch.rand(2, *maps)).shape == (2, *image)
    assert isinstance(decoder, Decoder) == (image[1] % maps[1] == 0 and image[1] != 112)


def test_maps_are_what_the_pooling_layer_takes_in():
    trunk = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(pooling.maps_before(trunk[1], trunk, images), trunk[0](images))
    assert not trunk[1]._forward_pre_hooks


def test_poolings_are_what_their_names_say():
    maps = torch.rand(2, 5, 4, 4)
    maximum, average = maps.amax(dim=(2, 3), keepdim=True), maps.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(pooling.Maximum()(maps), maximum)
    torch.testing.assert_close(pooling.AverageAndMaximum()(maps), maximum + average)


def test_the_teacher_is_the_average_of_trunk_and_wide_head(monkeypatch):
    seen = []

    class Noted(torch.optim.swa_utils.AveragedModel):
        def update_parameters(self, model):
            super().update_parameters(model)
            seen.append([next(part.trunk.parameters()).detach().clone() for part in (model, self.module)])

    monkeypatch.setattr(two_views, "AveragedModel", Noted)
    model = model_of()
    model.trunk.append(nn.Linear(48, 48))
    two_views.train_stml(model, views_of(torch.rand(12, 3, 8, 8), batch=6, steps=3), wide_size=6, decay=0.75)
    (first, teacher), *later = seen
    torch.testing.assert_close(teacher, first)
    for student, averaged in later:
        torch.testing.assert_close(averaged, 0.75 * teacher + 0.25 * student)
        assert not torch.equal(averaged, teacher)
        teacher = averaged
    assert len(seen) == 3


def test_synthesis_goes_beside_the_metric_loss_without_its_anchor_term(flowers, options):
    _, settings = quality.parse(quality.build_parser(None), ["--data", str(flowers), *options])
    both = clustered._criterion(settings, 6, synthesis=True, seed=0).metric_loss
    assert both.weights == [1, 0.23]
    assert isinstance(both.losses[1], SynthesisRankingLoss)
    assert both.losses[1].anchor_weight == 0
    embeddings, labels = functional.normalize(torch.randn(12, 8)), torch.arange(3).repeat(4)
    assert both.miners[0] is not None
    both.losses[1].set_centers(torch.randn(3, 8))
    assert both(embeddings, labels).isfinite()
