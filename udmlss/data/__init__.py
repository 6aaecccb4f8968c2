"""Datasets for training and evaluation: rendered characters, published benchmarks, and image files."""

from udmlss.data.archives import unpack
from udmlss.data.glyphs import Glyphs, glyphs
from udmlss.data.image_files import DamagedImage, ImageFiles, find_damaged
from udmlss.data.image_folder import find_images, image_folder
from udmlss.data.path_lists import read_paths
from udmlss.data.published import cars196, cub200, inshop, sop
from udmlss.data.quality import ImageCheck, ImageFinding, check_images
from udmlss.data.splits import split_classes
from udmlss.data.tar_images import TarImages

__all__ = [
    "DamagedImage",
    "Glyphs",
    "ImageCheck",
    "ImageFiles",
    "ImageFinding",
    "TarImages",
    "cars196",
    "check_images",
    "cub200",
    "find_damaged",
    "find_images",
    "glyphs",
    "image_folder",
    "inshop",
    "read_paths",
    "sop",
    "split_classes",
    "unpack",
]
