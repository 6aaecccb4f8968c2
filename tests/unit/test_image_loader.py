import os
import random
import signal
from multiprocessing import active_children, get_start_method, set_start_method

import jaxtyping
import numpy as np
import pytest
import torch
from processes import end_children
from torch.utils.data import Dataset, TensorDataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from udmlss.dataset import IndexedImages
from udmlss.image_loader import ImageLoader, default_workers

IMAGES = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(1))
BATCHES = [[0, 1], [2, 2], [3, 4], [11]]


class Noisy(Dataset):
    """Images with noise from the global generators and from one of its own."""

    def __init__(self):
        self.generator = np.random.default_rng()

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        noise = [torch.rand(()), random.random(), np.random.rand(), self.generator.random()]  # noqa: NPY002, S311
        return IMAGES[index] + torch.tensor(noise[:3])[:, None, None] + noise[3]


class OpensFile(Dataset):
    """Images in a file that is opened with the first item, and is shared with processes that are forked later."""

    def __init__(self, path):
        self.path, self.file = path, None
        path.write_bytes(IMAGES.numpy().tobytes())

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        if self.file is None:
            self.file = self.path.open("rb", buffering=0)
            self.process = os.getpid()
        assert self.process == os.getpid()
        self.file.seek(index * IMAGES[0].nbytes)
        return torch.frombuffer(bytearray(self.file.read(IMAGES[0].nbytes)), dtype=torch.float32).view(3, 4, 4)


class FailsAt(Dataset):
    """Images of which one cannot be loaded."""

    def __init__(self, index):
        self.index = index

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        if index == self.index:
            raise OSError("image file is truncated")
        return IMAGES[index]


@pytest.fixture
def starts(monkeypatch):
    """Return a list that grows whenever a loader starts its workers."""
    started, start = [], _MultiProcessingDataLoaderIter.__init__

    def count(self, loader):
        started.append(loader.num_workers)
        start(self, loader)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "__init__", count)
    return started


