"""Antialiased resizing of tensors, whole, by rows, or as a stream of bands.

The kernels and the widening for reduction are those of `torch.nn.functional.interpolate` with
`antialias=True` (and of Pillow); at the borders the edge pixel is repeated instead of the kernel
being cut, so that a row range or a stream gives the same values as the whole picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["bicubic", "lanczos"]

_RADIUS: dict[Kernel, float] = {"bicubic": 2.0, "lanczos": 3.0}


@dataclass(frozen=True)
class Taps:
    """Which input positions make each output position, and with which weights."""

    index: Tensor
    """`(outputs, taps)` int64, clamped into the input."""
    weight: Tensor
    """`(outputs, taps)` float32, each row sums to one."""

    def slice(self, first: int, last: int) -> Taps:
        """The taps of outputs `first` to `last` (exclusive)."""
        return Taps(self.index[first:last], self.weight[first:last])


def make_taps(size_in: int, size_out: int, kernel: Kernel, ratio: float | None = None) -> Taps:
    """Taps of one axis from `size_in` to `size_out` positions.

    `ratio` is the number of input positions per output position; other than
    `size_in / size_out` it lets the output end inside the last input pixel or just past it.
    """
    ratio = size_in / size_out if ratio is None else ratio
    widen = max(ratio, 1.0)
    support = _RADIUS[kernel] * widen
    centre = (torch.arange(size_out, dtype=torch.float64) + 0.5) * ratio - 0.5
    first = torch.floor(centre - support).long() + 1
    index = first[:, None] + torch.arange(math.ceil(2 * support) + 1)  # (outputs, taps)
    weight = _kernel((index - centre[:, None]) / widen, kernel)
    weight = weight / weight.sum(dim=1, keepdim=True)
    keep = weight.abs().amax(dim=0) > 0
    index, weight = index[:, keep], weight[:, keep]
    return Taps(index.clamp(0, size_in - 1), weight.float())


def resize(
    x: Tensor,
    size: tuple[int, int],
    kernel: Kernel | None = None,
    ratio: tuple[float, float] | None = None,
) -> Tensor:
    """`x` `(B, C, H, W)` resized to `size` (height, width), same dtype, not clamped.

    Without `kernel`, Lanczos (3 lobes) where the picture shrinks and Catmull-Rom bicubic where it
    grows, because a sharp edge enlarged by Lanczos rings twice.
    """
    return resize_rows(x, size, 0, size[0], kernel, ratio)


def resize_rows(
    x: Tensor,
    size: tuple[int, int],
    first: int,
    last: int,
    kernel: Kernel | None = None,
    ratio: tuple[float, float] | None = None,
) -> Tensor:
    """Rows `first` to `last` (exclusive) of `resize(x, size, kernel, ratio)`."""
    height, width = x.shape[-2:]
    if (height, width) == size and ratio is None:
        return x[..., first:last, :]
    kernel = kernel or default_kernel((height, width), size)
    ratio_y, ratio_x = ratio or (None, None)
    rows = make_taps(height, size[0], kernel, ratio_y).slice(first, last)
    top, bottom = int(rows.index.min()), int(rows.index.max()) + 1
    x = apply_taps(x[..., top:bottom, :], make_taps(width, size[1], kernel, ratio_x), dim=-1)
    return apply_taps(x, Taps(rows.index - top, rows.weight), dim=-2)


def resize_bands(
    bands: Iterable[Tensor],
    size_in: tuple[int, int],
    size_out: tuple[int, int],
    kernel: Kernel | None = None,
    ratio: tuple[float, float] | None = None,
) -> Iterator[Tensor]:
    """`resize` of a picture that arrives as bands of rows `(B, C, rows, W)` from top to bottom.

    Holds only the rows that later output rows still need.
    """
    if size_in == size_out and ratio is None:
        yield from bands
        return
    kernel = kernel or default_kernel(size_in, size_out)
    ratio_y, ratio_x = ratio or (None, None)
    columns = make_taps(size_in[1], size_out[1], kernel, ratio_x)
    rows = make_taps(size_in[0], size_out[0], kernel, ratio_y)
    needs = rows.index.amax(dim=1)  # last input row of each output row, never falling
    held: Tensor | None = None
    held_top = done = 0
    for band in bands:
        band = apply_taps(band, columns, dim=-1)
        held = band if held is None else torch.cat([held, band], dim=-2)
        ready = int(torch.searchsorted(needs, held_top + held.shape[-2]))
        if ready > done:
            part = rows.slice(done, ready)
            yield apply_taps(held, Taps(part.index - held_top, part.weight), dim=-2)
            done = ready
            if done < size_out[0]:
                keep = int(rows.index[done:].min())
                held = held[..., keep - held_top :, :].clone()
                held_top = keep


def default_kernel(size_in: tuple[int, int], size_out: tuple[int, int]) -> Kernel:
    """Lanczos where the picture shrinks, bicubic where it grows."""
    shrinks = size_out[0] * size_out[1] < size_in[0] * size_in[1]
    return "lanczos" if shrinks else "bicubic"


def apply_taps(x: Tensor, taps: Taps, dim: int) -> Tensor:
    """Weighted sums of `x` along `dim` (-1 or -2), one tap at a time to bound memory."""
    index, weight = taps.index.to(x.device), taps.weight.to(x.device, x.dtype)
    shape = (-1,) if dim == -1 else (-1, 1)
    total = x.index_select(dim, index[:, 0]) * weight[:, 0].view(shape)
    for k in range(1, index.shape[1]):
        total.addcmul_(x.index_select(dim, index[:, k]), weight[:, k].view(shape))
    return total


def _kernel(x: Tensor, kernel: Kernel) -> Tensor:
    x = x.abs()
    if kernel == "lanczos":
        return torch.where(x < 3, torch.sinc(x) * torch.sinc(x / 3), torch.zeros_like(x))
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
