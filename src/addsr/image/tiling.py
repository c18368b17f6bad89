"""A grid of overlapping tiles and the streaming merge of their results.

Neighbouring tiles share `2 * halo + blend` pixels. The outer `halo` on either side of a cut only
feeds the network and is dropped; across the `blend` in the middle the two results are mixed with a
raised cosine and its complement, so the weights of all tiles sum to one everywhere.
Every tile starts at a multiple of the network's own grid: strided layers then fall on the same
pixels of the picture whatever the tiling.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from addsr.errors import OptionError


@dataclass(frozen=True)
class Span:
    """One tile along one axis, halo included: input positions `start` to `stop` (exclusive)."""

    start: int
    stop: int


@dataclass(frozen=True)
class Tile:
    """One rectangle of the grid, in input pixels, halo included."""

    rows: Span
    columns: Span

    def cut(self, x: Tensor, scale: int = 1) -> Tensor:
        """This tile's part of `x` `(B, C, H * scale, W * scale)`."""
        return x[
            ...,
            self.rows.start * scale : self.rows.stop * scale,
            self.columns.start * scale : self.columns.stop * scale,
        ]


@dataclass(frozen=True)
class Grid:
    """All tiles of a picture; iterating goes row by row from the top left."""

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]
    halo: int
    blend: int

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[Tile]:
        for rows in self.rows:
            for columns in self.columns:
                yield Tile(rows, columns)

    @property
    def tile(self) -> tuple[int, int]:
        """Height and width of the largest tile."""
        return (
            max(s.stop - s.start for s in self.rows),
            max(s.stop - s.start for s in self.columns),
        )


def smallest_tile(halo: int, blend: int, multiple: int) -> int:
    """The smallest tile side for which a grid makes progress."""
    return _ceil(2 * halo + blend, multiple) + _ceil(max(halo + blend, 1), multiple)


def make_grid(
    height: int, width: int, tile: int, *, halo: int, blend: int, multiple: int = 1
) -> Grid:
    """The grid for a `height` x `width` picture with tiles of at most `tile` pixels a side.

    Tiles are made about equal, so the last column is no sliver.

    Raises:
        OptionError: `tile` is too small for the halo, the blend and the network's multiple.
    """
    least = smallest_tile(halo, blend, multiple)
    if tile < least:
        raise OptionError(f"tile: {tile} px is too small for this model; give {least} or more")
    blend += (-(2 * halo + blend)) % multiple  # the stride must stay on the network's grid
    return Grid(
        _spans(height, tile, 2 * halo + blend, multiple),
        _spans(width, tile, 2 * halo + blend, multiple),
        halo,
        blend,
    )


def _spans(size: int, tile: int, overlap: int, multiple: int) -> tuple[Span, ...]:
    tile -= tile % multiple
    if size <= tile:
        return (Span(0, size),)
    count = math.ceil((size - overlap) / (tile - overlap))
    stride = _ceil(math.ceil((size - overlap) / count), multiple)
    count = math.ceil((size - overlap) / stride)
    starts = [k * stride for k in range(count)]
    return tuple(Span(s, min(s + stride + overlap, size)) for s in starts)


def windows(spans: tuple[Span, ...], halo: int, blend: int, scale: int) -> list[Tensor]:
    """One weight vector per span, of `(stop - start) * scale` values; they sum to one."""
    halo, blend = halo * scale, blend * scale
    phase = (torch.arange(blend, dtype=torch.float64) + 0.5) / max(blend, 1)
    rise = (0.5 - 0.5 * torch.cos(math.pi * phase)).float()
    result: list[Tensor] = []
    for k, span in enumerate(spans):
        weight = torch.ones((span.stop - span.start) * scale)
        if k > 0:
            weight[:halo] = 0
            weight[halo : halo + blend] = rise
        if k + 1 < len(spans):
            end = len(weight) - halo
            weight[end:] = 0
            weight[end - blend : end] = 1 - rise
        result.append(weight)
    return result


def merge_rows(grid: Grid, results: Iterable[Tensor], scale: int) -> Iterator[Tensor]:
    """Blends tile results, which arrive in the grid's order, into finished bands of rows.

    Each result is `(B, C, tile height * scale, tile width * scale)` on any device; bands are
    float32 `(B, C, rows, W * scale)` on the CPU, from top to bottom. Holds one row of tiles.
    """
    across = windows(grid.columns, grid.halo, grid.blend, scale)
    down = windows(grid.rows, grid.halo, grid.blend, scale)
    width = grid.columns[-1].stop * scale
    source = iter(results)
    held: Tensor | None = None  # rows from `rows.start` on that a former tile row began
    for k, rows in enumerate(grid.rows):
        height = (rows.stop - rows.start) * scale
        canvas: Tensor | None = None
        for columns, weight in zip(grid.columns, across, strict=True):
            result = next(source).to("cpu", torch.float32)
            if canvas is None:
                canvas = torch.zeros(*result.shape[:2], height, width)
                if held is not None:
                    canvas[..., : held.shape[-2], :] = held
                    held = None
            left, right = columns.start * scale, columns.stop * scale
            canvas[..., left:right].addcmul_(result, down[k][:, None] * weight)
        assert canvas is not None
        if k + 1 == len(grid.rows):
            yield canvas
        else:
            final = (grid.rows[k + 1].start - rows.start) * scale
            held = canvas[..., final:, :].clone()
            yield canvas[..., :final, :]


def _ceil(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
