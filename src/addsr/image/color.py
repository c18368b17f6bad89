"""Colour agreement with the input: wavelet and AdaIN, on whole tensors and on streams of rows.

Both follow StableSR (arXiv 2305.07015, sec. 3.4 and appendix): AdaIN replaces each channel's mean
and standard deviation; the wavelet method keeps the result's five high bands and takes the lowest
one from the reference. Nothing is clamped here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ColorFix = Literal["wavelet", "adain", "none"]
Rows = Callable[[int, int], Tensor]
"""`rows(first, last)` gives these rows `(B, C, last - first, W)` of the reference picture."""

WAVELET_LEVELS = 5
_REACH = 2**WAVELET_LEVELS - 1  # radii 1 + 2 + 4 + 8 + 16
_STRIP = 256


def low_pass(x: Tensor, levels: int = WAVELET_LEVELS) -> Tensor:
    """The lowest band of the a-trous decomposition of `x` `(B, C, H, W)`, same shape.

    Binomial kernel [1 2 1]/4 along each axis with holes of 1, 2, 4, ... and repeated edges.
    """
    for level in range(levels):
        x = _blur(_blur(x, 2**level, -1), 2**level, -2)
    return x


def _blur(x: Tensor, radius: int, dim: int) -> Tensor:
    size = x.shape[dim]
    pad = (radius, radius, 0, 0) if dim == -1 else (0, 0, radius, radius)
    wide = F.pad(x, pad, mode="replicate")
    near, far = wide.narrow(dim, 0, size), wide.narrow(dim, 2 * radius, size)
    return (near + far).add_(x, alpha=2).mul_(0.25)


def match_wavelet(restored: Tensor, reference: Tensor) -> Tensor:
    """`restored` with its lowest wavelet band taken from `reference`; both `(B, C, H, W)`.

    The filter is linear, so one decomposition of the difference does for both pictures.
    """
    return restored + low_pass(reference - restored)


def match_adain(restored: Tensor, reference: Tensor, eps: float = 1e-5) -> Tensor:
    """`restored` with mean and standard deviation per channel of `reference`.

    Both `(B, C, H, W)`; the variance is unbiased plus `eps`, as published.
    """
    mean, std = _moments(restored, eps)
    target_mean, target_std = _moments(reference, eps)
    return (restored - mean) / std * target_std + target_mean


def _moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    # a picture of one pixel has no spread: unbiased variance would divide by zero
    correction = 1 if x.shape[-1] * x.shape[-2] > 1 else 0
    variance, mean = torch.var_mean(x, dim=(-2, -1), correction=correction, keepdim=True)
    return mean, (variance + eps).sqrt()


def match_color(restored: Tensor, reference: Tensor, method: ColorFix) -> Tensor:
    """`restored` after the colour fix called `method`; shapes as in the two functions above."""
    if method == "wavelet":
        return match_wavelet(restored, reference)
    return match_adain(restored, reference) if method == "adain" else restored


def match_color_bands(
    bands: Iterable[Tensor], reference: Rows, height: int, method: ColorFix
) -> Iterator[Tensor]:
    """`match_color` for a picture of `height` rows that arrives as bands from top to bottom.

    The values are those of the whole picture. The wavelet method holds 62 rows more than a band;
    AdaIN has to see everything first and holds the picture once, in float16.
    """
    if method == "wavelet":
        return _wavelet_bands(bands, reference, height)
    return _adain_bands(bands, reference) if method == "adain" else iter(bands)


def _wavelet_bands(bands: Iterable[Tensor], reference: Rows, height: int) -> Iterator[Tensor]:
    held: Tensor | None = None
    held_top = done = 0
    for band in bands:
        held = band if held is None else torch.cat([held, band], dim=-2)
        bottom = held_top + held.shape[-2]
        ready = height if bottom == height else bottom - _REACH
        while done < ready:
            last = min(done + _STRIP, ready)
            # rows beyond the filter's reach cannot change this strip: cutting there is exact
            top, end = max(done - _REACH, 0), min(last + _REACH, height)
            part = held[..., top - held_top : end - held_top, :]
            fixed = match_wavelet(part, reference(top, end))
            yield fixed[..., done - top : last - top, :]
            done = last
        keep = max(done - _REACH, 0)
        held, held_top = held[..., keep - held_top :, :].clone(), keep


def _adain_bands(bands: Iterable[Tensor], reference: Rows) -> Iterator[Tensor]:
    ours, theirs = _Moments(), _Moments()
    kept: list[Tensor] = []
    top = 0
    for band in bands:
        ours.add(band)
        theirs.add(reference(top, top + band.shape[-2]))
        top += band.shape[-2]
        kept.append(band.to(torch.float16))
    mean, std = ours.result()
    target_mean, target_std = theirs.result()
    kept.reverse()
    while kept:
        yield (kept.pop().float() - mean) / std * target_std + target_mean


class _Moments:
    """Mean and standard deviation per channel, gathered band by band in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        self.count += x.shape[-1] * x.shape[-2]
        x = x.double()
        self.total = self.total + x.sum(dim=(-2, -1), keepdim=True)
        self.squares = self.squares + (x * x).sum(dim=(-2, -1), keepdim=True)

    def result(self, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
        mean = torch.as_tensor(self.total) / self.count
        spread = torch.as_tensor(self.squares) - mean * mean * self.count
        variance = spread.clamp_min(0) / max(self.count - 1, 1)
        return mean.float(), (variance + eps).sqrt().float()
