"""Checksums of datasets: every kind of dataset whose items are swapped has another one, and no item is loaded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

import udmlss.training.identity.checksums
from udmlss import IndexedImages
from udmlss.data.image_files import ImageFiles
from udmlss.training.identity.checksums import checksum, checksums

N = 12
ROWS = torch.rand(N, 3, 2, 2, generator=torch.Generator().manual_seed(0))
NAMES = [f"{number}/photo.png" for number in range(N)]
ORDER = torch.arange(N)
SWAPPED = torch.tensor([0, 1, 2, 3, 4, 6, 5, *range(7, N)])


class Holder(Dataset):
    """A dataset whose items cannot be loaded."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __len__(self):
        return N

    def __getitem__(self, index):
        raise OSError("not loaded")


class Table:
    """A table as that of pandas."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def to_numpy(self):
        return np.array(self.rows, dtype=object)


def paths(order, folder="/data"):
    return [f"{folder}/{NAMES[index]}" for index in order]


DATASETS = {
    "a tensor": lambda order: ROWS[order],
    "a tensor in bfloat16": lambda order: ROWS[order].bfloat16(),
    "transposed rows": lambda order: ROWS[order].transpose(1, 3),
    "tensors with labels": lambda order: TensorDataset(ROWS[order], torch.zeros(N)),
    "a list of tensors": lambda order: list(ROWS[order]),
    "a list of rows": lambda order: [(row, 0) for row in ROWS[order]],
    "a list of dictionaries": lambda order: [{"image": row, "label": None} for row in ROWS[order]],
    "an array": lambda order: Holder(data=ROWS[order].numpy()),
    "encoded images": lambda order: Holder(files=[bytes([index]) for index in order]),
    "files": lambda order: Holder(root="/data", files=paths(order)),
    "files with labels": lambda order: Holder(samples=[(path, 0) for path in paths(order)]),
    "records in a table": lambda order: Holder(table=Table([(path, "cat") for path in paths(order)])),
    "an index in an object": lambda order: Holder(index=Holder(names=np.array(paths(order)))),
    "arrays by name": lambda order: Holder(arrays={"images": ROWS[order]}),
    "image files": lambda order: ImageFiles(paths(order), [-1] * N, []),
    "a subset": lambda order: Subset(Holder(), order.tolist()),
    "a subset of files": lambda order: Subset(Holder(files=paths(order)), range(N)),
    "two datasets": lambda order: ConcatDataset([Holder(), Holder(files=paths(order))]),
    "an empty dataset": lambda order: ConcatDataset([Holder(files=paths(order)), Subset(Holder(), [])]),
    "indexed images": lambda order: IndexedImages(Holder(files=paths(order))),
}


@pytest.mark.parametrize("name", DATASETS)
def test_two_swapped_items_change_a_checksum(name):
    one, other, again = (checksums("images", DATASETS[name](order)) for order in (ORDER, SWAPPED, ORDER))
    assert one == again
    assert one.keys() == other.keys()
    assert one != other


def test_names_lead_to_the_attribute():
    files = Holder(samples=[(path, 0) for path in paths(ORDER)])
    assert list(checksums("images", files)) == ["images.samples[:][0]", "images.samples[:][1]"]
    assert list(checksums("images", ROWS)) == ["images"]
    assert list(checksums("images", Subset(files, range(3)))) == [
        "images.dataset.samples[:][0]",
        "images.dataset.samples[:][1]",
        "images.indices",
    ]


@pytest.mark.parametrize("kind", [str, Path])
def test_the_same_files_in_another_folder_have_the_same_checksums(kind):
    one, other = (
        checksums("images", Holder(root=folder, files=list(map(kind, paths(ORDER, folder)))))
        for folder in ("/data", "/other/folder")
    )
    assert one == other != {}


def test_caches_and_other_attributes_have_no_checksum():
    attributes = {
        "cache": [None, *ROWS[1:]],
        "images": [object()] * N,
        "lengths": [1, 2, 3],
        "table": {},
        "mixed": [(0, 1), *[0] * (N - 1)],
        "dictionaries": [{"a": 1}, *[{}] * (N - 1)],
        "number": 7,
        "complex": torch.zeros(N, dtype=torch.complex64),
    }
    dataset = Holder(**attributes)
    dataset.itself = dataset
    assert checksums("images", dataset) == {}


def test_the_slices_that_are_read_do_not_change_a_checksum(monkeypatch):
    rows = torch.rand(50, 3, 7)
    expected = checksum(rows)
    assert checksum(rows.numpy()) == expected
    for numbers in (1, 100, 1000):
        monkeypatch.setattr(udmlss.training.identity.checksums, "_NUMBERS_AT_ONCE", numbers)
        assert checksum(rows) == expected


def test_some_numbers_of_each_row_count_if_there_are_too_many(monkeypatch):
    monkeypatch.setattr(udmlss.training.identity.checksums, "_MAX_NUMBERS", 5)
    rows = torch.rand(50, 3, 7)
    for index in range(50):
        changed = rows.clone()
        changed[index] += 1
        assert checksum(changed) != checksum(rows)


@pytest.mark.parametrize("rows", [torch.zeros(0, 3), torch.zeros(3, 0), torch.zeros(2, requires_grad=True)])
def test_tensors_of_any_shape_have_a_checksum(rows):
    assert len(checksum(rows)) == 8
