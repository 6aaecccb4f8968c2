"""Clusterers that are compared, with and without the number of clusters."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from clustering_scores import Labels, Scores, score
from frozen_features import Case
from list_lengths import Lengths, measure_lengths
from scipy.sparse import csr_matrix

from udmlss import ClusterPseudoLabeler, embedder_from_features
from udmlss.clustering import Communities, JaccardDBSCAN
from udmlss.neighbors import nearest, shared_neighbor_graph

Clusterer = Callable[[Case, Lengths], Labels]
K_MEANS, COMMUNITIES = "k-means, true k", "communities, nothing given"
EMBEDDING_SIZE = 512


@dataclass(frozen=True)
class Clustering:
    """The result of a clusterer on a case, with its processor time in seconds."""

    clusters: Labels
    scores: Scores
    seconds: float


@dataclass(frozen=True)
class Measured:
    """The results of all clusterers on a case."""

    case: Case
    lengths: Lengths
    clusterings: Mapping[str, Clustering]


def _k_means(factor: int = 1, average_neighbors: int | None = None) -> Clusterer:
    def cluster(case: Case, _: Lengths) -> Labels:
        labeler = ClusterPseudoLabeler(factor * case.n_classes, average_neighbors=average_neighbors)
        return labeler.label(case.rows).labels.numpy()

    return cluster


def _communities_of_embeddings(case: Case, _: Lengths) -> Labels:
    embedder = embedder_from_features(case.features, min(EMBEDDING_SIZE, case.features.shape[1]))
    return Communities().fit_predict(embedder(case.features))


def _best_communities(case: Case, lengths: Lengths) -> Labels:
    return Communities(lengths.found.lengths[int(lengths.ami.argmax())]).fit_predict(case.rows)


def _leiden(resolution: float) -> Clusterer:
    def cluster(case: Case, lengths: Lengths) -> Labels:
        from sknetwork.clustering import Leiden  # noqa: PLC0415 (an optional package)

        graph = csr_matrix(shared_neighbor_graph(nearest(case.rows, lengths.chosen)[1]))
        found: Labels = Leiden(resolution, random_state=0).fit_predict(graph)
        return found

    return cluster


CLUSTERERS: dict[str, Clusterer] = {
    K_MEANS: _k_means(),
    "k-means of averages of 5, true k": _k_means(average_neighbors=5),
    "k-means, twice the true k": _k_means(factor=2),
    COMMUNITIES: lambda case, _: Communities().fit_predict(case.rows),
    "communities of the embeddings of `from_trunk`": _communities_of_embeddings,
    "communities, true images per cluster": lambda case, _: Communities(
        images_per_cluster=case.median_size
    ).fit_predict(case.rows),
    "communities, best length by the classes": _best_communities,
    "Leiden, resolution 1": _leiden(1),
    "Leiden, resolution 10": _leiden(10),
    "DBSCAN on the Jaccard distance": lambda case, _: JaccardDBSCAN().fit_predict(case.rows),
}


def available() -> list[str]:
    """Return the names of the clusterers, without those of a package that is not installed."""
    return [name for name in CLUSTERERS if find_spec("sknetwork") or not name.startswith("Leiden")]


def measure(case: Case) -> Measured:
    """Run all available clusterers on a case."""
    lengths = measure_lengths(case)
    found = {}
    for name in available():
        started = time.process_time()
        clusters = CLUSTERERS[name](case, lengths)
        seconds = time.process_time() - started
        found[name] = Clustering(clusters, score(case.classes, clusters), seconds)
    return Measured(case, lengths, found)
