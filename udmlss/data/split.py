"""Labels to two halves that share no class."""

import torch
from jaxtyping import Int64
from torch import Tensor

from udmlss._checks import as_labels, value_error


def split_classes(
    labels: Int64[Tensor, " n"], share: float = 0.5
) -> tuple[Int64[Tensor, " first"], Int64[Tensor, " second"]]:
    """Split images by class, so that what is tried out on one side is judged on classes that it never saw.

    Settings chosen on a split of the training classes owe nothing to the test classes. The images of a side are
    `torch.utils.data.Subset(images, first.tolist())`.

    Args:
        labels: Class of each image.
        share: Share of the classes, in ascending order, that go to the first side, rounded down to whole classes.
            The default is how the literature splits CUB-200-2011 and Cars196.

    Returns:
        The indices of the images on the first side, and of those on the second, both ascending.

    Raises:
        ValueError: An image has no class; a side would have none.
        TypeError: `labels` is no tensor of whole numbers.

    Example:
        >>> split_classes(torch.tensor([2, 0, 1, 3, 0]))
        (tensor([1, 2, 4]), tensor([0, 3]))
    """
    as_labels(labels, len(labels))
    if (labels < 0).any():
        found = f"{int((labels < 0).sum())} of {len(labels)} below 0"
        raise value_error("Splitting by class needs a class for each image", found, "Leave the other images out")
    classes = labels.unique()
    count = int(round(share * len(classes), 6))  # 0.29 * 100 is a little under 29
    if not 0 < count < len(classes):
        remedy = "Pass a share between 0 and 1, or images of more classes"
        raise value_error(f"`share={share}` must give each side a class", f"{len(classes)} classes", remedy)
    first = torch.isin(labels, classes[:count])
    return first.nonzero().flatten(), (~first).nonzero().flatten()
