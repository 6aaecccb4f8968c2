import random

import numpy as np
import pytest
import torch

from udmlss._torch import seeded_generators


def draw():
    return random.random(), np.random.rand(), torch.rand(3)  # noqa: NPY002, S311 (what transforms do)


@pytest.mark.parametrize("key", [(0,), (0, 3), (2**40, 1, 5)])
def test_the_same_key_draws_the_same_in_torch_numpy_and_python(key):
    with seeded_generators(*key):
        one, two, three = draw()
    draw()
    with seeded_generators(*key):
        again = draw()
    assert (one, two) == again[:2]
    assert torch.equal(three, again[2])


def test_different_keys_draw_differently_also_where_one_begins_with_the_other():
    drawn = []
    for key in [(0,), (1,), (0, 1), (1, 0), (0, 0, 1), (0, 0)]:
        with seeded_generators(*key):
            drawn.append(draw())
    for position in range(3):
        assert len({float(values[position] if position < 2 else values[2][0]) for values in drawn}) == 6


def test_states_come_back_also_after_an_error():
    expected = drawn_after(lambda: None)
    assert drawn_after(draw_elsewhere) == expected
    assert drawn_after(fail_elsewhere) == expected


def draw_elsewhere():
    with seeded_generators(9):
        draw()


def fail_elsewhere():
    with pytest.raises(ZeroDivisionError), seeded_generators(9):
        1 / len(draw()[3:])


def drawn_after(action):
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    action()
    one, two, three = draw()
    return one, two, *three.tolist()
