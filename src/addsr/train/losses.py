"""Losses on pictures `(B, 3, H, W)` in [0, 1]; each gives one value per sample unless stated."""

from __future__ import annotations

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


def timestep_adaptive(index: Tensor, base: float = 0.5, growth: float = 2.1) -> Tensor:
    """AddSR's weight of the distillation loss, `base * growth**index` (TA-ADD, arXiv 2404.01717).

    `index` counts the student's step from 0 at the highest noise level.
    """
    return base * growth ** index.float()
