"""Runs that are resumed from damaged checkpoints."""

import random
import shutil

import pytest
from interrupted_training import assert_same, train

from udmlss import Checkpoint


def change(content, generator):
    changed = bytearray(content)
    for _ in range(generator.choice([1, 1, 1, 2, 5])):
        changed[generator.randrange(len(changed))] ^= generator.randint(1, 255)
    return bytes(changed)


def truncate(content, generator):
    return content[: generator.randrange(len(content))]


def extend(content, generator):
    return content + generator.randbytes(generator.randint(1, 50))


def erase(content, generator):
    """Replace a part by zeros, as a disk does that lost a block."""
    start = generator.randrange(len(content))
    part = content[start : start + 4096]
    return content[:start] + bytes(len(part)) + content[start + 4096 :]


@pytest.mark.slow(attack="checkpoints")
@pytest.mark.parametrize("damage", [change, truncate, extend, erase])
@pytest.mark.filterwarnings("ignore:step-.* does not match its checksum:UserWarning")
def test_a_run_with_damaged_checkpoints_resumes_bit_for_bit_or_is_an_error(attack, tmp_path, damage):
    saved, generator, expected = tmp_path / "saved", random.Random(0), train()  # noqa: S311 (no secrets)
    train(Checkpoint(saved), max_steps=8)
    for number in range(75):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        damaged = generator.sample(sorted(folder.glob("step-*")), generator.choice([1, 1, 2]))
        for path in damaged:
            path.write_bytes(damage(path.read_bytes(), generator))
        with attack.attempt(f"{number}, {[path.name for path in damaged]}"):
            try:
                found = train(Checkpoint(folder, resume=True))
            except ValueError as error:
                assert "must match the checksum" in str(error)  # noqa: PT017 (not every damage is an error)
                assert {path.name[:14] for path in damaged} == {"step-000000004", "step-000000008"}
            else:
                assert_same(found, expected)
