"""The page of clusterings.py, in Markdown."""

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

import numpy as np
from clusterers import CLUSTERERS, COMMUNITIES, K_MEANS, Measured
from clustering_scores import Labels, Scores, join_nearest, score, wrong_label_auc
from frozen_features import HALVES
from list_lengths import RULES, Lengths, fixed, position
from markdown_tables import markdown_table
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import from_numpy

from udmlss.clustering import cluster_means, label_margins
from udmlss.clustering.list_length import LENGTHS
from udmlss.neighbors import nearest, shared_neighbor_graph
from udmlss.neighbors.search import unit_length

SMALLEST_SIZES = (1, 2, 3, 5, 10)
SUBSETS = ("all", "unequal", "20", "10", "5")
LOSSES = (0.02, 0.05)  # of AMI
FEATURES = """\
Features are those of the pretrained network before training. The features of glyphs are those of the small network with
random weights, and each half of glyphs is represented by its first classes, with up to 5,000 images."""
SCORES = """\
Scores in percent. AMI: adjusted mutual information with the classes, where each unassigned image is a cluster of its
own. pair F1: of "two images are in the same cluster" as a prediction of "they are of the same class". precision:
probability that two images of a cluster are of the same class, as the mean over clusters of at least two images. It is
the precision of the positive pairs that are sampled in training."""
CLUSTERER_NOTES = """\
Each cell has the values of both halves of the classes. clusters: those with at least two images, divided by the number
of classes. seconds: processor time on one thread, with the search for neighbors. Leiden uses the graph of the chosen
length, and its time does not include the choice. Leiden is the implementation of scikit-network, whose results vary
from run to run."""
SUBSET_NOTES = """\
Means over both halves. all: all images. 20, 10, 5: at most this number of images of each class. unequal: from 3 images
of the first class up to 60 of the last. There is a subset where the median class is larger."""
RULE_NOTES = """\
lost: AMI of the best length minus AMI of the chosen length, in points: mean, worst, and mean of each dataset. within:
number of cases that lose at most this number of points. half to twice: number of cases with between half and twice as
many communities as classes. The best length needs the classes."""
SIZE_NOTES = """\
Means over the halves and subsets. Images of communities below the smallest size are unassigned, or join the community
to which they have the most weight."""
RELIABILITY_NOTES = """\
Area under the ROC curve, in percent, of finding images whose class is not the most frequent one of their cluster. 50 is
chance. Cells have both halves. Margins are computed on the graph of the chosen length."""


def page(measured: Sequence[Measured], command: str, seconds: float) -> str:
    """Return all tables."""
    parts = ["# Clusterers without training", FEATURES, SCORES]
    parts += ["## Clusterers", CLUSTERER_NOTES, *_clusterer_tables(measured)]
    parts += ["## Images per class", SUBSET_NOTES, *_subset_tables(measured)]
    parts += ["## Length of the lists of neighbors", RULE_NOTES, *_rule_tables(measured)]
    parts += ["## Smallest size of a community", SIZE_NOTES, _size_table(measured)]
    parts += ["## Reliability of labels", RELIABILITY_NOTES, _reliability_table(measured)]
    parts += [f"```\n{command}\n```", f"{seconds / 60:.1f} minutes of processor time on one thread, features cached."]
    return "\n\n".join(parts) + "\n"


def _sets(measured: Sequence[Measured]) -> list[str]:
    return list(dict.fromkeys(one.case.data for one in measured))


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _clusterer_tables(measured: Sequence[Measured]) -> Iterator[str]:
    """Yield a table for each dataset, on all images of its halves."""
    titles = ("", "clusters / classes", "AMI", "pair F1", "precision", "unassigned", "seconds")
    for data in _sets(measured):
        halves = [one for one in measured if (one.case.data, one.case.subset) == (data, "all")]
        rows = [[name, *_clusterer_cells(halves, name)] for name in CLUSTERERS if name in halves[0].clusterings]
        yield f"### {data}"
        yield markdown_table(titles, rows)


def _clusterer_cells(halves: Sequence[Measured], name: str) -> list[str]:
    found = [one.clusterings[name] for one in halves]
    counts = [f"{of.scores.n_clusters}/{one.case.n_classes}" for of, one in zip(found, halves, strict=True)]
    scores = [
        [_percent(getattr(of.scores, field)) for of in found] for field in ("ami", "pair_f1", "precision", "unassigned")
    ]
    return [", ".join(cells) for cells in (counts, *scores, [f"{of.seconds:.1f}" for of in found])]


def _subset_tables(measured: Sequence[Measured]) -> Iterator[str]:
    """Yield a table of each score, by clusterer, and by dataset and subset."""
    names = [name for name in CLUSTERERS if name in measured[0].clusterings]
    for title, field in (("AMI", "ami"), ("Pair F1", "pair_f1"), ("Precision", "precision")):
        rows = []
        for data in _sets(measured):
            for subset in SUBSETS:
                cases = [one for one in measured if (one.case.data, one.case.subset) == (data, subset)]
                if cases:
                    means = [fmean(getattr(one.clusterings[name].scores, field) for one in cases) for name in names]
                    rows.append([f"{data}, {subset}", *map(_percent, means)])
        yield f"{title}:\n\n{markdown_table(('', *names), rows)}"


