"""Bicubic resizing as MATLAB's `imresize` does it, which NIQE and much of the literature use.

It differs from `torch.nn.functional.interpolate`: a = -0.5, the kernel is widened when shrinking
(antialiasing), borders are mirrored with the edge pixel repeated, and nothing is clamped.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from addsr.errors import InputError, OptionError


def matlab_resize(image: Tensor, scale: float, antialias: bool = True) -> Tensor:
    """`image` `(..., H, W)` resized by `scale` to `(..., ceil(H scale), ceil(W scale))`.

    Any range; overshoots are kept. Computed in the type of `image` (weights in float64).

    Raises:
        OptionError: `scale` is not positive.
        InputError: not a float tensor with at least two axes.
    """
    if not (scale > 0 and math.isfinite(scale)):
        raise OptionError(f"scale: {scale} must be a positive number")
    if image.dim() < 2 or not image.is_floating_point() or image.numel() == 0:
        raise InputError(
            f"image: {image.dtype} {tuple(image.shape)} is no float picture (..., H, W)"
        )
    for axis in (-2, -1):
        image = _resize_axis(image, axis, scale, antialias)
    return image


def _resize_axis(x: Tensor, axis: int, scale: float, antialias: bool) -> Tensor:
    size = x.shape[axis]
    width = 4.0  # of the cubic kernel, in input pixels
    shrink = min(scale, 1.0) if antialias else 1.0
    width /= shrink
    out = math.ceil(size * scale)
    # centres of the output pixels on the input's grid, both counted from 0
    centre = (torch.arange(out, dtype=torch.float64) + 0.5) / scale - 0.5
    first = torch.floor(centre - width / 2).long()
    place = first[:, None] + torch.arange(math.ceil(width) + 2)  # (out, taps)
    weight = _cubic((centre[:, None] - place) * shrink)
    weight = weight / weight.sum(1, keepdim=True)
    period = place.remainder(2 * size)  # mirrored with the edge repeated, as often as needed
    place = torch.minimum(period, 2 * size - 1 - period)
    matrix = torch.zeros(out, size, dtype=torch.float64).scatter_add_(1, place, weight)
    matrix = matrix.to(device=x.device, dtype=x.dtype)
    return matrix @ x if axis == -2 else x @ matrix.T


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x.square() + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, torch.zeros_like(x)))
