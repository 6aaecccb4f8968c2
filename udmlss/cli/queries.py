"""The subcommands `search` and `duplicates`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from warnings import warn

from jaxtyping import Float
from torch import Tensor

from udmlss._checks import check_integer, check_number, value_error
from udmlss._files import output_file, replace_file
from udmlss.cli.images import advise_skipping, open_images, without_unreadable
from udmlss.cli.machine import check_workers, choose_device
from udmlss.cli.messages import columns, count, short_path
from udmlss.cli.outputs import embed_paths, open_model
from udmlss.cli.run_folder import RunFolder
from udmlss.data.path_lists import short_name
from udmlss.report.thumbnails import Thumbnails
from udmlss.search import SearchIndex, near_duplicates

_PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Search results</title>
<style>
body {{ font-family: sans-serif; margin: 1em; }}
section {{ display: flex; flex-wrap: wrap; gap: 1em; border-top: 1px solid #999; padding: 1em 0; }}
figure {{ margin: 0; width: 9em; overflow-wrap: anywhere; font-size: small; }}
figure:first-child {{ font-weight: bold; }}
</style>
<h1>Search results</h1>
<p>Each row shows an image in bold, and the most similar images of the run with their cosine similarities.</p>
{}
</html>
"""


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
        rows = [(f"{similarity:6.3f}", short_path(path)) for similarity, path in _pairs(self)]
        return f"{short_path(self.image)}\n{columns(rows)}"


