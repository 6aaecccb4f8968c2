import numpy as np
import pytest
from PIL import Image

from udmlss.data.quality.near_duplicates import find_near_duplicates, make_thumbnail


def naive(thumbnails, max_distance):
    """Return for each image the set of earlier images that are near-duplicates."""
    rows = thumbnails.reshape(-1, 8, 9).astype(int)
    bits = (np.diff(rows, axis=2) > 0).reshape(len(rows), -1)

    def is_near(i, j):
        return (bits[i] != bits[j]).sum() <= max_distance and np.abs(rows[i] - rows[j]).mean() <= 6

    return [{j for j in range(i) if is_near(i, j)} for i in range(len(rows))]


@pytest.mark.parametrize("max_distance", [0, 1, 4, 8])
def test_finds_what_a_comparison_of_all_pairs_finds(max_distance):
    generator = np.random.default_rng(max_distance)
    images = generator.integers(0, 250, (20, 72))
    noisy = images[generator.integers(0, 20, 150)] + generator.integers(-10, 11, (150, 72))
    noisy = np.where(generator.random((150, 1)) < 0.5, noisy, images[generator.integers(0, 20, 150)])
    thumbnails = np.clip(noisy, 0, 255).astype(np.uint8)
    expected = naive(thumbnails, max_distance)
    found = find_near_duplicates(thumbnails, max_distance)
    assert all(
        first in near if near else first == index
        for index, (first, near) in enumerate(zip(found, expected, strict=True))
    )
    assert any(expected)


def test_a_thumbnail_holds_means_from_left_to_right():
    image = Image.fromarray(np.repeat(np.arange(18, dtype=np.uint8)[None] * 10, 16, axis=0))
    assert np.frombuffer(make_thumbnail(image), np.uint8).reshape(8, 9)[3].tolist() == list(range(5, 180, 20))


def test_each_of_many_images_with_one_hash_has_an_earlier_one():
    thumbnails = np.tile(np.arange(72, dtype=np.uint8), (2000, 1))
    assert (find_near_duplicates(thumbnails, 4)[1:] < np.arange(1, 2000)).all()


def test_no_images_have_no_duplicates():
    assert find_near_duplicates(np.zeros((0, 72), np.uint8), 4).shape == (0,)
