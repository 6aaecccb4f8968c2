import math

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from udmlss import RotationPretextHead, rotate_four_ways
from udmlss.models.rotation import check_square


def turned_by_hand(image, turns):
    """Turn counter-clockwise by index arithmetic: what was at (j, side - 1 - i) goes to (i, j)."""
    for _ in range(turns):
        _, side, _ = image.shape
        result = torch.empty_like(image)
        for i in range(side):
            for j in range(side):
                result[:, i, j] = image[:, j, side - 1 - i]
        image = result
    return image


@given(b=st.integers(1, 3), c=st.integers(1, 3), side=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_every_image_is_turned_four_ways_first_all_by_0_then_all_by_90_degrees(b, c, side):
    images = torch.randn(b, c, side, side)
    turned, turns = rotate_four_ways(images)
    assert turned.shape == (4 * b, c, side, side)
    assert turns.tolist() == [turn for turn in range(4) for _ in range(b)]
    assert turns.dtype == torch.int64
    for row, turn in enumerate(turns.tolist()):
        assert torch.equal(turned[row], turned_by_hand(images[row % b], turn))


def test_numpy_turns_the_same_way():
    images = torch.randn(2, 3, 4, 4)
    turned, turns = rotate_four_ways(images)
    for row, turn in enumerate(turns.tolist()):
        assert np.array_equal(turned[row].numpy(), np.rot90(images[row % 2].numpy(), turn, axes=(1, 2)))


def test_four_turns_by_90_degrees_give_the_image_again():
    images = torch.randn(2, 3, 5, 5)
    turned = images
    for _ in range(4):
        turned = rotate_four_ways(turned)[0][2:4]
    assert torch.equal(turned, images)


def test_a_flip_before_the_turn_is_the_opposite_turn_before_the_flip():
    images = torch.randn(1, 3, 4, 4)
    quarter, three_quarters = rotate_four_ways(images.flip(3))[0][1], rotate_four_ways(images)[0][3]
    assert torch.equal(quarter, three_quarters.flip(2))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_memory_format_is_kept(memory_format):
    images = torch.randn(2, 3, 4, 4).contiguous(memory_format=memory_format)
    turned, _ = rotate_four_ways(images)
    assert turned.is_contiguous(memory_format=memory_format)
    assert torch.equal(turned, rotate_four_ways(images.contiguous())[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype):
    assert rotate_four_ways(torch.zeros(1, 1, 2, 2, dtype=dtype))[0].dtype == dtype


def test_the_gradient_comes_back_through_every_turn():
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    weight = torch.randn(8, 3, 4, 4)
    turned, turns = rotate_four_ways(images)
    (turned * weight).sum().backward()
    expected = torch.zeros(2, 3, 4, 4)
    for row, turn in enumerate(turns.tolist()):
        expected[row % 2] += turned_by_hand(weight[row], 4 - turn)
    torch.testing.assert_close(images.grad, expected)


def test_the_images_given_are_left_as_they_are():
    images = torch.randn(2, 3, 4, 4)
    before = images.clone()
    rotate_four_ways(images)[0].zero_()
    assert torch.equal(images, before)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 5, 4)])
def test_images_that_are_not_square_are_refused(shape):
    height, width = shape[2:]
    sentence = rf"Rotation needs square images, got height {height} and width {width}\. Crop them square .*=None`\."
    with pytest.raises(ValueError, match=sentence):
        rotate_four_ways(torch.zeros(shape))
    with pytest.raises(ValueError, match=sentence):
        check_square(torch.zeros(shape[1:]))


@pytest.mark.parametrize("hidden", [1, 512])
def test_the_head_gives_four_logits_an_image(hidden):
    head = RotationPretextHead(7, hidden)
    assert head(torch.randn(5, 7)).shape == (5, 4)
    assert head.in_features == 7
    assert [tuple(parameter.shape) for parameter in head.parameters()] == [(hidden, 7), (hidden,), (4, hidden), (4,)]


def test_the_head_is_two_linear_maps_with_a_relu_between():
    head, features = RotationPretextHead(7, 5), torch.randn(6, 7)
    first, second = head.layers[0], head.layers[2]
    hidden = (features @ first.weight.T + first.bias).clamp(min=0)
    torch.testing.assert_close(head(features), hidden @ second.weight.T + second.bias)


def test_logits_can_be_negative():
    assert (RotationPretextHead(64)(torch.randn(200, 64)) < 0).float().mean() > 0.1


def test_a_new_head_is_at_the_level_of_chance():
    turned, turns = rotate_four_ways(torch.randn(64, 3, 8, 8))
    loss = functional.cross_entropy(RotationPretextHead(192)(turned.flatten(1)), turns)
    assert loss.item() == pytest.approx(math.log(4), abs=0.1)


@pytest.mark.parametrize(("arguments", "name"), [((0,), "in_features"), ((8, 0), "hidden")])
def test_a_head_without_dimensions_is_refused(arguments, name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=rf"`{name}` must be at least 1, got 0\. Raise it\."):
        RotationPretextHead(*arguments)
