"""The pictures of the report as matplotlib figures, for notebooks."""

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from udmlss._checks import as_labels, check_embeddings, check_integer, import_optional, value_error
from udmlss.neighbors.search import check_n_neighbors
from udmlss.report.curves import COLORS, curves_of, draw
from udmlss.report.embedding_map import MAP_COLUMNS, MAP_LINES, embedding_map, tiles
from udmlss.report.neighbor_changes import compare_neighbors
from udmlss.report.thumbnails import Thumbnails
from udmlss.results import LabelFreeScores, RoundReport
from udmlss.types import Labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _GRAY = "#33373d", "#9aa1a9"
_CURVES_PER_LINE = 3


def plot_history(history: Sequence[RoundReport], *, start_scores: LabelFreeScores | None = None) -> "Figure":
    """Plot the loss, the label-free score, the agreement, and the number and sizes of clusters over the rounds.

    Measurements without any value are omitted.

    Args:
        history: The reports of the rounds, such as `FitResult.history`.
        start_scores: Label-free scores before training, such as `FitResult.start`. None shows only those of the rounds.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `history` is empty.

    Example:
        >>> from udmlss.report import plot_history
        >>> result = fit(model, images)  # doctest: +SKIP
        >>> plot_history(result.history, start_scores=result.start).savefig("history.png")  # doctest: +SKIP
    """
    if not history:
        raise value_error("`history` must hold at least one round", "none", "Pass `FitResult.history`")
    found = curves_of(history, start_scores)
    n_lines = ceil(len(found) / _CURVES_PER_LINE)
    figure = _new_figure(4 * _CURVES_PER_LINE, 2.8 * n_lines)
    for number, curves in enumerate(found, 1):
        axes = figure.add_subplot(n_lines, _CURVES_PER_LINE, number)
        draw(axes, curves, _INK)
        axes.set_title(curves.title, color=_INK, fontsize=11, pad=24 if len(curves.lines) > 1 else 8)
    return figure


def contact_sheet(images: Any, rows: Labels, *, titles: Sequence[str] | None = None, columns: int = 8) -> "Figure":  # noqa: ANN401 (any dataset)
    """Show images side by side.

    Args:
        images: Paths of image files, or a map-style dataset of image tensors (c, h, w) or of images of Pillow. An
            image that cannot be read is shown as a gray placeholder.
        rows: Indices of the images to show, such as the members of a cluster.
        titles: One title per row. None shows no titles.
        columns: Number of images per line.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `images` is not a sequence of paths or a map-style dataset, or `rows` are not integers.
        ValueError: `rows` is empty or holds a number that is not a row of `images`, `titles` is not one per row, or
            `columns` is below 1.

    Example:
        >>> from udmlss.report import contact_sheet
        >>> contact_sheet(torch.rand(6, 3, 16, 16), rows=[5, 0, 2], columns=3).axes[1].get_images()[0].get_size()
        (16, 16)
    """
    check_integer("columns", columns, 1)
    thumbnails = Thumbnails(images)
    chosen = check_rows("rows", rows, len(thumbnails))
    if titles is not None and len(titles) != len(chosen):
        raise value_error(f"`titles` must hold {len(chosen)} titles", len(titles), "Pass one title per row")
    columns = min(columns, len(chosen))
    n_lines = ceil(len(chosen) / columns)
    figure = _new_figure(1.25 * columns, (1.25 if titles is None else 1.5) * n_lines)
    for number, row in enumerate(chosen):
        axes = figure.add_subplot(n_lines, columns, number + 1)
        _show(axes, thumbnails, row)
        if titles is not None:
            axes.set_title(titles[number], fontsize=8, color=_INK)
    return figure


def plot_map(
    embeddings: Float[Tensor, "n d"],
    images: Any = None,  # noqa: ANN401 (any dataset)
    *,
    labels: Labels | None = None,
    seed: int = 0,
) -> "Figure":
    """Plot embeddings in two dimensions, where similar images lie close together.

    The projection is t-SNE of scikit-learn. If there are more than 3,000 images, a sample is shown.

    Args:
        embeddings: Embeddings of any length.
        images: Paths of image files, or a map-style dataset, as in `contact_sheet`. Each place of the map then shows
            one of its images. None plots a point per image.
        labels: Cluster of each image, which colors the points; a negative label is gray. None plots all points in one
            color. Labels do not change a map with images.
        seed: Seed of the sample and of the projection.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: Embeddings are not a floating-point tensor, or `labels` are not integers.
        ValueError: Embeddings are not finite, or `images` or `labels` are not one per embedding, or `seed` is below 0.

    Example:
        >>> from udmlss.report import plot_map
        >>> plot_map(torch.eye(4), labels=[0, 0, 1, 1]).axes[0].get_title()
        'Map of 4 embeddings'
    """
    check_embeddings(embeddings)
    check_integer("seed", seed, 0)
    n = len(embeddings)
    thumbnails = None if images is None else Thumbnails(images)
    check_count("images", thumbnails, n)
    clusters = torch.zeros(n, dtype=torch.int64) if labels is None else as_labels(labels, n).cpu()
    found = embedding_map(embeddings, seed)
    figure = _new_figure(9, 6.2)
    axes = figure.add_subplot()
    axes.set(xticks=[], yticks=[], aspect=2 / 3)
    axes.spines[:].set_color(_GRAY)
    axes.set_title(f"Map of {len(found.rows):,} embeddings", color=_INK, fontsize=11)
    if thumbnails is None:
        shown = clusters[found.rows].numpy()
        axes.scatter(found.points[:, 0], found.points[:, 1], s=10, c=_colors(shown), linewidths=0)
        return figure
    for tile in tiles(found, MAP_COLUMNS, MAP_LINES):
        left, bottom = tile.column / MAP_COLUMNS, (MAP_LINES - 1 - tile.line) / MAP_LINES
        extent = (left, left + 1 / MAP_COLUMNS, bottom, bottom + 1 / MAP_LINES)
        axes.imshow(np.asarray(thumbnails.picture(tile.row)), extent=extent, aspect=2 / 3)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    return figure


