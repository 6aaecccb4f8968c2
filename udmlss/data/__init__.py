"""Datasets for training and evaluation: rendered characters, published benchmarks, and folders of images."""

from udmlss.data.archives import unpack
from udmlss.data.cars196 import cars196
from udmlss.data.cub200 import cub200
from udmlss.data.glyphs import Glyphs, glyphs
from udmlss.data.image_folder import ImageFiles, image_folder, split_classes
from udmlss.data.inshop import inshop
from udmlss.data.sop import sop

__all__ = [
    "Glyphs",
    "ImageFiles",
    "cars196",
    "cub200",
    "glyphs",
    "image_folder",
    "inshop",
    "sop",
    "split_classes",
    "unpack",
]
