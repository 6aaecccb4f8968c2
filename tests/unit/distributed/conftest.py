"""The results of two and of three ranks, which one start of the processes computes for all tests."""

import processes
import pytest
import ranks_program
import torch


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Return the results of each rank by number of ranks, and the exit code and errors of each process."""
    return processes.compute_once(tmp_path_factory, "ranks", run_program)


def run_program(folder):
    sizes = ranks_program.WORLD_SIZES
    ports = [processes.free_port() for _ in sizes]
    exits = processes.finish(processes.start(ranks_program.__file__, max(sizes), folder, *ports))
    files = {size: [folder / f"{rank}-of-{size}.pt" for rank in range(size)] for size in sizes}
    assert all(path.exists() for paths in files.values() for path in paths), exits
    return {size: [torch.load(path, weights_only=False) for path in paths] for size, paths in files.items()}, exits


@pytest.fixture(params=ranks_program.WORLD_SIZES, ids="{} ranks".format)
def ranks(run, request):
    """Return the results of each rank."""
    return run[0][request.param]


@pytest.fixture
def exits(run):
    """Return the exit code and the standard error of each process."""
    return run[1]
