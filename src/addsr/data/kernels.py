"""Blur kernels, batched, with parameters of its own for each picture.

Gaussian, generalised Gaussian and plateau kernels follow Liu et al. 2020 as used by Real-ESRGAN
(arXiv 2107.10833, section 3.1), the circular sinc kernel its equation 6.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .draw import Dice

TAPS = 21
"""Side of a drawn kernel; smaller ones are padded with zeros."""

GAUSSIAN, PLATEAU, SINC, IDENTITY = 0, 1, 2, 3
"""Values of `KernelDraw.family`; a generalised Gaussian has family 0 and beta other than 1."""


class KernelDraw(NamedTuple):
    """Parameters of a batch of kernels, each `(B,)`."""

    family: Tensor
    size: Tensor
    sigma_x: Tensor
    sigma_y: Tensor
    theta: Tensor
    beta: Tensor
    cutoff: Tensor


def density_kernels(draw: KernelDraw, taps: int = TAPS) -> Tensor:
    """Gaussian-like kernels `(B, taps, taps)`, each zero outside its size and summing to one.

    With q the Mahalanobis distance squared: `exp(-q**beta / 2)`, for the plateau family
    `1 / (1 + q**beta)`. Angles turn the x axis, which runs along rows, towards y.
    """
    x, y = _grid(draw.sigma_x, taps)
    cos, sin = _deep(draw.theta.cos()), _deep(draw.theta.sin())
    along, across = cos * x + sin * y, cos * y - sin * x  # (B, taps, taps)
    q = (along / _deep(draw.sigma_x)) ** 2 + (across / _deep(draw.sigma_y)) ** 2
    power = q ** _deep(draw.beta)
    is_plateau = _deep(draw.family) == PLATEAU
    density = torch.where(is_plateau, 1 / (1 + power), torch.exp(-0.5 * power))
    return _normalised(density, draw.size, x, y)


def sinc_kernels(cutoff: Tensor, size: Tensor, taps: int = TAPS) -> Tensor:
    """Circular ideal low-pass kernels `(B, taps, taps)` for angular cutoffs `(B,)` up to pi."""
    x, y = _grid(cutoff, taps)
    radius = (x * x + y * y).sqrt()
    wave = _deep(cutoff)
    # J1(wr)/r tends to w/2 in the middle
    apart = radius.clamp_min(1e-3)
    ring = wave * _bessel_j1(wave * apart) / (2 * math.pi * apart)
    return _normalised(torch.where(radius > 0, ring, wave**2 / (4 * math.pi)), size, x, y)


def build_kernels(draw: KernelDraw, taps: int = TAPS) -> Tensor:
    """Kernels of any family `(B, taps, taps)` on the device of the parameters."""
    family = _deep(draw.family)
    built = density_kernels(draw, taps)
    built = torch.where(family == SINC, sinc_kernels(draw.cutoff, draw.size, taps), built)
    x, y = _grid(draw.cutoff, taps)
    return torch.where(family == IDENTITY, ((x == 0) & (y == 0)).to(built.dtype), built)


def draw_kernels(dice: Dice, blur: str) -> KernelDraw:
    """Parameters drawn on the host from the `BlurSpec` in field `blur` of each picture's spec."""
    smallest, largest = dice.column(f"{blur}.sizes").unbind(1)
    size = dice.between((smallest - 1) / 2, (largest + 1) / 2).floor() * 2 + 1
    kind = dice.choice(f"{blur}.kinds")
    is_turned, is_plateau = kind % 2 == 1, kind >= 4
    sigma_x, sigma_y = dice.uniform(f"{blur}.sigma"), dice.uniform(f"{blur}.sigma")
    theta = dice.between(-math.pi, math.pi)
    ranges = dice.column(f"{blur}.beta_generalised"), dice.column(f"{blur}.beta_plateau")
    low, high = torch.where(is_plateau[:, None], ranges[1], ranges[0]).unbind(1)
    is_above = dice.unit() < 0.5
    beta = torch.where(is_above, dice.between(1.0, high), dice.between(low, 1.0))
    # a small kernel cannot hold a slow ring
    lowest = torch.where(size < 13, math.pi / 3, math.pi / 5)
    cutoff = dice.between(lowest, math.pi)
    family = torch.where(is_plateau, PLATEAU, GAUSSIAN)
    family = torch.where(dice.chance(f"{blur}.sinc"), SINC, family)
    family = torch.where(dice.chance(f"{blur}.probability"), family, IDENTITY)
    return KernelDraw(
        family=family,
        size=size,
        sigma_x=sigma_x,
        sigma_y=torch.where(is_turned, sigma_y, sigma_x),
        theta=torch.where(is_turned, theta, 0.0),
        beta=torch.where(kind >= 2, beta, 1.0),
        cutoff=cutoff,
    )


def draw_final_sinc(dice: Dice) -> KernelDraw:
    """Parameters of the last filter: a sinc kernel with probability `final_sinc`, else nothing."""
    size = dice.between(3, 11).floor() * 2 + 1
    one = torch.ones_like(size)
    family = torch.where(dice.chance("final_sinc"), SINC, IDENTITY)
    return KernelDraw(family, size, one, one, one, one, dice.between(math.pi / 3, math.pi))


def _bessel_j1(x: Tensor) -> Tensor:
    """J1 of `x` from 0 up, of full precision in float64 too.

    Just above 5 torch's own is off by 5e-7, which float32 hardly shows.
    """
    far = torch.special.bessel_j1(x)
    if x.dtype != torch.float64:
        return far
    quarter = -((x.clamp_max(12) / 2) ** 2)
    series = torch.ones_like(x)
    for k in range(32, 0, -1):  # Horner's scheme for the power series
        series = 1 + quarter / (k * (k + 1)) * series
    return torch.where(x < 12, x / 2 * series, far)


def _grid(like: Tensor, taps: int) -> tuple[Tensor, Tensor]:
    axis = torch.arange(taps, device=like.device, dtype=like.dtype) - taps // 2
    return axis[None, None, :], axis[None, :, None]


def _deep(column: Tensor) -> Tensor:
    return column[:, None, None]


def _normalised(kernel: Tensor, size: Tensor, x: Tensor, y: Tensor) -> Tensor:
    reach = _deep(size) / 2
    kernel = torch.where((x.abs() < reach) & (y.abs() < reach), kernel, 0.0)
    return kernel / kernel.sum((1, 2), keepdim=True)
