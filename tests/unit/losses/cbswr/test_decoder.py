"""Center maps and reconstruction loss, compared with loops over images, and the decoder."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_checks import assert_ten_times_as_fast, train

from udmlss.losses import Decoder, center_maps, reconstruction_loss


def naive_center_maps(maps, clusters):
    groups = [[m for m, own in zip(maps, clusters.tolist(), strict=True) if own == j] for j in clusters.unique()]
    return torch.stack([sum(group) / len(group) for group in groups])


def naive_error(decoded, images, clusters):
    errors = [
        ((decoded[cluster] - image) ** 2).mean() for image, cluster in zip(images, clusters.tolist(), strict=True)
    ]
    return float(sum(errors) / len(errors))


# Center maps


@given(found=st.lists(st.integers(-2, 9), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_center_maps_equal_the_definition_for_any_clusters(found):
    maps, clusters = torch.randn(len(found), 3, 2, 4, dtype=torch.float64), torch.tensor(found)
    torch.testing.assert_close(center_maps(maps, clusters), naive_center_maps(maps, clusters))


def test_gradient_of_a_center_map_is_divided_equally_among_its_images():
    maps = torch.randn(5, 3, 2, 2, requires_grad=True)
    weight = torch.randn(2, 3, 2, 2)
    (center_maps(maps, torch.tensor([4, 4, 7, 4, 7])) * weight).sum().backward()
    expected = torch.stack([weight[0] / 3, weight[0] / 3, weight[1] / 2, weight[0] / 3, weight[1] / 2])
    torch.testing.assert_close(maps.grad, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_center_maps_preserve_the_dtype_and_are_summed_in_float32_or_more(dtype):
    maps = torch.full((300, 1, 1, 1), 1.0).to(dtype)  # 256 + 1 is 256 in bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        centers = center_maps(maps, torch.zeros(300, dtype=torch.int64))
    assert centers.dtype == dtype
    assert centers.item() == pytest.approx(1, abs=1e-5)


def test_center_maps_are_ten_times_as_fast_as_a_loop():
    maps, clusters = torch.randn(512, 512, 1, 1), torch.randint(64, (512,))
    assert_ten_times_as_fast(lambda: center_maps(maps, clusters), lambda: naive_center_maps(maps, clusters))


# Decoder


@pytest.mark.parametrize(
    ("map_shape", "image_shape"),
    [((20, 7, 7), (3, 224, 224)), ((4, 1, 1), (3, 2, 2)), ((8, 3, 5), (1, 12, 20)), ((8, 6, 6), (3, 6, 6))],
)
def test_decoder_returns_images_of_any_size_that_is_a_power_of_two_times_the_maps(map_shape, image_shape):
    maps, images = torch.randn(2, *map_shape), torch.empty(2, *image_shape)
    assert Decoder(maps.shape[1:], images.shape[1:])(maps).shape == images.shape


def test_decoder_halves_the_channels_down_to_16_and_ends_in_a_convolution():
    layers = Decoder((100, 2, 2), (3, 32, 32)).layers
    convolutions = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [
        *[(100, 50), (50, 25), (25, 16), (16, 16)],
        (16, 3),
    ]
    assert layers[-1] is convolutions[-1]


def test_decoder_learns_values_below_zero_and_above_one():
    maps, images = torch.randn(2, 16, 4, 4), torch.tensor([-2.0, 3.0]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)
    decoder, clusters = Decoder((16, 4, 4), (1, 8, 8)), torch.arange(2)
    values = train(
        lambda: reconstruction_loss(decoder(maps), images, clusters), decoder.parameters(), lr=0.01, steps=100
    )
    assert values[-1] < 0.1


@pytest.mark.parametrize("image_shape", [(3, 30, 30), (3, 32, 64), (3, 4, 4), (3, 24, 24)])
def test_decoder_rejects_sides_that_are_not_the_same_power_of_two(image_shape):
    message = r"must be those of feature maps times the same power of 2, got map \(128, 8, 8\) and image \(3, "
    with pytest.raises(ValueError, match=message):
        Decoder((128, 8, 8), image_shape)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((8, 4), (3, 16, 16)), r"`map_shape` must have three numbers, got \(8, 4\)"),
        (((8, 4, 4), (2, 3, 16, 16)), r"`image_shape` must have three numbers, got \(2, 3, 16, 16\)"),
        (((0, 4, 4), (3, 16, 16)), "`map_shape` must be at least 1, got 0"),
    ],
)
def test_decoder_rejects_invalid_shapes(shapes, message):
    with pytest.raises(ValueError, match=message):
        Decoder(*shapes)


def test_decoder_rejects_maps_of_another_shape():
    message = r"The decoder was built for maps of shape \(8, 4, 4\), got \(8, 2, 2\)\. Build it with Decoder\(maps"
    with pytest.raises(ValueError, match=message):
        Decoder((8, 4, 4), (3, 16, 16))(torch.zeros(2, 8, 2, 2))


# Reconstruction loss


def make_images(b=6, k=3, dtype=torch.float64):
    return torch.randn(k, 2, 3, 4, dtype=dtype), torch.randn(b, 2, 3, 4, dtype=dtype), torch.randint(k, (b,))


@pytest.mark.parametrize(("b", "k"), [(1, 1), (6, 3), (3, 6)])
def test_reconstruction_loss_equals_the_definition(b, k):
    decoded, images, clusters = make_images(b, k)
    loss = reconstruction_loss(decoded, images, clusters)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(naive_error(decoded, images, clusters), abs=1e-6)


def test_gradient_of_the_reconstruction_loss_equals_finite_differences():
    decoded, images, clusters = make_images()
    assert torch.autograd.gradcheck(lambda rows: reconstruction_loss(rows, images, clusters), decoded.requires_grad_())


def test_reconstruction_loss_of_bfloat16_images_is_computed_in_float32():
    decoded, images, clusters = make_images(dtype=torch.bfloat16)
    loss = reconstruction_loss(decoded, images, clusters)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(naive_error(decoded.double(), images.double(), clusters), rel=1e-4)


def test_rejects_shapes_that_do_not_match(unchecked_types):
    message = r"must return images of the shape of `images`, got \(3, 8, 8\) and \(3, 8, 9\)\. Build it with Decoder"
    with pytest.raises(ValueError, match=message):
        reconstruction_loss(torch.zeros(1, 3, 8, 8), torch.zeros(2, 3, 8, 9), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"`clusters` must have shape \(2,\)"):
        reconstruction_loss(torch.zeros(1, 3, 8, 8), torch.zeros(2, 3, 8, 8), torch.zeros(3, dtype=torch.int64))
    for clusters in ([0, -1], [0, 1]):
        with pytest.raises(ValueError, match=r"`clusters` must lie in 0\.\.0, got (-1 to 0|0 to 1)\. Number them"):
            reconstruction_loss(torch.zeros(1, 3, 8, 8), torch.zeros(2, 3, 8, 8), torch.tensor(clusters))
    with pytest.raises(ValueError, match=r"`clusters` must have shape \(4,\)"):
        center_maps(torch.zeros(4, 3, 2, 2), torch.zeros(3, dtype=torch.int64))
