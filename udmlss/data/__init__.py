"""Data sets to train and to test on: the one made on the spot, and the usual benchmarks."""

from udmlss.data.glyphs import glyphs

__all__ = ["glyphs"]
