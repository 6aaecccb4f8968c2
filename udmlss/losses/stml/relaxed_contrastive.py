"""Relaxed contrastive loss, and the similarities of a teacher that are its targets."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from udmlss._checks import as_labels, check_embeddings, check_integer, check_number, value_error
from udmlss._torch import at_least_float32
from udmlss.types import Labels


def teacher_similarity(
    teacher_embeddings: Float[Tensor, "b w"], image_indices: Labels, *, sigma: float, neighbors: int
) -> Float[Tensor, "b b"]:
    r"""Compute the similarity, in 0..1, of each two rows of a batch from the teacher's embeddings.

    $$w_{ij} = \tfrac12 e^{-\|t_i - t_j\|^2 / \sigma} + \tfrac14 (\hat c_{ij} + \hat c_{ji}), \quad
    \hat c_{ij} = \operatorname*{mean}_{h \in H_i} c_{hj}, \quad
    c_{ij} = \frac{|R_i \cap R_j|}{|R_i|} \text{ if } j \in R_i, \text{ else } 0$$

    for the teacher's embeddings $t$ at unit length. The mutual neighbors $R_i$ of row i are those of its neighbors that
    have row i as a neighbor, too. Views of the same image are nearer than all other rows. $H_i$ is the nearer half of
    the neighbors of row i.

    Args:
        teacher_embeddings: The teacher's embeddings (b, w). Their scale does not matter.
        image_indices: Index of the image that each row is a view of.
        sigma: Scale of squared distances, above 0; see `STMLLoss`.
        neighbors: Number of nearest rows that are neighbors of a row, at least 1; see `STMLLoss`.

    Raises:
        TypeError: `image_indices` are not integers.
        ValueError: A setting is out of its range, `image_indices` are not one per row, or the embeddings are not
            finite.

    Example:
        >>> from udmlss.losses.stml import teacher_similarity
        >>> teacher_similarity(torch.eye(2).repeat(2, 1), [0, 1, 0, 1], sigma=1, neighbors=2)[0]
        tensor([1.0000, 0.0677, 1.0000, 0.0677])
    """
    check_number("sigma", sigma, above=0)
    check_integer("neighbors", neighbors, 1)
    check_embeddings(teacher_embeddings, "teacher_embeddings")
    indices = as_labels(image_indices, len(teacher_embeddings), "image_indices").to(teacher_embeddings.device)
    rows = functional.normalize(at_least_float32(teacher_embeddings.detach()))
    pairwise = torch.exp(-torch.cdist(rows, rows).square() / float(sigma))
    ranking = pairwise + (indices.unsqueeze(1) == indices)
    nearest = ranking.topk(min(int(neighbors), len(rows)), dim=1).indices
    is_neighbor = torch.zeros_like(pairwise).scatter(1, nearest, 1)
    is_mutual = is_neighbor * is_neighbor.T
    shared = is_mutual * (is_mutual @ is_mutual) / is_mutual.sum(dim=1, keepdim=True).clamp(min=1)
    expanded = shared[nearest[:, : max(1, int(neighbors) // 2)]].mean(dim=1)
    return pairwise / 2 + (expanded + expanded.T) / 4


def relaxed_contrastive_loss(
    embeddings: Float[Tensor, "b d"], similarity: Float[Tensor, "b b"], *, delta: float = 1.0
) -> Float[Tensor, ""]:
    r"""Compute a contrastive loss in which every pair is positive and negative in proportion to its similarity.

    $$L = \operatorname*{mean}_{i \ne j} \; w_{ij} \delta_{ij}^2 + (1 - w_{ij}) \max(0, m - \delta_{ij})^2$$

    where $\delta_{ij}$ is the distance of two embeddings, divided by the mean distance from the first of them.

    Args:
        embeddings: Embeddings (b, d) of the batch. Their scale does not matter.
        similarity: Similarity w of each two embeddings (b, b), in 0..1: 1 for positives, 0 for negatives.
        delta: Margin m of relative distances, above 0.

    Returns:
        The loss. For a batch of one embedding it is zero and has a gradient.

    Raises:
        ValueError: `delta` is not above 0, the embeddings are not finite, or `similarity` is of another shape.

    Example:
        >>> from udmlss.losses.stml import relaxed_contrastive_loss
        >>> similarity = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
        >>> relaxed_contrastive_loss(torch.tensor([[0.0], [0.0], [3.0]]), similarity)
        tensor(0.)

    References:
        Embedding Transfer with Label Relaxation for Improved Metric Learning. Kim, Kim, Cho, Kwak. 2021.
        https://arxiv.org/abs/2103.14908
    """
    check_number("delta", delta, above=0)
    if similarity.shape != (len(embeddings), len(embeddings)):
        rule, found = "`similarity` must be of shape (b, b)", f"shape {tuple(similarity.shape)}"
        raise value_error(rule, f"{found} for {len(embeddings)} embeddings", "Pass a value for each pair")
    return mean_pair_loss(relative_distances(embeddings), similarity, float(delta))


def relative_distances(embeddings: Float[Tensor, "b d"], name: str = "embeddings") -> Float[Tensor, "b b"]:
    """Return the distance of each two rows, divided by the mean distance from the first of them."""
    check_embeddings(embeddings, name)
    rows = at_least_float32(embeddings)
    distances = torch.cdist(rows, rows)
    mean = distances.mean(dim=1, keepdim=True)
    return distances / mean.clamp(min=torch.finfo(mean.dtype).tiny)


def mean_pair_loss(
    distances: Float[Tensor, "b b"], similarity: Float[Tensor, "b b"], delta: float
) -> Float[Tensor, ""]:
    """Compute `relaxed_contrastive_loss` from relative distances."""
    losses = similarity * distances.square() + (1 - similarity) * (delta - distances).relu().square()
    n = len(distances)
    is_pair = ~torch.eye(n, dtype=torch.bool, device=distances.device)
    return (losses * is_pair).sum() / max(1, n * (n - 1))
