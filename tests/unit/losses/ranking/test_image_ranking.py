"""SelfSupervisedRanking, compared with its definition, and the distorted views."""

import math
from itertools import pairwise

import pytest
import torch
from loss_checks import assert_finite, train
from torch import nn
from torch.nn import functional

from udmlss import EmbeddingModel
from udmlss.losses import SelfSupervisedRanking
from udmlss.losses.ranking import distort, image_ranking

B, SIDE, F = 6, 8, 192


class Trunk(nn.Module):
    """A trunk that flattens and scales images, and stores its inputs."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.inputs = []

    def forward(self, images):
        self.inputs.append(images)
        return self.scale * images.flatten(1)


def make_model():
    return EmbeddingModel(Trunk(), nn.Linear(F, 5))


def make_ranking(**settings):
    torch.manual_seed(3)
    return SelfSupervisedRanking(F, 16, 4, **settings)


def make_images(b=B, dtype=torch.float32):
    """Return smooth images, whose distance from a crop grows with the distortion."""
    coarse = torch.randn(b, 3, 3, 3, dtype=dtype)
    return functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def naive_loss(ranking, features, b):
    """Return the loss of the features of b images, followed by those of their first views, second views and so on."""
    rows, total, s = ranking.layers(features).detach(), 0.0, ranking.scale
    for image in range(b):
        views = rows[b + image :: b]
        cosines = [float(rows[image] @ view / rows[image].norm() / view.norm()) for view in views]
        ranks = sum(math.exp(s * (after - before + ranking.margin)) for before, after in pairwise(cosines))
        below = sum(math.exp(s * (ranking.boundary - cosine)) for cosine in cosines)
        total += (math.log1p(ranks) + ranking.positive_weight * math.log1p(below)) / s
    return ranking.weight * total / b


@pytest.mark.parametrize("strengths", [(0.2, 0.9), (0.25, 0.5, 0.75), (0.1, 0.2, 0.3, 1.0)])
@pytest.mark.parametrize(
    ("weights", "max_images"), [({}, 4), ({"weight": 0.3, "positive_weight": 2.0}, B), ({"positive_weight": 0.0}, 100)]
)
def test_equals_the_definition_for_the_inputs_of_the_trunk(strengths, weights, max_images):
    model = make_model().double()
    ranking = make_ranking(strengths=strengths, max_images=max_images, scale=8.0, **weights).double()
    loss = ranking(model, make_images(dtype=torch.float64))
    b, [batch] = min(max_images, B), model.trunk.inputs
    assert len(batch) == b * (1 + len(strengths))
    assert loss.item() == pytest.approx(naive_loss(ranking, batch.flatten(1), b), abs=1e-6)
    assert loss.dtype == torch.float64
    assert loss.shape == ()


def test_gradient_equals_finite_differences():
    ranking, images = make_ranking(scale=4.0, max_images=2).double(), make_images(2, dtype=torch.float64)
    model, names = EmbeddingModel(nn.Flatten(), nn.Identity()), dict(ranking.named_parameters())

    def compute(*parameters):
        ranking.generator.manual_seed(0)
        return torch.func.functional_call(ranking, dict(zip(names, parameters, strict=True)), (model, images))

    parameters = [parameter.detach().clone().requires_grad_() for parameter in ranking.parameters()]
    assert torch.autograd.gradcheck(compute, parameters, fast_mode=True)


def test_trunk_and_head_receive_gradients_and_the_embedder_does_not():
    model, ranking = make_model(), make_ranking()
    ranking(model, make_images()).backward()
    assert model.trunk.scale.grad.any()
    assert all(parameter.grad.any() for parameter in ranking.parameters())
    assert model.embedder.weight.grad is None


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(F, 32), nn.ReLU())
    model, ranking, images = EmbeddingModel(trunk, nn.Identity()), SelfSupervisedRanking(32, 32, 8), make_images(16)
    values = train(lambda: ranking(model, images), [*trunk.parameters(), *ranking.parameters()], lr=3e-3, steps=60)
    assert sum(values[-10:]) < 0.7 * sum(values[:10])


# Sampling


def test_head_is_two_layers_with_a_relu():
    ranking, rows = make_ranking(), torch.randn(5, F)
    first, second = ranking.layers[0], ranking.layers[2]
    hidden = (rows @ first.weight.T + first.bias).clamp(min=0)
    torch.testing.assert_close(ranking.layers(rows), hidden @ second.weight.T + second.bias)


def test_samples_different_images_of_the_batch():
    model, images = make_model(), make_images()
    make_ranking(max_images=4)(model, images)
    rows = [[torch.equal(row, image) for image in images].index(True) for row in model.trunk.inputs[0][:4]]
    assert len(set(rows)) == 4


@pytest.mark.parametrize(("probability", "least", "most"), [(0.0, 0, 0), (0.5, 35, 65), (1.0, 100, 100)])
def test_computes_the_loss_in_the_given_fraction_of_calls(probability, least, most):
    model, ranking, images = make_model(), make_ranking(probability=probability, max_images=1), make_images(2)
    values = [ranking(model, images) for _ in range(100)]
    assert least <= len(model.trunk.inputs) <= most
    assert sum(bool(value != 0) for value in values) == len(model.trunk.inputs)


def test_a_skipped_call_returns_zero_with_a_gradient():
    ranking = make_ranking(probability=0.0)
    loss = ranking(make_model(), make_images())
    loss.backward()
    assert loss == 0
    assert all(not parameter.grad.any() for parameter in ranking.parameters())


def test_preserves_the_memory_format():
    model, images = make_model(), make_images()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        make_ranking()(model, images.contiguous(memory_format=memory_format))
        assert model.trunk.inputs[-1].is_contiguous(memory_format=memory_format)


def test_computes_the_loss_in_float32_under_autocast():
    model, ranking = EmbeddingModel(nn.Sequential(nn.Flatten(), nn.Linear(F, F)), nn.Identity()), make_ranking()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ranking(model, make_images())
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("images", [torch.zeros(4, 3, 8, 8), torch.ones(4, 3, 8, 8), torch.zeros(1, 3, 8, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_loss_and_gradient_of_constant_images_are_finite(images, bias):
    model, ranking = make_model(), make_ranking()
    if not bias:  # black images then have a zero vector as projection
        for layer in (ranking.layers[0], ranking.layers[2]):
            nn.init.zeros_(layer.bias)
    assert_finite(ranking(model, images), model.trunk.scale, *ranking.parameters())


# Distorted views


def test_strength_zero_returns_the_image():
    images = make_images()
    torch.testing.assert_close(distort(images, (0.0,), seeded())[0], images, atol=1e-5, rtol=0)


def test_views_do_not_depend_on_autocast():
    images = torch.rand(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        views = distort(images, (0.25, 1.0), seeded())
    assert torch.equal(views, distort(images, (0.25, 1.0), seeded()))


def test_distance_from_the_image_increases_with_strength():
    torch.manual_seed(0)
    images, strengths = make_images(256), (0.1, 0.3, 0.5, 0.7, 1.0)
    distances = (distort(images, strengths, seeded()) - images).flatten(2).norm(dim=2)
    means = distances.mean(dim=1)
    assert (means.diff() > 0.05 * means[-1]).all()
    assert (distances.diff(dim=0) > 0).double().mean() > 0.9


def test_crops_are_nested_and_have_the_size_of_their_strength(monkeypatch):
    for name in ("_CONTRAST", "_BRIGHTNESS", "_NOISE"):
        monkeypatch.setattr(image_ranking, name, 0.0)
    ramp = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    positions = torch.stack(torch.meshgrid(ramp, ramp, indexing="ij"))
    images = positions.repeat(20, 1, 1, 1)  # the value of a pixel is its position
    strengths = (0.25, 0.5, 1.0)
    views = distort(images, strengths, seeded())
    lowest, highest = views.amin(dim=(3, 4)), views.amax(dim=(3, 4))
    for strength, low, high in zip(strengths, lowest, highest, strict=True):
        side = torch.full_like(low, 1 - 0.5 * strength)
        # Values are those of pixel centers, and edges are clamped.
        torch.testing.assert_close((high - low) * 64 / 63, side, atol=0.01, rtol=0)
    assert (lowest.diff(dim=0) > -0.01).all()
    assert (highest.diff(dim=0) < 0.01).all()
    assert lowest[-1].std() > 0.1  # the positions of crops vary


def test_changes_of_color_and_noise_are_proportional_to_strength():
    constant = torch.tensor([0.0, 1.0, 5.0]).view(1, 3, 1, 1).expand(4, 3, SIDE, SIDE)  # crops do not change it
    half, full = distort(constant, (0.5, 1.0), seeded()) - constant
    torch.testing.assert_close(full, 2 * half)
    assert full.std(dim=(2, 3)).min() > 0  # noise
    assert len(set(full.mean(dim=(1, 2, 3)).tolist())) == 4  # images differ in the direction of change


@pytest.mark.parametrize(("shift", "factor"), [(0.0, 1.0), (3.0, 0.1), (-100.0, 50.0)])
def test_distortion_is_equivariant_to_shift_and_scale_of_images(shift, factor):
    images = make_images(dtype=torch.float64)
    expected = shift + factor * distort(images, (0.3, 0.6), seeded())
    torch.testing.assert_close(distort(shift + factor * images, (0.3, 0.6), seeded()), expected)


def test_accepts_images_that_are_not_square_and_does_not_change_them():
    images = torch.randn(2, 1, 5, 9)
    before = images.clone()
    assert distort(images, (0.5,), seeded()).shape == (1, 2, 1, 5, 9)
    assert torch.equal(images, before)


# Errors


@pytest.mark.parametrize(
    "strengths", [(0.5,), (0.1, 0.2, 0.3, 0.4, 0.5), (), (0.5, 0.5), (0.6, 0.3), (0.0, 0.5), (-0.1, 0.5), (0.5, 1.1)]
)
def test_rejects_invalid_strengths(strengths):
    message = r"`strengths` must be 2 to 4 increasing numbers above 0 and at most 1, got \("
    with pytest.raises(ValueError, match=message):
        make_ranking(strengths=strengths)


def test_rejects_features_that_are_not_2d(unchecked_types):
    model = EmbeddingModel(nn.Identity(), nn.Identity())
    with pytest.raises(ValueError, match=r"The trunk must return features .* got shape \(24, 3, 8, 8\)"):
        make_ranking()(model, make_images())
