"""Trainings on two ranks, one of which is killed or raises an error."""

import multiprocessing
import os
import random
import signal
import time
from contextlib import nullcontext

import pytest
import torch
from injection import Moments
from interrupted_training import assert_same, train
from processes import free_port

from udmlss import Checkpoint
from udmlss.distributed import process_group

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, with threads
FORK = multiprocessing.get_context("fork")
SECONDS = 30  # until the other rank has ended
ENDED = 3  # exit code of a rank that ended by an error


class InjectedError(Exception):
    """The error of the failing rank."""


def run_rank(rank, port, folder, at):
    """Train as one of two ranks, and save the outcome."""
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in environment.items()}
    try:
        with process_group(), at:
            outcome = train(Checkpoint(folder, every=1, resume=True))
    except Exception:  # noqa: BLE001 (any error ends a rank)
        os._exit(ENDED)
    torch.save((outcome, getattr(at, "places", [])), folder / f"outcome-{rank}")


def start(folder, at, failing=0):
    """Start two ranks, one of which is in a `with` block that ends it."""
    port = free_port()
    blocks = [at if rank == failing else nullcontext() for rank in range(2)]
    ranks = [FORK.Process(target=run_rank, args=(rank, port, folder, blocks[rank])) for rank in range(2)]
    for rank in ranks:
        rank.start()
    return ranks


def exit_codes(ranks, seconds):
    """Wait for all ranks, and return their exit codes; None is one that did not end."""
    end = time.monotonic() + seconds
    for rank in ranks:
        rank.join(max(0, end - time.monotonic()))
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
        rank.join()
    return codes


def outcomes(folder):
    """Train to the end; return the outcome of both ranks, and the moments of rank 0."""
    folder.mkdir(exist_ok=True)
    assert exit_codes(start(folder, Moments()), 120) == [0, 0]
    (first, moments), (second, _) = [torch.load(folder / f"outcome-{rank}", weights_only=False) for rank in range(2)]
    return [first, second], moments


def assert_resumes(folder, expected):
    for one, other in zip(outcomes(folder)[0], expected, strict=True):
        assert_same(one, other)


@pytest.mark.slow(attack="ranks")
def test_a_rank_ends_after_the_other_one_was_killed_and_both_resume_bit_for_bit(attack, tmp_path):
    generator, begin = random.Random(0), time.monotonic()  # noqa: S311 (no secrets)
    expected, _ = outcomes(tmp_path / "whole")
    longest = time.monotonic() - begin
    for number in range(20):
        folder, seconds, killed = tmp_path / str(number), generator.uniform(0, longest), generator.randrange(2)
        folder.mkdir()
        with attack.attempt(f"rank {killed} after {seconds:.3f} s"):
            ranks = start(folder, nullcontext())
            time.sleep(seconds)
            ranks[killed].kill()
            codes = exit_codes(ranks, SECONDS)
            assert codes[killed] in {0, -signal.SIGKILL}
            assert codes[1 - killed] in {0, ENDED}
            assert_resumes(folder, expected)


@pytest.mark.slow(attack="errors")
def test_both_ranks_end_after_an_error_of_one_of_them_and_resume_bit_for_bit(attack, tmp_path):
    def fail():
        raise InjectedError

    expected, places = outcomes(tmp_path / "whole")
    moments, generator = Moments(), random.Random(0)  # noqa: S311 (no secrets)
    moments.places = places
    for number in moments.sample(20, 0):
        folder, failing = tmp_path / str(number), generator.randrange(2)
        folder.mkdir(exist_ok=True)
        with attack.attempt(f"rank {failing} at {places[number - 1]}, number {number}"):
            codes = exit_codes(start(folder, Moments(number=number, action=fail), failing), SECONDS)
            assert set(codes) <= {0, ENDED}
            assert_resumes(folder, expected)