def search(
    run: str | os.PathLike[str],
    *images: str | os.PathLike[str],
    k: int = 10,
    report: str | os.PathLike[str] | None = None,
    device: str | None = None,
) -> list[Neighbors]:
    """Search the images of a run for those that are most similar to other images.

    The results of an image do not include the image itself, even if it is given by another path or is in the run under
    several paths.

    Args:
        run: Folder of a finished run.
        images: Image files, which need not be images of the run.
        k: Number of images that are found for each. If the run has fewer, all of them are found.
        report: Name of an .html file that shows the images, which is replaced if it exists. By default none is written.
        device: Device of PyTorch, such as "cuda" or "cpu". By default a GPU if there is one.

    Returns:
        For each image the paths of the most similar images, with their cosine similarities.

    Raises:
        ValueError: `run` is not a finished run, no image is named, a file does not exist, the suffix of `report` is
            not .html, or `k` is below 1.
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
    page = None if report is None else output_file("report", report, ".html")
    embedded = embed_paths(*open_model(run), queries, device=device, workers=0, progress=False)
    # for a few images, an exact search takes less time than building cells
    index, paths = SearchIndex(found.read_embeddings(), target_recall=1), found.read_paths()
    results = _search_others(index, paths, queries, embedded, k)
    if page is not None:
        _write_page(page, results)
    return results


def duplicates(
    run: str | os.PathLike[str],
    *,
    other: str | os.PathLike[str] | None = None,
    threshold: float = 0.95,
    device: str | None = None,
    workers: int | None = None,
    skip_unreadable: bool = False,
    progress: bool = True,
) -> list[list[Path]]:
    """Find groups of near-duplicates among the images of a run, or between them and other images.

    They are images with similar embeddings. The report searches the embeddings before training and therefore shows
    other groups. Raise the threshold until only copies remain. If the run ignores colors or orientation,
    copies in other colors or rotated copies are near-duplicates too.

    Args:
        run: Folder of a finished run.
        other: Folder of images, a .txt, .csv, .tsv or .parquet file with their paths, or folder of another run. Each
            group is then a pair of an image of the run and an image of `other`, such as a test image that is also
            among the training images. By default the images of the run are compared with each other.
        threshold: Smallest cosine similarity of two near-duplicates, in -1..1.
        device: Device of PyTorch for the images of `other`, such as "cuda" or "cpu". By default a GPU if there is one.
        workers: Number of processes that load the images of `other`. By default one per core, at most 16, and fewer if
            their batches do not fit into shared memory. On a single core the main process loads the images.
        skip_unreadable: Whether to read all files of `other` first and to skip those that are not images. By default
            such a file is an error.
        progress: Whether to print what is done.

    Returns:
        The paths of the images of each group.

    Raises:
        ValueError: `run` is not a finished run, `other` is a run that is not finished or has no images, or `threshold`
            is out of range.
        OSError: An image cannot be read.

    Example:
        >>> from udmlss import cli
        >>> cli.duplicates("run", threshold=0.98)  # doctest: +SKIP
        [[PosixPath('photos/1.jpg'), PosixPath('photos/copy of 1.jpg')]]
    """
    check_number("threshold", threshold, -1, 1)
    check_workers(workers)
    found = RunFolder.finished(run)
    rows, paths = found.read_embeddings(), found.read_paths()
    if other is None:
        return [[paths[row] for row in group] for group in near_duplicates(rows, threshold)]
    opened = open_model(run)
    choose_device(device)  # an error is raised before the images are read
    if RunFolder(other).has_run_files:
        others: Sequence[Path] = RunFolder.finished(other, "other").read_paths()
        others = without_unreadable(others, progress=progress) if skip_unreadable else others
    else:
        others = open_images(other, skip_unreadable=skip_unreadable, progress=progress)
    with advise_skipping():
        embedded = embed_paths(*opened, others, device=device, workers=workers, progress=progress)
    pairs = near_duplicates(rows, threshold, other=embedded)
    return [[paths[row], others[other_row]] for row, other_row, _ in pairs]


def _check_file(image: str | os.PathLike[str]) -> Path:
    path = Path(image).expanduser().absolute()
    if not path.is_file():
        found = f"{image}, which {'is a folder' if path.is_dir() else 'does not exist'}"
        raise value_error("Each of `images` must be an image file", found, "Check the path")
    return path


def _search_others(
    index: SearchIndex, paths: Sequence[Path], queries: Sequence[Path], embedded: Float[Tensor, "q d"], k: int
) -> list[Neighbors]:
    """Search for k images other than the query, which the run may hold under several paths."""
    n_searched = k + 1
    while True:
        rows, similarities = index.search(embedded, min(n_searched, len(index)))
        found = ([paths[row] for row in each] for each in rows.tolist())
        results = [_without_itself(*each, k) for each in zip(queries, found, similarities.tolist(), strict=True)]
        if n_searched >= len(index) or all(len(each.paths) == k for each in results):
            return results
        n_searched *= 2


def _without_itself(image: Path, found: list[Path], similarities: list[float], k: int) -> Neighbors:
    pairs = [pair for pair in zip(found, similarities, strict=True) if not _is_same(image, pair[0])][:k]
    return Neighbors(image, tuple(path for path, _ in pairs), tuple(similarity for _, similarity in pairs))


def _is_same(image: Path, other: Path) -> bool:
    try:
        return image.samefile(other)  # also by a link, or by other capitals where these do not matter
    except OSError:  # a file does not exist any more
        return os.path.realpath(image) == os.path.realpath(other)


def _write_page(path: Path, results: Sequence[Neighbors]) -> None:
    """Write a page that shows each image and the images that were found for it."""
    sections, unreadable = [], []
    for found in results:
        thumbnails = Thumbnails([found.image, *found.paths])
        captions = [short_name(found.image), *(f"{value:.3f} {short_name(path)}" for value, path in _pairs(found))]
        figures = [
            f'<figure><img src="{thumbnails.uri(row)}" alt=""><figcaption>{escape(caption)}</figcaption></figure>'
            for row, caption in enumerate(captions)
        ]
        sections.append("<section>\n" + "\n".join(figures) + "\n</section>")
        unreadable += [[found.image, *found.paths][row] for row in sorted(thumbnails.unreadable)]
    if unreadable:
        what = f"{count(len(set(unreadable)), 'image')} on the page cannot be read"
        warn(f"{what}, and a gray placeholder is shown instead, such as for {unreadable[0]}", stacklevel=3)
    with replace_file(path) as part:
        part.write_text(_PAGE.format("\n".join(sections)), encoding="utf-8", errors="backslashreplace")


def _pairs(found: Neighbors) -> list[tuple[float, Path]]:
    return list(zip(found.similarities, found.paths, strict=True))
