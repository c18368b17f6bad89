"""TAESD's decoder: a small network that makes about the picture the VAE would make of a latent.

It is for looks at what is not finished: 1.2 M numbers in place of 49.5 M, and an eighteenth of the
work (71 in place of 1 257 thousand million multiplications at 512 px). diffusers has the layers; it
is imported when one is built.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, cat, nn

from addsr.errors import ConfigError

from .stablesr.backbones import backbone_class


@dataclass(frozen=True)
class TinyDecoderConfig:
    """Shape of the decoder; the defaults are TAESD's (1 222 531 numbers)."""

    width: int = 64
    blocks: tuple[int, ...] = (3, 3, 3, 1)
    """Residual blocks of each level, the latent's first; from level to level sides double."""
    latent_channels: int = 4

    def __post_init__(self) -> None:
        if not self.blocks or min(self.width, self.latent_channels, *self.blocks) < 1:
            raise ConfigError(
                f"width = {self.width}, blocks = {self.blocks} and latent_channels = "
                f"{self.latent_channels} must all be 1 or more"
            )


class TinyDecoder(nn.Module):
    """The decoder of diffusers' `AutoencoderTiny`, with its names of tensors, without encoder."""

    def __init__(self, config: TinyDecoderConfig | None = None) -> None:
        """With fresh weights.

        Raises:
            DependencyError: diffusers is not installed.
        """
        super().__init__()
        self.config = config = config or TinyDecoderConfig()
        levels = len(config.blocks)
        whole: Any = backbone_class("AutoencoderTiny")(
            latent_channels=config.latent_channels,
            encoder_block_out_channels=(1,),
            num_encoder_blocks=(1,),
            decoder_block_out_channels=(config.width,) * levels,
            num_decoder_blocks=config.blocks,
        )
        self.decoder: nn.Module = whole.decoder
        self.factor = 2 ** (levels - 1)
        """Picture pixels per latent pixel."""
        self.reach = _reach(config.blocks)
        """Latent pixels to each side that a picture pixel depends on."""

    def forward(self, latent: Tensor) -> Tensor:
        """The picture `(B, 3, 8h, 8w)`, about [-1, 1], of a scaled latent `(B, 4, h, w)`.

        Scaled, as the sampler has it: unlike the VAE it is not to be divided by 0.18215.
        """
        return self.decoder(latent)


def decode_in_strips(decoder: TinyDecoder, latent: Tensor, pixels: int) -> Tensor:
    """What `decoder(latent)` gives, made in strips of rows of about `pixels` pixels each.

    Exact: a strip comes with as many rows of its neighbours as the convolutions reach.
    """
    factor, margin = decoder.factor, decoder.reach
    height, width = latent.shape[-2:]
    rows = max(pixels // (width * factor**2), 1)
    found: list[Tensor] = []
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        above = min(margin, top)
        strip = decoder(latent[..., top - above : bottom + margin, :])
        found.append(strip[..., above * factor : (above + bottom - top) * factor, :])
    return cat(found, dim=-2)


def _reach(blocks: tuple[int, ...]) -> int:
    """How far 3 convolutions a block and one before and behind each level see, in latent pixels.

    >>> _reach((3, 3, 3, 1))
    19
    """
    last = len(blocks) - 1
    seen = 1 + 0.5**last  # the first convolution and the last one
    for level, count in enumerate(blocks):
        behind = 0.5 if level < last else 0.0  # a pixel of the next level
        seen += (3 * count + behind) / 2**level
    return math.ceil(seen)
