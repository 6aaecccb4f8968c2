"""The report as one HTML file."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any
from warnings import warn

from jaxtyping import Float
from torch import Tensor

import udmlss
from udmlss._checks import check_embeddings, check_integer, type_error, value_error
from udmlss._files import replace_file
from udmlss.report.embedding_map import MAP_COLUMNS, MAP_LINES
from udmlss.report.figures import check_count, check_rows, check_start, require_report_packages
from udmlss.report.neighbor_changes import sample_rows
from udmlss.report.page import Page
from udmlss.report.thumbnails import Thumbnails
from udmlss.results import LabelFreeScores, RoundReport
from udmlss.search import near_duplicates
from udmlss.types import PseudoLabels

_DUPLICATE_SIMILARITY = 0.95
_SEARCHED = 100_000  # largest number of images among which near-duplicates are searched
_NAMED = 5  # unreadable images


def write_report(
    path: str | Path,
    images: Any,  # noqa: ANN401 (any dataset)
    embeddings: Float[Tensor, "n d"],
    pseudo_labels: PseudoLabels,
    *,
    history: Sequence[RoundReport] = (),
    start_scores: LabelFreeScores | None = None,
    start_embeddings: Float[Tensor, "n e"] | None = None,
    duplicates: Sequence[Sequence[int]] | None = None,
    title: str = "Report",
    summary: str | None = None,
    n_queries: int = 8,
    seed: int = 0,
) -> Path:
    """Write a report on a training run as one HTML file, which needs neither a server nor a network.

    It shows curves of the measurements, clusters, unassigned images, searches before and after training,
    near-duplicates, and a map of the embeddings. With 8 queries the file holds fewer than 800 small pictures, whatever
    the number of images. It is first written under another name, so that it is never incomplete. Images that cannot be
    read are shown as gray placeholders, and a warning states their number.

    Args:
        path: Path of the file. Missing folders are created, and an existing file is replaced.
        images: Paths of image files, or a map-style dataset of image tensors (c, h, w) or of images of Pillow. If a
            dataset has `paths`, such as `udmlss.data.ImageFiles`, the files are shown, not the transformed images.
        embeddings: Embeddings of the images after training, of any length.
        pseudo_labels: Clusters of the images, such as `FitResult.pseudo_labels`.
        history: The reports of the rounds, such as `FitResult.history`. Without rounds there are no curves.
        start_scores: Label-free scores before training, such as `FitResult.start`. None shows only those of the rounds.
        start_embeddings: Embeddings of the images before training. None shows only the neighbors after training.
        duplicates: Groups of rows of near-duplicates. None searches for images with a cosine similarity of at least
            0.95 by the embeddings before training, or by `embeddings` without those.
        title: Title of the page.
        summary: Paragraphs at the top of the page, separated by an empty line. None writes none.
        n_queries: Number of images whose neighbors are shown, which are sampled.
        seed: Seed of the samples.

    Returns:
        The path of the file.

    Raises:
        ImportError: Jinja2 or matplotlib is not installed.
        OSError: The file cannot be written. An existing file is unchanged.
        TypeError: `images` is not a sequence of paths or a map-style dataset, `pseudo_labels` is not `PseudoLabels`,
            or embeddings are not floating-point tensors.
        ValueError: Embeddings are not finite, the numbers of images, embeddings and labels differ, `duplicates` holds
            a number that is not a row, `path` is a folder, or `n_queries` or `seed` is below 0.

    Example:
        >>> from udmlss.report import write_report
        >>> result = fit(model, images)  # doctest: +SKIP
        >>> write_report("report.html", images, embed(model, images), result.pseudo_labels)  # doctest: +SKIP
    """
    check_integer("n_queries", n_queries, 0)
    check_integer("seed", seed, 0)
    check_embeddings(embeddings)
    check_start(start_embeddings, len(embeddings))
    thumbnails = Thumbnails(images)
    check_count("images", thumbnails, len(embeddings))
    _check_pseudo_labels(pseudo_labels, len(embeddings))
    path = _check_path(path)
    require_report_packages("jinja2", "matplotlib")
    if duplicates is None:
        groups = _find_duplicates(embeddings if start_embeddings is None else start_embeddings, int(seed))
    else:
        groups = [check_rows("duplicates", group, len(embeddings)) for group in duplicates if len(group)]
    page = Page(thumbnails, embeddings, pseudo_labels, int(seed))
    sections = {
        "facts": page.facts(history, start_scores, groups),
        "curves": page.curves(history, start_scores),
        "cluster_groups": page.cluster_groups(),
        "unassigned": page.unassigned(),
        "queries": page.queries(start_embeddings, int(n_queries)),
        "duplicates": page.duplicates(groups),
        "map": page.map(),
    }
    n_searched = None if duplicates is not None else min(len(embeddings), _SEARCHED)
    before = "" if start_embeddings is None else " before training"
    shared = {"history": history, "duplicate_groups": groups, "n_searched": n_searched, "before": before}
    html = _render(page, title, summary, shared | sections)
    if thumbnails.unreadable:
        n, example = len(thumbnails.unreadable), thumbnails.name(min(thumbnails.unreadable))
        what = f"{n} of the {thumbnails.n_pictures} images in the report cannot be read"
        warn(f"{what} and are shown as gray placeholders, such as {example}", stacklevel=2)
    with replace_file(path) as part:
        part.write_text(html, encoding="utf-8", errors="replace")
    return path


def _check_pseudo_labels(pseudo_labels: object, n: int) -> None:
    if not isinstance(pseudo_labels, PseudoLabels):
        rule = "`pseudo_labels` must be PseudoLabels"
        raise type_error(rule, type(pseudo_labels).__name__, "Use PseudoLabels.from_labels for other types")
    check_count("pseudo_labels", pseudo_labels.labels, n)


def _check_path(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if path.is_dir():
        raise value_error("`path` must be the path of a file", f"the folder {path}", 'Append a name, "report.html"')
    return path


def _find_duplicates(embeddings: Float[Tensor, "n d"], seed: int) -> list[list[int]]:
    """Search all images, or a sample of them, for near-duplicates."""
    rows = sample_rows(len(embeddings), _SEARCHED, seed)
    groups = near_duplicates(embeddings[rows.to(embeddings.device)], _DUPLICATE_SIMILARITY)
    return [rows[group].tolist() for group in groups]


def _render(page: Page, title: str, summary: str | None, sections: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 (optional)

    environment = Environment(
        loader=PackageLoader("udmlss.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    unreadable = sorted(page.thumbnails.unreadable)
    return environment.get_template("report.html").render(
        page=page,
        title=title,
        paragraphs=[text for text in (summary or "").split("\n\n") if text.strip()],
        threshold=_DUPLICATE_SIMILARITY,
        map_columns=MAP_COLUMNS,
        map_lines=MAP_LINES,
        n_unreadable=len(unreadable),
        unreadable=[page.thumbnails.name(row) for row in unreadable[:_NAMED]],
        n_pictures=page.thumbnails.n_pictures,
        today=date.today().strftime("%d %B %Y").lstrip("0"),  # noqa: DTZ011 (the user's date)
        version=udmlss.__version__,
        **sections,
    )
