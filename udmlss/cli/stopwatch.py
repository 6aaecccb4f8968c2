"""A timer of embedding."""

import time

from torch import Tensor, nn


class Stopwatch:
    """Measures the time that embedding an image takes, during a block that embeds images in batches.

    The time until the end of the first batch is not counted, because it includes the start of worker processes.

    Args:
        trunk: The trunk that embeds the images.
    """

    def __init__(self, trunk: nn.Module) -> None:
        self._trunk = trunk
        self._ends: list[float] = []
        self._n_images: list[int] = []

    def __enter__(self) -> "Stopwatch":  # noqa: PYI034 (the type checker of the tests does not support Self)
        self._hook = self._trunk.register_forward_hook(self._on_batch)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _on_batch(self, _trunk: nn.Module, images: tuple[Tensor], _features: object) -> None:
        self._ends.append(time.perf_counter())
        self._n_images.append(len(images[0]))

    @property
    def seconds_per_image(self) -> float:
        """Time per image in seconds; 0 if there was only one batch."""
        return (self._ends[-1] - self._ends[0]) / max(1, sum(self._n_images[1:]))
