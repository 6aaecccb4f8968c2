"""In-shop Clothes Retrieval of DeepFashion: photographs of clothes, with queries and a gallery."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from udmlss._checks import value_error
from udmlss.data.image_files import ImageFiles, label_images
from udmlss.data.published.layout import PublishedDataset, SplitSize, check_files, check_unique, read_rows

INSHOP = PublishedDataset(
    name="inshop",
    folder="In-shop Clothes Retrieval Benchmark",
    parts=(("Eval/list_eval_partition.txt", "list_eval_partition.txt"), ("Img/img/", "img/")),
    archives=("Img/img.zip", "img.zip"),
    splits={"train": SplitSize(25882, 3997), "query": SplitSize(14218, 3985), "gallery": SplitSize(12612, 3985)},
)
_COLUMNS = "image_name item_id evaluation_status"


def inshop(
    root: str | PathLike[str],
    split: Literal["train", "query", "gallery"],
    *,
    transform: Callable[[Any], Any] | None = None,
) -> ImageFiles:
    """Open a split of In-shop Clothes Retrieval.

    The training split has 25,882 images of 3,997 items. The test images show 3,985 other items: 14,218 images are
    queries, whose matches are among the 12,612 images of the gallery.

    Args:
        root: Path of the folder that contains Eval/list_eval_partition.txt or list_eval_partition.txt, and the images
            of img.zip in Img/img/ or img/.
        split: "train", "query" or "gallery".
        transform: Function that is applied to each RGB PIL image and should return a tensor. None returns PIL images.

    Returns:
        The images in the order of the list. Labels start at 0 in the training split, and in the query and gallery
        splits together: an item has the same label in both, and both have the same `classes`.

    Raises:
        ValueError: The folder has another layout, the list is damaged,
            or an image does not exist or is outside of the folder.

    Example:
        >>> query, gallery = (inshop("~/data/inshop", split) for split in ("query", "gallery"))  # doctest: +SKIP

    References:
        DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich Annotations. Liu et al. 2016.
        https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html
    """
    path, folder = INSHOP.find_parts(root, split)
    rows = _read_list(path)
    with_same_labels = ("train",) if split == "train" else ("query", "gallery")
    images = [(folder.parent / file, item) for file, item, row_split in rows if row_split == split]
    check_files([file for file, _ in images], folder, path)
    return label_images(images, {item: item for _, item, row_split in rows if row_split in with_same_labels}, transform)


def _read_list(path: Path) -> list[tuple[str, ...]]:
    rows = read_rows(path, r"(\S.*?)\s+(\S+)\s+(train|query|gallery)", _COLUMNS, header=2)
    with path.open(encoding="utf-8", errors="replace") as lines:
        count = next(lines).strip()
    if count != str(len(rows)):
        rule, found = f"The first line of {path} must be the number of images", f"{count!r} and {len(rows)} images"
        raise value_error(rule, found, "Unpack the archive again")
    check_unique([file for file, *_ in rows], path)
    return rows
