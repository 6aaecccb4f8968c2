import random
import struct

import numpy as np
import pytest
from layouts import cars196
from scipy.io import loadmat, savemat

from udmlss.data.published.matlab import read_mat

CONTENT = {
    "text": "caf\u00e9",
    "numbers": np.array([[1.5, -2, 3]]),
    "matrix": np.array([[1, 2], [3, 4]], np.int16),
    "empty": np.empty((0, 0)),
    "cells": np.array([["a", np.array([[7]], np.uint8), ""]], dtype=object),
    "structure": np.array([[("x", 1), ("y", 2)]], dtype=[("name", object), ("value", object)]),
}


@pytest.mark.parametrize("do_compression", [False, True])
def test_reads_arrays_of_every_class(tmp_path, do_compression):
    savemat(tmp_path / "a.mat", CONTENT, do_compression=do_compression)
    found = read_mat(tmp_path / "a.mat")
    assert found.keys() == CONTENT.keys()
    assert found["text"] == "caf\u00e9"
    assert found["numbers"].tolist() == [1.5, -2, 3]
    assert found["matrix"].tolist() == [1, 3, 2, 4]
    assert found["empty"].tolist() == []
    assert (found["cells"][0], found["cells"][1].tolist(), found["cells"][2]) == ("a", [7], "")
    assert found["structure"]["name"] == ["x", "y"]
    assert [value.item() for value in found["structure"]["value"]] == [1, 2]


def test_agrees_with_scipy_on_the_layout_of_cars196(tmp_path):
    path = cars196(tmp_path) / "cars_annos.mat"
    found, expected = read_mat(path), loadmat(path, squeeze_me=True)
    assert found["class_names"] == expected["class_names"].tolist()
    assert found["annotations"].keys() == set(expected["annotations"].dtype.names)
    for name, values in found["annotations"].items():
        assert [np.asarray(value).item() for value in values] == expected["annotations"][name].tolist()


def test_reads_files_of_big_endian_machines(tmp_path):
    def element(kind, content):
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    flags, shape = element(6, struct.pack(">II", 6, 0)), element(5, struct.pack(">ii", 1, 2))
    variable = element(14, flags + shape + element(1, b"x") + element(9, struct.pack(">2d", 1, 2)))
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0".ljust(124) + b"\1\0MI" + variable)
    assert read_mat(tmp_path / "a.mat")["x"].tolist() == [1, 2]


def test_a_variable_of_another_class_is_none(tmp_path):
    savemat(tmp_path / "a.mat", {"x": np.ones((1, 1))})
    content = (tmp_path / "a.mat").read_bytes()
    flags = struct.pack("<IIII", 6, 8, 6, 0)
    assert flags in content
    (tmp_path / "a.mat").write_bytes(content.replace(flags, struct.pack("<IIII", 6, 8, 17, 0)))
    assert read_mat(tmp_path / "a.mat") == {"": None}


@pytest.mark.parametrize("do_compression", [False, True])
def test_damaged_files_are_read_or_raise_value_error(tmp_path, do_compression):
    path = tmp_path / "a.mat"
    savemat(path, CONTENT, do_compression=do_compression)
    content = path.read_bytes()
    generator = random.Random(0)  # noqa: S311 (no secrets)
    n_rejected = 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randrange(len(damaged))] ^= generator.randint(1, 255)
        path.write_bytes(damaged[: generator.choice([len(damaged), generator.randrange(len(damaged))])])
        try:
            read_mat(path)
        except ValueError:
            n_rejected += 1
    assert n_rejected > 150


def test_rejects_a_variable_that_is_too_large(tmp_path, monkeypatch):
    savemat(tmp_path / "a.mat", {"x": np.zeros(10_000)}, do_compression=True)
    monkeypatch.setattr("udmlss.data.published.matlab._MAX_SIZE", 1000)
    with pytest.raises(ValueError, match="a truncated or too large variable"):
        read_mat(tmp_path / "a.mat")


def test_rejects_deeply_nested_arrays(tmp_path):
    nested = "x"
    for _ in range(20):
        outer = np.empty((1, 1), dtype=object)
        outer[0, 0] = nested
        nested = outer
    savemat(tmp_path / "a.mat", {"x": nested})
    with pytest.raises(ValueError, match="an element of type 14 at depth 9"):
        read_mat(tmp_path / "a.mat")
