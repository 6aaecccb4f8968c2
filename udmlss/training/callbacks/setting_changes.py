"""Settings that may differ between an interrupted run and the run that resumes it."""

import warnings
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import LRScheduler

from udmlss._checks import value_error
from udmlss.distributed import is_rank_zero
from udmlss.training.identity import differences, optimizer_settings

if TYPE_CHECKING:
    from udmlss.training.run import Run

_OTHER_SETTINGS = ("clip_norm", "precision")
Changes = dict[str, tuple[Any, Any]]  # the old and the new value of each changed setting, by the name of the setting


def load_with_changes(run: "Run", state: dict[str, Any], allowed: Collection[str]) -> None:
    """Load the state of a run, except the values of settings that may change.

    A new learning rate scales the present one, so that a scheduler continues its course.

    Args:
        run: The run that resumes, with its own settings.
        state: The state in the checkpoint.
        allowed: Names of settings of the optimizer's parameter groups, "clip_norm" or "precision".

    Raises:
        ValueError: There is no setting of an allowed name, or the state differs from the run in other settings.
    """
    possible = sorted({*map(_setting, optimizer_settings(run.optimizer)), *_OTHER_SETTINGS})
    if unknown := [name for name in allowed if name not in possible]:
        remedy = f"Choose from {', '.join(possible)}"
        raise value_error("`allow_changes` must name settings that may change", repr(unknown[0]), remedy)
    pairs = differences(state["identity"], run.identity)
    changes = {name: pair for name, pair in pairs.items() if _setting(name) in allowed}
    run.load_state_dict(state | {"identity": state["identity"] | {name: new for name, (_, new) in changes.items()}})
    for number, group in enumerate(run.optimizer.param_groups):
        prefix = f"optimizer.{group.get('name', number)}."
        _set(group, {name.removeprefix(prefix): pair for name, pair in changes.items() if name.startswith(prefix)})
    if run.scheduler is not None and "lr" in map(_setting, changes):
        _set_learning_rates(run.scheduler)
    if changes and is_rank_zero():
        listed = ", ".join(f"{name} from {old} to {new}" for name, (old, new) in changes.items())
        warnings.warn(f"The resumed run changes {listed}.", stacklevel=2)


def _setting(name: str) -> str:
    """Return the name of a setting without its parameter group; all learning rates of a scheduler are "lr"."""
    if not name.startswith("optimizer."):
        return name if name in _OTHER_SETTINGS else ""
    key = name.rsplit(".", 1)[1]
    return "lr" if key.endswith("_lr") else key


def _set(group: dict[str, Any], changes: Changes) -> None:
    """Set the changed settings of a parameter group."""
    lr = group["lr"]
    for key, (_, new) in changes.items():
        group[key] = new
    if "lr" in changes or "initial_lr" in changes:
        old, new = changes.get("initial_lr") or changes["lr"]
        group["lr"] = new if old in {lr, 0} else lr * new / old


def _set_learning_rates(scheduler: LRScheduler) -> None:
    """Set the base learning rates of a scheduler and of the schedulers that it contains."""
    groups = scheduler.optimizer.param_groups
    for each in (scheduler, *getattr(scheduler, "_schedulers", ())):
        each.base_lrs = [group["initial_lr"] for group in groups]
        each._last_lr = [group["lr"] for group in groups]  # noqa: SLF001 (of torch; `get_last_lr` returns it)
