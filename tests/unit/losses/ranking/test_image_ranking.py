import copy
import math
import pickle
from itertools import pairwise

import jaxtyping
import pytest
import torch
from torch import nn
from torch.nn import functional

from udmlss import EmbeddingModel
from udmlss.losses import SelfSupervisedRanking
from udmlss.losses.ranking.image_ranking import distort

B, SIDE, F = 6, 8, 192


class Trunk(nn.Module):
    """Flattens, with a scale to learn, and keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return self.scale * images.flatten(1)


def make_model():
    return EmbeddingModel(Trunk(), nn.Linear(F, 5))


def make_ranking(**settings):
    torch.manual_seed(3)
    return SelfSupervisedRanking(F, 16, 4, **settings)


def make_images(b=B, dtype=torch.float32):
    """Return smooth images, so that distances between crops mean something."""
    coarse = torch.randn(b, 3, 3, 3, dtype=dtype)
    return functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic")


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def loss_by_hand(ranking, features, b):
    """Return the loss in plain numbers: b rows of features of images, then b of each version in turn."""
    weights = [parameter.tolist() for parameter in ranking.layers.parameters()]

    def project(row):
        hidden = [max(0, dot(row, weight) + bias) for weight, bias in zip(*weights[:2], strict=True)]
        return [dot(hidden, weight) + bias for weight, bias in zip(*weights[2:], strict=True)]

    rows = [project(row) for row in features.tolist()]
    s, total = ranking.scale, 0.0
    for image in range(b):
        cosines = [
            dot(rows[image], row) / math.sqrt(dot(rows[image], rows[image]) * dot(row, row))
            for row in rows[b + image :: b]
        ]
        falls = sum(math.exp(s * (after - before + ranking.margin)) for before, after in pairwise(cosines))
        below = sum(math.exp(s * (ranking.boundary - cosine)) for cosine in cosines)
        total += (math.log(1 + falls) + ranking.positive_weight * math.log(1 + below)) / s
    return ranking.weight * total / b


@pytest.mark.parametrize("strengths", [(0.2, 0.9), (0.25, 0.5, 0.75), (0.1, 0.2, 0.3, 1.0)])
@pytest.mark.parametrize("weights", [{}, {"weight": 0.3, "positive_weight": 2.0}, {"positive_weight": 0.0}])
@pytest.mark.parametrize("images", [4, B, 100])
def test_the_loss_is_what_plain_numbers_give_for_what_the_trunk_saw(strengths, weights, images):
    model, ranking = (
        make_model().double(),
        make_ranking(strengths=strengths, images=images, scale=8.0, **weights).double(),
    )
    found = ranking(model, make_images(dtype=torch.float64))
    b, [batch] = min(images, B), model.trunk.seen
    assert len(batch) == b * (1 + len(strengths))
    assert found.item() == pytest.approx(loss_by_hand(ranking, batch.flatten(1), b), abs=1e-6)
    assert found.dtype == torch.float64
    assert found.shape == ()


def test_the_gradient_is_that_of_finite_differences():
    ranking, images = make_ranking(scale=4.0, images=2).double(), make_images(2, dtype=torch.float64)
    model, names = EmbeddingModel(nn.Flatten(), nn.Identity()), dict(ranking.named_parameters())

    def compute(*held):
        ranking.draws.manual_seed(0)
        return torch.func.functional_call(ranking, dict(zip(names, held, strict=True)), (model, images))

    held = [parameter.detach().clone().requires_grad_() for parameter in ranking.parameters()]
    assert torch.autograd.gradcheck(compute, held, fast_mode=True)


def test_trunk_and_head_learn_and_the_embedder_does_not():
    model, ranking = make_model(), make_ranking()
    ranking(model, make_images()).backward()
    assert model.trunk.scale.grad.any()
    assert all(parameter.grad.any() for parameter in ranking.parameters())
    assert model.embedder.weight.grad is None


def test_training_on_it_puts_versions_in_their_order():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(F, 32), nn.ReLU())
    model, ranking, images = EmbeddingModel(trunk, nn.Identity()), SelfSupervisedRanking(32, 32, 8), make_images(16)
    optimizer = torch.optim.Adam([*trunk.parameters(), *ranking.parameters()], lr=3e-3)
    values = []
    for _ in range(100):
        optimizer.zero_grad()
        values.append(ranking(model, images))
        values[-1].backward()
        optimizer.step()
    assert sum(values[-10:]) < 0.7 * sum(values[:10])


# Which images, and when


def test_different_images_of_the_batch_are_taken_as_they_are():
    model, images = make_model(), make_images()
    make_ranking(images=4)(model, images)
    taken = [[torch.equal(row, image) for image in images].index(True) for row in model.trunk.seen[0][:4]]
    assert len(set(taken)) == 4


@pytest.mark.parametrize(("probability", "least", "most"), [(0.0, 0, 0), (0.5, 35, 65), (1.0, 100, 100)])
def test_it_works_in_as_many_calls_as_the_probability_says(probability, least, most):
    model, ranking, images = make_model(), make_ranking(probability=probability, images=1), make_images(2)
    values = [ranking(model, images) for _ in range(100)]
    assert least <= len(model.trunk.seen) <= most
    assert sum(bool(value != 0) for value in values) == len(model.trunk.seen)


def test_a_call_that_does_nothing_is_a_zero_with_a_gradient():
    ranking = make_ranking(probability=0.0)
    loss = ranking(make_model(), make_images())
    loss.backward()
    assert loss == 0
    assert all(not parameter.grad.any() for parameter in ranking.parameters())


def test_the_seed_decides_what_is_drawn_and_torchs_global_state_is_left_alone():
    images, values = make_images(), {}
    for seed in (1, 1, 2):
        model, ranking = make_model(), make_ranking(seed=seed)
        before = torch.get_rng_state()
        found = ranking(model, images).item(), ranking(model, images).item()
        assert torch.equal(before, torch.get_rng_state())
        assert found[0] != found[1]
        assert values.setdefault(seed, found) == found
    assert values[1] != values[2]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda ranking: pickle.loads(pickle.dumps(ranking))])  # noqa: S301
def test_a_copy_goes_on_with_the_same_draws(duplicate):
    model, ranking, images = make_model(), make_ranking(), make_images()
    ranking(model, images)
    other = duplicate(ranking)
    assert ranking(model, images) == other(model, images)


def test_the_memory_format_reaches_the_trunk():
    model, images = make_model(), make_images()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        make_ranking()(model, images.contiguous(memory_format=memory_format))
        assert model.trunk.seen[-1].is_contiguous(memory_format=memory_format)


def test_half_precision_is_ranked_in_float32():
    model, ranking = EmbeddingModel(nn.Sequential(nn.Flatten(), nn.Linear(F, F)), nn.Identity()), make_ranking()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ranking(model, make_images())
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("images", [torch.zeros(4, 3, 8, 8), torch.ones(4, 3, 8, 8), torch.zeros(1, 3, 8, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_images_without_any_contrast_give_finite_values_and_gradients(images, bias):
    model, ranking = make_model(), make_ranking()
    if not bias:  # so that black images give the zero vector
        for layer in (ranking.layers[0], ranking.layers[2]):
            nn.init.zeros_(layer.bias)
    loss = ranking(model, images)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in [*ranking.parameters(), model.trunk.scale])


# The versions


def test_without_strength_an_image_stays_as_it_is():
    images = make_images()
    torch.testing.assert_close(distort(images, (0.0,), draws())[0], images, atol=1e-5, rtol=0)


def test_the_stronger_a_version_the_farther_it_is_from_its_image():
    torch.manual_seed(0)
    images, strengths = make_images(256), (0.1, 0.3, 0.5, 0.7, 1.0)
    distances = (distort(images, strengths, draws()) - images).flatten(2).norm(dim=2)
    means = distances.mean(dim=1)
    assert (means.diff() > 0.05 * means[-1]).all()
    assert (distances.diff(dim=0) > 0).double().mean() > 0.9


def test_each_crop_lies_inside_the_one_before_and_has_the_side_that_its_strength_says(monkeypatch):
    for name in ("_CONTRAST", "_BRIGHTNESS", "_NOISE"):
        monkeypatch.setattr(self_supervised_ranking, name, 0.0)
    ramp = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    images = torch.stack(torch.meshgrid(ramp, ramp, indexing="ij")).repeat(20, 1, 1, 1)  # each pixel says where it is
    strengths = (0.25, 0.5, 1.0)
    versions = distort(images, strengths, draws())
    lowest, highest = versions.amin(dim=(3, 4)), versions.amax(dim=(3, 4))
    for strength, low, high in zip(strengths, lowest, highest, strict=True):
        side = torch.full_like(low, 1 - 0.5 * strength)
        torch.testing.assert_close(
            (high - low) * 64 / 63, side, atol=0.01, rtol=0
        )  # pixels' middles; edges are clamped
    assert (lowest.diff(dim=0) > -0.01).all()
    assert (highest.diff(dim=0) < 0.01).all()
    assert lowest[-1].std() > 0.1  # crops lie anywhere


def test_colour_and_noise_go_further_in_one_direction():
    flat = torch.tensor([0.0, 1.0, 5.0]).view(1, 3, 1, 1).expand(4, 3, SIDE, SIDE)  # all crops of it are alike
    half, whole = distort(flat, (0.5, 1.0), draws()) - flat
    torch.testing.assert_close(whole, 2 * half)
    assert whole.std(dim=(2, 3)).min() > 0  # noise
    assert len(set(whole.mean(dim=(1, 2, 3)).tolist())) == 4  # each image in a direction of its own


@pytest.mark.parametrize(("shift", "factor"), [(0.0, 1.0), (3.0, 0.1), (-100.0, 50.0)])
def test_mean_and_deviation_of_the_images_make_no_difference(shift, factor):
    images = make_images(dtype=torch.float64)
    expected = shift + factor * distort(images, (0.3, 0.6), draws())
    torch.testing.assert_close(distort(shift + factor * images, (0.3, 0.6), draws()), expected)


def test_images_need_not_be_square_and_are_left_as_they_are():
    images = torch.randn(2, 1, 5, 9)
    before = images.clone()
    assert distort(images, (0.5,), draws()).shape == (1, 2, 1, 5, 9)
    assert torch.equal(images, before)


# What is refused


@pytest.mark.parametrize(
    "strengths",
    [(0.5,), (0.1, 0.2, 0.3, 0.4, 0.5), (), (0.5, 0.5), (0.6, 0.3), (0.0, 0.5), (-0.1, 0.5), (0.5, 1.1)],
)
def test_strengths_that_do_not_grow_or_are_too_few_or_many_are_refused(strengths):
    with pytest.raises(ValueError, match=r"`strengths` must be 2 to 4 growing numbers above 0 and up to 1, got \("):
        make_ranking(strengths=strengths)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"margin": -0.1}, "`margin` must be at least 0"),
        ({"boundary": 1.1}, r"`boundary` must lie in -1\.\.1, got 1\.1"),
        ({"scale": 0.0}, "`scale` must be above 0"),
        ({"positive_weight": -1.0}, "`positive_weight` must be at least 0"),
        ({"weight": -1.0}, "`weight` must be at least 0, got -1.0"),
        ({"images": 0}, "`images` must be at least 1"),
        ({"probability": 1.5}, r"`probability` must lie in 0\.\.1, got 1\.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_ranking(**settings)


@pytest.mark.parametrize("position", range(3))
def test_a_head_without_a_dimension_is_refused(position):
    sizes = [4, 4, 4]
    sizes[position] = 0
    name = ("in_features", "hidden", "dimensions")[position]
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        SelfSupervisedRanking(*sizes)


def test_features_that_are_no_matrix_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    model = EmbeddingModel(nn.Identity(), nn.Identity())
    with pytest.raises(ValueError, match=r"The trunk must return features \(b f\), got shape \(24, 3, 8, 8\)"):
        make_ranking()(model, make_images())
