"""Losses on pictures `(B, 3, H, W)` in [0, 1]; each gives one value per sample unless stated."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference `(B,)`."""
    return (a - b).abs().mean(dim=(1, 2, 3))


def haar(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference `(B,)` of the three high bands of an undecimated Haar transform.

    Taken at full and at half resolution and added. The transform is linear, so the bands of the
    difference are computed once.
    """
    difference = a - b
    return _haar_bands(difference) + _haar_bands(F.avg_pool2d(difference, 2))


def _haar_bands(e: Tensor) -> Tensor:
    top, bottom = e[..., :-1, :], e[..., 1:, :]
    plus, minus = (top + bottom) / 4, (top - bottom) / 4
    horizontal = (plus[..., 1:] - plus[..., :-1]).abs()
    vertical = (minus[..., 1:] + minus[..., :-1]).abs()
    diagonal = (minus[..., 1:] - minus[..., :-1]).abs()
    return (horizontal + vertical + diagonal).mean(dim=(1, 2, 3)) / 3


def low_frequency(a: Tensor, b: Tensor, scale: int = 4) -> Tensor:
    """Mean absolute difference `(B,)` of the area-downscaled pictures."""
    return F.avg_pool2d(a - b, scale).abs().mean(dim=(1, 2, 3))


def sharpen(x: Tensor, amount: float = 0.5, sigma: float = 8.0, threshold: float = 10.0) -> Tensor:
    """Unsharp mask of `x` `(B, 3, H, W)` in [0, 1]: edges steeper, flat parts as they were.

    Real-ESRGAN (arXiv 2107.10833) takes it as the target of the losses that average over what
    could be, which blurs edges; the discriminator goes on seeing the true picture. Differences
    from the surroundings below `threshold` of 255 are left alone, with a soft transition.
    """
    detail = x - _blur(x, sigma)
    is_edge = (detail.abs() * 255 > threshold).to(x.dtype)
    share = _blur(is_edge, sigma)
    return x + share * ((x + amount * detail).clamp(0, 1) - x)


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with mirrored borders; at most as wide as the picture allows."""
    # matrix products: with a kernel this long, convolutions of one channel take many times as long
    rows, columns = (_blur_matrix(size, sigma, x.device, x.dtype) for size in x.shape[-2:])
    return rows.T @ x @ columns


@functools.lru_cache(maxsize=8)
def _blur_matrix(size: int, sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`(size, size)`: column i holds the weights of the blurred line's place i."""
    radius = min(math.ceil(3 * sigma), size - 1)
    place = torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
    kernel = torch.exp(-(place**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    lines = torch.eye(size, device=device)[:, None]
    return F.conv1d(F.pad(lines, (radius, radius), mode="reflect"), kernel)[:, 0].to(dtype)


def timestep_adaptive(index: Tensor, base: float = 0.5, growth: float = 2.1) -> Tensor:
    """AddSR's weight of the distillation loss, `base * growth**index` (TA-ADD, arXiv 2404.01717).

    `index` counts the student's step from 0 at the highest noise level.
    """
    return base * growth ** index.float()
