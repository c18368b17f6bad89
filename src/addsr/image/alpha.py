"""Transparency: colour for the pixels nobody sees, so that edges do not bleed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .resize import resize_rows

_TRUSTED = 0.1
"""Above this alpha a pixel's own colour counts fully; below, 8-bit colours are mostly rounding."""


def fill_transparent(rgb: Tensor, alpha: Tensor) -> Tensor:
    """`rgb` `(1, 3, H, W)` with the colour under transparent pixels drawn from their neighbours.

    Files keep anything there, often black; a network would mix it into the visible edge. Averages
    weighted by alpha go down a pyramid of halved pictures, and each pixel takes its colour from
    the finest level where it has one. `alpha` is `(1, 1, H, W)` in [0, 1].
    """
    weight = (alpha / _TRUSTED).clamp(0, 1)
    if bool((weight == 1).all()):
        return rgb
    if not bool((weight > 0).any()):
        return torch.zeros_like(rgb)
    return _fill(rgb * weight, weight).clamp(0, 1)


def _fill(weighted: Tensor, weight: Tensor) -> Tensor:
    own = weighted / weight.clamp_min(1e-6)
    height, width = weight.shape[-2:]
    if height * width == 1:
        return own
    pooled, pooled_weight = (
        F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) for x in (weighted, weight)
    )
    # a level whose every pixel has some colour is confident; its weight no longer fades it
    gain = pooled_weight.clamp_min(1e-6)
    confident = (gain * 4).clamp_max(1)
    coarse = _fill(pooled / gain * confident, confident * (pooled_weight > 1e-6))
    coarse = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return weight * own + (1 - weight) * coarse


def enlarge_alpha(alpha: Tensor, size: tuple[int, int], first: int, last: int) -> Tensor:
    """Rows `first` to `last` of `alpha` `(1, 1, h, w)` resized to `size`, clamped to [0, 1].

    Bicubic on purpose: a mask needs its shape kept, not texture invented, and the one lobe of
    this kernel beside an edge is clamped away where the mask is 0 or 1.
    """
    return resize_rows(alpha, size, first, last, "bicubic").clamp(0, 1)
