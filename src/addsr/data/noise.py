"""Gaussian and Poisson noise with strengths of its own for each picture."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .draw import Dice


class NoiseDraw(NamedTuple):
    """Strengths of noise, each `(B,)`; zero means none of that noise."""

    sigma: Tensor
    """Standard deviation of Gaussian noise for pictures in [0, 1]."""
    poisson: Tensor
    """Factor on Poisson noise."""
    gray: Tensor
    """1 where all channels get the same noise."""


def draw_noise(dice: Dice, noise: str) -> NoiseDraw:
    """Strengths drawn on the host from the `NoiseSpec` in field `noise` of each picture's spec."""
    is_noisy, is_gaussian = dice.chance(f"{noise}.probability"), dice.chance(f"{noise}.gaussian")
    sigma, poisson = dice.uniform(f"{noise}.sigma") / 255, dice.uniform(f"{noise}.poisson")
    return NoiseDraw(
        sigma=torch.where(is_noisy & is_gaussian, sigma, 0.0),
        poisson=torch.where(is_noisy & ~is_gaussian, poisson, 0.0),
        gray=dice.chance(f"{noise}.gray"),
    )


def add_noise(
    x: Tensor, draw: NoiseDraw, *, generator: torch.Generator, owner: Tensor | None = None
) -> Tensor:
    """`x` `(M, 3, h, w)` with noise, clamped to [0, 1].

    Args:
        x: pictures, or pieces of pictures.
        draw: one strength per picture, on the device of `x`.
        generator: on the device of `x`.
        owner: `(M,)` the picture each piece belongs to; None means piece i is picture i.
    """
    if owner is None:
        owner = torch.arange(len(x), device=x.device)
    is_gray = (draw.gray > 0.5)[owner].view(-1, 1, 1, 1)
    normal = torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=generator)
    noise = normal * draw.sigma[owner].view(-1, 1, 1, 1)
    scale = draw.poisson[owner].view(-1, 1, 1, 1)
    noise = noise + scale * _poisson(x, scale > 0, is_gray, owner, len(draw.gray), generator)
    return (x + torch.where(is_gray, noise[:, :1], noise)).clamp(0, 1)


def _poisson(
    x: Tensor,
    wanted: Tensor,
    is_gray: Tensor,
    owner: Tensor,
    pictures: int,
    generator: torch.Generator,
) -> Tensor:
    """Shot noise of as many photons at white as the picture has levels, a power of two upwards.

    Grey noise is made in the first channel, from the luma.
    """
    red, green, blue = x.split(1, 1)
    luma = 0.2989 * red + 0.587 * green + 0.114 * blue
    level = (torch.where(is_gray, luma, x) * 255).round().clamp(0, 255)
    photons = _photons(level, owner, pictures)[owner].view(-1, 1, 1, 1)
    clean = level / 255
    # a rate of zero costs next to nothing, a real one a hundred instructions
    is_first = torch.arange(3, device=x.device).view(1, 3, 1, 1) == 0
    rate = torch.where(wanted & (is_first | ~is_gray), clean * photons, 0.0)
    return torch.where(wanted, torch.poisson(rate, generator=generator) / photons - clean, 0.0)


def _photons(level: Tensor, owner: Tensor, pictures: int) -> Tensor:
    """`(pictures,)`: the number of distinct levels among 256 in each, up to a power of two."""
    place = owner.view(-1, 1, 1, 1) * 256 + level.long()
    seen = torch.zeros(pictures * 256, device=level.device, dtype=level.dtype)
    seen.index_fill_(0, place.flatten(), 1.0)
    return 2 ** seen.view(pictures, 256).sum(1).clamp_min(1).log2().ceil()
