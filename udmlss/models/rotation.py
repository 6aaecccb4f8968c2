"""Images to turned images, and the head that names the turn."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from udmlss._checks import check_integer, value_error

TURNS = 4  # 0, 90, 180 and 270 degrees


def rotate_four_ways(
    images: Float[Tensor, "b c h w"],
) -> tuple[Float[Tensor, "4*b c h w"], Int64[Tensor, " 4*b"]]:
    """Turn each image by 0, 90, 180 and 270 degrees, counter-clockwise.

    Turn after augmenting: a flip after a turn would show 90 and 270 degrees alike.

    Args:
        images: Square images, in any memory format, which is kept.

    Returns:
        The turned images, first all by 0, then all by 90 degrees and so on; and the turn of each, in 0..3.

    Raises:
        ValueError: The images are not square.

    Example:
        >>> turned, turns = rotate_four_ways(torch.zeros(2, 3, 8, 8))
        >>> turned.shape, turns
        (torch.Size([8, 3, 8, 8]), tensor([0, 0, 1, 1, 2, 2, 3, 3]))

    References:
        Unsupervised Representation Learning by Predicting Image Rotations. Gidaris, Singh, Komodakis. 2018.
        https://arxiv.org/abs/1803.07728
    """
    check_square(images)
    turned = torch.cat([torch.rot90(images, turn, dims=(2, 3)) for turn in range(TURNS)])
    if images.is_contiguous(memory_format=torch.channels_last):
        turned = turned.contiguous(memory_format=torch.channels_last)
    return turned, torch.arange(TURNS, device=images.device).repeat_interleave(len(images))


def check_square(images: Float[Tensor, "*b c h w"]) -> None:
    """Refuse images that a quarter turn would give another shape."""
    height, width = images.shape[-2:]
    if height != width:
        raise value_error(
            "Rotation needs square images",
            f"height {height} and width {width}",
            "Crop them square in the transform, or pass `rotation_head=None`",
        )


class RotationPretextHead(nn.Module):
    """Names the turn of an image from the trunk's features: Linear, ReLU, Linear to four logits.

    It reads the trunk's features and not the embeddings, so that the embedding need not know which way is up.

    Args:
        in_features: Dimension f of the trunk's features.
        hidden: Width of the hidden layer. Default as published: 512.

    Raises:
        ValueError: A dimension below 1.

    Example:
        >>> RotationPretextHead(2048)(torch.zeros(8, 2048)).shape
        torch.Size([8, 4])

    References:
        Unsupervised Deep Metric Learning via Auxiliary Rotation Loss. Cao, Chen, Lim. 2019.
        https://arxiv.org/abs/1911.07072. The released code also clips the logits with a ReLU, a slip that can zero
        all four; here they are left as they are.
    """

    def __init__(self, in_features: int, hidden: int = 512) -> None:
        super().__init__()
        check_integer("in_features", in_features, 1)
        check_integer("hidden", hidden, 1)
        self.in_features = in_features
        self.layers = nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU(), nn.Linear(hidden, TURNS))

    def forward(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b 4"]:
        """Return the logits of the four turns."""
        logits: Tensor = self.layers(features)
        return logits
