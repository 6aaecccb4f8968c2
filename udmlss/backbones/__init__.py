"""Pretrained backbones by name, with the transforms that their weights need."""

from udmlss.backbones.averaged_views import AveragedViews, MirrorImage
from udmlss.backbones.backbone import Backbone
from udmlss.backbones.colors import color_augmentation
from udmlss.backbones.loader import load_backbone

__all__ = ["AveragedViews", "Backbone", "MirrorImage", "color_augmentation", "load_backbone"]
