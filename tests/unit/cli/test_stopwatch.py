import time

import pytest
import torch
from torch import nn

from udmlss.cli.stopwatch import Stopwatch, training_seconds


class SlowAtFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.pause = 0.5

    def forward(self, images):
        time.sleep(self.pause)
        self.pause = 0.1
        return images


def test_the_first_batch_is_not_counted():
    trunk = SlowAtFirst()
    with Stopwatch(trunk) as stopwatch:
        for n in (100, 10, 5):
            trunk(torch.rand(n, 3))
    trunk(torch.rand(1, 3))  # after the block
    assert stopwatch.seconds_per_image == pytest.approx(0.2 / 15, rel=0.5)


def test_of_a_single_batch_nothing_is_known():
    trunk = SlowAtFirst()
    with Stopwatch(trunk) as stopwatch:
        trunk(torch.rand(2, 3))
    assert stopwatch.seconds_per_image == 0


def test_a_training_embeds_all_views_before_each_round_and_trains_on_one():
    assert training_seconds(10, n_views=1, epochs=4, n_rounds=2) == 10 * 2 + 30 * 4
    # two views take twice as long to embed, and as long to train
    assert training_seconds(20, n_views=2, epochs=4, n_rounds=2) == 20 * 2 + 30 * 4
    assert training_seconds(40, n_views=4, epochs=4, n_rounds=2) == 40 * 2 + 40 * 4
