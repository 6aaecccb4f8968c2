"""Refusals, worded alike: the rule, what was found, the remedy."""

import torch
from torch import Tensor

from udmlss.chunking import row_slices


def refusal(rule: str, found: object, remedy: str) -> ValueError:
    """Return the error for a value that breaks a rule; the caller raises it."""
    return ValueError(_sentence(rule, found, remedy))


def type_refusal(rule: str, found: object, remedy: str) -> TypeError:
    """Return the error for an object of the wrong kind; the caller raises it."""
    return TypeError(_sentence(rule, found, remedy))


def _sentence(rule: str, found: object, remedy: str) -> str:
    return f"{rule}; found {found}. {remedy}."


def check_at_least(name: str, value: float, least: float) -> None:
    """Refuse a number below the least that makes sense."""
    if value < least:
        raise refusal(f"`{name}` must be at least {least}", value, "Raise it")


def check_positive(name: str, value: float) -> None:
    """Refuse a number that is not above zero."""
    if not value > 0:
        raise refusal(f"`{name}` must be above 0", value, "Raise it")


def check_within(name: str, value: float, least: float, most: float) -> None:
    """Refuse a number outside a range; both ends are allowed."""
    if not least <= value <= most:
        raise refusal(f"`{name}` must lie in {least}..{most}", value, "Choose a number in this range")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise refusal(f"`{name}` must be one of {listed}", repr(value), "Pass one of these")


def check_features(features: Tensor) -> None:
    """Refuse features that are not one row per image."""
    if not isinstance(features, Tensor):
        raise type_refusal(
            "The trunk must return features (b f)",
            type(features).__name__,
            "Wrap it in a module that returns the one tensor you want, such as `trunk(images).pooler_output`",
        )
    if features.ndim != 2:  # noqa: PLR2004
        has_tokens = features.ndim == 3  # noqa: PLR2004
        raise refusal(
            "The trunk must return features (b f)",
            f"shape {tuple(features.shape)}",
            "Take a token or their mean" if has_tokens else "End it in nn.AdaptiveAvgPool2d(1) and nn.Flatten()",
        )


def check_embeddings(embeddings: Tensor, name: str = "embeddings") -> None:
    """Refuse what is no finite floating-point matrix with at least one row and one column."""
    if not isinstance(embeddings, Tensor):
        raise type_refusal(f"`{name}` must be a tensor (n d)", type(embeddings).__name__, "Use torch.as_tensor")
    if embeddings.ndim != 2 or 0 in embeddings.shape:  # noqa: PLR2004
        shape = tuple(embeddings.shape)
        raise refusal(f"`{name}` must be a non-empty matrix (n d)", f"shape {shape}", "Flatten each item to one row")
    if not embeddings.is_floating_point():
        raise type_refusal(f"`{name}` must hold floating-point numbers", embeddings.dtype, "Call .float() first")
    finite = torch.empty(len(embeddings), dtype=torch.bool, device=embeddings.device)
    for rows in row_slices(embeddings):
        finite[rows] = torch.isfinite(embeddings[rows]).all(dim=1)
    if not finite.all():
        bad = (~finite).nonzero().flatten()
        found = f"{len(bad)} of {len(embeddings)} rows with NaN or infinity, the first is row {int(bad[0])}"
        raise refusal(
            f"`{name}` must be finite",
            found,
            "Lower the learning rate, clip the gradient, or look at that image",
        )


def check_labels(labels: Tensor, n: int, name: str = "labels") -> None:
    """Refuse labels that are not one whole number per item."""
    if not isinstance(labels, Tensor):
        raise type_refusal(f"`{name}` must be a tensor (n)", type(labels).__name__, "Use torch.as_tensor")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise type_refusal(f"`{name}` must be whole numbers", labels.dtype, "Call .long() first")
    if labels.shape != (n,):
        found = f"shape {tuple(labels.shape)}"
        raise refusal(
            f"`{name}` must have shape ({n},), one label per item", found, "Pass one label per item, in order"
        )
