"""Stanford Online Products: pictures of what was sold on eBay, a class per product."""

from collections.abc import Callable
from os import PathLike
from typing import Any, Literal

from udmlss._checks import check_choice
from udmlss.data.catalog import SOP
from udmlss.data.image_files import ImageFiles
from udmlss.data.layout import check_once, check_there, find, number, read_rows

_COLUMNS = "image_id class_id super_class_id path"


def sop(
    root: str | PathLike[str],
    split: Literal["train", "test"],
    *,
    transform: Callable[[Any], Any] | None = None,
) -> ImageFiles:
    """Open one of the authors' two lists of Stanford Online Products.

    Training is on 59,551 images of 11,318 products, testing on 60,502 of 11,316 others.

    Args:
        root: The folder Stanford_Online_Products, or the one it lies in. It holds Ebay_train.txt and Ebay_test.txt,
            a line of column names and then one line per image, and the pictures in a folder per kind of product.
        split: "train" or "test".
        transform: Applied to each PIL image; give one that ends in a tensor.

    Returns:
        The images in the order of the list, labels counted from 0 within the split. A class is named by its number
        in the list; the twelve kinds of product are not used.

    Raises:
        ValueError: The folder is not in that layout, or the list is damaged or contradicts the pictures.

    Example:
        `train = sop("Stanford_Online_Products", "train", transform=train_transform)`

    References:
        Deep Metric Learning via Lifted Structured Feature Embedding. Song et al. 2016. https://arxiv.org/abs/1511.06452
    """
    check_choice("split", split, ("train", "test"))
    train, test = find(root, SOP, (("Ebay_train.txt",), ("Ebay_test.txt",)))
    path = train if split == "train" else test
    rows = read_rows(path, r"(\d+)\s+(\d+)\s+(\d+)\s+(\S.*)", _COLUMNS, header=1)
    check_once([file for *_, file in rows], path)
    images = [(path.parent / file, key) for _, key, _, file in rows]
    check_there(images, path)
    return number(images, {key: key for _, key in images}, transform)
