"""Augmentations for things that occur in different colors or orientations."""

from torch import nn


def color_augmentation() -> nn.Module:
    """Return an augmentation that changes the colors of an image at random, for classes whose images differ in color.

    With a probability of 0.8 it changes brightness, contrast and saturation by up to 40 % and the hue by any angle.
    Afterwards it makes the image gray, inverts it and blurs it, each with a probability of 0.3. Use it if images of the
    same class differ in color. Do not use it if colors distinguish the classes.

    SimCLR (Chen, Kornblith, Norouzi and Hinton 2020, https://arxiv.org/abs/2002.05709) changes the same properties by
    other amounts, and does not invert images.

    Returns:
        A transform from a picture or a tensor (3, h, w) to one of the same type and size. Tensors have integers of 0
        to 255, or floating-point numbers of 0 to 1, so that it precedes a normalization.

    Example:
        >>> import torch
        >>> from udmlss.backbones import color_augmentation
        >>> color_augmentation()(torch.rand(3, 32, 32)).shape
        torch.Size([3, 32, 32])
    """
    from torchvision.transforms import v2  # noqa: PLC0415 (`import udmlss` does not import torchvision)

    jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.5)
    blur = v2.GaussianBlur(kernel_size=5, sigma=(0.1, 2.0))
    augmentation: nn.Module = v2.Compose(
        [
            v2.RandomApply([jitter], p=0.8),
            v2.RandomGrayscale(p=0.3),
            v2.RandomInvert(p=0.3),
            v2.RandomApply([blur], p=0.3),
        ]
    )
    return augmentation


def rotation_augmentation() -> nn.Module:
    """Return an augmentation that rotates an image by 0, 90, 180 or 270 degrees, for classes in any orientation.

    Each angle has the same probability. Use it if the same thing occurs in any orientation. Do not use it if the
    orientation distinguishes the classes, or if all images are upright.

    Returns:
        A transform from a picture or a tensor (c, h, w) to one of the same type. Height and width change places if the
        angle is 90 or 270 degrees.

    Example:
        >>> import torch
        >>> from udmlss.backbones import rotation_augmentation
        >>> rotation_augmentation()(torch.rand(3, 32, 32)).shape
        torch.Size([3, 32, 32])
    """
    from torchvision.transforms import v2  # noqa: PLC0415 (as above)

    # Rotations by multiples of 90 degrees with `expand` only move pixels
    rotations = [v2.RandomRotation((angle, angle), expand=True) for angle in (0, 90, 180, 270)]
    augmentation: nn.Module = v2.RandomChoice(rotations)
    return augmentation
