import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from udmlss import EmbeddingModel, RotationPretextHead, rotate_four_ways
from udmlss.models.rotation import check_square


def rotated_by_indices(image, rotations):
    """Rotate counter-clockwise by index arithmetic: the pixel at (j, side - 1 - i) moves to (i, j)."""
    for _ in range(rotations):
        _, side, _ = image.shape
        result = torch.empty_like(image)
        for i in range(side):
            for j in range(side):
                result[:, i, j] = image[:, j, side - 1 - i]
        image = result
    return image


@given(b=st.integers(1, 3), c=st.integers(1, 3), side=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_rotates_all_images_by_0_then_by_90_degrees_and_so_on(b, c, side):
    images = torch.randn(b, c, side, side)
    rotated, rotations = rotate_four_ways(images)
    assert rotated.shape == (4 * b, c, side, side)
    assert rotations.tolist() == [rotation for rotation in range(4) for _ in range(b)]
    assert rotations.dtype == torch.int64
    for row, rotation in enumerate(rotations.tolist()):
        assert torch.equal(rotated[row], rotated_by_indices(images[row % b], rotation))
        assert np.array_equal(rotated[row].numpy(), np.rot90(images[row % b].numpy(), rotation, axes=(1, 2)))


def test_four_rotations_by_90_degrees_are_the_identity():
    images = torch.randn(2, 3, 5, 5)
    rotated = images
    for _ in range(4):
        rotated = rotate_four_ways(rotated)[0][2:4]
    assert torch.equal(rotated, images)


def test_a_rotation_of_a_flipped_image_is_the_flip_of_the_opposite_rotation():
    images = torch.randn(1, 3, 4, 4)
    by_90, by_270 = rotate_four_ways(images.flip(3))[0][1], rotate_four_ways(images)[0][3]
    assert torch.equal(by_90, by_270.flip(2))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_preserves_the_memory_format_the_data_type_and_the_argument(memory_format, dtype):
    images = torch.randn(2, 3, 4, 4, dtype=dtype).contiguous(memory_format=memory_format)
    before = images.clone()
    rotated, _ = rotate_four_ways(images)
    assert rotated.dtype == dtype
    assert rotated.is_contiguous(memory_format=memory_format)
    assert torch.equal(rotated, rotate_four_ways(images.contiguous())[0])
    rotated.zero_()
    assert torch.equal(images, before)


def test_propagates_the_gradient_of_every_rotation():
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    weight = torch.randn(8, 3, 4, 4)
    rotated, rotations = rotate_four_ways(images)
    (rotated * weight).sum().backward()
    expected = torch.zeros(2, 3, 4, 4)
    for row, rotation in enumerate(rotations.tolist()):
        expected[row % 2] += rotated_by_indices(weight[row], 4 - rotation)
    torch.testing.assert_close(images.grad, expected)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 5, 4)])
def test_rejects_images_that_are_not_square(shape):
    height, width = shape[2:]
    message = rf"images must be square, got height {height} and width {width}\. Crop them square .*=None`\."
    with pytest.raises(ValueError, match=message):
        rotate_four_ways(torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        check_square(torch.zeros(shape[1:]))


def test_the_head_is_two_linear_layers_with_a_relu_between_them():
    head, features = RotationPretextHead(7, 5), torch.randn(6, 7)
    first, second = head.layers[0], head.layers[2]
    hidden = (features @ first.weight.T + first.bias).clamp(min=0)
    torch.testing.assert_close(head(features), hidden @ second.weight.T + second.bias)
    assert [tuple(parameter.shape) for parameter in head.parameters()] == [(5, 7), (5,), (4, 5), (4,)]
    assert (RotationPretextHead(7).in_features, RotationPretextHead(7).max_images) == (7, 16)


def test_logits_can_be_negative():
    assert (RotationPretextHead(64)(torch.randn(200, 64)) < 0).float().mean() > 0.1


def test_a_new_head_predicts_at_chance_level():
    rotated, rotations = rotate_four_ways(torch.randn(64, 3, 8, 8))
    loss = functional.cross_entropy(RotationPretextHead(192)(rotated.flatten(1)), rotations)
    assert loss.item() == pytest.approx(math.log(4), abs=0.1)


@pytest.fixture
def model():
    return EmbeddingModel(nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.Tanh()), nn.Linear(6, 5))


IMAGES = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("max_images", "expected"), [(1, 1), (np.int64(4), 4), (16, 10)])
@pytest.mark.parametrize("with_features", [False, True])
def test_predicts_the_rotations_of_random_images_of_the_batch(model, max_images, expected, with_features):
    head = RotationPretextHead(6, 8, max_images)
    torch.manual_seed(7)
    logits, rotations = head.predict_rotations(model, IMAGES, model.trunk(IMAGES) if with_features else None)
    torch.manual_seed(7)
    sampled = torch.randperm(10)[:max_images]
    assert len(sampled) == expected
    rotated, expected_rotations = rotate_four_ways(IMAGES[sampled])
    torch.testing.assert_close(logits, head(model.trunk(rotated)))
    assert torch.equal(rotations, expected_rotations)


@pytest.mark.parametrize("with_features", [False, True])
def test_predicted_rotations_train_the_trunk_and_the_head(model, with_features):
    head = RotationPretextHead(6, 8, 4)
    sizes = []
    model.trunk.register_forward_hook(lambda _module, inputs, _features: sizes.append(len(inputs[0])))
    features = model.trunk(IMAGES) if with_features else None
    logits, rotations = head.predict_rotations(model, IMAGES, features)
    assert sizes == ([10, 12] if with_features else [16])  # the upright images are not computed twice
    functional.cross_entropy(logits, rotations).backward()
    assert all(parameter.grad.any() for part in (model.trunk, head) for parameter in part.parameters())


def test_features_of_the_batch_do_not_change_the_gradients(model):
    head, gradients = RotationPretextHead(6, 8, 4), []
    for with_features in (False, True):
        torch.manual_seed(7)
        model.zero_grad()
        features = model.trunk(IMAGES) if with_features else None
        functional.cross_entropy(*head.predict_rotations(model, IMAGES, features)).backward()
        gradients.append([parameter.grad.clone() for parameter in model.trunk.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_predicting_rotations_rejects_a_model_without_a_trunk():
    with pytest.raises(TypeError, match="`model` must have a `trunk` that computes features, got Flatten"):
        RotationPretextHead(48).predict_rotations(nn.Flatten(), IMAGES)


@pytest.mark.parametrize(("arguments", "name"), [((0,), "in_features"), ((8, 0), "hidden"), ((8, 8, 0), "max_images")])
def test_rejects_sizes_below_1(arguments, name):
    with pytest.raises(ValueError, match=rf"`{name}` must be at least 1, got 0\. Raise it\."):
        RotationPretextHead(*arguments)