@pytest.fixture
def without_shape_checks(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def _no_process_is_left():
    end_children()
    yield
    assert not active_children()


def load(loader, images, key=(7, 1), start=0):
    return [(batch, indices.tolist()) for batch, indices in loader.batches(images, BATCHES, key, start=start)]


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_yields_the_images_of_each_batch_and_their_indices(num_workers):
    with ImageLoader([IMAGES], num_workers) as loader:
        assert_equal(load(loader, IMAGES), [(IMAGES[indices], indices) for indices in BATCHES])


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_random_transforms_depend_on_the_key_and_the_number_of_the_batch_alone(num_workers):
    alone, noisy = Noisy(), Noisy()
    expected = load(ImageLoader([alone]), alone)
    with ImageLoader([noisy], num_workers) as loader:
        for start in (2, 0):
            assert_equal(load(loader, noisy, start=start), expected[start:])
        assert_equal(loader.items(noisy, [0, 1], (7, 1, 0)), list(expected[0][0]))
        other = load(loader, noisy, key=(7, 2))
    assert not torch.equal(other[0][0], expected[0][0])
    assert not torch.equal(*expected[1][0])


@pytest.mark.usefixtures("without_shape_checks")  # the checks sample random numbers
@pytest.mark.parametrize("num_workers", [0, 1])
def test_global_random_states_are_unchanged(num_workers):
    noisy = Noisy()
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    with ImageLoader([noisy], num_workers) as loader:
        load(loader, noisy)
        loader.items(noisy, [3])
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_workers_are_started_once_for_several_datasets_and_passes(starts):
    labeled = TensorDataset(IMAGES + 1, torch.arange(12))
    with ImageLoader([IMAGES, labeled], 2) as loader:
        assert not starts  # before the first batch
        for _ in range(2):
            assert_equal(load(loader, IMAGES)[0][0], IMAGES[[0, 1]])
            assert_equal(load(loader, labeled)[0][0], IMAGES[[0, 1]] + 1)
            assert_equal(loader.items(labeled, [5])[0], IMAGES[5] + 1)
        assert len(active_children()) == 2
    assert starts == [2]
    assert not active_children()


def test_no_item_is_loaded_in_the_main_process(tmp_path):
    images = OpensFile(tmp_path / "pixels")
    with ImageLoader([images], 2) as loader:
        assert_equal(loader.items(images, [3])[0], IMAGES[3])
        for _ in range(3):
            assert_equal(load(loader, images), [(IMAGES[indices], indices) for indices in BATCHES])
    assert images.file is None


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_pass_that_is_left_early_does_not_change_the_next_one(num_workers, starts):
    with ImageLoader([IMAGES], num_workers) as loader:
        for _ in loader.batches(IMAGES, BATCHES):
            break
        assert_equal(load(loader, IMAGES), [(IMAGES[indices], indices) for indices in BATCHES])
    assert len(starts) == num_workers


@pytest.mark.parametrize("num_workers", [0, 1])
def test_passes_can_overlap(num_workers):
    with ImageLoader([IMAGES], num_workers) as loader:
        outer = loader.batches(IMAGES, BATCHES)
        first = next(outer)
        inner = load(loader, IMAGES)
        found = [first, *outer]
        assert_equal(inner, [(IMAGES[indices], indices) for indices in BATCHES])
        assert_equal([batch for batch, _ in found], [IMAGES[indices] for indices in BATCHES])


def test_the_last_batch_frees_the_workers(starts):
    with ImageLoader([IMAGES], 1) as loader:
        waiting = loader.batches(IMAGES, [[0], [1]])
        assert [next(waiting)[1].item(), next(waiting)[1].item()] == [0, 1]  # and not to the end of the iterator
        load(loader, IMAGES)
        assert list(waiting) == []
    assert starts == [1]


def test_workers_that_ended_are_replaced(starts):
    with ImageLoader([IMAGES], 1) as loader:
        load(loader, IMAGES)
        for process in active_children():
            process.kill()
            process.join()
        assert_equal(load(loader, IMAGES)[3][0], IMAGES[[11]])
    assert starts == [1, 1]


def test_a_worker_that_does_not_end_is_killed(starts, monkeypatch):
    monkeypatch.setattr("torch.utils.data.dataloader._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    with ImageLoader([IMAGES], 1) as loader:
        load(loader, IMAGES)
        [worker] = active_children()
        os.kill(worker.pid, signal.SIGSTOP)
    worker.join(10)
    assert worker.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_the_dataset_names_the_item(num_workers):
    images = FailsAt(3)
    with ImageLoader([images], num_workers) as loader:
        with pytest.raises(OSError, match="image file is truncated") as caught:
            load(loader, images)
        text = "".join([*caught.value.args, *getattr(caught.value, "__notes__", [])])
        assert "while loading item 3 of `images`" in text
        assert_equal(loader.items(images, [4])[0], IMAGES[4])


def test_no_batches_start_no_workers(starts):
    with ImageLoader([IMAGES], 1) as loader:
        assert list(loader.batches(IMAGES, [])) == []
    assert not starts


def test_images_of_several_shapes_can_be_loaded_as_items():
    images = [torch.zeros(3, 4, 4), torch.zeros(3, 5, 4)]
    assert [image.shape for image in ImageLoader([images]).items(images, range(2))] == [(3, 4, 4), (3, 5, 4)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_block_that_is_left_late_does_not_end_the_workers_of_a_later_block(num_workers, starts):
    loader = ImageLoader([IMAGES], num_workers)

    def passes():
        with loader.keep_workers():
            yield load(loader, IMAGES)

    forgotten = passes()
    next(forgotten)
    with loader.keep_workers():
        batches = loader.batches(IMAGES, BATCHES)
        next(batches)
        forgotten.close()
        assert len(list(batches)) == 3
        with loader.keep_workers():
            load(loader, IMAGES)
        assert not active_children()
        load(loader, IMAGES)
    assert len(starts) == 2 * num_workers


@pytest.mark.filterwarnings("ignore:Got pickle error")
def test_a_dataset_that_cannot_be_pickled_is_an_error_under_spawn():
    images = Noisy()
    images.transform = lambda image: image
    message = (
        r'The start method "spawn" sends `images` and their transform to worker processes.*got .*lambda.*Replace a'
    )
    before = get_start_method()
    set_start_method("spawn", force=True)
    try:
        with ImageLoader([images], 1) as loader, pytest.raises(TypeError, match=message):
            load(loader, images)
    finally:
        set_start_method(before, force=True)


def test_workers_are_the_default_for_images_that_are_loaded_for_a_gpu_alone(monkeypatch):
    n_cores, cuda = len(os.sched_getaffinity(0)), torch.device("cuda")
    assert default_workers([Noisy(), IMAGES], cuda) == (min(8, n_cores) if get_start_method() == "fork" else 0)
    assert default_workers([Noisy()], torch.device("cpu")) == 0
    assert default_workers([IMAGES, IndexedImages(IMAGES)], cuda) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(n_cores))
    assert default_workers([Noisy()], cuda) <= 1
