"""Stanford Online Products: photographs of products offered on eBay."""

from collections.abc import Callable
from os import PathLike
from typing import Any, Literal

from udmlss.data.image_files import ImageFiles, label_images
from udmlss.data.published.layout import PublishedDataset, SplitSize, check_files, check_unique, read_rows

SOP = PublishedDataset(
    name="sop",
    folder="Stanford_Online_Products",
    parts=(("Ebay_train.txt",), ("Ebay_test.txt",)),
    archives=("Stanford_Online_Products.zip",),
    splits={"train": SplitSize(59551, 11318), "test": SplitSize(60502, 11316)},
    md5={"Stanford_Online_Products.zip": "7f73d41a2f44250d4779881525aea32e"},
)
_COLUMNS = "image_id class_id super_class_id path"


def sop(
    root: str | PathLike[str], split: Literal["train", "test"], *, transform: Callable[[Any], Any] | None = None
) -> ImageFiles:
    """Open a split of Stanford Online Products.

    The splits are those of the authors: 59,551 images of 11,318 products for training, and 60,502 images of 11,316
    other products for testing. A class is a product; the twelve categories of products are not used.

    Args:
        root: Path of the folder Stanford_Online_Products, or of its parent. The folder contains the lists
            Ebay_train.txt and Ebay_test.txt, and the images in one folder per category.
        split: "train" or "test".
        transform: Function that is applied to each RGB PIL image and should return a tensor. None returns PIL images.

    Returns:
        The images in the order of the list. Labels start at 0 in each split. The name of a class is its number in the
        list.

    Raises:
        ValueError: The folder has another layout, the list is damaged,
            or an image does not exist or is outside of the folder.

    Example:
        >>> train = sop("~/data/Stanford_Online_Products", "train", transform=transform)  # doctest: +SKIP

    References:
        Deep Metric Learning via Lifted Structured Feature Embedding. Song et al. 2016. https://arxiv.org/abs/1511.06452
    """
    train, test = SOP.find_parts(root, split)
    path = train if split == "train" else test
    rows = read_rows(path, r"(\d+)\s+(\d+)\s+(\d+)\s+(\S.*)", _COLUMNS, header=1)
    check_unique([file for *_, file in rows], path)
    images = [(path.parent / file, key) for _, key, _, file in rows]
    check_files([file for file, _ in images], path.parent, path)
    return label_images(images, {key: key for _, key in images}, transform)
