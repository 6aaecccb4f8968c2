"""Checks that the tests of several losses share."""

import time

import torch


def train(compute, parameters, lr, steps):
    """Minimize a loss by Adam, and return its values."""
    optimizer, values = torch.optim.Adam(parameters, lr=lr), []
    for _ in range(steps):
        optimizer.zero_grad()
        values.append(compute())
        values[-1].backward()
        optimizer.step()
    return values


def seconds(compute, repeat=5):
    """Return the processor time of the fastest of several runs."""
    times = []
    for _ in range(repeat):
        start = time.process_time()
        compute()
        times.append(time.process_time() - start)
    return min(times)


def assert_ten_times_as_fast(compute, loop):
    """Compare the processor times of two functions."""
    assert 10 * seconds(compute) < seconds(loop, repeat=1)


def assert_finite(loss, *tensors):
    """Compute the gradients of a loss, and check that they and the loss are finite."""
    loss.backward()
    assert loss.isfinite()
    assert all(tensor.grad.isfinite().all() for tensor in tensors)
