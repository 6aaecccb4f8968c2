"""Images in files, with a class each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False, repr=False)
class ImageFiles(Dataset[tuple[Any, int]]):
    """Images read from files when they are taken; an item is `(image, label)`.

    Args:
        paths: One file per image.
        labels: Class of each image, an index into `classes`; -1 for an image without a class.
        classes: Names of the classes; empty for images without classes.
        transform: Applied to the PIL image, in RGB; give one that ends in a tensor.

    Raises:
        OSError: A file is missing, truncated or no image, said with its path when it is taken.
    """

    paths: Sequence[Path]
    labels: Int64[Tensor, " n"]
    classes: Sequence[str]
    transform: "Callable[[Image], Any] | None" = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = _read(self.paths[index])
        return (self.transform(image) if self.transform else image), int(self.labels[index])

    def __repr__(self) -> str:
        classes = f"of {len(self.classes)} classes" if self.classes else "without classes"
        return f"ImageFiles({len(self)} images {classes})"


def _read(path: Path) -> "Image":
    try:
        from PIL import Image  # noqa: PLC0415 (optional)
    except ImportError as error:
        message = 'Reading image files needs Pillow, got none. Type: pip install "udmlss[demo]"'
        raise ImportError(message, name=error.name) from error
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all that Pillow's readers raise
        message = f"{path} must be a whole image file; found: {error}. Download or unpack it again, or leave it out."
        raise OSError(message) from error
