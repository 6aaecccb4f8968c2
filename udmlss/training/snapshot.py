"""The embeddings of all images at one moment of a training."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from udmlss._chunks import row_slices
from udmlss._row_store import allocate_rows
from udmlss._torch import device_of
from udmlss.distributed import SynchronizedErrors, broadcast_buffers, run_on_rank_zero
from udmlss.inference import embed_all, embed_features
from udmlss.model_selection import label_free_scores
from udmlss.neighbors.backends import search_on
from udmlss.results import LabelFreeScores
from udmlss.types import Output

if TYPE_CHECKING:
    from udmlss.training.rounds import Rounds

_SCORED_VIEWS = 1000  # images of which an augmented view is embedded for the label-free scores


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The embeddings of all images at one moment, and the features at unit length if they are clustered.

    Under `torchrun` only rank 0 holds rows.
    """

    embeddings: Float[Tensor, "n d"]
    features: Float[Tensor, "n f"] | None


def take_snapshot(rounds: "Rounds", *, with_features: bool) -> Snapshot:
    """Embed all images of the rounds, also as features at unit length if these are to be clustered."""
    if not with_features:
        broadcast_buffers(rounds.model)
        return Snapshot(_embed(rounds, "embeddings"), None)
    features = embed_as_features(rounds)
    embeddings = _embed_features(rounds, features)
    return Snapshot(embeddings, _normalize(features, out=features))


def snapshot_of(rounds: "Rounds", features: Float[Tensor, "n f"], *, with_features: bool) -> Snapshot:
    """Return the snapshot that `take_snapshot` takes, from the features of all images, which are not changed."""
    embeddings = _embed_features(rounds, features)
    if not with_features:
        return Snapshot(embeddings, None)
    with SynchronizedErrors():
        out = allocate_rows(len(features), features.shape[1], rounds.embeddings_folder, device_of(rounds.model))
    return Snapshot(embeddings, _normalize(features, out=out))


def embed_as_features(rounds: "Rounds") -> Float[Tensor, "n f"]:
    """Return the features of all images of the rounds."""
    broadcast_buffers(rounds.model)
    return _embed(rounds, "features")


def score_snapshot(rounds: "Rounds", snapshot: Snapshot) -> LabelFreeScores:
    """Score against augmented views of some images, the same views in every round."""
    output: Output = "features" if rounds.cluster_on == "features" else "embeddings"
    rows = snapshot.embeddings if snapshot.features is None or output == "embeddings" else snapshot.features
    indices = torch.randperm(len(rounds.images), generator=torch.Generator().manual_seed(rounds.seed))[:_SCORED_VIEWS]
    views = embed_all(
        rounds.model,
        rounds.images,
        rounds.options,
        rounds.loader,
        output=output,
        seed=rounds.seed + 1,
        indices=indices.tolist(),
    )
    with search_on(device_of(rounds.model)):
        return run_on_rank_zero(lambda: label_free_scores(rows, normalize(views), indices))


def _embed(rounds: "Rounds", output: Output) -> Float[Tensor, "n c"]:
    return embed_all(
        rounds.model,
        rounds.cluster_images,
        rounds.options,
        rounds.loader,
        output=output,
        seed=rounds.seed,
        folder=rounds.embeddings_folder,
        device=device_of(rounds.model),
    )


def _embed_features(rounds: "Rounds", features: Float[Tensor, "n f"]) -> Float[Tensor, "n d"]:
    with SynchronizedErrors():
        return embed_features(rounds.model, features, rounds.embeddings_folder, device_of(rounds.model))


def _normalize(features: Float[Tensor, "n f"], out: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
    """Scale the features to unit length, in parts."""
    for rows in row_slices(features):
        out[rows] = normalize(features[rows].to(out.device, out.dtype))
    return out
