"""One field of normal noise over a picture of any size, the same wherever it is read."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

_BLOCK = 256
_KEPT = 16  # blocks in memory, 13 MB; drawing one again takes 1 ms, a tile's network far longer
_MASK = (1 << 64) - 1


class NoiseField:
    """Standard normal values as a function of `(seed, stage, row, column)` alone.

    The plane is cut into fixed blocks; each is drawn on the CPU from a generator whose seed mixes
    the field's seed with the block's place. Any tiling, order and device sees the same values.
    `stage` tells apart the passes of one picture.
    """

    def __init__(self, seed: int, stage: int = 0) -> None:
        self.seed, self.stage = seed, stage
        self._blocks: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """The values `(1, 3, height, width)` of this rectangle, float32 on the CPU."""
        out = torch.empty(1, 3, height, width)
        for row in range(top // _BLOCK, (top + height - 1) // _BLOCK + 1):
            for column in range(left // _BLOCK, (left + width - 1) // _BLOCK + 1):
                block = self._block(row, column)
                y0, x0 = row * _BLOCK, column * _BLOCK
                a, b = max(y0, top), min(y0 + _BLOCK, top + height)
                c, d = max(x0, left), min(x0 + _BLOCK, left + width)
                out[0, :, a - top : b - top, c - left : d - left] = block[
                    :, a - y0 : b - y0, c - x0 : d - x0
                ]
        return out

    def _block(self, row: int, column: int) -> Tensor:
        key = (row, column)
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return self._blocks[key]
        generator = torch.Generator()
        generator.manual_seed(_mix(self.seed, self.stage, row, column))
        block = torch.randn(3, _BLOCK, _BLOCK, generator=generator)
        self._blocks[key] = block
        if len(self._blocks) > _KEPT:
            self._blocks.popitem(last=False)
        return block


def _mix(*values: int) -> int:
    """A 63-bit seed from integers, by the finaliser of splitmix64 after each of them.

    Neighbouring blocks must not get neighbouring seeds: some generators start alike from those.
    """
    state = 0
    for value in values:
        state = (state + (value & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1