def _rule_tables(measured: Sequence[Measured]) -> Iterator[str]:
    """Yield the comparison of the rules, and the chosen and the best length of each case."""
    rules = dict(RULES) | {f"always {length}": fixed(length) for length in LENGTHS if 4 <= length <= 24}  # noqa: PLR2004
    sets = _sets(measured)
    rows = [[name, *_rule_cells(measured, rule, sets)] for name, rule in rules.items()]
    within = [f"within {100 * loss:.0f}" for loss in LOSSES]
    yield markdown_table(
        ("", "lost: mean", "lost: worst", *(f"lost: {data}" for data in sets), *within, "half to twice"), rows
    )
    titles = ("", "images", "classes", "chosen length", "communities", "AMI", "best length", "communities", "AMI")
    yield markdown_table(titles, [_case_cells(one) for one in measured])


def _rule_cells(
    measured: Sequence[Measured], rule: Callable[[Lengths], NDArray[np.float64]], sets: Sequence[str]
) -> list[str]:
    chosen = [position(rule, one.lengths) for one in measured]
    lost = np.array([one.lengths.ami.max() - one.lengths.ami[at] for one, at in zip(measured, chosen, strict=True)])
    of_sets = [fmean(lost[[one.case.data == data for one in measured]]) for data in sets]
    ratios = [one.lengths.found.n_found[at] / one.case.n_classes for one, at in zip(measured, chosen, strict=True)]
    n_close = [str((lost <= loss).sum()) for loss in LOSSES]
    n_in_range = sum(0.5 <= ratio <= 2 for ratio in ratios)  # noqa: PLR2004
    return [*map(_percent, (lost.mean(), lost.max(), *of_sets)), *n_close, f"{n_in_range} of {len(lost)}"]


def _case_cells(one: Measured) -> list[str]:
    lengths = one.lengths
    case = [f"{one.case.data}, {one.case.half}, {one.case.subset}", str(len(one.case.rows)), str(one.case.n_classes)]
    for at in (lengths.found.lengths.index(lengths.chosen), int(lengths.ami.argmax())):
        case += [str(lengths.found.lengths[at]), f"{lengths.found.n_found[at]:.0f}", _percent(lengths.ami[at])]
    return case


def _graph(one: Measured) -> csr_array:
    return shared_neighbor_graph(nearest(one.case.rows, one.lengths.chosen)[1])


def _size_table(measured: Sequence[Measured]) -> str:
    titles = ("", "smallest size", "unassigned", "AMI", "AMI of the assigned", "precision")
    titles += ("AMI if they join", "precision if they join")
    found = {id(one): _scores_by_size(one) for one in measured}
    groups = {data: [one for one in measured if one.case.data == data] for data in _sets(measured)} | {"mean": measured}
    rows = []
    for name, group in groups.items():
        for size in SMALLEST_SIZES:
            pairs = [found[id(one)][size] for one in group]
            left = [
                fmean(getattr(scores, field) for scores, _ in pairs)
                for field in ("unassigned", "ami", "assigned_ami", "precision")
            ]
            joined = [fmean(getattr(scores, field) for _, scores in pairs) for field in ("ami", "precision")]
            rows.append([name, str(size), *map(_percent, (*left, *joined))])
    return markdown_table(titles, rows)


def _scores_by_size(one: Measured) -> dict[int, tuple[Scores, Scores]]:
    """Return the scores by smallest size, where smaller communities are unassigned, and where they join others."""
    communities = one.lengths.found.communities[one.lengths.found.lengths.index(one.lengths.chosen)]
    sizes, graph, found = np.bincount(communities)[communities], _graph(one), {}
    for size in SMALLEST_SIZES:
        clusters = np.where(sizes >= size, communities, -1)
        found[size] = score(one.case.classes, clusters), score(one.case.classes, join_nearest(graph, clusters))
    return found


def _reliability_table(measured: Sequence[Measured]) -> str:
    names = (COMMUNITIES, K_MEANS)
    titles = ["", *(f"{name}: {of}" for name in names for of in ("margin", "distance to the centroid"))]
    rows = []
    for data in _sets(measured):
        for subset in ("all", "unequal"):
            halves = [one for one in measured if (one.case.data, one.case.subset) == (data, subset)]
            if len(halves) == len(HALVES):
                cells = [_reliability_cells(one, one.clusterings[name].clusters) for name in names for one in halves]
                pairs = zip(cells[::2], cells[1::2], strict=True)
                rows.append(
                    [f"{data}, {subset}", *(", ".join(both) for pair in pairs for both in zip(*pair, strict=True))]
                )
    return markdown_table(titles, rows)


def _reliability_cells(one: Measured, clusters: Labels) -> list[str]:
    """Return the areas of the margin and of the similarity to the mean of the cluster."""
    margins = label_margins(_graph(one), clusters).numpy()
    means = unit_length(cluster_means(one.case.rows, from_numpy(clusters), int(clusters.max()) + 1)).numpy()
    similarities = np.einsum("nd,nd->n", one.case.rows.numpy(), means[np.maximum(clusters, 0)])
    areas = [wrong_label_auc(one.case.classes, clusters, of) for of in (margins, similarities)]
    return ["-" if area is None else _percent(area) for area in areas]
