"""A program run as several processes, as torchrun runs it."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

WAIT = 240.0  # seconds after which a process that waits for another is given up


def start(program: str, world_size: int, *arguments: object) -> list[subprocess.Popen[str]]:
    """Start the Python program once for each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    return [
        subprocess.Popen(  # noqa: S603 (our own code)
            [sys.executable, program, *map(str, arguments)],
            env=os.environ | {name: str(value) for name, value in (shared | {"RANK": r, "LOCAL_RANK": r}).items()},
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(world_size)
    ]


def finish(
    processes: Sequence[subprocess.Popen[str]], meanwhile: Callable[[], None] = lambda: None
) -> list[tuple[int, str]]:
    """Wait for all, and return how each ended and what it said."""
    try:
        meanwhile()
        said = [process.communicate(timeout=WAIT)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]
