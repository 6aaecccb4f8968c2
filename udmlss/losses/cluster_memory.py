"""Cross-entropy against a memory of all clusters, whose number may change."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import as_labels, check_integer, check_number, value_error
from udmlss.losses.proxies import check_dimension, missing_centers
from udmlss.types import Labels


class ClusterMemoryLoss(nn.Module):
    r"""Cross-entropy of the similarities to a memory of all clusters, also known as ClusterNCE.

    $$L = -\frac{1}{n} \sum_i \log \frac{\exp(z_i \cdot M_{y_i} / \tau)}{\sum_c \exp(z_i \cdot M_c / \tau)}$$

    where $z_i$ are the normalized embeddings, $y_i$ their clusters, and $M_c$ is the row of cluster c in the memory.
    `UDMLSSLoss.start_round` sets the rows to the normalized cluster centers of each round, whose number may change.
    Each call in training mode then updates the rows of the clusters in the batch, after the loss was computed, with one
    embedding after another:

    $$M_y \leftarrow normalize(\mu M_y + (1 - \mu) z)$$

    The memory has no gradient, so the loss needs no optimizer and no learning rate of its own. Embeddings with label -1
    are ignored. The loss is computed in float32 outside autocast. In a training loop of your own with several
    processes, pass the gathered batch, as `fit` does, so that the memories of all processes remain equal.

    Args:
        embedding_size: Dimension d of the embeddings.
        temperature: Temperature tau, above 0. The default is the published value.
        momentum: Fraction mu of a row that an update retains, in 0..1. The default is that of the published commands.
        hard: Whether each cluster is updated once per batch, with its embedding that is least similar to the row. This
            is a variant of the released code, whose authors found it more sensitive to the other settings.

    Raises:
        ValueError: A setting is out of its range.

    Example:
        >>> from udmlss.losses import ClusterMemoryLoss
        >>> memory = ClusterMemoryLoss(4)
        >>> memory.set_centers(torch.eye(4))
        >>> round(memory(torch.eye(4), [0, 1, 2, 3]).item(), 4)
        0.0

    References:
        Cluster Contrast for Unsupervised Person Re-Identification. Dai et al. 2021. https://arxiv.org/abs/2103.11568
    """

    memory: Tensor

    def __init__(
        self, embedding_size: int, *, temperature: float = 0.05, momentum: float = 0.1, hard: bool = False
    ) -> None:
        super().__init__()
        check_integer("embedding_size", embedding_size, 1)
        check_number("temperature", temperature, above=0)
        check_number("momentum", momentum, 0, 1)
        self.embedding_size = int(embedding_size)
        self.temperature, self.momentum, self.hard = float(temperature), float(momentum), hard
        self.register_buffer("memory", torch.zeros(0, self.embedding_size))

    def extra_repr(self) -> str:
        """Return the settings, as the representation of the module shows them."""
        settings = f"temperature={self.temperature}, momentum={self.momentum}, hard={self.hard}"
        return f"{self.embedding_size}, {settings}, n_clusters={len(self.memory)}"

    def set_centers(self, centers: Float[Tensor, "k d"] | None) -> None:
        """Set the memory to the centers of a new clustering; `start_round` calls this method.

        Args:
            centers: Centers (k, d) in the space of the embeddings. Any number of clusters is accepted.

        Raises:
            ValueError: `centers` is None or of another dimension.
        """
        if centers is None:
            raise missing_centers(self, "Return centers from the labeler: PseudoLabels.from_labels(labels, embeddings)")
        check_dimension(self, self.embedding_size, centers.shape[1])
        self.memory = functional.normalize(centers.detach().to(self.memory))

    def forward(
        self,
        embeddings: Float[Tensor, "b d"],
        labels: Labels,
        indices_tuple: object = None,  # noqa: ARG002 (MultipleLosses passes it)
    ) -> Float[Tensor, ""]:
        """Compute the loss, and update the memory in training mode.

        Args:
            embeddings: Embeddings (b, d) of the batch.
            labels: Cluster of each embedding, which is its row in the memory, or -1 for an unassigned image.
            indices_tuple: Mined pairs, which are ignored.

        Returns:
            The mean over the assigned embeddings; zero if there are none.

        Raises:
            TypeError: The labels are not integers.
            ValueError: Centers were not set, a label does not have a row, or the embeddings are of another dimension.
        """
        check_dimension(self, self.embedding_size, embeddings.shape[-1])
        if not len(self.memory):
            raise missing_centers(self, "Call `start_round(pseudo_labels)` after every clustering")
        self.memory = self.memory.to(embeddings.device)
        labels = as_labels(labels, len(embeddings)).to(embeddings.device)
        embeddings, labels = embeddings[labels >= 0], labels[labels >= 0]
        if not len(labels):
            return embeddings.sum() * 0
        self._check_labels(labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            rows = functional.normalize(embeddings.to(self.memory.dtype))
            memory = self.memory.clone()  # the backward pass needs it as it is before the update
            loss = functional.cross_entropy(rows @ memory.T / self.temperature, labels)
            if self.training:
                self._update(rows.detach(), labels)
        return loss

    @torch.no_grad()
    def _update(self, rows: Float[Tensor, "b d"], labels: Int64[Tensor, " b"]) -> None:
        """Update the memory with one embedding after another, of all clusters at once."""
        if self.hard:  # the sort is stable, so the least similar embedding of each cluster comes first
            order = (rows * self.memory[labels]).sum(dim=1).argsort(stable=True)
            rows, labels = rows[order], labels[order]
        order = labels.argsort(stable=True)
        rows, labels = rows[order], labels[order]
        sizes = labels.unique_consecutive(return_counts=True)[1]
        positions = torch.arange(len(labels), device=labels.device)
        positions -= (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        for position in range(1 if self.hard else int(sizes.max())):
            each = positions == position
            mixed = self.momentum * self.memory[labels[each]] + (1 - self.momentum) * rows[each]
            self.memory[labels[each]] = functional.normalize(mixed)

    def _check_labels(self, labels: Int64[Tensor, " b"]) -> None:
        if int(labels.max()) >= len(self.memory):
            raise value_error(
                f"`labels` must lie in 0..{len(self.memory) - 1}, one row of the memory for each, or be -1",
                int(labels.max()),
                "Call `start_round(pseudo_labels)` after every clustering",
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:  # noqa: ANN401 (the signature of torch)
        """Load a memory of any number of clusters."""
        found = state_dict.get(f"{prefix}memory")
        if isinstance(found, Tensor) and found.shape[1:] == self.memory.shape[1:]:
            self.memory = self.memory.new_empty(found.shape)
        super()._load_from_state_dict(state_dict, prefix, *others)
