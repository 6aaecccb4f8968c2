"""Centroid maps and reconstruction against loops over images, and the sizes a decoder takes."""

import time

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from udmlss.losses import Decoder, centroid_maps, reconstruction_loss


def centroids_by_hand(maps, clusters):
    groups = [[m for m, found in zip(maps, clusters.tolist(), strict=True) if found == j] for j in clusters.unique()]
    return torch.stack([sum(group) / len(group) for group in groups])


def error_by_hand(decoded, images, clusters):
    errors = []
    for image, cluster in zip(images, clusters.tolist(), strict=True):
        errors += [
            (a - b) ** 2 for a, b in zip(decoded[cluster].flatten().tolist(), image.flatten().tolist(), strict=True)
        ]
    return sum(errors) / len(errors)


@pytest.fixture
def untyped(monkeypatch):
    """Switch off the types in the signatures, which refuse some values before the library does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


# Centroid maps


@given(found=st.lists(st.integers(-2, 9), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_a_centroid_map_is_the_mean_of_its_cluster_s_maps_for_any_clusters(found):
    maps, clusters = torch.randn(len(found), 3, 2, 4, dtype=torch.float64), torch.tensor(found)
    torch.testing.assert_close(centroid_maps(maps, clusters), centroids_by_hand(maps, clusters))


def test_each_map_of_a_cluster_gets_an_equal_share_of_its_gradient():
    maps = torch.randn(5, 3, 2, 2, requires_grad=True)
    weight = torch.randn(2, 3, 2, 2)
    (centroid_maps(maps, torch.tensor([4, 4, 7, 4, 7])) * weight).sum().backward()
    expected = torch.stack([weight[0] / 3, weight[0] / 3, weight[1] / 2, weight[0] / 3, weight[1] / 2])
    torch.testing.assert_close(maps.grad, expected)


def test_the_order_of_images_makes_no_difference_to_centroid_maps():
    maps, clusters, rows = torch.randn(8, 3, 2, 2), torch.randint(3, (8,)), torch.randperm(8)
    torch.testing.assert_close(centroid_maps(maps[rows], clusters[rows]), centroid_maps(maps, clusters))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_centroid_maps_keep_the_dtype_and_are_added_up_in_float32_at_least(dtype):
    maps = torch.full((300, 1, 1, 1), 1.0).to(dtype)  # 256 + 1 is 256 in bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        centroids = centroid_maps(maps, torch.zeros(300, dtype=torch.int64))
    assert centroids.dtype == dtype
    assert centroids.item() == pytest.approx(1, abs=1e-5)


def test_clusters_that_are_not_one_per_map_are_refused(untyped):
    with pytest.raises(ValueError, match=r"`clusters` must have shape \(4,\)"):
        centroid_maps(torch.zeros(4, 3, 2, 2), torch.zeros(3, dtype=torch.int64))


def test_centroid_maps_are_at_least_ten_times_as_fast_as_a_loop():
    maps, clusters, times = torch.randn(512, 512, 1, 1), torch.randint(64, (512,)), []
    for _ in range(5):
        start = time.perf_counter()
        centroid_maps(maps, clusters)
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    centroids_by_hand(maps, clusters)
    assert time.perf_counter() - start > 10 * min(times)


# The decoder


@pytest.mark.parametrize(
    ("map_shape", "image_shape"),
    [
        ((128, 8, 8), (1, 32, 32)),
        ((20, 7, 7), (3, 224, 224)),
        ((4, 1, 1), (3, 2, 2)),
        ((8, 3, 5), (3, 12, 20)),
        ((8, 6, 6), (3, 6, 6)),
    ],
)
def test_a_decoder_makes_images_of_maps_of_any_size_that_doubling_leads_to(map_shape, image_shape):
    images = Decoder(map_shape, image_shape)(torch.randn(2, *map_shape))
    assert images.shape == (2, *image_shape)


def test_a_decoder_takes_the_shapes_of_tensors_as_they_are():
    maps, images = torch.randn(2, 8, 4, 4), torch.randn(2, 3, 16, 16)
    assert Decoder(maps.shape[1:], images.shape[1:])(maps).shape == images.shape


def test_channels_halve_at_each_stage_down_to_16_and_the_last_convolution_is_linear():
    layers = Decoder((100, 2, 2), (3, 32, 32)).layers
    convolutions = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [
        *[(100, 50), (50, 25), (25, 16), (16, 16)],
        (16, 3),
    ]
    assert layers[-1] is convolutions[-1]


def test_a_decoder_learns_images_below_zero_and_above_one():
    maps, images = torch.randn(2, 16, 4, 4), torch.tensor([-2.0, 3.0]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)
    decoder, clusters = Decoder((16, 4, 4), (1, 8, 8)), torch.arange(2)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.01)
    for _ in range(200):
        loss = reconstruction_loss(decoder(maps), images, clusters)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@pytest.mark.parametrize("image_shape", [(3, 30, 30), (3, 32, 64), (3, 4, 4), (3, 24, 24)])
def test_images_whose_sides_no_number_of_stages_leads_to_are_refused(image_shape):
    sentence = r"sides must be the map's times 2 to the number of stages, got map \(128, 8, 8\) and image \(3, "
    with pytest.raises(ValueError, match=sentence):
        Decoder((128, 8, 8), image_shape)


def test_maps_of_another_shape_than_the_decoder_was_built_for_are_refused():
    sentence = r"The decoder was built for maps of shape \(8, 4, 4\), got \(8, 2, 2\)\. Build it with Decoder\(maps"
    with pytest.raises(ValueError, match=sentence):
        Decoder((8, 4, 4), (3, 16, 16))(torch.zeros(2, 8, 2, 2))


# The reconstruction loss


def make_images(b=6, k=3, dtype=torch.float64):
    return torch.randn(k, 2, 3, 4, dtype=dtype), torch.randn(b, 2, 3, 4, dtype=dtype), torch.randint(k, (b,))


@pytest.mark.parametrize(("b", "k"), [(1, 1), (6, 3), (3, 6)])
def test_the_loss_is_what_a_loop_over_images_and_pixels_makes_of_the_equation(b, k):
    decoded, images, clusters = make_images(b, k)
    loss = reconstruction_loss(decoded, images, clusters)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(error_by_hand(decoded, images, clusters), abs=1e-6)


def test_the_gradient_is_that_of_finite_differences():
    decoded, images, clusters = make_images()
    assert torch.autograd.gradcheck(
        lambda rows: reconstruction_loss(rows, images, clusters), (decoded.requires_grad_(),)
    )


def test_the_order_of_images_and_the_names_of_clusters_make_no_difference():
    decoded, images, clusters = make_images()
    loss = reconstruction_loss(decoded, images, clusters)
    rows, names = torch.randperm(6), torch.tensor([2, 0, 1])
    renamed = torch.empty_like(decoded)
    renamed[names] = decoded
    torch.testing.assert_close(reconstruction_loss(decoded, images[rows], clusters[rows]), loss)
    torch.testing.assert_close(reconstruction_loss(renamed, images, names[clusters]), loss)


def test_half_precision_is_judged_in_float32():
    decoded, images, clusters = make_images(dtype=torch.bfloat16)
    loss = reconstruction_loss(decoded, images, clusters)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(error_by_hand(decoded.double(), images.double(), clusters), rel=1e-4)


def test_images_of_another_shape_than_the_decoder_s_are_refused(untyped):
    sentence = r"must give images of the shape of `images`, got \(3, 8, 8\) and \(3, 8, 9\)\. Build it with Decoder"
    with pytest.raises(ValueError, match=sentence):
        reconstruction_loss(torch.zeros(1, 3, 8, 8), torch.zeros(2, 3, 8, 9), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"`clusters` must have shape \(2,\)"):
        reconstruction_loss(torch.zeros(1, 3, 8, 8), torch.zeros(2, 3, 8, 8), torch.zeros(3, dtype=torch.int64))
