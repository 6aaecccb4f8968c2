"""Pretrained backbones by name, with the transforms that their weights need."""

from udmlss.backbones.backbone import Backbone
from udmlss.backbones.loader import load_backbone

__all__ = ["Backbone", "load_backbone"]
