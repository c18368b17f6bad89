"""StableSR's time-aware encoder: structure of the low-resolution latent, told apart by timestep.

The contracting half of a diffusion U-Net with its middle, and one more residual block per grid for
what is handed out (arXiv 2305.07015, section 3.1). Noisy steps need strong structure, late ones
little: that is why the encoder sees the timestep and runs once per step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addsr.errors import InputError

_LayerT = TypeVar("_LayerT", bound=nn.Module)

GROUPS = 32
"""Groups of every group normalisation; widths are multiples of it."""


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of a `TimeAwareEncoder`; the defaults are the published size (52 494 080 numbers)."""

    widths: tuple[int, ...] = (256, 256, 512, 512)
    """Channels at h, h/2, h/4, ..."""
    blocks: int = 2
    """Residual blocks at each grid."""
    attention: tuple[bool, ...] = (True, True, True, False)
    """Whether each grid's residual blocks are followed by self-attention; the middle always is."""
    heads: int = 4
    time_channels: int = 256
    """Sinusoids of the timestep; the embedding is four times as wide."""
    features: int = 256
    """Channels of each map that is handed out."""
    latent_channels: int = 4

    def __post_init__(self) -> None:
        if not self.widths or any(type(n) is not int or n < 1 or n % GROUPS for n in self.widths):
            raise ValueError(f"widths = {self.widths!r}: give multiples of {GROUPS}")
        if len(self.attention) != len(self.widths):
            raise ValueError(f"attention = {self.attention!r}: give one truth value per width")
        for name in ("blocks", "heads", "time_channels", "features", "latent_channels"):
            value: Any = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} = {value!r}: give a whole number from 1")
        if self.features % GROUPS:
            raise ValueError(f"features = {self.features!r}: give a multiple of {GROUPS}")
        if self.time_channels % 2:
            raise ValueError(f"time_channels = {self.time_channels!r}: give an even one")
        attended = {w for w, has in zip(self.widths, self.attention, strict=True) if has}
        if any(w % self.heads for w in attended | {self.widths[-1]}):
            raise ValueError(f"heads = {self.heads!r}: must divide the widths {self.widths!r}")

    @property
    def multiple(self) -> int:
        """Sides of a latent must be multiples of this."""
        return 2 ** (len(self.widths) - 1)


class TimeAwareEncoder(nn.Module):
    """Feature maps of a clean latent at one timestep, finest first."""

    def __init__(self, config: EncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or EncoderConfig()
        embedded = 4 * config.time_channels
        self.time = nn.Sequential(
            nn.Linear(config.time_channels, embedded), nn.SiLU(), nn.Linear(embedded, embedded)
        )
        self.conv_in = nn.Conv2d(config.latent_channels, config.widths[0], 3, padding=1)
        incoming = (config.widths[0], *config.widths)
        self.grids = nn.ModuleList(
            Grid(
                incoming[i],
                width,
                config.blocks,
                embedded,
                heads=config.heads if config.attention[i] else 0,
                is_last=i + 1 == len(config.widths),
            )
            for i, width in enumerate(config.widths)
        )
        last = config.widths[-1]
        self.middle = nn.ModuleList(
            [
                TimeResBlock(last, last, embedded),
                SelfAttention(last, config.heads),
                TimeResBlock(last, last, embedded),
            ]
        )
        self.outputs = nn.ModuleList(
            TimeResBlock(width, config.features, embedded) for width in config.widths
        )

    def embed_time(self, timesteps: Tensor) -> Tensor:
        """`(B, 4 * time_channels)` of timesteps `(B,)` in 0..999."""
        wave = sinusoids(timesteps, self.config.time_channels)
        return self.time(wave.to(self.conv_in.weight.dtype))

    def forward(self, latent: Tensor, timesteps: Tensor) -> tuple[Tensor, ...]:
        """Maps `(B, features, h / 2**i, w / 2**i)` of a clean, scaled latent `(B, 4, h, w)`.

        `timesteps` `(B,)` are the original ones, 0..999, whatever list a sampler walks.

        Raises:
            InputError: a latent side that is no multiple of `config.multiple`.
        """
        height, width = latent.shape[-2:]
        if height % self.config.multiple or width % self.config.multiple:
            raise InputError(
                f"latent: {width}x{height} has a side that is no multiple of "
                f"{self.config.multiple}; pad the picture or use tiles"
            )
        time = F.silu(self.embed_time(timesteps))
        x = self.conv_in(latent)
        tapped: list[Tensor] = []
        for grid in self.grids:
            x, before_downsampling = grid(x, time)
            tapped.append(before_downsampling)
        first, attention, second = self.middle
        # the coarsest map is handed out after the middle, not before it
        tapped[-1] = second(attention(first(x, time)), time)
        return tuple(out(tap, time) for out, tap in zip(self.outputs, tapped, strict=True))


class Grid(nn.Module):
    """The residual blocks of one grid, then a step to the next coarser one (but for the last)."""

    def __init__(
        self, channels_in: int, channels: int, blocks: int, time: int, heads: int, is_last: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            TimeResBlock(channels_in if k == 0 else channels, channels, time) for k in range(blocks)
        )
        self.attentions = nn.ModuleList(
            SelfAttention(channels, heads) for _ in range(blocks if heads else 0)
        )
        self.down = None if is_last else nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        for k, block in enumerate(self.blocks):
            x = block(x, time)
            if len(self.attentions):
                x = self.attentions[k](x)
        return x if self.down is None else self.down(x), x


class TimeResBlock(nn.Module):
    """Norm, SiLU, conv3x3, plus time, norm, SiLU, conv3x3, plus the input.

    `time` is the embedding after its SiLU. The last convolution starts at zero, so a fresh block
    is its shortcut.
    """

    def __init__(self, channels_in: int, channels: int, time: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels_in, eps=1e-5)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.time = nn.Linear(time, channels)
        self.norm2 = nn.GroupNorm(GROUPS, channels, eps=1e-5)
        self.conv2 = zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        self.shortcut = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(time)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))


class SelfAttention(nn.Module):
    """Self-attention over all positions of a map, plus the map."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-5)
        self.q = nn.Linear(channels, channels)
        self.k = nn.Linear(channels, channels)
        self.v = nn.Linear(channels, channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = self.norm(x).flatten(2).transpose(1, 2)  # (B, H*W, C)
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, H*W, C/heads)
            for layer in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, H*W, C)
        return x + self.out(y).transpose(1, 2).reshape(b, c, h, w)


def sinusoids(timesteps: Tensor, channels: int) -> Tensor:
    """`(B, channels)` float32: cosines, then sines, of `timesteps` `(B,)`, wavelengths to 1e4."""
    half = channels // 2
    rank = torch.arange(half, device=timesteps.device, dtype=torch.float32)
    angle = timesteps.float()[:, None] * torch.exp(rank * (-math.log(10000) / half))
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def zeroed(layer: _LayerT) -> _LayerT:
    """`layer` with all its parameters set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
