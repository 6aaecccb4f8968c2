"""Metric loss on pseudo-labels with an auxiliary rotation loss."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from pytorch_metric_learning.losses import CrossBatchMemory, ManifoldLoss, SelfSupervisedLoss, VICRegLoss
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from udmlss._checks import as_labels, check_number, check_scalar, type_error, value_error
from udmlss.losses.proxies import check_fits, check_label, match_proxies, move_proxies, resize_to_state
from udmlss.results import LossTerms
from udmlss.types import Labels, PseudoLabels

_UNSUPPORTED = {
    SelfSupervisedLoss: "it compares two views of each image and does not use labels",
    VICRegLoss: "it compares two views of each image and does not accept labels",
}


class UDMLSSLoss(nn.Module):
    r"""Metric loss on pseudo-labels plus a weighted rotation loss.

    $$L = L_{metric}(z, y) + \eta \, L_{rotation}$$

    where $z$ are the embeddings, $y$ their pseudo-labels, and $L_{rotation}$ is the cross-entropy of the predicted
    rotations. Embeddings with label -1 are masked. The metric loss runs in float32 outside autocast and receives the
    batch sorted by label. If all embeddings are masked, the metric loss is zero and has a zero gradient.

    Args:
        metric_loss: A loss of pytorch-metric-learning (pairs, triplets, proxies, classifiers, `CrossBatchMemory`,
            `MultipleLosses`), or a callable `(embeddings, labels) -> scalar`.
        miner: A miner of pytorch-metric-learning, for losses that accept mined pairs. None passes no mined pairs.
        rotation_weight: Weight eta of the rotation loss. The default is the published value.

    Raises:
        TypeError: `metric_loss` or `miner` is not callable, or `metric_loss` does not learn from labels, such as
            `SelfSupervisedLoss` and `VICRegLoss`.
        ValueError: `rotation_weight` is negative, or `metric_loss` cannot be combined with `miner`.

    Example:
        >>> from pytorch_metric_learning import losses, miners
        >>> criterion = UDMLSSLoss(losses.MultiSimilarityLoss(2, 40, 0.5), miner=miners.MultiSimilarityMiner(0.1))
        >>> criterion(torch.eye(4), [0, 0, 1, 1]).shape
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
        self.rotation_weight = float(rotation_weight)
        self._has_started = False  # a round, so that proxies may have been trained

    def forward(
        self,
        embeddings: Float[Tensor, "b d"],
        labels: Labels,
        rotation_logits: Float[Tensor, "r 4"] | None = None,
        rotations: Labels | None = None,
    ) -> Float[Tensor, ""]:
        """Compute the total loss; `terms` also returns its two parts.

        Args:
            embeddings: Embeddings (b, d) of the batch.
            labels: Pseudo-label of each embedding, or -1 for an unassigned image. A tensor may be on any device.
            rotation_logits: Logits (r, 4) of the rotation head for rotated images. None omits the rotation loss.
            rotations: Rotation class of each rotated image, in 0..3; required together with `rotation_logits`.

        Returns:
            The scalar loss.

        Raises:
            TypeError: Labels or rotations are not integers, or the metric loss does not return a tensor.
            ValueError: The labels are not one per embedding, a label exceeds the number of proxies, only one of
                `rotation_logits` and `rotations` is passed, the metric loss does not return a scalar, or it does not
                accept mined pairs.
        """
        return self.terms(embeddings, labels, rotation_logits, rotations).total

    def terms(
        self,
        embeddings: Float[Tensor, "b d"],
        labels: Labels,
        rotation_logits: Float[Tensor, "r 4"] | None = None,
        rotations: Labels | None = None,
    ) -> LossTerms:
        """Compute the total loss and its two parts. The arguments are those of `forward`."""
        if (rotation_logits is None) != (rotations is None):
            passed = "`rotations`" if rotation_logits is None else "`rotation_logits`"
            raise value_error(
                "`rotation_logits` and `rotations` must be passed together", f"{passed} alone", "Pass both or neither"
            )
        labels = as_labels(labels, len(embeddings)).to(embeddings.device)
        with torch.autocast(embeddings.device.type, enabled=False):
            metric = self._metric_loss(embeddings.float(), labels)
            check_scalar("metric_loss", metric)
            rotation = metric.new_zeros(())
            if rotation_logits is not None and rotations is not None:
                rotation = _rotation_loss(rotation_logits.float(), rotations)
        return LossTerms(metric + self.rotation_weight * rotation, metric, rotation)

    def start_round(self, pseudo_labels: PseudoLabels, optimizer: Optimizer | None = None) -> None:
        """Adapt the loss to a new clustering; call it once after every clustering.

        `CrossBatchMemory` is emptied, because the labels that it stores belong to the previous clusters. Each cluster
        retains the proxies and classifier weights of its previous id. Those of vanished clusters are removed, and new
        clusters receive copies. All are then rotated to the directions of the cluster centers from the mean of all
        centers. A loss with a method `set_centers` receives the centers.

        Args:
            pseudo_labels: The new clusters. Their centers must be in the space of the embeddings.
            optimizer: The optimizer that trains the proxies, whose state of each proxy is moved with it. It may be
                None if there are no proxies or their number does not change after the first round.

        Raises:
            ValueError: The loss has parameters for another number of clusters that cannot be resized or for another
                dimension, or it needs centers and the labeler does not compute them, or it needs the optimizer.
        """
        centers, n_clusters = pseudo_labels.centers, pseudo_labels.n_clusters
        self.check_fits(n_clusters, None if centers is None else centers.shape[1])
        for module in self.modules():
            if isinstance(module, CrossBatchMemory):
                module.reset_queue()
            if callable(set_centers := getattr(module, "set_centers", None)):
                set_centers(centers)
            match_proxies(
                module,
                n_clusters,
                optimizer,
                previous_ids=pseudo_labels.previous_ids if self._has_started else None,
                may_be_trained=self._has_started,
            )
            if centers is not None:
                move_proxies(module, centers)
        self._has_started = True

    def check_fits(self, n_clusters: int | None, dimension: int | None) -> None:
        """Raise ValueError if the loss has parameters for other clusters or other embeddings.

        Args:
            n_clusters: Number of clusters. None does not check it. Proxies and classifier weights fit any number.
            dimension: Dimension of the embeddings. None does not check it.
        """
        for module in self.modules():
            check_fits(module, n_clusters, dimension)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:  # noqa: ANN401 (the signature of torch)
        """Load proxies of any number of clusters."""
        for path, module in self.named_modules(prefix=prefix.removesuffix(".")):
            resize_to_state(module, f"{path}." if path else "", state_dict)
        self._has_started = True
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _metric_loss(self, embeddings: Float[Tensor, "b d"], labels: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        assigned = labels.argsort(stable=True)[int((labels < 0).sum()) :]
        if len(assigned) == 0:
            return embeddings.sum() * 0
        embeddings, labels = embeddings[assigned], labels[assigned]
        largest = int(labels[-1])  # they are sorted
        for module in self.modules():
            check_label(module, largest)
        if isinstance(self.metric_loss, ManifoldLoss):  # its parameter for mined pairs expects cluster labels
            loss: Tensor = self.metric_loss(embeddings, indices_tuple=labels)
            return loss
        if self.miner is None:
            return self.metric_loss(embeddings, labels)
        return self._loss_of_mined_pairs(embeddings, labels, self.miner(embeddings, labels))

    def _loss_of_mined_pairs(self, embeddings: Tensor, labels: Tensor, pairs: tuple[Tensor, ...]) -> Tensor:
        try:
            return self.metric_loss(embeddings, labels, pairs)
        except ValueError as error:
            if "indices_tuple is not supported" not in str(error):
                raise
            name = type(self.metric_loss).__name__
            raise value_error(
                f"{name} does not accept mined pairs", f"`miner={type(self.miner).__name__}`", "Remove `miner`"
            ) from error


def _rotation_loss(logits: Float[Tensor, "r 4"], rotations: Labels) -> Float[Tensor, ""]:
    if logits.shape[1:] != (4,):  # one for each rotation
        rule, found = "`rotation_logits` must be of shape (r, 4)", f"shape {tuple(logits.shape)}"
        raise value_error(rule, found, "Pass the output of a RotationPretextHead")
    if not len(logits):
        return logits.sum() * 0
    return functional.cross_entropy(logits, as_labels(rotations, len(logits), "rotations").to(logits.device))


def _check_metric_loss(metric_loss: object) -> None:
    if not callable(metric_loss) or isinstance(metric_loss, type):
        raise type_error(
            "`metric_loss` must be a loss object (embeddings, labels) -> scalar",
            repr(metric_loss),
            "Pass an instance, such as losses.MultiSimilarityLoss(2, 40, 0.5)",
        )
    modules = metric_loss.modules() if isinstance(metric_loss, nn.Module) else ()
    for module in modules:
        reason = next((reason for kind, reason in _UNSUPPORTED.items() if isinstance(module, kind)), None)
        if isinstance(module, ManifoldLoss) and module is not metric_loss:
            reason = "it expects cluster labels instead of mined pairs, which only UDMLSSLoss can pass to it directly"
        if reason is not None:
            raise type_error(
                "`metric_loss` must learn from labels",
                f"{type(module).__name__}: {reason}",
                "Pass the loss inside it, or a loss that uses labels, such as losses.NTXentLoss()",
            )


def _check_miner(metric_loss: object, miner: object) -> None:
    if miner is None:
        return
    if not callable(miner) or isinstance(miner, type):
        raise type_error("`miner` must be a miner object", repr(miner), "Pass MultiSimilarityMiner(0.1) or None")
    passed = f"`miner={type(miner).__name__}`"
    if isinstance(metric_loss, ManifoldLoss):
        raise value_error("ManifoldLoss does not accept mined pairs", passed, "Remove `miner`")
    modules = metric_loss.modules() if isinstance(metric_loss, nn.Module) else ()
    if any(isinstance(module, CrossBatchMemory) for module in modules):
        remedy = "Pass the miner to CrossBatchMemory(loss, embedding_size, miner=...)"
        raise value_error("CrossBatchMemory must mine pairs of its memory, not of the batch", passed, remedy)
