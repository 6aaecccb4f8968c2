"""Any metric loss on pseudo-labels plus the rotation loss."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Int64
from pytorch_metric_learning.losses import CrossBatchMemory, ManifoldLoss, SelfSupervisedLoss, VICRegLoss
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import as_labels, check_number, type_error, value_error
from udmlss.losses.proxies import check_fits, move_proxies
from udmlss.types import LossTerms, PseudoLabels, UsesClusterCenters

_REFUSED = {
    SelfSupervisedLoss: "it compares two views of each image and has no place for pseudo-labels",
    VICRegLoss: "it compares two views of each image and refuses labels",
}


class UDMLSSLoss(nn.Module):
    r"""A metric loss on pseudo-labels plus a weighted rotation loss.

    $$L = L_{metric}(z, y) + \eta \, L_{rotation}$$

    where $z$ are embeddings, $y$ their clusters and $L_{rotation}$ is the cross-entropy of the turns. Embeddings
    labelled -1 are masked. The metric loss runs in float32 outside autocast and sees the batch cluster by cluster. A
    batch in which nothing is labelled has zero loss, with a gradient.

    Args:
        metric_loss: Any loss of pytorch-metric-learning (pairs, triplets, proxies, classifiers, `CrossBatchMemory`,
            `MultipleLosses`), or any callable `(embeddings, labels) -> scalar`.
        miner: A miner of pytorch-metric-learning, for the losses that take one.
        rotation_weight: Weight eta. Default as published: 0.1.

    Raises:
        TypeError: `metric_loss` cannot learn from labels (`SelfSupervisedLoss`, `VICRegLoss`), or it or the miner is
            not callable.
        ValueError: `rotation_weight` is negative.

    Example:
        >>> from pytorch_metric_learning import losses, miners
        >>> criterion = UDMLSSLoss(losses.MultiSimilarityLoss(2, 40, 0.5), miner=miners.MultiSimilarityMiner(0.1))
        >>> criterion(torch.eye(4), torch.tensor([0, 0, 1, 1])).shape
        torch.Size([])

    References:
        Unsupervised Deep Metric Learning via Auxiliary Rotation Loss. Cao, Chen, Lim. 2019.
        https://arxiv.org/abs/1911.07072
    """

    def __init__(
        self,
        metric_loss: Callable[..., Tensor],
        *,
        miner: Callable[[Tensor, Tensor], tuple[Tensor, ...]] | None = None,
        rotation_weight: float = 0.1,
    ) -> None:
        super().__init__()
        _check_metric_loss(metric_loss)
        _check_miner(metric_loss, miner)
        check_number("rotation_weight", rotation_weight, 0)
        self.metric_loss = metric_loss
        self.miner = miner
        self.rotation_weight = rotation_weight

    def forward(
        self,
        embeddings: Float[Tensor, "b d"],
        labels: Int[Tensor, " b"],
        turn_logits: Float[Tensor, "t 4"] | None = None,
        turns: Int64[Tensor, " t"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the total loss; see `terms` for its parts.

        Args:
            embeddings: Embeddings of the batch.
            labels: Their clusters, -1 for left out, on any device.
            turn_logits: What the rotation head says of turned images; None for the metric loss alone.
            turns: The true turns in 0..3, given together with the logits.

        Raises:
            ValueError: Shapes or device do not fit, or the metric loss refuses the miner's pairs.
            TypeError: Labels are not whole numbers.
        """
        return self.terms(embeddings, labels, turn_logits, turns).total

    def terms(
        self,
        embeddings: Float[Tensor, "b d"],
        labels: Int[Tensor, " b"],
        turn_logits: Float[Tensor, "t 4"] | None = None,
        turns: Int64[Tensor, " t"] | None = None,
    ) -> LossTerms:
        """Return the total loss and its two parts; arguments as in `forward`."""
        if (turn_logits is None) != (turns is None):
            given = "`turns` alone" if turn_logits is None else "`turn_logits` alone"
            raise value_error("`turn_logits` and `turns` go together", given, "Pass both, or neither for plain UDML")
        as_labels(labels, len(embeddings))
        with torch.autocast(embeddings.device.type, enabled=False):
            metric = self._metric(embeddings.float(), labels.to(embeddings.device, torch.int64))
            rotation = metric.new_zeros(())
            if turn_logits is not None and turns is not None:
                rotation = functional.cross_entropy(turn_logits.float(), turns)
        return LossTerms(metric + self.rotation_weight * rotation, metric, rotation)

    def start_round(self, pseudo: PseudoLabels) -> None:
        """Follow a new clustering: call it once after every `label`.

        A `CrossBatchMemory` is emptied, because its labels mean something else now. Proxies and classifier weights
        are turned to where the centroids lie from the mean of all, keeping their lengths and, where a cluster has
        several, their spread. A loss with a method `set_centers` is told the centroids.

        Args:
            pseudo: The new clusters, with centroids in the space of the embeddings.

        Raises:
            ValueError: The loss holds parameters for another number of clusters, or of another dimension, or needs
                centroids that the labeler does not know.
        """
        self.check_fits(pseudo.n_clusters, None if pseudo.centers is None else pseudo.centers.shape[1])
        for module in self.modules():
            if isinstance(module, CrossBatchMemory):
                module.reset_queue()
            if isinstance(module, UsesClusterCenters):
                module.set_centers(pseudo.centers)
            if pseudo.centers is not None:
                move_proxies(module, pseudo.centers)

    def check_fits(self, n_clusters: int | None, dimension: int | None) -> None:
        """Refuse, with a ValueError, clusters or embeddings that the loss's parameters were not built for.

        What is None is not known, and not checked.
        """
        for module in self.modules():
            check_fits(module, n_clusters, dimension)

    def _metric(self, embeddings: Float[Tensor, "b d"], labels: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        kept = labels.argsort(stable=True)[int((labels < 0).sum()) :]  # cluster by cluster, -1 masked
        if len(kept) == 0:
            return embeddings.sum() * 0
        embeddings, labels = embeddings[kept], labels[kept]
        if isinstance(self.metric_loss, ManifoldLoss):  # takes its labels in the place of mined pairs
            loss: Tensor = self.metric_loss(embeddings, indices_tuple=labels)
            return loss
        if self.miner is None:
            return self.metric_loss(embeddings, labels)
        return self._mined(embeddings, labels, self.miner(embeddings, labels))

    def _mined(self, embeddings: Tensor, labels: Tensor, indices: tuple[Tensor, ...]) -> Tensor:
        try:
            return self.metric_loss(embeddings, labels, indices)
        except ValueError as error:
            if "indices_tuple is not supported" not in str(error):
                raise
            name = type(self.metric_loss).__name__
            raise value_error(
                f"{name} takes no mined pairs", f"`miner={type(self.miner).__name__}`", "Leave the miner out"
            ) from error


def _check_metric_loss(metric_loss: object) -> None:
    if not callable(metric_loss) or isinstance(metric_loss, type):
        raise type_error(
            "`metric_loss` must be a loss object (embeddings, labels) -> scalar",
            repr(metric_loss),
            "Pass an instance, such as losses.MultiSimilarityLoss(2, 40, 0.5)",
        )
    parts = metric_loss.modules() if isinstance(metric_loss, nn.Module) else ()
    for part in parts:
        reason = next((why for kind, why in _REFUSED.items() if isinstance(part, kind)), None)
        if isinstance(part, ManifoldLoss) and part is not metric_loss:
            reason = "it takes clusters in the place of mined pairs, which only UDMLSSLoss itself can pass"
        if reason is not None:
            raise type_error(
                "`metric_loss` must learn from labels",
                f"{type(part).__name__}: {reason}",
                "Pass the loss inside it, or one that takes labels, such as losses.NTXentLoss()",
            )


def _check_miner(metric_loss: object, miner: object) -> None:
    if miner is None:
        return
    if not callable(miner) or isinstance(miner, type):
        raise type_error("`miner` must be a miner object", repr(miner), "Pass MultiSimilarityMiner(0.1) or None")
    given = f"`miner={type(miner).__name__}`"
    if isinstance(metric_loss, ManifoldLoss):
        raise value_error("ManifoldLoss takes no mined pairs", given, "Leave the miner out")
    parts = metric_loss.modules() if isinstance(metric_loss, nn.Module) else ()
    if any(isinstance(part, CrossBatchMemory) for part in parts):
        remedy = "Give the miner to it: CrossBatchMemory(loss, embedding_size, miner=...)"
        raise value_error("CrossBatchMemory must mine in its memory, not in the batch", given, remedy)
