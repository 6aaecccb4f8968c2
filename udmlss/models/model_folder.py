"""The folder of a saved model: its weights in safetensors, and its description in JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from udmlss._checks import type_error, value_error
from udmlss._files import replace_folder

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"

_LIBRARY = "udmlss"
_MAX_NAMES = 3


def write_model_folder(folder: Path, config: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write a folder under another name and rename it; an existing saved model is replaced.

    Raises:
        ValueError: The folder holds other files.
        TypeError: The configuration cannot be written as JSON.
        OSError: The folder cannot be written. A saved model in it is unchanged.
    """
    from safetensors import SafetensorError  # noqa: PLC0415 (`import udmlss` does not import safetensors)
    from safetensors.torch import save_file  # noqa: PLC0415 (as above)

    folder = folder.resolve()  # a link is retained, and the folder that it points to is replaced
    _check_target(folder)
    text = json.dumps({"library": _LIBRARY, "format": FORMAT} | _as_json(config), indent=2)
    with replace_folder(folder) as part:
        try:
            save_file(dict(weights), part / WEIGHTS)
        except SafetensorError as error:  # for example if the disk is full
            message = f"The model could not be written to {folder}: {error}"
            raise OSError(message) from error
        (part / CONFIG).write_text(text + "\n", encoding="utf-8")


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration, or raise TypeError with the name of an entry that JSON cannot hold."""
    for name, value in config.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            remedy = "Convert them to numbers, strings, lists and dicts"
            raise type_error(f"`{name}` must consist of values of JSON", str(error), remedy) from error
    return dict(config)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of a saved model.

    Raises:
        ValueError: The folder is not a saved model, or was written in a newer format.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        found = f"{folder}, which has no {CONFIG}" if folder.is_dir() else f"{folder}, which does not exist"
        raise _not_a_model(found) from error
    except NotADirectoryError as error:
        raise _not_a_model(f"the file {folder}") from error
    except ValueError as error:  # of json, and of the encoding
        raise _not_a_model(f"{folder / CONFIG}, which is not JSON ({error})") from error
    if not isinstance(config, dict) or config.get("library") != _LIBRARY:
        raise _not_a_model(f"{folder / CONFIG}, which another program wrote")
    if not isinstance(config.get("format"), int) or config["format"] > FORMAT:
        rule = f"A saved model must have format {FORMAT} or an earlier one"
        raise value_error(rule, f"{config.get('format')} in {folder / CONFIG}", "Update udmlss")
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a saved model on the CPU.

    Raises:
        ValueError: The file is missing or damaged.
    """
    from safetensors import SafetensorError  # noqa: PLC0415 (as above)
    from safetensors.torch import load_file  # noqa: PLC0415 (as above)

    path = folder / WEIGHTS
    try:
        # Copies do not map the file, which may be replaced later
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except FileNotFoundError as error:
        raise _not_a_model(f"{folder}, which has no {WEIGHTS}") from error
    except (SafetensorError, OSError) as error:
        rule = f"{WEIGHTS} must be a complete file of safetensors"
        raise value_error(rule, f"{path}, which is damaged ({error})", "Copy or save the model again") from error


def check_weights_fit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], remedy: str) -> None:
    """Raise ValueError unless two sets of weights have the same names and shapes."""
    differences = [f"{name} is missing" for name in expected if name not in found]
    differences += [f"{name} is not in the model" for name in found if name not in expected]
    differences += [
        f"{name} has shape {tuple(found[name].shape)} instead of {tuple(weight.shape)}"
        for name, weight in expected.items()
        if name in found and found[name].shape != weight.shape
    ]
    if differences:
        listed = "; ".join(differences[:_MAX_NAMES])
        rule = "The weights of a saved model must fit its trunk and its embedder"
        raise value_error(rule, f"{len(differences)} differences: {listed}", remedy)


def damaged_config(folder: Path, found: str) -> ValueError:
    """Return the error for a configuration that lacks entries."""
    rule = f"{CONFIG} must be as `save_model` has written it"
    return value_error(rule, f"{folder / CONFIG} with {found}", "Copy or save the model again")


def _not_a_model(found: str) -> ValueError:
    remedy = "Pass a folder that `save_model` has written"
    return value_error(f"A saved model must be a folder with {CONFIG} and {WEIGHTS}", found, remedy)


def _check_target(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise value_error("`folder` must be a folder", f"the file {folder}", "Choose another name")
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in names if name not in {CONFIG, WEIGHTS}]
    if others:
        rule = "`folder` must be new, empty, or hold a saved model only"
        listed = ", ".join(others[:_MAX_NAMES])
        raise value_error(rule, f"{folder}, which holds {listed}", f"Choose another, such as {folder / 'model'}")
    if CONFIG in names:
        read_config(folder)  # a config.json of another program is not replaced
