"""Feature vectors of pictures from phi', for the Fréchet and kernel distance.

phi' (`addsr.nets.FeatureNet`) was trained by us to name degradations and to recognise crops
of one picture; no loss of any model uses it. One vector describes a place and its
neighbourhood, not the whole picture, so that a few dozen pictures fill a covariance. Figures are
comparable only if the same weights of phi' made the features, and not with FID or KID elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from addsr.errors import InputError

from .pixel import check_picture

SMALLEST_SIDE = 64
"""Pixels a picture's shorter side must have: four vectors of 95x95 pixels each along it."""
TILE = 512
"""Side of the parts a large picture is computed in; bounds memory at about 150 MB."""


class FeatureMaps(Protocol):
    """What `phi_features` needs of a network: maps of `(B, 3, H, W)` in [0, 1], each half as wide
    as the one before."""

    def features(self, picture: Tensor) -> list[Tensor]:
        """One map per stage, finest first."""
        ...


@torch.no_grad()
def phi_features(net: FeatureMaps, image: Tensor) -> Tensor:
    """Local feature vectors `(n, d)` of one picture: the last map of `net`, float32 on the CPU.

    `image` is `(1, 3, H, W)` in [0, 1], on the device and of the type of the net. With five stages
    there is a vector every 16 pixels, n = ceil(H / 16) * ceil(W / 16), each seeing 95x95 pixels;
    neighbours therefore overlap, and count as less than independent samples do. Large pictures are
    computed in parts, with the same result.

    Raises:
        InputError: more than one picture, or a side under 64.
    """
    check_picture("image", image)
    if len(image) != 1 or min(image.shape[-2:]) < SMALLEST_SIDE:
        raise InputError(
            f"image: {tuple(image.shape)} is not possible; give one picture (1, 3, H, W) "
            f"with sides of {SMALLEST_SIDE} or more"
        )
    stride = 2 ** (len(net.features(image[..., :16, :16])) - 1)
    rows: list[Tensor] = []
    for vertical in _spans(image.shape[-2]):
        parts = [_part(net, image, stride, vertical, across) for across in _spans(image.shape[-1])]
        rows.append(torch.cat(parts, dim=-1))
    return torch.cat(rows, dim=-2)[0].flatten(1).T.contiguous()  # (d, h, w) to (h * w, d)


def _part(
    net: FeatureMaps,
    image: Tensor,
    stride: int,
    vertical: tuple[int, int],
    across: tuple[int, int],
) -> Tensor:
    """The last map for these pixels, computed from them and from what the net sees around them."""
    # Two 3x3 convolutions per stage, the first of which halves, reach 3 * stride - 1 pixels (47 for
    # five stages); three strides cover that and keep the grid.
    reach = 3 * stride
    (top, bottom), (left, right) = vertical, across
    above, before = max(0, top - reach), max(0, left - reach)
    seen = image[..., above : bottom + reach, before : right + reach]
    last = net.features(seen)[-1].float().cpu()
    y, x = (top - above) // stride, (left - before) // stride
    rows, columns = -(-(bottom - top) // stride), -(-(right - left) // stride)
    return last[..., y : y + rows, x : x + columns]


def _spans(side: int) -> Iterator[tuple[int, int]]:
    """`side` cut into spans of `TILE` pixels, the last one as short as it comes."""
    for start in range(0, side, TILE):
        yield start, min(start + TILE, side)
