"""Data sets to train and to test on: one made on the spot, those of the literature, and folders of one's own."""

from udmlss.data.archive import unpack
from udmlss.data.cars196 import cars196
from udmlss.data.cub200 import cub200
from udmlss.data.glyphs import Glyphs, glyphs
from udmlss.data.image_files import ImageFiles
from udmlss.data.image_folder import image_folder
from udmlss.data.inshop import inshop
from udmlss.data.sop import sop
from udmlss.data.split import split_classes

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
