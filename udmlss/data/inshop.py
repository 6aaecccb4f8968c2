"""In-shop Clothes Retrieval of DeepFashion: garments to search in a gallery."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from udmlss._checks import check_choice, value_error
from udmlss.data.catalog import INSHOP
from udmlss.data.image_files import ImageFiles
from udmlss.data.layout import check_once, check_there, find, number, read_rows

_PARTS = (("Eval/list_eval_partition.txt", "list_eval_partition.txt"), ("Img/img/", "img/"))
_COLUMNS = "image_name item_id evaluation_status"


def inshop(
    root: str | PathLike[str],
    split: Literal["train", "query", "gallery"],
    *,
    transform: Callable[[Any], Any] | None = None,
) -> ImageFiles:
    """Open one of the three parts of In-shop Clothes Retrieval.

    Training is on 25,882 images of 3,997 items. For testing, 14,218 queries look for images of the same item among
    12,612 of the gallery, both of 3,985 other items.

    Args:
        root: The folder with Eval/list_eval_partition.txt (or the list itself) and the pictures of img.zip, in
            Img/img/ or img/.
        split: "train", "query" or "gallery".
        transform: Applied to each PIL image; give one that ends in a tensor.

    Returns:
        The images in the order of the list. Labels are counted from 0 within the training images, and within queries
        and gallery together: the same item has the same label in both, and both have the same `classes`.

    Raises:
        ValueError: The folder is not in that layout, or the list is damaged or contradicts the pictures.

    Example:
        `recall_at_k(gallery_embeddings, gallery.labels, queries=query_embeddings, query_labels=query.labels)`

    References:
        DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich Annotations. Liu et al. 2016.
        https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html
    """
    check_choice("split", split, ("train", "query", "gallery"))
    path, pictures = find(root, INSHOP, _PARTS)
    rows = _read(path)
    group = ("train",) if split == "train" else ("query", "gallery")  # which share their labels
    images = [(pictures.parent / file, item) for file, item, part in rows if part == split]
    check_there(images, path)
    return number(images, {item: item for _, item, part in rows if part in group}, transform)


def _read(path: Path) -> list[tuple[str, ...]]:
    rows = read_rows(path, r"(\S.*?)\s+(\S+)\s+(train|query|gallery)", _COLUMNS, header=2)
    with path.open(encoding="utf-8", errors="replace") as lines:
        count = next(lines).strip()
    if count != str(len(rows)):
        raise value_error(
            f"The first line of {path} must be the number of images",
            f"{count!r} and {len(rows)} images",
            "Unpack it again",
        )
    check_once([file for file, *_ in rows], path)
    return rows
