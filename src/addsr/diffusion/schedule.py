"""The straight-line schedule of the compact model: `x_t = (1 - t) x0 + t eps`, t in [0, 1].

Levels 1, .75, .5 and .25 stand for AddSR's 999, 749, 499 and 249 (arXiv 2404.01717);
fewer steps take the head of the same list.
"""

from __future__ import annotations

from torch import Tensor

LEVELS: dict[int, tuple[float, ...]] = {1: (1.0,), 2: (1.0, 0.75), 4: (1.0, 0.75, 0.5, 0.25)}


def add_noise(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """`x_t` `(B, C, H, W)` in [-1, 1] units from a clean picture in [0, 1]; `t` is `(B,)`."""
    t = t.view(-1, 1, 1, 1)
    return (1 - t) * (x0 * 2 - 1) + t * noise


def even_levels(steps: int) -> tuple[float, ...]:
    """`steps` evenly spaced levels from 1 downwards, for the many-step teacher."""
    return tuple(1 - k / steps for k in range(steps))
