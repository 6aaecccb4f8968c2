"""One training at a time in the threads of a process."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from udmlss._threads import one_training_per_process


def enter():
    with one_training_per_process():
        return threading.get_ident()


def in_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_another_thread_raises_an_error_until_the_block_ends():
    with one_training_per_process(), one_training_per_process():
        pass
    with one_training_per_process():
        with one_training_per_process():
            assert enter() == threading.get_ident()
        with pytest.raises(RuntimeError, match=r"Only one thread .* may train at a time, got .*\. Start each training"):
            in_thread(enter)
    assert in_thread(enter) != threading.get_ident()


def test_an_error_ends_the_block():
    with pytest.raises(OSError, match="full"), one_training_per_process():
        raise OSError("full")
    in_thread(enter)


def test_one_of_many_threads_enters():
    barrier = threading.Barrier(8)

    def attempt():
        barrier.wait()
        try:
            with one_training_per_process():
                barrier.wait()
        except RuntimeError:
            barrier.wait()
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: attempt(), range(8))) == 1


def test_a_process_that_was_forked_in_the_block_may_train(monkeypatch):
    with one_training_per_process():
        monkeypatch.setattr("os.getpid", lambda: -1)  # the forked process has a copy of the memory and another number
        in_thread(enter)
        monkeypatch.undo()
        with pytest.raises(RuntimeError, match="Only one thread"):
            in_thread(enter)
