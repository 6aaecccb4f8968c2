from dataclasses import replace
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from torch import nn
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import rgb_to_grayscale

from udmlss import EmbeddingModel, embed, fit
from udmlss.backbones import AveragedViews, Backbone, MirrorImage, RotatedImage
from udmlss.backbones.averaged_views import GrayImage, count_views

MEAN, STD = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
LAYERS = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.BatchNorm1d(6), nn.ReLU())


def normalized(pixels):
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


class Outputs(nn.Module):
    """A trunk that returns several outputs, as those of Hugging Face do."""

    def forward(self, images):
        return SimpleNamespace(pooler_output=LAYERS(images))


@pytest.mark.parametrize("trunk", [LAYERS, Outputs()])
def test_features_are_the_mean_over_the_views_in_evaluation_mode_only(trunk):
    images, features = torch.rand(5, 3, 8, 8), AveragedViews(trunk, [nn.Identity(), MirrorImage()])
    features.eval()
    LAYERS.eval()
    torch.testing.assert_close(features(images), (LAYERS(images) + LAYERS(images.flip(3))) / 2)
    assert not AveragedViews(features, [nn.Identity()]).training
    features.train()
    torch.testing.assert_close(features(images), LAYERS(images))
    assert features.training


@pytest.mark.parametrize("negative", [False, True])
def test_a_gray_image_is_that_of_torchvision(negative):
    pixels = torch.rand(5, 3, 8, 8)
    gray = rgb_to_grayscale(pixels, num_output_channels=3)
    expected = normalized(1 - gray if negative else gray)
    images = normalized(pixels).to(memory_format=torch.channels_last)
    view = GrayImage(MEAN, STD, negative=negative)
    torch.testing.assert_close(view(images), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(view(images.bfloat16()), expected.bfloat16(), atol=0.1, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(view(images), expected, atol=1e-3, rtol=0)


def test_a_backbone_without_colors_has_the_same_weights_and_equal_features_of_equal_gray_levels():
    own = Backbone("own", LAYERS, 8, MEAN, STD)
    found = own.without_colors()
    assert found.ignores_colors
    assert found.without_colors() is found
    assert not own.ignores_colors
    assert [*found.trunk.parameters()] == [*LAYERS.parameters()]
    assert {*found.trunk.state_dict()} == {f"trunk.{name}" for name in LAYERS.state_dict()}
    assert replace(found, trunk=torch.compile(found.trunk)).ignores_colors
    pixels = torch.rand(5, 3, 8, 8)
    found.trunk.eval()
    features = found.trunk(normalized(pixels))
    for same in (rgb_to_grayscale(pixels, num_output_channels=3), 1 - pixels):
        torch.testing.assert_close(found.trunk(normalized(same)), features, atol=1e-3, rtol=0)


def test_a_backbone_without_orientation_has_the_same_weights_and_equal_features_of_rotated_images():
    own, layers = Backbone("own", LAYERS, 8, MEAN, STD), LAYERS.eval()
    found = own.without_orientation()
    assert found.ignores_orientation
    assert found.without_orientation() is found
    assert not own.ignores_orientation
    assert not found.ignores_colors
    assert replace(found, trunk=torch.compile(found.trunk)).ignores_orientation
    assert [*found.trunk.parameters()] == [*LAYERS.parameters()]
    images = torch.rand(5, 3, 8, 8)
    features = found.trunk(images)
    for turns in range(4):
        rotated = RotatedImage(turns)(images)
        torch.testing.assert_close(rotated, v2.functional.rotate(images, 90 * turns, expand=True))
        torch.testing.assert_close(found.trunk(rotated), features)
    torch.testing.assert_close(features, sum(layers(RotatedImage(turns)(images)) for turns in range(4)) / 4)


def test_colors_and_orientation_are_ignored_together():
    own = Backbone("own", LAYERS.eval(), 8, MEAN, STD)
    both, reversed_ = own.without_colors().without_orientation(), own.without_orientation().without_colors()
    assert both.ignores_colors
    assert both.ignores_orientation
    assert both.without_colors() is both
    pixels = torch.rand(5, 3, 8, 8)
    features = both.trunk(normalized(pixels))
    torch.testing.assert_close(reversed_.trunk(normalized(pixels)), features)
    torch.testing.assert_close(both.trunk(normalized(1 - pixels.rot90(1, (2, 3)))), features, atol=1e-3, rtol=0)


class Recorded(nn.Module):
    """A trunk that records its mode and the mean of its images."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 4)
        self.means = {True: [], False: []}

    def forward(self, images):
        self.means[self.training].extend(images.detach().mean(dim=(1, 2, 3)).tolist())
        return self.layer(images.flatten(1))


class Halved(nn.Module):
    def forward(self, images):
        return images / 2


def test_fit_trains_on_the_images_and_clusters_the_views():
    images, trunk = torch.arange(1.0, 21).view(20, 1, 1, 1).expand(20, 3, 2, 2), Recorded()
    model = EmbeddingModel(AveragedViews(trunk, [Halved()]), nn.Linear(4, 3))
    fit(model, images, max_steps=2, relabel_every=1, freeze_batch_norm=False, progress=False, average_weights=False)
    assert {*trunk.means[True]} <= {float(number) for number in range(1, 21)}
    assert {*trunk.means[False]} == {number / 2 for number in range(1, 21)}
    torch.testing.assert_close(
        embed(model, images, output="features", progress=False), trunk.layer(images.flatten(1) / 2).detach()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((nn.Flatten, [nn.Identity()]), "`trunk` must be an nn.Module, got the class Flatten"),
        ((nn.Flatten(), []), "`views` must have at least one view, got none"),
        ((nn.Flatten(), [nn.Identity(), torch.flip]), "`views` must be an nn.Module, got"),
    ],
)
def test_wrong_arguments_are_errors(arguments, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises((ValueError, TypeError), match=message):
        AveragedViews(*arguments)


def test_views_of_views_are_counted():
    own = Backbone("own", LAYERS, 8, MEAN, STD)
    assert count_views(own.trunk) == 1
    assert count_views(torch.compile(own.without_colors().without_orientation().trunk)) == 2 * 4
