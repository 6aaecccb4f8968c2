import inspect

import pytest

from udmlss import data
from udmlss.data.catalog import CARS196, CUB200, INSHOP, SOP


@pytest.mark.parametrize(
    ("published", "images", "classes"),
    [(CUB200, 11_788, 200), (CARS196, 16_185, 196), (SOP, 120_053, 22_634)],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_halves_add_up_to_the_whole_data_set(published, images, classes):
    assert sum(split.images for split in published.splits.values()) == images
    assert sum(split.classes for split in published.splits.values()) == classes


def test_the_parts_of_inshop_add_up_to_the_first_line_of_its_list_and_share_the_items_of_the_test():
    assert sum(split.images for split in INSHOP.splits.values()) == 52_712
    assert INSHOP.splits["train"].classes + INSHOP.splits["query"].classes == 7_982
    assert INSHOP.splits["query"].classes == INSHOP.splits["gallery"].classes


@pytest.mark.parametrize("published", [CUB200, CARS196, SOP, INSHOP], ids=lambda published: published.name)
def test_an_openers_docstring_says_the_published_numbers(published):
    said = inspect.getdoc(getattr(data, published.name))
    for split in published.splits.values():
        assert f"{split.images:,}" in said
    assert f"{published.splits['train'].classes:,}" in said
