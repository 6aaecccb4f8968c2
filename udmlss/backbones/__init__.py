"""Pretrained backbones by name, with the transforms that their weights need."""

from udmlss.backbones.backbone import Backbone
from udmlss.backbones.colors import color_augmentation
from udmlss.backbones.loader import load_backbone

__all__ = ["Backbone", "color_augmentation", "load_backbone"]
