"""Data sets to train and to test on: one made on the spot, and folders of images."""

from udmlss.data.cub200 import cub200
from udmlss.data.files import ImageFiles
from udmlss.data.glyphs import Glyphs, glyphs

__all__ = ["Glyphs", "ImageFiles", "cub200", "glyphs"]
