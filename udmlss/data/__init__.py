"""Datasets for training and evaluation: rendered characters, published benchmarks, and folders of images."""

from udmlss.data.archives import unpack
from udmlss.data.glyphs import Glyphs, glyphs
from udmlss.data.image_files import DamagedImage, ImageFiles, find_damaged
from udmlss.data.image_folder import image_folder
from udmlss.data.published import cars196, cub200, inshop, sop
from udmlss.data.splits import split_classes

__all__ = [
    "DamagedImage",
    "Glyphs",
    "ImageFiles",
    "cars196",
    "cub200",
    "find_damaged",
    "glyphs",
    "image_folder",
    "inshop",
    "sop",
    "split_classes",
    "unpack",
]
