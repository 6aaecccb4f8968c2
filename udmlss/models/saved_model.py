"""Saving a model as a folder, and reading its parts."""

import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from udmlss._checks import check_module, value_error
from udmlss._torch import check_weights, device_of, load_plain_state_dict, plain_state_dict, trunk_of
from udmlss.backbones import Backbone, load_backbone
from udmlss.backbones.averaged_views import averages_of
from udmlss.models.model_folder import check_weights_fit, damaged_config, read_config, read_weights, write_model_folder
from udmlss.models.neck import BatchNormNeck
from udmlss.models.pca import PCAEmbedder

# Each class with the attributes that are arguments of its constructor
_LAYERS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "BatchNorm1d": (nn.BatchNorm1d, ("num_features", "eps", "momentum", "affine", "track_running_stats")),
    "BatchNormNeck": (BatchNormNeck, ("num_features",)),
    "Dropout": (nn.Dropout, ("p",)),
    "GELU": (nn.GELU, ("approximate",)),
    "Identity": (nn.Identity, ()),
    "LayerNorm": (nn.LayerNorm, ("normalized_shape", "eps", "elementwise_affine")),
    "Linear": (nn.Linear, ("in_features", "out_features")),
    "PCAEmbedder": (PCAEmbedder, ("in_features", "out_features", "center", "power")),
    "ReLU": (nn.ReLU, ()),
}


