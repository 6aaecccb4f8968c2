"""Loading a backbone by its name."""

from difflib import get_close_matches

import torch

from udmlss._checks import as_features, check_integer, type_error, value_error
from udmlss._torch import evaluation_mode
from udmlss.backbones.backbone import Backbone
from udmlss.backbones.providers import (
    LITE_SIZES,
    efficientnet_lite,
    is_timm_name,
    timm_backbone,
    timm_names,
    torchvision_backbone,
    torchvision_names,
)

_MAX_MATCHES = 6


def load_backbone(
    name: str = "efficientnet-lite0", *, image_size: int | None = None, pretrained: bool = True
) -> Backbone:
    """Load a pretrained backbone without its classifier, with the transforms of its weights.

    Args:
        name: One of these names:

            - "efficientnet-lite0", "efficientnet-lite1" or "efficientnet-lite2". Their weights are installed by pip, so
              that nothing is downloaded.
            - "torchvision/" and the name of a classification model of torchvision, such as "torchvision/resnet50".
            - "timm/" and the name of a model of timm, such as "timm/vit_small_patch16_224".
        image_size: Height and width of the images in pixels. None means the size that the weights were trained with.
            Half the size takes about a quarter of the time, and is a good choice without a GPU: our benchmarks use 112
            with "efficientnet-lite0", whose weights were trained with 224.
        pretrained: Whether to load the weights that were trained on ImageNet or other images. The weights of
            torchvision and timm are downloaded at the first use. False initializes the weights at random, and
            downloads nothing.

    Returns:
        The trunk, in training mode and on the CPU, and the settings of its transforms.

    Raises:
        ValueError: `name` is unknown, the model has no pretrained weights or does not end in a linear classifier,
            `image_size` is below 1, or the backbone does not accept images of this size.
        TypeError: `name` is not a string, or `image_size` is not an integer.
        ImportError: The package of the backbone is not installed.
        ConnectionError: The weights cannot be downloaded.

    Example:
        >>> from udmlss.backbones import load_backbone
        >>> backbone = load_backbone("torchvision/resnet18", image_size=112, pretrained=False)
        >>> backbone.trunk(torch.rand(2, 3, 112, 112)).shape
        torch.Size([2, 512])
    """
    if not isinstance(name, str):
        raise type_error("`name` must be a string", type(name).__name__, 'Pass a name such as "efficientnet-lite0"')
    if image_size is not None:
        check_integer("image_size", image_size, 1)
        image_size = int(image_size)
    if name in LITE_SIZES:
        backbone = efficientnet_lite(name, image_size, pretrained=pretrained)
    elif name.startswith("torchvision/") and name in torchvision_names():
        backbone = torchvision_backbone(name, image_size, pretrained=pretrained)
    elif name.startswith("timm/") and is_timm_name(name):
        backbone = timm_backbone(name, image_size, pretrained=pretrained)
    else:
        raise value_error("`name` must be the name of a backbone", repr(name), _remedy(name))
    _check_size(backbone)
    return backbone


def _remedy(name: str) -> str:
    """Return a remedy with similar names, including names that differ in the part before the slash."""
    known = [*LITE_SIZES, *torchvision_names(), *timm_names()]
    matches = get_close_matches(_last_part(name), set(map(_last_part, known)), cutoff=0.75)
    similar = [each for match in matches for each in known if _last_part(each) == match][:_MAX_MATCHES]
    kinds = (
        f"Pass one of {', '.join(map(repr, LITE_SIZES))}, or 'torchvision/' or 'timm/' and the name of a model, as "
        "listed by torchvision.models.list_models() and timm.list_models()"
    )
    return f"Similar names are {', '.join(map(repr, similar))}. {kinds}" if similar else kinds


def _last_part(name: str) -> str:
    return name.rpartition("/")[2].lower().replace("_", "-")


def _check_size(backbone: Backbone) -> None:
    """Raise ValueError unless the trunk computes features of an image of the backbone's size."""
    image = torch.zeros(1, 3, backbone.image_size, backbone.image_size)
    try:
        with torch.no_grad(), evaluation_mode(backbone.trunk):
            as_features(backbone.trunk(image))
    except (AssertionError, RuntimeError, ValueError) as error:  # a model may raise any of them for a wrong size
        rule = f"`image_size` must be one that {backbone.name} accepts"
        found = f"{backbone.image_size} ({error})"
        raise value_error(rule, found, "Omit `image_size`, or pass None, for the size of its weights") from error
