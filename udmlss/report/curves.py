"""Curves of the measurements of a run, one value per round."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from udmlss.results import LabelFreeScores, RoundReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#0b5cad", "#b3541e", "#2f7d4f", "#7a4fa3")  # contrast of at least 4.5 with white
STYLES = ("-", "--", "-.", ":")
_INK = "#010203"  # is replaced by the color of the page's text
_PAGE_COLORS = {_INK: "currentColor"} | {color: f"var(--line-{number})" for number, color in enumerate(COLORS, 1)}
_LINE_WIDTH = 1.8
_FEW_ROUNDS = 12  # up to which each round has a marker


@dataclass(frozen=True)
class Curves:
    """Curves that share an axis.

    Attributes:
        title: Name of the measurement.
        description: What it means, in one sentence.
        lines: Value of each round by the name of the curve; None where there is none.
        rounds: Number of each round.
    """

    title: str
    description: str
    lines: Mapping[str, Sequence[float | None]]
    rounds: Sequence[int]

    @property
    def alternative(self) -> str:
        """The curves in words: the first, the last, the smallest and the largest value of each."""
        return f"{self.title}. " + " ".join(map(_in_words, self.lines, self.lines.values()))


def curves_of(history: Sequence[RoundReport], start_scores: LabelFreeScores | None = None) -> list[Curves]:
    """Return the curves of a history, without those that have no value."""
    terms: dict[str, list[float | None]] = {
        "total": [report.loss for report in history],
        "metric": [report.metric_loss for report in history],
        "rotation": [report.rotation_loss for report in history],
        "auxiliary": [report.auxiliary_loss for report in history],
    }
    if not _known(terms["rotation"]) + _known(terms["auxiliary"]):
        terms = {"total": terms["total"]}
    label_free = [report.label_free for report in history]
    n_unassigned = [report.n_unassigned for report in history]
    found: list[tuple[str, str, Mapping[str, Sequence[float | None]]]] = [
        ("Loss", "Mean over the steps of a round. Lower is better, but every round has new clusters.", terms),
        (
            "Label-free score",
            "Higher is better: images have the same neighbors in another view, and embeddings use many dimensions.",
            {
                "score": [None if scores is None else scores.score for scores in label_free],
                "before training": [None if start_scores is None else start_scores.score] * len(history),
            },
        ),
        (
            "Agreement",
            "Compared with the clusters of the previous round: 1 means equal clusters, 0 means chance.",
            {"agreement": [report.agreement for report in history]},
        ),
        ("Number of clusters", "Clusters that the round trains on.", {"clusters": [r.n_clusters for r in history]}),
        (
            "Size of clusters",
            "Images in the largest and in the smallest cluster, in percent of all images.",
            {
                "largest": [100 * report.largest_cluster for report in history],
                "smallest": [100 * report.smallest_cluster for report in history],
            },
        ),
        (
            "Images without a cluster",
            "These images are not trained on in this round.",
            {"unassigned": n_unassigned if any(n_unassigned) else []},
        ),
    ]
    rounds = [report.round for report in history]
    known = [
        Curves(title, text, {name: line for name, line in lines.items() if _known(line)}, rounds)
        for title, text, lines in found
    ]
    return [curves for curves in known if curves.lines]


def draw(axes: "Axes", curves: Curves, ink: str) -> None:
    """Draw curves, which differ in color and in the style of the line."""
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 (optional)

    marker = "o" if len(curves.rounds) <= _FEW_ROUNDS else None
    for (name, line), color, style in zip(curves.lines.items(), COLORS, STYLES, strict=False):
        values = [float("nan") if value is None else value for value in line]
        axes.plot(curves.rounds, values, style, color=color, linewidth=_LINE_WIDTH, marker=marker, ms=3.5, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    is_count = all(isinstance(value, int) for line in curves.lines.values() for value in _known(line))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=is_count))
    axes.set_xlabel("round", color=ink)
    axes.tick_params(colors=ink, length=3)
    axes.grid(axis="y", color=ink, alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(ink)
    if len(curves.lines) > 1:
        axes.legend(frameon=False, labelcolor=ink, ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 0.98))


def as_svg(curves: Curves, name: str) -> str:
    """Return curves as an SVG element that takes its colors and its font from the page.

    Args:
        curves: The curves.
        name: Prefix of the identifiers in the element, which must be unique in a page.
    """
    import matplotlib as mpl  # noqa: PLC0415 (optional)
    from matplotlib.figure import Figure  # noqa: PLC0415 (optional)

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}):
        figure = Figure(figsize=(3.8, 2.3), layout="constrained")
        draw(figure.add_subplot(), curves, _INK)
        figure.patch.set_alpha(0)
        figure.axes[0].patch.set_alpha(0)
        stream = StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return _for_page(stream.getvalue(), name)


def _for_page(svg: str, name: str) -> str:
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true" focusable="false">', svg, count=1)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)  # of matplotlib before 3.10
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r'(id="|"#|url\(#)', rf"\g<1>{name}-", svg).replace("xlink:href", "href")
    for color, page_color in _PAGE_COLORS.items():
        svg = svg.replace(color, page_color)
    return svg


def _in_words(name: str, line: Sequence[float | None]) -> str:
    values = _known(line)
    if min(values) == max(values):
        return f"{name[0].upper()}{name[1:]}: {values[0]:.4g}."
    figures = f"first {values[0]:.4g}, last {values[-1]:.4g}, lowest {min(values):.4g}, highest {max(values):.4g}"
    return f"{name[0].upper()}{name[1:]}: {figures}."


def _known(line: Iterable[float | None]) -> list[Any]:
    return [value for value in line if value is not None]