def save_model(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    backbone: Backbone | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> None:
    """Save a model as a folder with its weights in `model.safetensors` and its description in `config.json`.

    The folder is written under another name and then renamed. It replaces a saved model of the same name.

    Args:
        model: An `EmbeddingModel`, compiled or not.
        folder: Path of the folder, which is created.
        backbone: The backbone whose trunk the model has, as returned by `load_backbone`. `load_model` then needs
            nothing but the folder, and returns the transforms as well. None saves a model whose trunk must be passed to
            `load_model`.
        recipe: Settings of the training or other notes, which are stored in `config.json`: a dictionary of numbers,
            strings, None, lists and dictionaries. None stores none.

    Raises:
        ValueError: The model does not have the trunk of the backbone or has parameters without values, or the folder
            holds other files.
        TypeError: `model` has no trunk or no embedder, or the recipe cannot be written as JSON.
        OSError: The folder cannot be written. A saved model in it is unchanged.

    Example:
        >>> from udmlss.models import load_model, save_model
        >>> model = EmbeddingModel(nn.Flatten(), nn.Linear(192, 64))
        >>> save_model(model, "runs/flat")  # doctest: +SKIP
        >>> model, _ = load_model("runs/flat", trunk=nn.Flatten())  # doctest: +SKIP
    """
    trunk = trunk_of(model)
    embedder: Any = getattr(model, "embedder", None)
    check_module("model.embedder", embedder)
    check_weights(model)
    if backbone is not None:
        remedy = "Pass the backbone whose trunk the model has, or None"
        check_weights_fit(_weights_of(backbone.trunk), _weights_of(trunk), remedy)
        _check_views(backbone, trunk, remedy)
    config = {
        "version": import_module("udmlss").__version__,
        "backbone": None if backbone is None else _describe_backbone(backbone),
        "embedder": _describe_layers(embedder),
        "recipe": recipe,
    }
    write_model_folder(Path(folder).expanduser(), config, _weights_of(_as_one(trunk, embedder)))


def read_model(
    folder: Path, trunk: nn.Module | None, embedder: nn.Module | None
) -> tuple[nn.Module, nn.Module, Backbone | None]:
    """Return the trunk, the embedder and the backbone of a saved model; `load_model` documents arguments and errors."""
    for name, part in (("trunk", trunk), ("embedder", embedder)):
        if part is not None:
            check_module(name, part)
    config, weights = read_config(folder), read_weights(folder)
    try:
        backbone = _build_backbone(config["backbone"], folder, trunk)
        trunk = _needed("trunk", trunk if backbone is None else backbone.trunk, folder)
        if embedder is None:  # an empty nn.Sequential is false
            embedder = _needed("embedder", _build_layers(config["embedder"]), folder)
    except (KeyError, TypeError) as error:
        raise damaged_config(folder, f"{type(error).__name__}: {error}") from error
    device, model = device_of(trunk), _as_one(trunk, embedder)
    check_weights_fit(plain_state_dict(model), weights, "Pass a trunk and an embedder of the same architecture")
    load_plain_state_dict(model, weights, assign=True)  # assigns the data types too
    model.to(device)
    return trunk, embedder, backbone


def _check_views(backbone: Backbone, trunk: nn.Module, remedy: str) -> None:
    """Raise ValueError unless the trunk averages the views of the backbone, and `config.json` can describe them."""
    expected, found = averages_of(backbone.trunk), averages_of(trunk)
    if found != expected:
        rule = "`model` must average the views of the backbone"
        raise value_error(rule, f"{found or 'none'}, not {expected or 'none'}", remedy)
    if len(expected) > backbone.ignores_colors + backbone.ignores_orientation:
        rule = "`backbone` must average no other views than those of `without_colors` and `without_orientation`"
        raise value_error(rule, expected, "Omit `backbone`")


def _as_one(trunk: nn.Module, embedder: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict({"trunk": trunk, "embedder": embedder})


def _weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights on the CPU, each in its own memory, under the names of the model before compilation."""
    return {
        name: weight.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, weight in plain_state_dict(module).items()
    }


def _describe_backbone(backbone: Backbone) -> dict[str, Any]:
    described = {field.name: getattr(backbone, field.name) for field in fields(backbone) if field.name != "trunk"}
    return described | {  # numbers of NumPy cannot be written as JSON
        "image_size": int(backbone.image_size),
        "mean": [float(value) for value in backbone.mean],
        "std": [float(value) for value in backbone.std],
        "crop_fraction": float(backbone.crop_fraction),
        "ignores_colors": backbone.ignores_colors,
        "ignores_orientation": backbone.ignores_orientation,
    }


def _build_backbone(described: dict[str, Any] | None, folder: Path, trunk: nn.Module | None) -> Backbone | None:
    """Return the described backbone with this trunk, or with one that has random weights if it is None."""
    if described is None:
        return None
    settings = described | {"mean": tuple(described["mean"]), "std": tuple(described["std"])}
    # Folders of earlier versions do not have these
    ignores_colors, ignores_orientation = (
        settings.pop(name, False) for name in ("ignores_colors", "ignores_orientation")
    )
    backbone = Backbone(trunk=_load_trunk(described, folder) if trunk is None else trunk, **settings)
    backbone = backbone.without_colors() if ignores_colors else backbone
    return backbone.without_orientation() if ignores_orientation else backbone


def _load_trunk(described: dict[str, Any], folder: Path) -> nn.Module:
    """Return the trunk of the described backbone with random weights."""
    name, size = described["name"], described["image_size"]
    try:
        return load_backbone(name, image_size=size, pretrained=False).trunk
    except ValueError as error:  # the name of a backbone that the caller created
        rule = f"`trunk` must be passed for the backbone {name!r}"
        raise value_error(rule, f"None for {folder} ({error})", "Pass a trunk of the same architecture") from error


def _describe_layers(layer: nn.Module) -> dict[str, Any] | None:
    """Return a description from which the layers can be built, or None if one of them is not in `_LAYERS`."""
    if type(layer) is nn.Sequential:
        layers = {name: _describe_layers(child) for name, child in layer.named_children()}
        return None if None in layers.values() else {"type": "Sequential", "layers": layers}
    name = type(layer).__name__
    if name not in _LAYERS or type(layer) is not _LAYERS[name][0]:
        return None
    settings = {attribute: getattr(layer, attribute) for attribute in _LAYERS[name][1]}
    if type(layer) in {nn.Linear, nn.LayerNorm}:
        settings["bias"] = layer.bias is not None
    return {"type": name, **settings}


def _build_layers(described: dict[str, Any] | None) -> nn.Module | None:
    if described is None:
        return None
    settings = dict(described)
    name = settings.pop("type")
    if name != "Sequential":
        return _LAYERS[name][0](**settings)
    layers = OrderedDict((each, _build_layers(layer)) for each, layer in settings["layers"].items())
    return nn.Sequential(layers)


def _needed(name: str, part: nn.Module | None, folder: Path) -> nn.Module:
    if part is None:
        rule = f"`{name}` must be passed for a model whose {name} cannot be built from its folder"
        raise value_error(rule, f"None for {folder}", "Pass a module of the same architecture")
    return part
