"""Resizes as cameras, editors and websites do them: area, bilinear, bicubic, Lanczos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .spec import ResizeSpec

_FILTERS = ("area", "bilinear", "bicubic")
_LOBES = 3


@dataclass(frozen=True)
class Resize:
    """One resize of a group of pictures."""

    size: tuple[int, int]
    """Height and width that come out."""
    filter: str
    """`area`, `bilinear`, `bicubic` or `lanczos`."""
    antialias: bool
    """Whether bilinear and bicubic are as wide as the factor asks; area and Lanczos always are."""


def draw_resize(spec: ResizeSpec, size: tuple[int, int], roll: Sequence[float]) -> Resize:
    """A resize from `size` (height, width) drawn from `spec` by four numbers in [0, 1)."""
    up, down, _ = spec.shares
    low, high = spec.factor
    factor = 1.0
    if roll[0] < up:
        factor = 1 + (high - 1) * roll[1]
    elif roll[0] < up + down:
        factor = low + (1 - low) * roll[1]
    height, width = (max(1, int(side * factor)) for side in size)
    return Resize((height, width), draw_filter(spec.lanczos, roll[2]), roll[3] < spec.antialias)


def draw_filter(lanczos: float, roll: float) -> str:
    """`lanczos` with that share, else one of the three others, by a number in [0, 1)."""
    if roll < lanczos:
        return "lanczos"
    rest = (roll - lanczos) / (1 - lanczos)
    return _FILTERS[min(int(rest * len(_FILTERS)), len(_FILTERS) - 1)]


def apply_resize(x: Tensor, resize: Resize) -> Tensor:
    """`x` `(B, C, H, W)` at the size of `resize`, not clamped."""
    if x.shape[-2:] == resize.size:
        return x
    if resize.filter == "lanczos":
        return resize_lanczos(x, resize.size)
    if resize.filter == "area":
        return F.interpolate(x, size=resize.size, mode="area")
    return F.interpolate(
        x, size=resize.size, mode=resize.filter, align_corners=False, antialias=resize.antialias
    )


def resize_lanczos(x: Tensor, size: tuple[int, int]) -> Tensor:
    """`x` `(B, C, H, W)` at `size` (height, width) by Lanczos with three lobes, not clamped.

    As wide as the factor asks where the picture shrinks; at the borders the kernel is cut and
    its weights are made to sum to one again, as Pillow and antialiased `interpolate` do.
    """
    height, width = x.shape[-2:]
    # two dense products: of a training crop they are small, and one launch each
    rows = _lanczos_weights(height, size[0], x)
    columns = _lanczos_weights(width, size[1], x)
    return rows @ (x @ columns.T)


def _lanczos_weights(size_in: int, size_out: int, like: Tensor) -> Tensor:
    """`(size_out, size_in)` with rows that sum to one, made on the device: nothing is uploaded."""
    ratio = size_in / size_out
    places = torch.arange(size_in, device=like.device, dtype=torch.float64)
    centres = torch.arange(size_out, device=like.device, dtype=torch.float64)
    centres = (centres + 0.5) * ratio - 0.5
    distance = (places - centres[:, None]) / max(ratio, 1.0)
    weight = torch.sinc(distance) * torch.sinc(distance / _LOBES)
    weight = torch.where(distance.abs() < _LOBES, weight, 0.0)
    return (weight / weight.sum(1, keepdim=True)).to(like.dtype)
