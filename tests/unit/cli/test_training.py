from hypothesis import given
from hypothesis import strategies as st

from udmlss import Epochs
from udmlss.cli.training import default_epochs


@given(st.integers(2, 10**6))
def test_by_default_a_training_is_half_as_long_as_that_of_fit(n_images):
    steps = Epochs(default_epochs(n_images)).in_steps(n_images, batch_size=80)
    assert steps == Epochs(4, min_steps=125).in_steps(n_images, batch_size=80)
