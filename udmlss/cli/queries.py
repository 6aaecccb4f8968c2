"""The subcommands `search` and `duplicates`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import udmlss
from udmlss._checks import check_integer, check_number, value_error
from udmlss.cli.images import open_images
from udmlss.cli.machine import Machine
from udmlss.cli.messages import columns, short_path
from udmlss.cli.outputs import open_model
from udmlss.cli.run_folder import RunFolder
from udmlss.data import ImageFiles
from udmlss.search import SearchIndex, near_duplicates


@dataclass(frozen=True)
class Neighbors:
    """The nearest images of one image.

    Attributes:
        image: Path of the image.
        paths: Paths of the nearest images, the nearest first.
        similarities: Their cosine similarities, in -1..1.
    """

    image: Path
    paths: tuple[Path, ...]
    similarities: tuple[float, ...]

    def __str__(self) -> str:
        pairs = zip(self.similarities, self.paths, strict=True)
        rows = [(f"{similarity:6.3f}", short_path(path)) for similarity, path in pairs]
        return f"{short_path(self.image)}\n{columns(rows)}"


def search(
    run: str | os.PathLike[str],
    *images: str | os.PathLike[str],
    k: int = 10,
    report: str | os.PathLike[str] | None = None,
    device: str | None = None,
) -> list[Neighbors]:
    """Search the images of a run for those that are most similar to other images.

    An image of the run is not found by itself.

    Args:
        run: Folder of a finished run.
        images: Image files, which need not be images of the run.
        k: Number of images that are found for each.
        report: Name of an .html file that shows the images. By default none is written.
        device: Device of PyTorch, such as "cuda" or "cpu". By default a GPU if there is one.

    Returns:
        For each image the paths of the most similar images, with their cosine similarities.

    Raises:
        ValueError: There is no finished run in the folder, a file does not exist, or `k` is out of range.
        OSError: A file is not an image.

    Example:
        >>> from udmlss import cli
        >>> for neighbors in cli.search("run", "photos/1.jpg", "new.jpg", k=5):  # doctest: +SKIP
        ...     print(neighbors)
    """
    check_integer("k", k, 1)
    found = RunFolder.finished(run)
    queries = [_check_file(image) for image in images]
    if not queries:
        raise value_error("`images` must name at least one image", "none", "Pass the path of an image file")
    model, backbone = open_model(run)
    machine = Machine.choose(device, image_size=backbone.image_size, workers=0)
    embedded = udmlss.embed(machine.place(model), ImageFiles(queries, transform=backbone.test_transform()))
    paths = found.read_paths()
    index = SearchIndex(found.read_embeddings(), np.arange(len(paths)))
    ids, similarities = index.search(embedded, min(k + 1, len(paths)))
    results = [
        _without_itself(query, [paths[row] for row in rows], values, k)
        for query, rows, values in zip(queries, ids.tolist(), similarities.tolist(), strict=True)
    ]
    if report is not None:
        write_search_report(Path(report).expanduser(), results)
    return results


def duplicates(
    run: str | os.PathLike[str],
    *,
    other: str | os.PathLike[str] | None = None,
    threshold: float = 0.95,
    device: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> list[list[Path]]:
    """Find groups of near-duplicates among the images of a run, or between them and other images.

    Args:
        run: Folder of a finished run.
        other: Folder of images, a list of their paths, or folder of another run. Each group then holds images of both,
            such as test images that are also in the training images. By default the images of the run are compared
            with each other.
        threshold: Smallest cosine similarity of two near-duplicates, in -1..1.
        device: Device of PyTorch, such as "cuda" or "cpu". By default a GPU if there is one.
        workers: Number of processes that load images. By default one per core.
        progress: Whether to print what is done.

    Returns:
        The paths of the images of each group.

    Raises:
        ValueError: There is no finished run in the folder, there are no other images, or `threshold` is out of range.
        OSError: An image cannot be read.

    Example:
        >>> from udmlss import cli
        >>> cli.duplicates("run", threshold=0.98)  # doctest: +SKIP
        [[PosixPath('photos/1.jpg'), PosixPath('photos/copy of 1.jpg')]]
    """
    check_number("threshold", threshold, -1, 1)
    found = RunFolder.finished(run)
    raise NotImplementedError


def _check_file(image: str | os.PathLike[str]) -> Path:
    path = Path(image).expanduser().absolute()
    if not path.is_file():
        found = f"{image}, which {'is a folder' if path.is_dir() else 'does not exist'}"
        raise value_error("`images` must be image files", found, "Check the path")
    return path


def _without_itself(query: Path, paths: list[Path], similarities: list[float], k: int) -> Neighbors:
    pairs = [pair for pair in zip(paths, similarities, strict=True) if pair[0] != query][:k]
    return Neighbors(query, tuple(path for path, _ in pairs), tuple(similarity for _, similarity in pairs))
