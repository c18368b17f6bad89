"""Resizes as cameras, editors and websites do them: area, bilinear, bicubic, Lanczos."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .spec import ResizeSpec

_FILTERS = ("area", "bilinear", "bicubic")
_LOBES = 3
_BLOCK = 512


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
    # dense products: of a training crop they are small, and one launch each
    columns = [x[..., low:high] @ w.T for low, high, w in _blocks(x.shape[-1], size[1], x)]
    x = columns[0] if len(columns) == 1 else torch.cat(columns, -1)
    rows = [w @ x[..., low:high, :] for low, high, w in _blocks(x.shape[-2], size[0], x)]
    return rows[0] if len(rows) == 1 else torch.cat(rows, -2)


def _blocks(size_in: int, size_out: int, like: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """What makes a side: the first place of the input and the one after the last, and the weights
    `(places out, places in)` of each block. One matrix for a whole photo would take gigabytes.
    """
    ratio = size_in / size_out
    reach = _LOBES * max(ratio, 1.0)
    for start in range(0, size_out, _BLOCK):
        stop = min(start + _BLOCK, size_out)
        low = max(0, math.floor((start + 0.5) * ratio - 0.5 - reach))
        high = min(size_in, math.ceil((stop - 0.5) * ratio - 0.5 + reach) + 1)
        yield low, high, _lanczos_weights(range(low, high), range(start, stop), ratio, like)


def _lanczos_weights(given: range, wanted: range, ratio: float, like: Tensor) -> Tensor:
    """`(wanted, given)` with rows that sum to one, made on the device: nothing is uploaded."""
    places, centres = (
        torch.arange(part.start, part.stop, device=like.device, dtype=torch.float64)
        for part in (given, wanted)
    )
    centres = (centres + 0.5) * ratio - 0.5
    distance = (places - centres[:, None]) / max(ratio, 1.0)
    weight = torch.sinc(distance) * torch.sinc(distance / _LOBES)
    weight = torch.where(distance.abs() < _LOBES, weight, 0.0)
    return (weight / weight.sum(1, keepdim=True)).to(like.dtype)
