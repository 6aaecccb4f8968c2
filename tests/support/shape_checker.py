"""The type checker behind jaxtyping's import hook: beartype, for which numbers of NumPy are numbers, too.

An `int` is also a `float`, as PEP 484 says, and a parameter annotated `int` or `float` accepts a number of NumPy.
"""

import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

_NUMBERS = FrozenDict({int: int | np.integer, float: float | int | np.floating | np.integer})
check = beartype(conf=BeartypeConf(hint_overrides=_NUMBERS))
