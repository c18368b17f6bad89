"""Figures that compare structure with a reference: MS-SSIM, GMSD and HaarPSI.

Each is what its authors' MATLAB or Python code gives for the pictures less `border` pixels. They
take float pictures `(B, 3, H, W)` in [0, 1] on any device, compute in float64 where the device has
it, and give one figure per picture, `(B,)`. Nothing is rounded to 8-bit levels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.errors import InputError

from .pixel import crop_pair, filter_axis, luma_pair, ssim_maps

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of MS-SSIM's five scales, finest first, as published."""

HAAR_C, HAAR_ALPHA = 30.0, 4.2
"""HaarPSI's constants for levels of 0..255, fitted by its authors."""

GMSD_C = 170.0
"""GMSD's constant (T in the authors' code) for levels of 0..255."""


def ms_ssim(a: Tensor, b: Tensor, border: int = 4) -> Tensor:
    """Multi-scale structural similarity of the lumas, 0..1, higher is closer; 1 if they are equal.

    Wang, Simoncelli and Bovik, "Multi-scale structural similarity for image quality assessment"
    (2003), eq. 7: contrast and structure at five scales, brightness at the coarsest. Luma is Y of
    BT.601 in 16..235, window and constants are `ssim_y`'s. Between scales 2x2 pixels are averaged,
    at odd sizes with the edge pixel repeated, as in the authors' code. A scale whose mean is
    negative counts as 0, which the paper leaves open.

    Raises:
        InputError: shapes differ, or 160 pixels or less are left inside the border.
    """
    y_a, y_b = luma_pair(a, b, border)
    if min(y_a.shape[-2:]) <= 160:
        raise InputError(
            f"size: {a.shape[-1]}x{a.shape[-2]} leaves no 11x11 window at the fifth scale inside a "
            f"border of {border}; give more than 160 pixels a side, or use SSIM"
        )
    figure = torch.ones_like(y_a[:, 0, 0])
    for scale, weight in enumerate(SCALE_WEIGHTS):
        if scale:
            y_a, y_b = _halve(y_a, "replicate"), _halve(y_b, "replicate")
        brightness, structure = ssim_maps(y_a, y_b)
        if scale == len(SCALE_WEIGHTS) - 1:
            structure = brightness * structure
        figure = figure * structure.mean((-2, -1)).clamp_min(0) ** weight
    return figure


def gmsd(a: Tensor, b: Tensor, border: int = 4) -> Tensor:
    """Gradient magnitude similarity deviation, 0 to about 0.35, lower is closer; 0 if equal.

    Xue et al., "Gradient Magnitude Similarity Deviation: A Highly Efficient Perceptual Image
    Quality Index" (2014), eq. 2 to 6, as the authors' MATLAB code has it: luma over 0..255, halved
    by averaging 2x2 pixels, Prewitt's slopes with black outside, T = 170, deviation with n - 1.

    Raises:
        InputError: shapes differ, or nothing is left inside the border.
    """
    steep_a, steep_b = (_prewitt(_halve(y, "constant")) for y in luma_pair(a, b, border, "yiq"))
    likeness = _likeness(steep_a, steep_b, GMSD_C).flatten(1)
    # a single pixel has no deviation
    return likeness.std(1) if likeness.shape[1] > 1 else torch.zeros_like(likeness[:, 0])


