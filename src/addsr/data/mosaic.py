"""Camera noise: made on the sensor, one colour per pixel, and spread by the demosaicing.

Noise that enters before the colours are interpolated is correlated between neighbours, slightly
coloured and stronger where it is dark; noise added to a finished picture is neither. The model is
that of Brooks et al. (arXiv 1811.11127) without the colour matrix: tone curve, sRGB curve and white
balance are undone, shot and read noise are added, and the mosaic goes the usual way back. Both
noises are Gaussian with a variance linear in the light (Foi et al., "Practical
Poissonian-Gaussian noise modeling and fitting for single-image raw-data", IEEE TIP 2008).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .draw import Dice
from .filters import pad_reflect

_GREY = 0.5  # where `MosaicSpec.sigma` is measured, as a value of the picture
_SATURATED = 254.5 / 255


class MosaicDraw(NamedTuple):
    """How each picture was taken, each `(B,)`."""

    shot: Tensor
    """Variance of the noise per light of 1, for linear values in [0, 1]."""
    read: Tensor
    """Variance of the noise in the dark."""
    red: Tensor
    """Gain of red pixels by the white balance, relative to green."""
    blue: Tensor
    """Gain of blue pixels."""
    errors: Tensor
    """Share of the errors of the interpolation that stay."""
    row: Tensor
    """Row of the mosaic's red pixels, 0 or 1."""
    column: Tensor
    """Column of the mosaic's red pixels, 0 or 1."""


def draw_mosaic(dice: Dice, mosaic: str) -> tuple[Tensor, MosaicDraw]:
    """Who is taken by a camera, `(B,)` booleans, and by which.

    Drawn on the host from the `MosaicSpec` in field `mosaic` of each picture's spec.
    """
    around = torch.tensor((_GREY - 1e-4, _GREY, _GREY + 1e-4), dtype=torch.float64)
    below, light, above = undevelop(around).tolist()
    slope = (above - below) / 2e-4
    wanted = dice.chance(f"{mosaic}.probability")
    variance = (dice.uniform(f"{mosaic}.sigma") / 255 * slope) ** 2
    share = dice.uniform(f"{mosaic}.read")
    return wanted, MosaicDraw(
        shot=(1 - share) * variance / light,
        read=share * variance,
        red=dice.uniform(f"{mosaic}.red"),
        blue=dice.uniform(f"{mosaic}.blue"),
        errors=dice.uniform(f"{mosaic}.errors"),
        row=dice.unit() < 0.5,
        column=dice.unit() < 0.5,
    )


def add_camera_noise(x: Tensor, draw: MosaicDraw, *, generator: torch.Generator) -> Tensor:
    """`x` `(B, 3, H, W)` as a sensor with a Bayer mosaic would have taken it, in [0, 1].

    Args:
        x: finished pictures at the size of the sensor.
        draw: one camera per picture, on the device of `x`.
        generator: on the device of `x`.
    """
    is_red, is_blue = _bayer(x, draw.row, draw.column)
    light = undevelop(x.clamp(0, 1))
    red, green, blue = light.split(1, 1)
    clean = torch.where(is_red, red, torch.where(is_blue, blue, green))  # (B, 1, H, W)
    shot, read, red_gain, blue_gain, errors = (
        column.view(-1, 1, 1, 1)
        for column in (draw.shot, draw.read, draw.red, draw.blue, draw.errors)
    )
    # a pixel behind a filter that lets less light through is noisier once white is white again
    gain = torch.where(is_red, red_gain, torch.where(is_blue, blue_gain, 1.0))
    variance = gain * (shot * clean + gain * read)
    # a full well stays full: blown highlights carry no noise
    white = undevelop(torch.tensor(_SATURATED)).item()
    variance = torch.where(clean < white, variance, 0.0)
    normal = torch.randn(clean.shape, device=x.device, dtype=x.dtype, generator=generator)
    noise = variance.sqrt() * normal
    # the interpolation is linear: this is its noise, and its errors at the strength that is asked
    taken = demosaic(noise + errors * clean, draw.row, draw.column)
    return develop((taken + (1 - errors) * light).clamp(0, 1))


def demosaic(mosaic: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """`(B, 3, H, W)` from a Bayer mosaic `(B, 1, H, W)` by gradient-corrected linear interpolation.

    Malvar, He and Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned
    color images" (ICASSP 2004), figure 2. `row` and `column` `(B,)`, 0 or 1, are the place of the
    first red pixel. What is constant or linear stays so; edges may overshoot.
    """
    is_red, is_blue = _bayer(mosaic, row, column)
    height, width = mosaic.shape[-2:]
    padded = pad_reflect(mosaic, 2)  # mirrored at the pixel, so the colours keep alternating

    def at(down: int, right: int) -> Tensor:
        return padded[..., 2 + down : 2 + down + height, 2 + right : 2 + right + width]

    # sums, and not a convolution: that would run in TF32, and cuDNN would try out every new size
    beside, above = at(0, -1) + at(0, 1), at(-1, 0) + at(1, 0)
    beside2, above2 = at(0, -2) + at(0, 2), at(-2, 0) + at(2, 0)
    corners = at(-1, -1) + at(-1, 1) + at(1, -1) + at(1, 1)
    green = (4 * mosaic + 2 * (beside + above) - beside2 - above2) / 8
    along_row = (5 * mosaic + 4 * beside - beside2 - corners + 0.5 * above2) / 8
    along_column = (5 * mosaic + 4 * above - above2 - corners + 0.5 * beside2) / 8
    across = (6 * mosaic + 2 * corners - 1.5 * (beside2 + above2)) / 8

    # a green pixel has its red neighbours beside it in one row, above and below it in the next
    in_red_row = _alternates(mosaic, row, -2)
    red_at_green = torch.where(in_red_row, along_row, along_column)
    blue_at_green = torch.where(in_red_row, along_column, along_row)
    return torch.cat(
        (
            torch.where(is_red, mosaic, torch.where(is_blue, across, red_at_green)),
            torch.where(is_red | is_blue, green, mosaic),
            torch.where(is_blue, mosaic, torch.where(is_red, across, blue_at_green)),
        ),
        1,
    )


def develop(light: Tensor) -> Tensor:
    """The picture of linear `light`, both in [0, 1]: sRGB curve, then the tone curve 3x^2 - 2x^3.

    The tone curve is what keeps the noise of shadows as low as finished photos have it.
    """
    x = torch.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return x * x * (3 - 2 * x)


def undevelop(x: Tensor) -> Tensor:
    """The light of a picture, both in [0, 1]: the inverse of `develop`."""
    x = 0.5 - torch.sin(torch.asin(1 - 2 * x) / 3)
    return torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def _bayer(x: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Where red and where blue pixels are, `(B, 1, H, W)` each; the others are green."""
    in_red_row, in_red_column = _alternates(x, row, -2), _alternates(x, column, -1)
    return in_red_row & in_red_column, ~in_red_row & ~in_red_column


def _alternates(x: Tensor, phase: Tensor, dim: int) -> Tensor:
    """True on every second row (dim -2) or column (-1), from `phase` `(B,)`; broadcasts to `x`."""
    place = torch.arange(x.shape[dim], device=x.device)
    place = place.view(-1, 1) if dim == -2 else place.view(1, -1)
    return (place + (phase > 0.5).long().view(-1, 1, 1, 1)) % 2 == 0
