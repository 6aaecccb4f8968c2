from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.utils.data import TensorDataset

from udmlss import compare_colors, embedder_from_features
from udmlss.backbones import Backbone

MEAN, STD = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
LUMA = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)


class Counted(nn.Module):
    """A random nonlinear trunk that counts the images that it has seen."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 96), nn.ReLU())
        self.n_images = 0

    def forward(self, images):
        self.n_images += len(images)
        return self.layers(images)


def backbone():
    return Backbone("counted", Counted(), 8, MEAN, STD)


def normalized(pixels):
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def classes(n_classes=8, size=25):
    """Return gray patterns (n, 1, 8, 8), one per class with a little noise, and colors (n, 3, 1, 1), one per class."""
    labels = torch.arange(n_classes).repeat(size)
    patterns = torch.rand(n_classes, 1, 8, 8)[labels] + 0.05 * torch.randn(len(labels), 1, 8, 8)
    return patterns, torch.rand(n_classes, 3, 1, 1)[labels]


def random_colors(n):
    """Return colors of equal brightness (n, 3, 1, 1), so that gray images do not depend on them."""
    colors = torch.rand(n, 3, 1, 1)
    return colors / (colors * LUMA).sum(dim=1, keepdim=True) * 0.4


def test_colors_are_ignored_if_images_of_the_same_shape_differ_in_color():
    patterns, _ = classes()
    found = compare_colors(backbone(), normalized((0.6 + 0.4 * patterns) * random_colors(len(patterns))))
    assert found.ignore_colors
    assert found.without_colors > found.with_colors + 0.05


def test_colors_are_kept_if_they_distinguish_the_images():
    patterns, colors = classes()
    found = compare_colors(backbone(), normalized(0.1 * torch.rand_like(patterns) + 0.9 * colors))
    assert not found.ignore_colors
    assert found.with_colors > found.without_colors + 0.1


def test_colors_are_kept_of_gray_images():
    patterns, _ = classes()
    found = compare_colors(backbone(), normalized(patterns.expand(-1, 3, -1, -1)))
    assert found.saturation < 1e-5
    assert found.are_gray
    assert not replace(found, without_colors=1.0).ignore_colors
    assert replace(found, without_colors=1.0, saturation=0.03).ignore_colors


def test_colors_are_kept_of_images_that_are_equal_without_them():
    images = normalized(random_colors(40).expand(-1, -1, 8, 8).contiguous())
    found = compare_colors(Backbone("own", nn.Sequential(nn.Flatten(), nn.Linear(192, 9)), 8, MEAN, STD), images)
    assert found.without_colors < found.with_colors
    assert not found.ignore_colors


def common_neighbors(features):
    """Compute the fractions by sets, as the definition says."""
    embeddings = normalize(embedder_from_features(features, features.shape[1])(features))
    similarities = embeddings @ embeddings.T
    lists = similarities.fill_diagonal_(-2).topk(20).indices.tolist()
    return torch.tensor([sum(len({*found} & {*lists[nearest]}) for nearest in found[:3]) / (3 * 19) for found in lists])


def test_the_fractions_and_the_standard_error_are_those_of_the_definition():
    pixels, own = torch.rand(60, 3, 8, 8), backbone()
    gray = (pixels * LUMA).sum(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    found = compare_colors(own, normalized(pixels))
    with torch.inference_mode():
        features, of_gray, of_negative = (own.trunk(normalized(each)) for each in (pixels, gray, 1 - gray))
        one, other = common_neighbors(features), common_neighbors((of_gray + of_negative) / 2)
    assert found.with_colors == pytest.approx(one.mean(), abs=0.005)  # neighbors of equal similarity may be exchanged
    assert found.without_colors == pytest.approx(other.mean(), abs=0.005)
    assert found.standard_error == pytest.approx((other - one).std() / 60**0.5, rel=0.1)
    assert found.saturation == pytest.approx(float((pixels.amax(1) - pixels.amin(1)).mean()), rel=1e-3)


def test_no_more_images_are_embedded_than_max_images_and_the_seed_chooses_them():
    images, own = normalized(torch.rand(90, 3, 8, 8)), backbone()
    first = compare_colors(own, images, max_images=30)
    assert own.trunk.n_images == 3 * 30
    assert compare_colors(own, images, max_images=30) == first != compare_colors(own, images, max_images=30, seed=1)


def test_the_model_remains_in_its_mode_and_on_its_weights():
    own = backbone()
    before = {name: weight.clone() for name, weight in own.trunk.state_dict().items()}
    compare_colors(own, normalized(torch.rand(9, 3, 8, 8)))
    assert own.trunk.training
    assert all(torch.equal(weight, before[name]) for name, weight in own.trunk.state_dict().items())


def test_fewer_than_four_images_are_not_compared():
    found = compare_colors(backbone(), normalized(torch.rand(3, 3, 8, 8)))
    assert (found.with_colors, found.without_colors, found.ignore_colors) == (0, 0, False)
    assert not found.are_gray  # this is not known


class Outputs(nn.Module):
    """A trunk that returns several outputs, as those of Hugging Face do."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, images):
        return SimpleNamespace(pooler_output=self.layers(images))


@pytest.mark.parametrize("kind", ["bfloat16", "mixed precision", "pooler output", "dataset"])
def test_other_kinds_of_trunks_and_images_are_compared_alike(kind):
    patterns, colors = classes()
    images, own = normalized(0.1 * torch.rand_like(patterns) + 0.9 * colors), backbone()
    expected = compare_colors(own, images)
    if kind == "bfloat16":
        own.trunk.bfloat16()
    found = compare_colors(
        replace(own, trunk=Outputs(own.trunk)) if kind == "pooler output" else own,
        TensorDataset(images) if kind == "dataset" else images,
        precision="bfloat16" if kind == "mixed precision" else "float32",
    )
    assert found.with_colors == pytest.approx(expected.with_colors, abs=0.05)
    assert found.without_colors == pytest.approx(expected.without_colors, abs=0.05)


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (torch.full((9, 3, 8, 8), float("nan")), {}, "finite"),
        (torch.rand(9, 3, 8, 8), {"max_images": 3}, "`max_images` must be at least 4"),
    ],
)
def test_invalid_arguments_are_errors(images, settings, message):
    with pytest.raises(ValueError, match=message):
        compare_colors(backbone(), images, **settings)


def test_a_backbone_that_ignores_colors_is_an_error():
    with pytest.raises(ValueError, match="`backbone` must not ignore colors"):
        compare_colors(backbone().without_colors(), torch.rand(9, 3, 8, 8))
