from dataclasses import replace

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from udmlss.backbones import Backbone

MEAN, STD = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
BACKBONE = Backbone("own", nn.Flatten(), 8, MEAN, STD, crop_fraction=0.5)


def picture(pixels):
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def normalized(pixels):
    return (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def test_the_test_transform_normalizes_the_center_of_the_resized_picture():
    pixels = torch.randint(256, (3, 16, 20), dtype=torch.uint8)  # its shorter side is image_size / crop_fraction
    torch.testing.assert_close(BACKBONE.test_transform()(picture(pixels)), normalized(pixels[:, 4:12, 6:14]))
    larger = Image.new("RGB", (60, 90), (10, 20, 30))
    torch.testing.assert_close(
        BACKBONE.test_transform()(larger), normalized(torch.tensor([10, 20, 30]).view(3, 1, 1).expand(3, 8, 8))
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pictures_are_resized_as_pillow_does(interpolation):
    backbone = replace(BACKBONE, interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1))
    picture_ = picture(torch.randint(256, (3, 60, 80), dtype=torch.uint8))
    resized = picture_.resize((21, 16), Image.Resampling[interpolation.upper()])
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[:, 4:12, 6:14] / 255
    torch.testing.assert_close(backbone.test_transform()(picture_), expected, atol=1.01 / 255, rtol=0)


def test_min_size_is_twice_the_size_to_which_pictures_are_resized():
    assert replace(BACKBONE, image_size=10, crop_fraction=0.7).min_size == 2 * round(10 / 0.7)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_train_transform_crops_and_flips_at_random(interpolation):
    transform = replace(BACKBONE, interpolation=interpolation).train_transform()
    color = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1)
    torch.testing.assert_close(
        transform(picture(color.expand(3, 30, 40))), normalized(color.expand(3, 8, 8)), atol=1e-5, rtol=0
    )
    ramp = torch.arange(40, dtype=torch.uint8).expand(3, 40, 40)
    images = [transform(picture(ramp)) for _ in range(20)]
    slopes = [float(image[0, 0, -1] - image[0, 0, 0]) for image in images]
    assert min(slopes) < 0 < max(slopes)  # flipped or not
    assert len({round(abs(slope), 3) for slope in slopes}) > 3  # crops of several sizes


def test_colors_vary_only_if_they_are_ignored():
    torch.manual_seed(0)
    backbone = replace(BACKBONE, mean=(0, 0, 0), std=(1, 1, 1))
    color = torch.tensor([200, 120, 40], dtype=torch.uint8).view(3, 1, 1).expand(3, 30, 40)
    colors = {
        each.ignores_colors: torch.stack([each.train_transform()(picture(color))[:, 4, 4] for _ in range(100)])
        for each in (backbone, backbone.without_colors())
    }
    torch.testing.assert_close(colors[False], (color[:, 0, 0] / 255).expand(100, 3), atol=1e-5, rtol=0)
    red, _, blue = colors[True].unbind(1)
    assert ((colors[True] >= 0) & (colors[True] <= 1)).all()
    assert 0.2 < ((colors[True] - colors[True][:, :1]).abs().amax(1) < 1e-3).float().mean() < 0.4  # 30 % are gray
    assert (blue > red).any()  # another hue, or inverted
    assert (colors[True].unique(dim=0).shape[0]) > 50


@pytest.mark.parametrize("with_colors", [True, False])
def test_training_images_are_rotated_only_if_their_orientation_is_ignored(with_colors):
    torch.manual_seed(0)
    own = replace(BACKBONE, mean=(0, 0, 0), std=(1, 1, 1))
    own = own if with_colors else own.without_colors()
    ramp = torch.arange(0, 200, 5, dtype=torch.uint8).expand(3, 40, 40)  # brighter to the right
    for backbone, shares in ((own, (0.5, 0, 0.5, 0)), (own.without_orientation(), (0.25,) * 4)):
        directions = []
        for _ in range(400):
            image = backbone.train_transform()(picture(ramp)).mean(dim=0)
            across, down = float(image[4, -1] - image[4, 0]), float(image[-1, 4] - image[0, 4])
            directions.append((across > 0, down > 0, across < 0, down < 0))
        found = torch.tensor(directions).float().mean(dim=0)
        torch.testing.assert_close(found, torch.tensor(shares), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trunk": nn.Flatten}, "`trunk` must be an nn.Module, got the class Flatten"),
        ({"image_size": 0}, "`image_size` must be at least 1, got 0"),
        ({"mean": (0.5,)}, "`mean` must have one number each for red, green and blue, got 1 numbers"),
        ({"std": (0.5, 0.5, 0)}, "`std` must be above 0, got 0"),
        ({"crop_fraction": 0}, "`crop_fraction` must be above 0, got 0"),
        ({"interpolation": "cubic"}, "`interpolation` must be one of 'bilinear', 'bicubic', got 'cubic'"),
    ],
)
def test_wrong_settings_are_errors(changes, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises((ValueError, TypeError), match=message):
        replace(BACKBONE, **changes)


def test_the_trunk_is_not_printed():
    assert "Flatten" not in repr(BACKBONE)
