"""Evaluation of a model or of embeddings with known classes."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from udmlss import metrics
from udmlss._checks import check_distinct, check_embeddings, check_integer, value_error
from udmlss._chunks import storage_device
from udmlss._torch import device_of
from udmlss.clustering.kmeans import cluster_rows
from udmlss.dataset import IndexedImages
from udmlss.inference import embed
from udmlss.metrics.retrieval import RetrievalPlan, plan_retrieval, run_retrieval, select_rows
from udmlss.neighbors.backends import search_on
from udmlss.neighbors.search import check_queries
from udmlss.results import Scores
from udmlss.types import Images, Labels, Output, Precision


def evaluate(
    model: nn.Module,
    images: Images,
    labels: Labels,
    *,
    queries: Images | None = None,
    query_labels: Labels | None = None,
    ks: int | Sequence[int] = (1, 2, 4, 8),
    output: Output = "embeddings",
    batch_size: int = 128,
    num_workers: int | None = None,
    precision: Precision = "float32",
    seed: int = 0,
    progress: bool = False,
) -> Scores:
    """Embed images and score how well the embeddings retrieve and cluster their classes.

    Scores are computed on the model's device if that is a CUDA GPU, to which the embeddings are moved if they take at
    most an eighth of its memory, and otherwise in parts. Labels, `ks` and the seed are checked before the first image
    is embedded.

    Args:
        model: An `EmbeddingModel`, or any module from images to embeddings if `output` is "embeddings".
        images: Images that are searched, with test-time transforms; any dataset that `embed` accepts.
        labels: Class of each image, in the order of the dataset; images with a negative label are ignored.
        queries: Images of the queries. None uses each image as a query that is searched among all other images.
        query_labels: Class of each query, likewise; required with `queries`.
        ks: The k of recall@k, one or several.
        output: "embeddings" scores the model's embeddings, "features" those of its trunk.
        batch_size: Number of images per forward pass.
        num_workers: As for `embed`.
        precision: "bfloat16" and "float16" embed in mixed precision.
        seed: Seed of k-means, whose clusters NMI and AMI score.
        progress: Whether to show a progress bar.

    Returns:
        The scores. NMI and AMI are those of `images`, without the queries.

    Raises:
        TypeError: Labels or `ks` are not integers, or `images` is not a map-style dataset.
        ValueError: Labels do not match the images, a k exceeds the number of images that a query is compared with, no
            query has an image of its class, there are fewer than two classes, or embeddings are not finite or are all
            equal.

    Example:
        >>> images = torch.eye(4).reshape(4, 1, 2, 2)
        >>> evaluate(nn.Flatten(), images, labels=[0, 0, 1, 1], ks=(1, 2)).recall_at.keys()
        dict_keys([1, 2])
    """
    images, queries = IndexedImages(images), None if queries is None else IndexedImages(queries)
    _plan(len(images), labels, ks, None if queries is None else len(queries), query_labels)
    check_integer("seed", seed, 0)
    device = device_of(model)

    def embed_all(dataset: Images) -> Float[Tensor, "n d"]:
        embeddings = embed(
            model,
            dataset,
            output=output,
            batch_size=batch_size,
            num_workers=num_workers,
            precision=precision,
            progress=progress,
        )
        return embeddings.to(storage_device(embeddings.shape, device))

    embedded = None if queries is None else embed_all(queries)
    with search_on(device):
        embeddings = embed_all(images)
        return evaluate_embeddings(embeddings, labels, queries=embedded, query_labels=query_labels, ks=ks, seed=seed)


def evaluate_embeddings(
    embeddings: Float[Tensor, "n d"],
    labels: Labels,
    *,
    queries: Float[Tensor, "q d"] | None = None,
    query_labels: Labels | None = None,
    ks: int | Sequence[int] = (1, 2, 4, 8),
    seed: int = 0,
) -> Scores:
    """Score how well embeddings retrieve and cluster their classes.

    Retrieval is scored by `metrics.retrieval`. NMI and AMI compare the classes with the clusters of k-means, with one
    cluster per class; they depend on the seed. Both run on the device of the embeddings.

    Args:
        embeddings: Embeddings of the images that are searched.
        labels: Class of each image; images with a negative label are ignored.
        queries: Embeddings of the queries. None uses each image as a query that is searched among all other images.
        query_labels: Class of each query, likewise; required with `queries`.
        ks: The k of recall@k, one or several.
        seed: Seed of k-means.

    Returns:
        The scores.

    Raises:
        TypeError: Labels or `ks` are not integers.
        ValueError: Labels do not match the embeddings, a k exceeds the number of images that a query is compared with,
            no query has an image of its class, there are fewer than two classes, or embeddings are not finite or are
            all equal.

    Example:
        >>> evaluate_embeddings(torch.eye(2).repeat(3, 1), labels=[0, 1, 0, 1, 0, 1], ks=1).recall_at
        {1: 1.0}
    """
    column_range = check_embeddings(embeddings)
    check_queries(queries, embeddings)
    n_queries = None if queries is None else len(queries)
    plan = _plan(len(embeddings), labels, ks, n_queries, query_labels)
    check_integer("seed", seed, 0)
    check_distinct(column_range, len(embeddings))
    retrieval = run_retrieval(embeddings, queries, plan)
    clusters = cluster_rows(
        select_rows(embeddings, plan.has_class),
        column_range,
        len(plan.labels.unique()),
        start=None,
        max_iter=25,
        seed=int(seed),
    )
    return Scores(
        recall_at=retrieval.recall_at,
        map_at_r=retrieval.map_at_r,
        r_precision=retrieval.r_precision,
        nmi=metrics.nmi(plan.labels, clusters),
        ami=metrics.ami(plan.labels, clusters),
    )


def _plan(
    n: int, labels: Labels, ks: int | Sequence[int], n_queries: int | None, query_labels: Labels | None
) -> RetrievalPlan:
    """Check labels and ks for n images, and return the plan of the retrieval."""
    plan = plan_retrieval(n, labels, ks, n_queries, query_labels)
    n_classes = len(plan.labels.unique())
    if n_classes < 2:  # noqa: PLR2004 (mutual information needs two classes)
        raise value_error("Scoring needs at least 2 classes", n_classes, "Add images of another class")
    return plan
