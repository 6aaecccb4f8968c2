"""The embedder after training."""

from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from udmlss._torch import device_of
from udmlss.distributed import run_on_rank_zero
from udmlss.inference import embed_all
from udmlss.models.pca import PCAEmbedder
from udmlss.training.run import Run

_LARGEST_SAMPLE = 20_000  # images, enough for the covariance of some thousand dimensions


def fit_final_embedder(run: Run) -> None:
    """Fit a trained `PCAEmbedder` to features of the trained trunk.

    If there are more than 20,000 images, a random sample is used. If the user interrupts it, the embedder remains as it
    was.
    """
    embedder = run.model.embedder
    if not isinstance(embedder, PCAEmbedder) or not _is_trained(run):
        return
    order = torch.randperm(len(run.rounds.cluster_images), generator=torch.Generator().manual_seed(run.rounds.seed))
    sample = order[:_LARGEST_SAMPLE].sort().values
    try:
        features, rows = (_embed(run, sample), slice(None)) if run.features is None else (run.features, sample)
        state = run_on_rank_zero(lambda: deepcopy(embedder).fit(features[rows]).state_dict())
    except KeyboardInterrupt:
        run.stop_reason = "interrupt"
    else:
        embedder.load_state_dict(state)


def _embed(run: Run, sample: Int64[Tensor, " m"]) -> Float[Tensor, "m f"]:
    rounds = run.rounds
    return embed_all(
        run.model,
        rounds.cluster_images,
        rounds.options,
        rounds.loader,
        output="features",
        seed=rounds.seed,
        indices=sample.tolist(),
        folder=rounds.embeddings_folder,
        progress=run.show_progress,
        device=device_of(run.model),
    )


def _is_trained(run: Run) -> bool:
    """Return whether training changed both the trunk and the embedder, and was not interrupted."""
    changed = {id(each) for group in run.optimizer.param_groups if _has_rate(group) for each in group["params"]}
    parts = (run.model.trunk, run.model.embedder)
    trained = [any(each.requires_grad and id(each) in changed for each in part.parameters()) for part in parts]
    return all(trained) and run.weights_step != 0 and run.stop_reason != "interrupt"


def _has_rate(group: dict[str, Any]) -> bool:
    """Return whether a parameter group has a learning rate above 0, at the beginning if a scheduler changes it."""
    return bool(group.get("initial_lr", 0) > 0 or group.get("lr", 1) > 0)
