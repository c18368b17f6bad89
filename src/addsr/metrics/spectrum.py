"""Where a result has too much or too little detail: by frequency, and by kind of place.

Both compare with a reference and name no winner by themselves: a figure tells how far the power of
the result is from the reference's, not whether the detail is the right one. Float pictures
`(B, 3, H, W)` in [0, 1] on any device; luma is Y of BT.601 in 16..235, not rounded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.errors import InputError

from .pixel import filter_both, gaussian, luma, luma_pair, sobel

RINGS = 32
"""Most rings of frequency; a smaller picture has half as many as its shorter side has pixels."""

ROUNDING = 1 / 12
"""Power of rounding to whole levels: what is below it says nothing."""

FLAT = 2.0
"""Steepness in levels per pixel (root mean square over a window) under which a place is flat."""

COHERENT = 0.7
"""Share of the steepness that points one way from which a place is an edge and not texture."""


def radial_spectrum(image: Tensor) -> Tensor:
    """Power of the luma by frequency `(B, rings)`, levels squared, from coarse to fine.

    Ring k of n is the mean power at k/2n to (k+1)/2n cycles per pixel, whatever the direction;
    the corners beyond 1/2 are left out. A Hann window is laid over the picture, so that the jump
    between opposite edges does not count, and the mean under it is taken off. White noise of
    variance v has v in every ring, at any size.

    Raises:
        InputError: a side is shorter than 4 pixels.
    """
    return _spectrum(luma(image))


def spectrum_error(sr: Tensor, hr: Tensor, border: int = 4) -> Tensor:
    """Mean difference of the radial spectra `(B,)` in dB, >= 0, lower is closer; 0 if equal.

    The absolute difference in each ring (`radial_spectrum`) is averaged over the rings, so detail
    that is missing counts as detail that is made up: 3 dB is half or twice the power throughout.
    The power of rounding to 8 bits is added to both, or flat pictures would differ without end.

    Raises:
        InputError: shapes differ, or less than 4 pixels a side are left inside the border.
    """
    power_sr, power_hr = (_spectrum(y) + ROUNDING for y in luma_pair(sr, hr, border))
    return 10 * torch.log10(power_sr / power_hr).abs().mean(1)


def laplacian_energy(sr: Tensor, hr: Tensor, border: int = 4) -> dict[str, Tensor]:
    """Ratio of Laplacian energy, result to reference, at `flat`, `edge` and `texture` places.

    Each `(B,)`, >= 0; 1 is the goal. Under 1 the places are too smooth. Over 1 they are too busy:
    grain or blocking where it should be flat, ringing or oversharpening at edges, made-up detail
    in texture. The energy is the mean square of the 3x3 Laplacian (4 neighbours); the places are
    taken from `hr` alone, by its structure tensor over a Gaussian of sigma 2. NaN where `hr` has
    no such place, or one without any energy.

    Raises:
        InputError: shapes differ, or less than 3 pixels a side are left inside the border.
    """
    y_sr, y_hr = luma_pair(sr, hr, border)
    if min(y_hr.shape[-2:]) < 3:
        raise InputError(
            f"size: {hr.shape[-1]}x{hr.shape[-2]} leaves no 3x3 window inside a border of "
            f"{border}; give a larger picture or a smaller border"
        )
    energy_sr, energy_hr = _laplacian(y_sr).square(), _laplacian(y_hr).square()
    ratios: dict[str, Tensor] = {}
    for name, place in _places(y_hr).items():
        total_sr, total_hr = ((e * place).sum((-2, -1)) for e in (energy_sr, energy_hr))
        ratios[name] = torch.where(total_hr > 0, total_sr / total_hr, torch.nan)
    return ratios


def _spectrum(y: Tensor) -> Tensor:
    height, width = y.shape[-2:]
    if min(height, width) < 4:
        raise InputError(f"size: {width}x{height} is too small for a spectrum; give 4x4 or more")
    rings = min(RINGS, min(height, width) // 2)
    window = _hann(height, y)[:, None] * _hann(width, y)
    mean = (y * window).sum((-2, -1), keepdim=True) / window.sum()
    y = (y - mean) * window
    power = torch.fft.fft2(y).abs().square() / window.square().sum()  # (B, H, W)
    down = torch.fft.fftfreq(height, dtype=y.dtype, device=y.device)
    across = torch.fft.fftfreq(width, dtype=y.dtype, device=y.device)
    # Nyquist's frequency itself belongs to the last ring; the tolerance is for rounding in hypot
    place = torch.hypot(down[:, None], across) * (2 * rings) * (1 + 1e-6)
    ring = place.long().clamp_max(rings - 1).flatten()
    inside = (place <= rings * (1 + 2e-6)).flatten()
    total = y.new_zeros(len(y), rings).index_add_(1, ring[inside], power.flatten(1)[:, inside])
    return total / torch.bincount(ring[inside], minlength=rings)


def _hann(size: int, like: Tensor) -> Tensor:
    return torch.hann_window(size, periodic=False, dtype=like.dtype, device=like.device)


def _laplacian(y: Tensor) -> Tensor:
    """The 4-neighbour Laplacian of `(B, H, W)`, `(B, H - 2, W - 2)`."""
    middle = y[:, 1:-1, 1:-1]
    return y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:] - 4 * middle


def _places(y: Tensor) -> dict[str, Tensor]:
    """Masks `(B, H - 2, W - 2)` of the three kinds of places, each pixel in one of them.

    The structure tensor's eigenvalues say how steep a window is along and across its main
    direction: both small is flat, one alone an edge, both texture (corners and grain with it).
    """
    across, down = sobel(y)
    products = torch.stack([across.square(), down.square(), across * down], dim=1)
    padded = F.pad(products, (6, 6, 6, 6), mode="replicate")
    xx, yy, xy = filter_both(padded, gaussian(13, 2.0).tolist())[..., 1:-1, 1:-1].unbind(1)
    steepness = xx + yy  # the sum of the eigenvalues; their difference follows
    difference = torch.hypot(xx - yy, 2 * xy)
    flat = steepness < FLAT**2
    edge = ~flat & (difference > COHERENT * steepness)
    return {"flat": flat, "edge": edge, "texture": ~flat & ~edge}
