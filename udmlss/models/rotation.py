"""Rotated images and the head that predicts their rotation."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from udmlss._checks import as_features, check_integer, value_error
from udmlss._torch import to_dtype, trunk_of

_ROTATIONS = 4  # by 0, 90, 180 and 270 degrees


def rotate_four_ways(
    images: Float[Tensor, "b c h w"],
) -> tuple[Float[Tensor, "4*b c h w"], Int64[Tensor, " 4*b"]]:
    """Rotate each image by 0, 90, 180 and 270 degrees counter-clockwise.

    Rotate after augmenting. A horizontal flip that follows a rotation makes 90 and 270 degrees indistinguishable.

    Args:
        images: Square images (b, c, h, w). Their memory format is preserved.

    Returns:
        The rotated images (4 * b, c, h, w), first all by 0 degrees, then all by 90 degrees and so on, and the rotation
        class of each in 0..3.

    Raises:
        ValueError: The images are not square.

    Example:
        >>> rotated, rotations = rotate_four_ways(torch.zeros(2, 3, 8, 8))
        >>> rotated.shape, rotations
        (torch.Size([8, 3, 8, 8]), tensor([0, 0, 1, 1, 2, 2, 3, 3]))

    References:
        Unsupervised Representation Learning by Predicting Image Rotations. Gidaris, Singh, Komodakis. 2018.
        https://arxiv.org/abs/1803.07728
    """
    check_square(images)
    rotated = torch.cat([torch.rot90(images, rotation, dims=(2, 3)) for rotation in range(_ROTATIONS)])
    if images.is_contiguous(memory_format=torch.channels_last):
        rotated = rotated.contiguous(memory_format=torch.channels_last)
    return rotated, torch.arange(_ROTATIONS, device=images.device).repeat_interleave(len(images))


def check_square(images: Float[Tensor, "*b c h w"]) -> None:
    """Raise ValueError unless the images are square."""
    height, width = images.shape[-2:]
    if height != width:
        raise value_error(
            "Rotated images must be square",
            f"height {height} and width {width}",
            "Crop them square in the transform, or pass `rotation_head=None`",
        )


class RotationPretextHead(nn.Module):
    """A classifier of the rotation of an image, on the trunk's features: Linear, ReLU, Linear to four logits.

    The head reads the trunk's features and not the embeddings, so that the embeddings need not encode the rotation.

    Args:
        in_features: Dimension f of the trunk's features.
        hidden: Width of the hidden layer. The default of 512 is the published one.
        max_images: Largest number of images of a batch that `predict_rotations` rotates. The default of 16 is the one
            of the released code, whose batches have 80 images and which samples them with replacement.

    Raises:
        ValueError: A number is below 1.

    Example:
        >>> RotationPretextHead(2048)(torch.zeros(8, 2048)).shape
        torch.Size([8, 4])

    References:
        Unsupervised Deep Metric Learning via Auxiliary Rotation Loss. Cao, Chen, Lim. 2019.
        https://arxiv.org/abs/1911.07072. The released code also applies a ReLU to the logits, which can set all four
        to zero; this head does not.
    """

    def __init__(self, in_features: int, hidden: int = 512, max_images: int = 16) -> None:
        super().__init__()
        check_integer("in_features", in_features, 1)
        check_integer("hidden", hidden, 1)
        check_integer("max_images", max_images, 1)
        self.in_features = in_features
        self.max_images = max_images
        self.layers = nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU(), nn.Linear(hidden, _ROTATIONS))

    def forward(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b 4"]:
        """Return the logits of the four rotation classes. Features are converted to the data type of the head."""
        logits: Tensor = self.layers(to_dtype(features, self))
        return logits

    def predict_rotations(
        self,
        model: nn.Module,
        images: Float[Tensor, "b c h w"],
        features: Float[Tensor, "b f"] | None = None,
    ) -> tuple[Float[Tensor, "r 4"], Int64[Tensor, " r"]]:
        """Rotate random images of a batch and predict their rotations.

        The images are sampled from torch's global generator of the CPU.

        Args:
            model: An `EmbeddingModel`, whose trunk computes the features of the rotated images.
            images: A batch of square images (b, c, h, w) on the model's device, of which at most `max_images` are
                rotated.
            features: The trunk's features (b, f) of the batch. With them only the rotations by 90, 180 and 270 degrees
                go through the trunk. None sends all four rotations through it. The result is the same unless the
                trunk's output depends on the rest of the batch, as with batch norm in training mode.

        Returns:
            The logits (r, 4) and the rotation classes (r,) of the r rotated images, in the order of
            `rotate_four_ways`.

        Raises:
            ValueError: The images are not square.
            TypeError: The model has no trunk.

        Example:
            >>> model, head = EmbeddingModel(nn.Flatten(), nn.Linear(192, 64)), RotationPretextHead(192, max_images=2)
            >>> logits, rotations = head.predict_rotations(model, torch.rand(5, 3, 8, 8))
            >>> logits.shape, rotations
            (torch.Size([8, 4]), tensor([0, 0, 1, 1, 2, 2, 3, 3]))
        """
        trunk = trunk_of(model)
        sampled = torch.randperm(len(images))[: self.max_images].to(images.device)
        rotated, rotations = rotate_four_ways(images[sampled])
        if features is None:
            return self(as_features(trunk(rotated))), rotations
        others = as_features(trunk(rotated[len(sampled) :]))
        return self(torch.cat([features[sampled], others])), rotations
