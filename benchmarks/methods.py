"""The methods that are compared: each trains a model in place and returns what `fit` did, if it trains by that.

Another method is another function in `METHODS`. All take the same steps on as many images, by the same optimiser.
`PARTS` are settings of `fit` that were tried for the recipe, each beside `udml` alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from clustered import udml
from metric_losses import OTHERS
from settings import Settings
from setups import Data
from unclustered import cbswr, instance, stml

from udmlss import EmbeddingModel
from udmlss.types import FitResult

Method = Callable[..., FitResult | None]


def frozen(_model: EmbeddingModel, _data: Data, _settings: Settings, _seed: int) -> None:
    """Leave the model as it is."""


PARTS: dict[str, dict[str, Any]] = {
    "two-views": {"views": 2},
    "averaged": {"ema_decay": 0.95},
    "features": {"later_rounds": "features"},
    "remembered": {"later_rounds": "remembered"},
    "from-features": {"from_features": True},
    "neighbours": {"average_neighbors": 5},
}
WITHOUT_CLUSTERS: dict[str, Method] = {"instance": instance, "cbswr": cbswr, "stml": stml}
DEEP_METRIC = tuple(name for name in OTHERS if name != "normalized-softmax")
OWN_LOSS = {"frozen", "cbswr", "stml", "deepcluster", *DEEP_METRIC}  # whatever loss the settings name
RECIPE = {**PARTS["two-views"], **PARTS["averaged"]}
SUPERVISED: dict[str, Method] = {
    "supervised": partial(udml, true_labels=True),
    "supervised-recipe-from-features": partial(udml, true_labels=True, **RECIPE, **PARTS["from-features"]),
}
METHODS: dict[str, Method] = {
    "frozen": frozen,
    **WITHOUT_CLUSTERS,
    "deepcluster": partial(udml, loss="normalized-softmax"),
    "udml": udml,
    **{name: partial(udml, loss=name) for name in DEEP_METRIC},
    "udml-ss": partial(udml, rotate=True),
    "ranking": partial(udml, ranking=True),
    "synthesis": partial(udml, synthesis=True),
    "udml-ss-ranking": partial(udml, rotate=True, ranking=True),
    "udml-ss-synthesis": partial(udml, rotate=True, synthesis=True),
    **{name: partial(udml, **part) for name, part in PARTS.items()},
    "recipe": partial(udml, **RECIPE),
    "recipe-from-features": partial(udml, **RECIPE, **PARTS["from-features"]),
    "recommended": partial(udml, **RECIPE, **PARTS["from-features"], **PARTS["neighbours"]),
    **SUPERVISED,
}
COMPARED = ("frozen", "instance", "udml", "udml-ss", "recommended", "supervised")
