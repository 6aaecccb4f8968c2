"""Rows to a file as they come, and the file as a tensor that memory need not hold."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import disk_usage
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from numpy.lib import format as npy
from torch import Tensor

from udmlss._checks import refusal
from udmlss.types import StoredAs
