"""Programs that run as several processes, as `torchrun` runs them."""

import gc
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from filelock import FileLock

TIMEOUT = 240.0  # seconds until a process that waits for another one is killed


def free_port() -> int:
    """Return the number of a port that no process uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def start(program: str, world_size: int, *arguments: object) -> list[subprocess.Popen[str]]:
    """Start a Python program once for each rank."""
    common = {
        "WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "OMP_NUM_THREADS": 1,
    }
    return [
        subprocess.Popen(  # noqa: S603 (the program is part of the tests)
            [sys.executable, program, *map(str, arguments)],
            env=os.environ | {name: str(value) for name, value in (common | {"RANK": r, "LOCAL_RANK": r}).items()},
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(world_size)
    ]


def finish(
    processes: Sequence[subprocess.Popen[str]], meanwhile: Callable[[], None] = lambda: None
) -> list[tuple[int, str]]:
    """Wait for all processes, and return the exit code and the standard error of each."""
    try:
        meanwhile()
        errors = [process.communicate(timeout=TIMEOUT)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, errors, strict=True)]


def end_children() -> None:
    """End the processes that earlier tests started, so that a test sees its own ones only."""
    gc.collect()  # ends the workers of data loaders that nothing refers to
    for process in active_children():
        process.terminate()
        process.join()


def compute_once(tmp_path_factory: pytest.TempPathFactory, name: str, compute: Callable[[Path], object]) -> object:
    """Return the result of a function of an empty folder, which one worker of pytest-xdist runs for all of them."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which all workers share
    saved = folder / f"{name}.pt"
    with FileLock(folder / f"{name}.lock"):
        if not saved.exists():
            torch.save(compute(tmp_path_factory.mktemp(name)), saved)
    return torch.load(saved, weights_only=False)
