"""A check of image files: damage, unusual formats, and duplicates."""

from udmlss.data.quality.image_check import ImageCheck, ImageFinding, check_images

__all__ = ["ImageCheck", "ImageFinding", "check_images"]
