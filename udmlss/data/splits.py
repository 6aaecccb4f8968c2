"""Splits of labeled images by class."""

import torch
from jaxtyping import Int64
from torch import Tensor

from udmlss._checks import as_labels, check_number, value_error
from udmlss.types import Labels


def split_classes(labels: Labels, fraction: float = 0.5) -> tuple[Int64[Tensor, " first"], Int64[Tensor, " second"]]:
    """Split images into two parts that have no class in common.

    Train on one part and score on the other to choose settings without the test classes. The images of a part are
    `torch.utils.data.Subset(images, indices.tolist())`.

    Args:
        labels: Class of each image.
        fraction: Fraction of the classes, in ascending order, that are in the first part, rounded down to whole
            classes. The default is that of the usual splits of CUB-200-2011 and Cars196.

    Returns:
        The indices of the images in the first part, and those in the second; both are ascending.

    Raises:
        ValueError: `fraction` is not in 0..1, a part would have no class, or a label is below 0.
        TypeError: The labels are not integers.

    Example:
        >>> split_classes([2, 0, 1, 3, 0])
        (tensor([1, 2, 4]), tensor([0, 3]))
    """
    check_number("fraction", fraction, least=0, most=1)
    labels = as_labels(labels)
    if (labels < 0).any():
        found = f"{int((labels < 0).sum())} of {len(labels)} below 0"
        raise value_error("`labels` must be 0 or above", found, "Remove the images without a class")
    classes = labels.unique()
    n_first = int(round(float(fraction) * len(classes), 6))  # 0.29 * 100 is slightly below 29 in floating point
    if not 0 < n_first < len(classes):
        found, remedy = f"{len(classes)} classes", "Choose a fraction closer to 0.5, or add images of other classes"
        raise value_error(f"`fraction={fraction}` must leave a class in each part", found, remedy)
    in_first = torch.isin(labels, classes[:n_first])
    return in_first.nonzero().flatten(), (~in_first).nonzero().flatten()
