"""Actions at the moments at which Python handles signals: at the start of a function, and after a call of C code."""

import random
import sys
from collections import defaultdict
from pathlib import Path

import udmlss

_LIBRARY = str(Path(udmlss.__file__).parent)


class Moments:
    """The moments of a program, counted in a `with` block.

    Args:
        *files: Parts of the names of the source files whose moments count. None counts those of the library.
        number: The number of the moment at which the action is called. None calls none.
        action: A function without arguments, which may raise an error.
    """

    def __init__(self, *files, number=None, action=None):
        self.files, self.number, self.action = files or (_LIBRARY, "contextlib.py"), number, action
        self.places = []

    def __enter__(self):
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)

    @property
    def place(self):
        return self.places[-1]

    def sample(self, n, seed):
        """Return the numbers of some moments: of random places in the source, at a random one of their moments."""
        numbers = defaultdict(list)
        for number, place in enumerate(self.places, 1):
            numbers[place].append(number)
        generator = random.Random(seed)  # noqa: S311 (no secrets)
        return [generator.choice(numbers[place]) for place in generator.choices(sorted(numbers), k=n)]

    def _count(self, frame, event, _argument):
        name = frame.f_code.co_filename
        if event not in {"call", "c_return"} or not any(part in name for part in self.files):
            return
        self.places.append(f"{Path(name).name}:{frame.f_lineno} {frame.f_code.co_name} {event}")
        if len(self.places) == self.number:
            sys.setprofile(None)
            self.action()
