"""Published benchmark datasets in the layouts of their authors."""

from udmlss.data.published.cars196 import cars196
from udmlss.data.published.cub200 import cub200
from udmlss.data.published.inshop import inshop
from udmlss.data.published.sop import sop

__all__ = ["cars196", "cub200", "inshop", "sop"]
