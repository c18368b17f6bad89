"""Aggregation sampling: a network made for one tile serves a latent of any size (StableSR, 4.1).

In every step the network runs on overlapping tiles and its outputs are averaged with Gaussian
weights into one output for the whole latent; the sampler never sees a tile. The encoder sees the
low-resolution tile, so structure is local too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from addsr.errors import InputError, OptionError

TileModel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`model(z_t, t, z_lr)` gives the network output of tiles `(N, 4, T, T)`; t is `(N,)`."""

VARIANCE = 0.01
"""Of the Gaussian window, in units of the tile's side."""


@dataclass(frozen=True)
class TileSpec:
    """Tiles of aggregation sampling, in latent pixels (8 picture pixels each)."""

    tile: int = 64
    """Side; 96 for the model of 768 px. A shorter side of the latent is taken whole."""
    overlap: int = 32
    batch: int = 4
    """Tiles that go through the network together; more is faster and takes more memory."""
    parity: bool = False
    """Whether the window is half a pixel too low, as published: for comparisons only."""

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise OptionError(f"tile: {self.tile} is not a positive number")
        if not 0 <= self.overlap < self.tile:
            raise OptionError(
                f"overlap: {self.overlap} must be from 0 to {self.tile - 1}, below the tile's side"
            )
        if self.batch < 1:
            raise OptionError(f"batch: {self.batch} is not a positive number")


def aggregate(model: TileModel, z_lr: Tensor, spec: TileSpec) -> Callable[[Tensor, Tensor], Tensor]:
    """The network output for latents of the size of `z_lr` `(B, 4, h, w)`, as a function (z_t, t).

    Any map `(B, C, h, w)` that the network looks at may stand for `z_lr`.

    Raises (the function returned):
        InputError: `z_t` is of another batch or size than `z_lr`.
    """
    height, width = z_lr.shape[-2:]
    if max(height, width) <= spec.tile:
        return _untiled(model, z_lr)
    tops, rows = windows(height, spec, offset=0.5 if spec.parity else 0.0)
    lefts, columns = windows(width, spec)
    tile_height, tile_width = rows.shape[-1], columns.shape[-1]
    # once and not for each tile: a copy to a GPU makes it wait
    rows, columns = rows.to(z_lr.device), columns.to(z_lr.device)
    places = [(i, j) for i in range(len(tops)) for j in range(len(lefts))]

    def cut(z: Tensor, place: tuple[int, int]) -> Tensor:
        top, left = tops[place[0]], lefts[place[1]]
        return z[..., top : top + tile_height, left : left + tile_width]

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        _check_alike(z_t, z_lr)
        fused = torch.zeros(z_t.shape, device=z_t.device)  # float32, whatever the network's type
        for k in range(0, len(places), spec.batch):
            some = places[k : k + spec.batch]
            tiles = torch.cat([cut(z_t, place) for place in some])
            lr_tiles = torch.cat([cut(z_lr, place) for place in some])
            outputs = model(tiles, t.repeat(len(some)), lr_tiles).chunk(len(some))
            for (i, j), output in zip(some, outputs, strict=True):
                weight = rows[i][:, None] * columns[j]
                cut(fused, (i, j)).addcmul_(output.float(), weight)
        return fused

    return predict


def _untiled(model: TileModel, z_lr: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """`aggregate` of a single tile, all of whose weights are 1."""

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        _check_alike(z_t, z_lr)
        return model(z_t, t, z_lr).float()

    return predict


def _check_alike(z_t: Tensor, z_lr: Tensor) -> None:
    if z_t[:, 0].shape != z_lr[:, 0].shape:
        raise InputError(f"z_lr {tuple(z_lr.shape)} and z_t {tuple(z_t.shape)} differ in shape")


def windows(length: int, spec: TileSpec, offset: float = 0.0) -> tuple[tuple[int, ...], Tensor]:
    """`(starts, weights)` of the tiles along an axis; weights `(tiles, side)` are float32.

    The window is separable and tiles form a grid, so weights that sum to one along both axes sum
    to one in the plane: nothing is left to divide by.
    """
    side = min(spec.tile, length)
    starts = tile_starts(length, side, spec.overlap)
    window = gaussian_window(side, offset)
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + side] += window
    weights = torch.stack([window / total[start : start + side] for start in starts])
    return starts, weights.float()


def tile_starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    """Offsets of the tiles along an axis; the last is moved back to end with the axis.

    >>> tile_starts(96, 64, 32), tile_starts(100, 64, 32), tile_starts(64, 64, 32)
    ((0, 32), (0, 32, 36), (0,))
    """
    stride = tile - overlap if overlap < tile else tile
    count = max(math.ceil((length - tile) / stride), 0) + 1
    return tuple(min(k * stride, length - tile) for k in range(count))


def gaussian_window(side: int, offset: float = 0.0) -> Tensor:
    """Float64 weights `(side,)` of a tile along an axis, centred but for `offset` pixels."""
    place = torch.arange(side, dtype=torch.float64) - (side - 1) / 2 - offset
    density = torch.exp(-((place / side) ** 2) / (2 * VARIANCE))
    return density / math.sqrt(2 * math.pi * VARIANCE)
