"""The compared methods. Each trains a model in place.

All but `default`, its variants and `supervised-default`, which use the defaults of `fit`, train with the number of
steps, the number of images per step and the optimizer of the settings.

To compare another method, write a function as in training_functions.py and add it to `METHODS`. Methods that train by
`fit` return its result.
"""

from collections.abc import Callable
from functools import partial

from metric_losses import OTHERS
from training_functions import cbswr, cluster_contrast, default, frozen, instance, stml, udml

from udmlss import FitResult

Method = Callable[..., FitResult | None]
TWO_VIEWS, AVERAGED = {"views": 2}, {"weight_average": 0.95}
FROM_FEATURES, AVERAGE_NEIGHBORS = {"embedder": {"center": False, "power": 0}}, {"average_neighbors": 5}
RECIPE = TWO_VIEWS | AVERAGED
RECOMMENDED = RECIPE | FROM_FEATURES | AVERAGE_NEIGHBORS
TRUE_K, TWICE_K = {"clusters_per_class": 1}, {"clusters_per_class": 2}
UNTRAINED: dict[str, Method] = {
    "frozen": frozen,
    "frozen-from-features": partial(frozen, embedder={}),
    "frozen-ignore-colors": partial(frozen, embedder={}, ignore_colors=True),
    "frozen-ignore-orientation": partial(frozen, embedder={}, ignore_orientation=True),
    "frozen-flips": partial(frozen, embedder={}, flips=True),
}
WITHOUT_CLUSTERS: dict[str, Method] = {"instance": instance, "cbswr": cbswr, "stml": stml}
DEEP_METRIC = tuple(name for name in OTHERS if name not in {"normalized-softmax", "cluster-memory"})
CLUSTER_MEMORY: dict[str, Method] = {
    "cluster-memory": partial(udml, loss="cluster-memory"),
    "cluster-contrast": partial(cluster_contrast, clusterer="jaccard-dbscan", n_neighbors=30),
    "cluster-contrast-communities": partial(cluster_contrast, clusterer="communities", n_neighbors=14),
    "spcl": partial(cluster_contrast, clusterer="self-paced", n_neighbors=30),
}
LEFT_OUT, COARSE = {"unassigned_fraction": 0.2}, {"coarse": True}
DEFAULT_VARIANTS: dict[str, Method] = {
    "default-ignore-colors": partial(default, ignore_colors=True),
    "default-keep-colors": partial(default, ignore_colors=False),
    "default-ignore-orientation": partial(default, ignore_orientation=True),
    "default-flips": partial(default, flips=True),
    "default-left-out": partial(default, labeler=LEFT_OUT),
    "default-coarse": partial(default, labeler=COARSE),
    "default-coarse-left-out": partial(default, labeler=LEFT_OUT | COARSE),
}
OWN_LOSS = {
    *UNTRAINED,
    *("instance", "cbswr", "stml"),
    *("default", *DEFAULT_VARIANTS),
    "deepcluster",
    *DEEP_METRIC,
    *CLUSTER_MEMORY,
}  # methods that ignore the loss of the settings
REFITTED = {"default", *DEFAULT_VARIANTS}  # methods after which `runs.run` recomputes the embedder, as `fit` does
SUPERVISED: dict[str, Method] = {
    "supervised": partial(udml, true_labels=True),
    "supervised-recipe-from-features": partial(udml, true_labels=True, **RECIPE, **FROM_FEATURES),
    "supervised-default": partial(default, true_labels=True),
    "supervised-default-ignore-orientation": partial(default, true_labels=True, ignore_orientation=True),
    "supervised-default-keep-colors": partial(default, true_labels=True, ignore_colors=False),
}
METHODS: dict[str, Method] = {
    **UNTRAINED,
    **WITHOUT_CLUSTERS,
    "deepcluster": partial(udml, loss="normalized-softmax"),
    "udml": udml,
    "udml-true-k": partial(udml, **TRUE_K),
    **CLUSTER_MEMORY,
    **{name: partial(udml, loss=name) for name in DEEP_METRIC},
    "udml-ss": partial(udml, rotation=True),
    "udml-ss-true-k": partial(udml, rotation=True, **TRUE_K),
    "ranking": partial(udml, ranking=True),
    "synthesis": partial(udml, synthesis=True),
    "udml-ss-ranking": partial(udml, rotation=True, ranking=True),
    "udml-ss-synthesis": partial(udml, rotation=True, synthesis=True),
    "two-views": partial(udml, **TWO_VIEWS),
    "averaged": partial(udml, **AVERAGED),
    "features": partial(udml, cluster_on="features"),
    "from-features": partial(udml, **FROM_FEATURES),
    "average-neighbors": partial(udml, **AVERAGE_NEIGHBORS),
    "recipe": partial(udml, **RECIPE),
    "recipe-from-features": partial(udml, **RECIPE, **FROM_FEATURES),
    "recommended": partial(udml, **RECOMMENDED),
    "recommended-true-k": partial(udml, **RECOMMENDED, **TRUE_K),
    "recommended-twice-k": partial(udml, **RECOMMENDED, **TWICE_K),
    "default": default,
    **DEFAULT_VARIANTS,
    **SUPERVISED,
}
COMPARED = (
    *("frozen", "frozen-from-features", "instance", "udml-true-k", "udml-ss-true-k"),
    *("recommended-true-k", "recommended-twice-k", "default", "supervised-default"),
)
