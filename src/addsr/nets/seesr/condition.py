"""The ControlNet's encoder of its picture, which takes one that is encoded already."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addsr.errors import InputError, ModelError


class ConditionEncoder(nn.Module):
    """From a picture `(B, 3, 8h, 8w)` in [0, 1] to a map `(B, channels, h, w)` of a latent's size.

    The stack of ControlNet (arXiv 2302.05543, section 3.3): per width a convolution, and one of
    stride 2 to the next width. Such a map given in place of a picture is passed on: it depends on
    the picture alone, so steps, tiles and prompts can share it.
    """

    def __init__(
        self,
        channels: int = 320,
        widths: Sequence[int] = (16, 32, 96, 256),
        picture_channels: int = 3,
    ) -> None:
        super().__init__()
        if channels == picture_channels:
            raise ModelError(f"channels: a map of {channels} could not be told from a picture")
        self.channels, self.picture_channels = channels, picture_channels
        self.factor = 2 ** (len(widths) - 1)
        """Picture pixels per latent pixel."""
        self.conv_in = nn.Conv2d(picture_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for width, following in pairwise(widths):
            self.blocks.append(nn.Conv2d(width, width, 3, padding=1))
            self.blocks.append(nn.Conv2d(width, following, 3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(widths[-1], channels, 3, padding=1)
        # a fresh ControlNet changes nothing
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, condition: Tensor) -> Tensor:
        """The map of a picture, or `condition` itself where it is one.

        Raises:
            InputError: neither a picture nor a map, or a side that is no multiple of `factor`.
        """
        if condition.ndim == 4 and condition.shape[1] == self.channels:
            return condition
        if condition.ndim != 4 or condition.shape[1] != self.picture_channels:
            raise InputError(
                f"condition: {tuple(condition.shape)} does not fit; give a picture (B, "
                f"{self.picture_channels}, H, W) in [0, 1], or what the encoder made of one"
            )
        height, width = condition.shape[-2:]
        if height % self.factor or width % self.factor:
            raise InputError(
                f"condition: {width}x{height} has a side that is no multiple of {self.factor}; "
                "pad the picture"
            )
        x = F.silu(self.conv_in(condition))
        for conv in self.blocks:
            x = F.silu(conv(x))
        return self.conv_out(x)


def encode_in_strips(encoder: ConditionEncoder, picture: Tensor, pixels: int) -> Tensor:
    """What `encoder(picture)` gives, made in strips of rows of about `pixels` pixels each.

    Exact: a strip comes with as many rows of its neighbours as the convolutions reach.
    """
    factor = encoder.factor
    height, width = picture.shape[-2:]
    rows = max(pixels // width // factor, 1) * factor
    margin = 4 * factor  # they reach 3 * factor - 1 far
    found: list[Tensor] = []
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        above, below = min(margin, top), min(margin, height - bottom)
        strip = encoder(picture[..., top - above : bottom + below, :])
        found.append(strip[..., above // factor : (above + bottom - top) // factor, :])
    return torch.cat(found, dim=-2)
