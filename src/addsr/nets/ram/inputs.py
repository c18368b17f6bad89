"""Pictures as the prompt extractor wants them: one side, ImageNet's normalisation."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn.functional import interpolate

from addsr.errors import InputError, OptionError

Interpolation = Literal["bilinear", "bicubic"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def prepare(
    image: Tensor,
    side: int = 384,
    *,
    interpolation: Interpolation = "bilinear",
    antialias: bool = True,
) -> Tensor:
    """`(B, 3, side, side)` of pictures `(B, 3, H, W)` in [0, 1], whatever their aspect ratio.

    The published test script resizes the low-resolution picture bilinearly; training and the
    refinement between steps do it bicubically and do not clamp what overshoots, which is kept here.
    Both leave out the low-pass that shrinking needs, so that a picture of 2,048 px aliases heavily;
    `antialias=False` reproduces that. Enlarging is the same either way.

    Raises:
        InputError: no batch of colour pictures.
        OptionError: an unknown interpolation.
    """
    if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
        raise InputError(
            f"image: {image.dtype} {tuple(image.shape)} is no batch of pictures; give floats "
            "(B, 3, H, W) in [0, 1]"
        )
    if interpolation not in ("bilinear", "bicubic"):
        raise OptionError(f"interpolation: {interpolation!r} is unknown; use bilinear or bicubic")
    height, width = image.shape[-2:]
    if (height, width) != (side, side):
        # torch's antialiased bicubic has another coefficient, and enlarging is not to notice
        shrinks = max(height, width) > side
        image = interpolate(
            image, (side, side), mode=interpolation, antialias=antialias and shrinks
        )
    mean = image.new_tensor(MEAN)[:, None, None]
    std = image.new_tensor(STD)[:, None, None]
    return (image - mean) / std
