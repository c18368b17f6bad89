"""Swin transformer (arXiv 2103.14030), the encoder of RAM, for pictures of one side."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from addsr.errors import ConfigError, InputError

# what the published masks add where two tokens are neighbours by the shift alone
_APART = -100.0


@dataclass(frozen=True)
class SwinConfig:
    """Shape of the encoder; the defaults are Swin-L's at 384 px."""

    side: int = 384
    """Of the pictures, in pixels."""
    patch: int = 4
    width: int = 192
    """Of the first stage; each further one has twice as many channels and half as many rows."""
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (6, 12, 24, 48)
    window: int = 12
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.heads) or not self.depths:
            raise ConfigError(
                f"heads: {self.heads} for depths {self.depths}; give one number for each stage"
            )
        if min(self.side, self.patch, self.width, self.window, *self.depths, *self.heads) < 1:
            raise ConfigError(f"sizes of a Swin transformer must be positive: {self}")
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % heads:
                raise ConfigError(f"heads: {heads} does not divide a stage's {width} channels")
        if self.side % (self.patch << (len(self.depths) - 1)):
            raise ConfigError(
                f"side: {self.side} is no multiple of {self.patch << (len(self.depths) - 1)}, by "
                "which the stages shrink a picture"
            )
        for grid in self.grids:
            if grid > self.window and grid % self.window:
                raise ConfigError(
                    f"window: {self.window} does not divide the {grid} rows of a stage; use a side "
                    f"that is a multiple of {self.window * self.patch << (len(self.depths) - 1)}"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.width << k for k in range(len(self.depths)))

    @property
    def grids(self) -> tuple[int, ...]:
        """Rows of tokens of each stage."""
        return tuple(self.side // (self.patch << k) for k in range(len(self.depths)))


class Swin(nn.Module):
    """Tokens of a picture by attention within windows, which every second block shifts by half."""

    def __init__(self, config: SwinConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SwinConfig()
        self.patches = nn.Conv2d(3, config.width, config.patch, config.patch)
        self.patches_norm = nn.LayerNorm(config.width)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                SwinBlock(
                    width, heads, grid, config.window, is_shifted=k % 2 == 1, ratio=config.mlp_ratio
                )
                for k in range(depth)
            )
            for width, depth, heads, grid in zip(
                config.widths, config.depths, config.heads, config.grids, strict=True
            )
        )
        self.merges = nn.ModuleList(
            PatchMerging(before, after) for before, after in pairwise(config.widths)
        )
        self.norm = nn.LayerNorm(config.widths[-1])

    def forward(self, image: Tensor) -> Tensor:
        """Tokens `(B, (side / patch / 2^(stages - 1))^2, last width)`, row by row.

        `image` is `(B, 3, side, side)` in units of ImageNet's normalisation.

        Raises:
            InputError: it has another size.
        """
        side = self.config.side
        if image.ndim != 4 or image.shape[1:] != (3, side, side):
            raise InputError(
                f"image: {tuple(image.shape)} is not (B, 3, {side}, {side}); resize it with prepare"
            )
        x = self.patches(image).permute(0, 2, 3, 1)  # (B, rows, columns, width)
        x = self.patches_norm(x)
        for k, stage in enumerate(self.stages):
            if k:
                x = self.merges[k - 1](x)
            for block in stage:  # type: ignore[attr-defined]
                x = block(x)
        return self.norm(x.flatten(1, 2))


class SwinBlock(nn.Module):
    """Attention within windows and an MLP, each on a normalised residual branch (Eq. 3)."""

    index: Tensor
    apart: Tensor | None

    def __init__(
        self, width: int, heads: int, grid: int, window: int, *, is_shifted: bool, ratio: float
    ) -> None:
        super().__init__()
        self.heads = heads
        # where one window holds the whole grid there is nothing to shift
        self.window = min(window, grid)
        self.shift = self.window // 2 if is_shifted and grid > window else 0
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.bias_table = nn.Parameter(torch.zeros((2 * self.window - 1) ** 2, heads))
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, round(width * ratio))
        self.shrink = nn.Linear(round(width * ratio), width)
        # made on the CPU even where networks are built without memory: no file fills them
        self.register_buffer("index", _pair_index(self.window), persistent=False)
        apart = _apart(grid, self.window, self.shift) if self.shift else None
        self.register_buffer("apart", apart, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` and the result are `(B, rows, columns, width)`."""
        h = self.norm1(x)
        if self.shift:
            h = h.roll((-self.shift, -self.shift), (1, 2))
        h = self._attend(h)
        if self.shift:
            h = h.roll((self.shift, self.shift), (1, 2))
        x = x + h
        return x + self.shrink(gelu(self.expand(self.norm2(x))))

    def _attend(self, x: Tensor) -> Tensor:
        batch, rows, columns, width = x.shape
        side = self.window
        x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # (B, R, side, C, side, width)
        x = x.transpose(2, 3).reshape(-1, side * side, width)  # (B * windows, tokens, width)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.bias_table[self.index].permute(2, 0, 1)[None]  # (1, heads, tokens, tokens)
        if self.apart is not None:
            bias = bias + self.apart[:, None].to(bias.dtype)  # (windows, heads, tokens, tokens)
            # four dimensions alone have fast kernels
            bias = bias.expand(batch, -1, -1, -1, -1).flatten(0, 1)
        x = scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        x = self.out(x.transpose(1, 2).flatten(2))
        x = x.view(batch, rows // side, columns // side, side, side, width).transpose(2, 3)
        return x.reshape(batch, rows, columns, width)


class PatchMerging(nn.Module):
    """Four neighbours into one token of twice the width (section 3.1)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * before)
        self.reduction = nn.Linear(4 * before, after, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, rows, columns, C)` to `(B, rows / 2, columns / 2, 2 C)`."""
        # down before right, as the published weights have it
        four = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(four, -1)))


def _pair_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens of a window, `(tokens, tokens)`."""
    line = torch.arange(window, device="cpu")
    y, x = (one.flatten() for one in torch.meshgrid(line, line, indexing="ij"))
    down = y[:, None] - y + window - 1
    right = x[:, None] - x + window - 1
    return down * (2 * window - 1) + right


def _apart(grid: int, window: int, shift: int) -> Tensor:
    """`(windows, tokens, tokens)`: what to add where two tokens of a window are no neighbours."""
    line = torch.arange(grid, device="cpu")
    zone = (line >= grid - window).long() + (line >= grid - shift).long()
    zones = zone[:, None] * 3 + zone
    zones = zones.unflatten(1, (-1, window)).unflatten(0, (-1, window)).transpose(1, 2)
    zones = zones.reshape(-1, window * window)
    return (zones[:, None] != zones[..., None]).float() * _APART
