import torch
from hypothesis import given
from hypothesis import strategies as st

from udmlss import Epochs
from udmlss.cli.training import default_epochs

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@given(st.integers(2, 10**6))
def test_by_default_a_training_is_half_as_long_as_that_of_fit(n_images):
    steps = Epochs(default_epochs(n_images, GPU)).in_steps(n_images, batch_size=80)
    assert steps == Epochs(4, min_steps=125).in_steps(n_images, batch_size=80)


@given(st.integers(2, 10**6))
def test_on_a_cpu_it_has_at_most_150_steps(n_images):
    steps, on_gpu = (Epochs(default_epochs(n_images, each)).in_steps(n_images, batch_size=80) for each in (CPU, GPU))
    assert steps == min(on_gpu, 150)
