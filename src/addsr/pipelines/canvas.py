"""From a picture's size to the sizes the network works in, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.image.resize import resize
from addsr.plan import target_size

Size = tuple[int, int]
"""Height and width."""

LONGEST = 4
"""Small pictures are enlarged until their long side is so many trained sides, at most."""


@dataclass(frozen=True)
class Canvas:
    """Sizes of one picture on its way, in picture pixels."""

    target: Size
    """Of the result."""
    content: Size
    """Of what the network restores: `target`, or larger where that is below one tile."""
    padded: Size
    """`content` with mirrored pixels on the right and below, on the networks' grid."""

    def fill(self, rgb: Tensor) -> Tensor:
        """`rgb` `(1, 3, H, W)` in [0, 1] as the network's input in [-1, 1]."""
        x = enlarge(rgb, self.content)
        for dim, (side, full) in zip(
            (-2, -1), zip(self.content, self.padded, strict=True), strict=True
        ):
            if full > side:
                x = x.index_select(dim, mirrored(side, full).to(x.device))
        return x * 2 - 1

    def empty(self, x: Tensor) -> Tensor:
        """The result `(1, 3, H, W)` in the range of `x`, the restored canvas."""
        return resize(x[..., : self.content[0], : self.content[1]], self.target)


def enlarge(rgb: Tensor, size: Size) -> Tensor:
    """`rgb` `(B, 3, H, W)` in [0, 1] at the larger `size`, as StableSR was trained to see it.

    torch's bicubic kernel, a = -0.75 without antialias; everything else here enlarges with -0.5.
    """
    return F.interpolate(rgb, size=size, mode="bicubic").clamp(0, 1)


def make_canvas(
    source: Size, upscale: float, tile: int, factor: int, multiple: int, trained: int | None = None
) -> Canvas:
    """The canvas for a picture of `source` made `upscale` times larger.

    The network knows pictures of `trained` pixels: a result with a shorter side is restored larger
    and reduced afterwards, as the paper does. Smaller tiles let it stay smaller, larger ones change
    nothing, or a small picture would cost as much as a large one. A panorama is enlarged less, or
    not at all.

    Args:
        tile: side of the sampler's tiles, in picture pixels.
        factor: picture pixels per latent pixel.
        multiple: sides of a latent that is smaller than a tile are multiples of this.
        trained: side of the pictures the network was trained with; None: `tile`.
    """
    target = target_size(source, upscale)
    short, long = min(target), max(target)
    side = tile if trained is None else min(tile, trained)
    grow = max(1.0, min(side / short, LONGEST * side / long))
    content = target_size(target, grow)
    latent = [-(-side // factor) for side in content]
    latent = [n if n * factor >= tile else -(-n // multiple) * multiple for n in latent]
    return Canvas(target, content, (latent[0] * factor, latent[1] * factor))


def mirrored(side: int, full: int) -> Tensor:
    """Positions `(full,)` in an axis of `side` pixels that is mirrored at its ends, edges once.

    >>> mirrored(3, 8).tolist()
    [0, 1, 2, 1, 0, 1, 2, 1]
    """
    period = max(2 * (side - 1), 1)
    place = torch.arange(full) % period
    return torch.where(place < side, place, period - place)
