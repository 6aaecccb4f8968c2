"""Pretrained backbones by name, with the transforms that their weights need."""

from udmlss.backbones.augmentations import color_augmentation, rotation_augmentation
from udmlss.backbones.averaged_views import AveragedViews, MirrorImage, RotatedImage
from udmlss.backbones.backbone import Backbone
from udmlss.backbones.loader import load_backbone

__all__ = [
    "AveragedViews",
    "Backbone",
    "MirrorImage",
    "RotatedImage",
    "color_augmentation",
    "load_backbone",
    "rotation_augmentation",
]
