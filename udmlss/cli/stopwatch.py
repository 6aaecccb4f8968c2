"""A timer of embedding, and the duration of a training that follows from it."""

import time

from torch import Tensor, nn

_COST_OF_TRAINING = 3  # time of an epoch divided by the time of an embedding pass of one view


def training_seconds(seconds_per_pass: float, *, n_views: int, epochs: float, n_rounds: int) -> float:
    """Estimate the duration of a training in seconds.

    Args:
        seconds_per_pass: Time in which all images are embedded.
        n_views: Number of views of an image that are embedded. Training uses the image itself only.
        epochs: Length of the training.
        n_rounds: Number of clusterings, before each of which all images are embedded.
    """
    seconds_per_epoch = seconds_per_pass * max(1, _COST_OF_TRAINING / n_views)
    return epochs * seconds_per_epoch + n_rounds * seconds_per_pass


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
