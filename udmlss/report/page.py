"""The parts of the report's page, as plain values for the template."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Float32
from torch import Tensor

from udmlss.report.clusters import by_typicality, choose_clusters, cluster_reliability, image_reliability
from udmlss.report.curves import as_svg, curves_of
from udmlss.report.embedding_map import MAP_COLUMNS, MAP_LINES, embedding_map, tiles
from udmlss.report.neighbor_changes import compare_neighbors, sample_rows
from udmlss.report.thumbnails import Thumbnails
from udmlss.results import LabelFreeScores, RoundReport
from udmlss.types import PseudoLabels

_TYPICAL, _ATYPICAL = 8, 4
_UNASSIGNED, _NEIGHBORS = 24, 6
_GROUPS, _PER_GROUP = 12, 6


@dataclass(frozen=True)
class _Picture:
    """A thumbnail of the page."""

    uri: str
    alt: str
    mark: str = ""  # a word that is shown on the picture


@dataclass(frozen=True)
class _Cluster:
    """The card of a cluster."""

    number: int
    size: int
    reliability: float | None
    typical: list[_Picture]
    atypical: list[_Picture] = field(default_factory=list)


class Page:
    """The parts of a page, as plain values for the template.

    Args:
        thumbnails: Thumbnails of the images.
        embeddings: Embeddings after training.
        pseudo_labels: Clusters of the images.
        seed: Seed of the samples.
    """

    def __init__(
        self, thumbnails: Thumbnails, embeddings: Float[Tensor, "n d"], pseudo_labels: PseudoLabels, seed: int
    ) -> None:
        self.thumbnails, self.embeddings, self.pseudo_labels, self.seed = thumbnails, embeddings, pseudo_labels, seed
        self.labels = pseudo_labels.labels.cpu()
        self.n_mapped = 0

    def facts(
        self,
        history: Sequence[RoundReport],
        start_scores: LabelFreeScores | None,
        duplicates: Sequence[Sequence[int]],
    ) -> dict[str, str]:
        """Return the key figures, each with its name."""
        sizes = self.pseudo_labels.sizes
        n_unassigned = self.pseudo_labels.n_unassigned
        facts = {
            "Images": f"{len(self.labels):,}",
            "Clusters": f"{self.pseudo_labels.n_clusters:,}",
            "Images per cluster": f"{int(sizes.min()):,} to {int(sizes.max()):,}",
            "Without a cluster": f"{n_unassigned:,} ({n_unassigned / len(self.labels):.0%})",
            "Near-duplicates": _in_groups(duplicates),
        }
        if history:
            facts |= {"Rounds": f"{len(history):,}", "Training steps": f"{history[-1].step:,}"}
        scores = [report.label_free.score for report in history if report.label_free is not None]
        if scores and start_scores is not None:
            facts["Label-free score, before training and after the last round"] = (
                f"{start_scores.score:.3f} → {scores[-1]:.3f}"
            )
        elif scores:
            facts["Label-free score, first and last round"] = f"{scores[0]:.3f} → {scores[-1]:.3f}"
        return facts

    def curves(self, history: Sequence[RoundReport], start_scores: LabelFreeScores | None) -> list[dict[str, Any]]:
        """Return the curves, each as an SVG element with its text."""
        return [
            {"curves": curves, "svg": as_svg(curves, f"curve{number}")}
            for number, curves in enumerate(curves_of(history, start_scores))
        ]

    def cluster_groups(self) -> list[dict[str, Any]]:
        """Return the groups of clusters with their cards."""
        reliability = cluster_reliability(
            image_reliability(self.embeddings, self.pseudo_labels, self.seed), self.pseudo_labels
        )
        groups = choose_clusters(self.pseudo_labels.sizes, reliability)
        return [
            {"title": group.title, "cards": [self._card(number, reliability) for number in group.clusters]}
            for group in groups
            if group.clusters
        ]

    def unassigned(self) -> list[_Picture]:
        """Return a sample of the images without a cluster."""
        rows = (self.labels < 0).nonzero().flatten()
        return [self._picture(row) for row in rows[sample_rows(len(rows), _UNASSIGNED, self.seed)].tolist()]

    def queries(self, start_embeddings: Float[Tensor, "n e"] | None, n_queries: int) -> list[dict[str, Any]]:
        """Return sampled queries with their neighbors before and after training."""
        rows = sample_rows(len(self.labels), n_queries, self.seed)
        found = compare_neighbors(rows, self.embeddings, start_embeddings, _NEIGHBORS)
        return [
            {
                "query": self._picture(each.query),
                "before": [self._picture(row, "gone" if row in each.lost else "") for row in each.before or ()],
                "after": [self._picture(row, "new" if row in each.gained else "") for row in each.after],
                "n_new": len(each.gained),
            }
            for each in found
        ]

    def duplicates(self, groups: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
        """Return the largest groups of near-duplicates."""
        return [
            {"size": len(group), "pictures": [self._picture(row) for row in group[:_PER_GROUP]]}
            for group in sorted(groups, key=len, reverse=True)[:_GROUPS]
        ]

    def map(self) -> list[dict[str, Any]]:
        """Return the places of the map, line by line."""
        found = embedding_map(self.embeddings, self.seed)
        self.n_mapped = len(found.rows)
        return [
            {"tile": tile, "picture": self._picture(tile.row), "name": self._describe(tile.row)}
            for tile in tiles(found, MAP_COLUMNS, MAP_LINES)
        ]

    def _card(self, number: int, reliability: Float32[Tensor, " k"]) -> _Cluster:
        rows = by_typicality(self.embeddings, self.pseudo_labels, number)
        known = float(reliability[number]) if reliability[number].isfinite() else None
        if len(rows) <= _TYPICAL + _ATYPICAL:
            return _Cluster(number, len(rows), known, [self._picture(row) for row in rows])
        typical, atypical = rows[:_TYPICAL], rows[-_ATYPICAL:]
        return _Cluster(
            number, len(rows), known, [self._picture(row) for row in typical], [self._picture(row) for row in atypical]
        )

    def _picture(self, row: int, mark: str = "") -> _Picture:
        uri = self.thumbnails.uri(row)
        unreadable = ", cannot be read" if row in self.thumbnails.unreadable else ""
        return _Picture(uri, self._describe(row) + unreadable, mark)

    def _describe(self, row: int) -> str:
        cluster = int(self.labels[row])
        return f"{self.thumbnails.name(row)}, {f'cluster {cluster}' if cluster >= 0 else 'no cluster'}"


def _in_groups(groups: Sequence[Sequence[int]]) -> str:
    """Return the number of near-duplicates and of their groups in words."""
    return f"{sum(map(len, groups)):,} in {len(groups):,} group{'' if len(groups) == 1 else 's'}"