def haarpsi(a: Tensor, b: Tensor, border: int = 4) -> Tensor:
    """Haar wavelet-based perceptual similarity index, 0..1, higher is closer; 1 if equal.

    Reisenhofer et al., "A Haar Wavelet-Based Perceptual Similarity Index for Image Quality
    Assessment" (2018), eq. 9 to 14 with C = 30 and alpha = 4.2, for colour pictures, as the
    authors' code has it: YIQ over 0..255, halved by averaging 2x2 pixels, black outside.

    Raises:
        InputError: shapes differ, or nothing is left inside the border.
    """
    yiq_a, yiq_b = (_halve(_yiq(x), "constant") for x in crop_pair(a, b, border))
    likeness: list[Tensor] = []
    weights: list[Tensor] = []
    for axis in (-2, -1):
        fine_a, middle_a, coarse_a = (_haar(yiq_a[:, 0], scale, axis).abs() for scale in (1, 2, 3))
        fine_b, middle_b, coarse_b = (_haar(yiq_b[:, 0], scale, axis).abs() for scale in (1, 2, 3))
        fine = _likeness(fine_a, fine_b, HAAR_C)
        likeness.append((fine + _likeness(middle_a, middle_b, HAAR_C)) / 2)
        weights.append(torch.maximum(coarse_a, coarse_b))
    chroma = _likeness(_blur(yiq_a[:, 1:]).abs(), _blur(yiq_b[:, 1:]).abs(), HAAR_C)
    likeness.append(chroma.mean(1))
    weights.append((weights[0] + weights[1]) / 2)

    weight = torch.stack(weights, dim=1)  # (B, 3, H/2, W/2)
    squashed = torch.sigmoid(HAAR_ALPHA * torch.stack(likeness, dim=1))
    total = weight.sum((-3, -2, -1))
    mean = (squashed * weight).sum((-3, -2, -1)) / total
    # two black pictures weigh nothing, and nothing tells them apart
    return torch.where(total > 0, (torch.logit(mean) / HAAR_ALPHA).square(), 1.0)


def _likeness(a: Tensor, b: Tensor, constant: float) -> Tensor:
    """How alike two magnitudes are, 0..1, place by place."""
    return (2 * a * b + constant) / (a.square() + b.square() + constant)


def _halve(x: Tensor, edge: str) -> Tensor:
    """Means of 2x2 pixels along the last two axes; odd sizes are rounded up, `edge` beyond them."""
    height, width = x.shape[-2:]
    planes = x.reshape(-1, 1, height, width)
    planes = F.avg_pool2d(F.pad(planes, (0, width % 2, 0, height % 2), mode=edge), 2)
    return planes.reshape(*x.shape[:-2], *planes.shape[-2:])


def _prewitt(y: Tensor) -> Tensor:
    """Magnitude of Prewitt's slopes of `(B, H, W)`, sizes kept, black outside."""
    y = F.pad(y, (1, 1, 1, 1))
    third, slope = (1 / 3, 1 / 3, 1 / 3), (-1.0, 0.0, 1.0)
    across = filter_axis(filter_axis(y, third, -2), slope, -1)
    down = filter_axis(filter_axis(y, third, -1), slope, -2)
    return torch.hypot(across, down)


def _yiq(image: Tensor) -> Tensor:
    """Luma and two colour differences `(B, 3, H, W)` of a picture, on the scale of 0..255."""
    red, green, blue = (255 * image).unbind(1)
    return torch.stack(
        [
            0.299 * red + 0.587 * green + 0.114 * blue,
            0.596 * red - 0.274 * green - 0.322 * blue,
            0.211 * red - 0.523 * green + 0.312 * blue,
        ],
        dim=1,
    )


def _haar(y: Tensor, scale: int, axis: int) -> Tensor:
    """Haar wavelet coefficients of `(B, H, W)` along `axis` at a dyadic scale, sizes kept.

    The filter has 2^scale taps a side of 2^-scale each, half of them negative.
    """
    half = 2 ** (scale - 1)
    y = F.pad(y, (half - 1, half, half - 1, half))
    step = [-(2.0**-scale)] * half + [2.0**-scale] * half
    return filter_axis(filter_axis(y, step, axis), [1.0] * (2 * half), -3 - axis)


def _blur(x: Tensor) -> Tensor:
    """Means of 2x2 pixels of `(B, C, H, W)`, sizes kept, black outside."""
    x = F.pad(x, (0, 1, 0, 1))
    return filter_axis(filter_axis(x, (0.5, 0.5), -2), (0.5, 0.5), -1)
