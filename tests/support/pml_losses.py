"""All losses and miners of pytorch-metric-learning, built from their signatures."""

import inspect
import warnings

import pytest
import torch
from pytorch_metric_learning import losses, miners

K, D = 4, 6  # number of clusters and dimension of the embeddings

ABSTRACT_LOSSES = (
    "BaseLossWrapper",
    "BaseMetricLossFunction",
    "EmbeddingRegularizerMixin",
    "GenericPairLoss",
    "WeightRegularizerMixin",
)
TWO_VIEW_LOSSES = ("SelfSupervisedLoss", "VICRegLoss")
ORDERED_LOSSES = (
    "InstanceLoss",  # uses the j-th row of the batch as the example of its j-th class
    "NPairsLoss",  # uses the first pair of each class in the batch
)
OTHER_MINERS = (
    "BaseMiner",
    "EmbeddingsAlreadyPackagedAsTriplets",  # reads anchors, positives and negatives from the order of the rows
)

_SIZES = {"num_classes": K, "embedding_size": D, "descriptors_dim": D, "l": D, "K": K, "memory_size": 64}


def pair_loss():
    return losses.TripletMarginLoss(margin=0.3)


def _required_values():
    return {
        "margin": 0.4,
        "Tn": 1,
        "loss": losses.ContrastiveLoss(),
        "losses": [losses.ContrastiveLoss(), pair_loss()],
    }


def build(cls, **settings):
    """Build a loss or miner, with sizes for all parameters that need one, and values for other required parameters."""
    torch.manual_seed(1)  # losses of the same class have the same weights
    inits = [base.__init__ for base in cls.__mro__ if "__init__" in vars(base)]
    signatures = [
        [p for p in inspect.signature(init).parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        for init in inits
    ]
    names = {p.name for parameters in signatures for p in parameters}
    required = {p.name for p in signatures[0][1:] if p.default is p.empty}
    values = {name: _SIZES[name] for name in names & _SIZES.keys()}
    values |= {name: value for name, value in _required_values().items() if name in required}
    values |= settings
    if required - values.keys():
        pytest.fail(f"{cls.__name__} needs {sorted(required - values.keys())}: add values to _required_values")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # LargeMarginSoftmaxLoss with NumPy 2
            return cls(**values)
    except Exception as error:  # noqa: BLE001 (the message must name the loss, whatever the error is)
        pytest.fail(f"{cls.__name__}(**{values}) cannot be built: {error!r}")


def _classes(module, excluded):
    return {name: cls for name, cls in vars(module).items() if isinstance(cls, type) and name not in excluded}


LOSSES = _classes(losses, ABSTRACT_LOSSES + TWO_VIEW_LOSSES)
MEMORY_LOSSES = [f"CrossBatchMemory({name})" for name in losses.CrossBatchMemory.supported_losses()]
MINERS = _classes(miners, OTHER_MINERS)


def make(name):
    """Build a loss from its name, such as "ArcFaceLoss" or "CrossBatchMemory(ContrastiveLoss)"."""
    outer, _, inner = name.removesuffix(")").partition("(")
    return build(LOSSES[outer], **({"loss": build(LOSSES[inner])} if inner else {}))


def _has_class_weights(name):
    try:
        return any(parameter.ndim == 2 for parameter in make(name).parameters())
    except pytest.fail.Exception:  # the tests of all losses report it
        return False


PROXY_LOSSES = [name for name in LOSSES if _has_class_weights(name)]