def plot_neighbors(
    images: Any,  # noqa: ANN401 (any dataset)
    embeddings: Float[Tensor, "n d"],
    queries: Labels,
    *,
    start_embeddings: Float[Tensor, "n e"] | None = None,
    n_neighbors: int = 5,
) -> "Figure":
    """Show queries with their nearest neighbors, and what training changed.

    Images that are neighbors only after training have a frame and the title "new". Images that are neighbors only
    before training have a dashed frame and the title "gone".

    Args:
        images: Paths of image files, or a map-style dataset, as in `contact_sheet`.
        embeddings: Embeddings of the images after training.
        queries: Rows of the queries.
        start_embeddings: Embeddings of the images before training. None shows only the neighbors after training.
        n_neighbors: Number of neighbors per query.

    Returns:
        The figure, with one line per query.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: Embeddings are not floating-point tensors, or `queries` are not integers.
        ValueError: Embeddings are not finite, the numbers of images and embeddings differ, `queries` is empty or
            holds a number that is not a row, or `n_neighbors` is not in 1..n - 1.

    Example:
        >>> from udmlss.report import plot_neighbors
        >>> figure = plot_neighbors(torch.rand(6, 3, 8, 8), torch.eye(6), queries=[0, 3], n_neighbors=2)
        >>> len(figure.axes)
        6
    """
    check_embeddings(embeddings)
    n = len(embeddings)
    check_integer("n_neighbors", n_neighbors, 1)
    check_n_neighbors("n_neighbors", n_neighbors, n)
    check_start(start_embeddings, n)
    thumbnails = Thumbnails(images)
    check_count("images", thumbnails, n)
    rows = torch.tensor(check_rows("queries", queries, n))
    found = compare_neighbors(rows, embeddings, start_embeddings, n_neighbors)
    blocks = 1 if start_embeddings is None else 2
    columns = 1 + blocks * n_neighbors
    figure = _new_figure(1.15 * columns, 1.4 * len(found))
    for line, each in enumerate(found):
        axes = [figure.add_subplot(len(found), columns, line * columns + number + 1) for number in range(columns)]
        _show(axes[0], thumbnails, each.query, "query")
        for axis, row in zip(axes[1:], [*(each.before or []), *each.after], strict=True):
            _show(axis, thumbnails, row)
        for axis, row in zip(axes[1 : 1 + n_neighbors], each.before or [], strict=False):
            _mark(axis, "gone" if row in each.lost else "before", _GRAY, "--" if row in each.lost else "")
        for axis, row in zip(axes[-n_neighbors:], each.after, strict=True):
            _mark(axis, "new" if row in each.gained else "after", COLORS[0], "-" if row in each.gained else "")
    return figure


def check_rows(name: str, rows: Labels, n: int) -> list[int]:
    """Return rows as a list; raise an error unless they are integers in 0..n-1, at least one."""
    found = as_labels(rows, name=name)
    if int(found.min()) < 0 or int(found.max()) >= n:
        wrong = found[(found < 0) | (found >= n)]
        raise value_error(f"`{name}` must lie in 0..{n - 1}", int(wrong[0]), "Pass row numbers of `images`")
    return [int(row) for row in found]


def check_count(name: str, items: Any, n: int) -> None:  # noqa: ANN401 (any object with a length, or None)
    """Raise ValueError unless there is one item per embedding; None passes."""
    if items is not None and len(items) != n:
        rule = f"`{name}` must hold {n} items, one per embedding"
        raise value_error(rule, len(items), "Pass the images and the embeddings in the same order")


def check_start(start_embeddings: Tensor | None, n: int) -> None:
    """Raise an error unless the embeddings before training are None or valid, and one per image."""
    if start_embeddings is not None:
        check_embeddings(start_embeddings, "start_embeddings")
        check_count("start_embeddings", start_embeddings, n)


def require_report_packages(*names: str) -> None:
    """Raise ImportError with the command that installs the packages unless all of them are installed."""
    for name in names:
        import_optional(name, "A report", '"udmlss[report]"')


def _new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of pyplot, which `plt.show()` shows in a program and which notebooks show once."""
    require_report_packages("matplotlib")
    from matplotlib import pyplot as plt  # noqa: PLC0415 (optional)

    figure = plt.figure(figsize=(width, height), layout="constrained")
    if "inline" in plt.get_backend():
        plt.close(figure)  # A notebook shows an open figure at the end of the cell, in addition to the returned one
    return figure


def _show(axes: "Axes", thumbnails: Thumbnails, row: int, title: str = "") -> None:
    axes.imshow(np.asarray(thumbnails.picture(row)))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9, color=_INK)


def _mark(axes: "Axes", title: str, color: str, style: str) -> None:
    axes.set_title(title, fontsize=9, color=_INK if style else _GRAY, fontweight="bold" if style else "normal")
    if style:
        axes.spines[:].set(visible=True, color=color, linewidth=2.5, linestyle=style)


def _colors(labels: Any) -> Any:  # noqa: ANN401 (arrays of NumPy)
    import matplotlib as mpl  # noqa: PLC0415 (optional)

    palette = np.array([mpl.colors.to_rgb(color) for color in mpl.color_sequences["tab20"]])
    return np.where(labels[:, None] < 0, mpl.colors.to_rgb(_GRAY), palette[labels % len(palette)])
