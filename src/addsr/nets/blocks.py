"""Building blocks whose result at a pixel does not depend on where a photo is cut into tiles.

Normalisation is over the channels of one pixel: group normalisation and global attention see the
whole tile, so a pixel far from a cut would still change with it. Both stay available as options
because the choice was made by measurement (docs/training-log.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["channel", "plain", "group", "none"]
NORMS: tuple[Norm, ...] = get_args(Norm)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel, `(B, C, H, W)` to the same shape.

    In channels_last memory the permutation is free and the fused layer_norm kernel applies.
    Without `learnt` there is no scale and shift per channel: their gradients are sums over every
    position of the batch, which cost more time on a GPU than the normalisation itself.
    """

    def __init__(self, channels: int, learnt: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if learnt else None
        self.bias = nn.Parameter(torch.zeros(channels)) if learnt else None

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, 1e-5).permute(0, 3, 1, 2)


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """The normalisation layer called `norm` for `channels` channels."""
    if norm in ("channel", "plain"):
        return ChannelNorm(channels, learnt=norm == "channel")
    if norm == "group":
        return nn.GroupNorm(32 if channels % 32 == 0 else 16, channels)
    return nn.Identity()


class ResBlock(nn.Module):
    """Residual block: norm, SiLU, conv3x3, norm, time scale and shift, SiLU, conv3x3.

    `time_channels` 0 means no time input. The last convolution starts near zero, so a fresh
    block is close to the identity (or to its 1x1 shortcut).
    """

    def __init__(self, channels_in: int, channels: int, time_channels: int, norm: Norm) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.norm2 = make_norm(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Linear(time_channels, 2 * channels) if time_channels else None
        self.shortcut = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else None
        nn.init.normal_(self.conv2.weight, std=1e-3)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(
        self,
        x: Tensor,
        time: Tensor | None = None,
        modulate: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """`x` plus the residual branch, which `modulate` changes before the sum."""
        # in place, x and two more of its size are alive at most
        spare = may_overwrite()
        h = self.norm1(x)
        h = self.conv1(F.silu(h, inplace=spare and h is not x))
        h = self.norm2(h)
        if self.time is not None and time is not None:
            scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
            h = h.mul_(1 + scale).add_(shift) if spare else h * (1 + scale) + shift
        h = self.conv2(F.silu(h, inplace=spare))
        if modulate is not None:
            h = modulate(h)
        x = x if self.shortcut is None else self.shortcut(x)
        return h.add_(x) if spare else h + x


class GlobalAttention(nn.Module):
    """Self-attention over all positions; only for the comparison with tile-independent layers."""

    def __init__(self, channels: int, heads: int, norm: Norm) -> None:
        super().__init__()
        self.norm = make_norm(norm, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.heads = heads
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # each (B, heads, H*W, C/heads)
        y = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, c, h, w)
        return x + self.out(y)


class TimeEmbedding(nn.Module):
    """Sinusoids of t in [0, 1] (times 1000) through a small MLP; `(B,)` to `(B, channels)`."""

    def __init__(self, channels: int, sinusoids: int = 128) -> None:
        super().__init__()
        self.sinusoids = sinusoids
        self.mlp = nn.Sequential(
            nn.Linear(sinusoids, channels), nn.SiLU(), nn.Linear(channels, channels), nn.SiLU()
        )

    def forward(self, t: Tensor) -> Tensor:
        half = self.sinusoids // 2
        # float32 throughout: bf16 has 8 bits of mantissa and would fold neighbouring levels of t
        rank = torch.arange(half, device=t.device, dtype=torch.float32)
        angle = t.float()[:, None] * 1000 * torch.exp(rank * (-math.log(10000) / half))
        wave = torch.cat([angle.cos(), angle.sin()], dim=1)
        return self.mlp(wave.to(next(self.parameters()).dtype))


def may_overwrite() -> bool:
    """Whether nothing will be differentiated, so that layers may work in place and in strips.

    Compiled code, which is training's, takes the plain path: it cannot ask for inference mode.
    """
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


def in_strips(
    layers: Callable[[Tensor], Tensor], x: Tensor, *, scale: int, halo: int, rows: int
) -> Tensor:
    """`layers(x)` for `x` `(B, C, H, W)`, computed from strips of `rows` rows to save memory.

    Exact where a row of the result, `scale` times as large as `x`, depends on no more than `halo`
    rows of `x` above and below it: each strip is given these and loses them again.
    """
    height = x.shape[-2]
    out: Tensor | None = None
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first = max(top - halo, 0)
        strip = layers(x[..., first : min(bottom + halo, height), :])
        if out is None:
            out = strip.new_empty(*strip.shape[:2], height * scale, strip.shape[-1])
        inner = strip[..., (top - first) * scale : (bottom - first) * scale, :]
        out[..., top * scale : bottom * scale, :] = inner
    assert out is not None
    return out


def shuffle_conv(channels_in: int, channels: int, kernel: int = 1) -> nn.Conv2d:
    """Convolution to `4 * channels` for a pixel shuffle by 2, free of checkerboard at the start.

    All four sub-pixel kernels start equal (ICNR, arXiv 1707.02937), so the fresh layer is a
    nearest-neighbour enlargement and any grid would have to be learnt.
    """
    conv = nn.Conv2d(channels_in, 4 * channels, kernel, padding=kernel // 2)
    with torch.no_grad():
        conv.weight.copy_(conv.weight[::4].repeat_interleave(4, dim=0))
        conv.bias.zero_()  # type: ignore[union-attr]
    return conv
