"""Models and labelled images to scores. Labels judge here; nothing in training sees them."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from udmlss import metrics
from udmlss._checks import value_error
from udmlss._torch import device_of
from udmlss.clustering.kmeans import check_seed, k_means
from udmlss.inference import embed
from udmlss.types import Images, Output, Precision, Scores


def evaluate(
    model: nn.Module,
    images: Images,
    labels: Int[Tensor, " n"],
    *,
    queries: Images | None = None,
    query_labels: Int[Tensor, " q"] | None = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    output: Output = "embeddings",
    batch_size: int = 128,
    num_workers: int = 0,
    precision: Precision = "float32",
    channels_last: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> Scores:
    """Embed labelled images and score how well the embeddings retrieve and group their classes.

    Scores are computed on the CPU, or on the model's GPU with CUDA.

    Args:
        model: An `EmbeddingModel`, or any module from images to embeddings if `output` is "embeddings".
        images: The images searched: a data set as for `embed`, with test-time transforms.
        labels: Class of each image, in data-set order.
        queries: Query images, where they are apart; else each image is a query among the others.
        query_labels: Class of each query.
        ks: The k of recall@k.
        output: Whether to score the model's embeddings or its trunk's features.
        batch_size: Images a forward pass.
        num_workers: Processes that load images.
        precision: As for `embed`.
        channels_last: As for `embed`.
        seed: Seed of the k-means behind NMI and AMI.
        progress: Whether to show a progress bar.

    Returns:
        The scores; NMI and AMI are of the searched images.

    Raises:
        ValueError: As `embed` and `evaluate_embeddings`.

    Example:
        >>> images, labels = torch.eye(4).reshape(4, 1, 2, 2), torch.tensor([0, 0, 1, 1])
        >>> sorted(evaluate(nn.Flatten(), images, labels, ks=(1, 2)).recall_at)
        [1, 2]
    """
    device = device_of(model)

    def run(dataset: Images) -> Float[Tensor, "n d"]:
        found = embed(
            model,
            dataset,
            output=output,
            batch_size=batch_size,
            num_workers=num_workers,
            precision=precision,
            channels_last=channels_last,
            progress=progress,
        )
        return found.to(device) if device.type == "cuda" else found  # other GPUs know no float64

    check_seed(seed)
    asked = None if queries is None else run(queries)
    return evaluate_embeddings(run(images), labels, queries=asked, query_labels=query_labels, ks=ks, seed=seed)


def evaluate_embeddings(
    embeddings: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    queries: Float[Tensor, "q d"] | None = None,
    query_labels: Int[Tensor, " q"] | None = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    seed: int = 0,
) -> Scores:
    """Score embeddings: `metrics.retrieval`, and NMI and AMI of k-means with as many clusters as classes.

    Similarity is the cosine. k-means runs on the embeddings as they are; its figures depend on the seed. Both run where
    the embeddings lie.

    Args:
        embeddings: Embeddings of the images searched.
        labels: Class of each.
        queries: Embeddings of queries apart from the images searched.
        query_labels: Class of each query.
        ks: The k of recall@k.
        seed: Seed of k-means.

    Returns:
        The scores.

    Raises:
        ValueError: As `metrics.recall_at_k`; fewer than two classes.

    Example:
        >>> evaluate_embeddings(torch.eye(2).repeat(3, 1), torch.tensor([0, 1, 0, 1, 0, 1]), ks=(1,)).recall_at
        {1: 1.0}
    """
    found = metrics.retrieval(embeddings, labels, ks, queries=queries, query_labels=query_labels)
    n_classes = len(labels.unique())
    if n_classes < 2:  # noqa: PLR2004 (mutual information with one class is none)
        raise value_error("Scoring needs at least 2 classes", n_classes, "Add images of another class")
    clusters = k_means(embeddings, n_classes, seed=seed)
    return Scores(
        recall_at=found.recall_at,
        map_at_r=found.map_at_r,
        r_precision=found.r_precision,
        nmi=metrics.nmi(labels, clusters),
        ami=metrics.ami(labels, clusters),
    )
