"""An RRDBNet of Real-ESRGAN's size, for comparing speed and memory; it ships no weights.

Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks" (2018), section
3.1: residual-in-residual dense blocks without batch norm, two nearest-neighbour enlargements.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseBlock(nn.Module):
    """Five 3x3 convolutions, each seeing all before it; the sum with the input, scaled by 0.2."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.grow = nn.ModuleList(
            nn.Conv2d(channels + i * growth, growth, 3, padding=1) for i in range(4)
        )
        self.fuse = nn.Conv2d(channels + 4 * growth, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in self.grow:
            seen = torch.cat([seen, F.leaky_relu(conv(seen), 0.2, inplace=True)], dim=1)
        return x + 0.2 * self.fuse(seen)


class ResidualDenseBlock(nn.Module):
    """Three dense blocks inside one more residual connection."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DenseBlock(channels, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.blocks(x)


class RRDBNet(nn.Module):
    """x4 enlargement `(B, 3, h, w)` -> `(B, 3, 4h, 4w)`, in the size that Real-ESRGAN x4plus has.

    `forward` also takes a sampler's arguments, so that the engine that runs our diffusion model
    runs this network too (at one step) and the comparison is of the networks alone.
    """

    scale = 4
    multiple = 1

    def __init__(self, blocks: int = 23, channels: int = 64, growth: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(*(ResidualDenseBlock(channels, growth) for _ in range(blocks)))
        self.body_out = nn.Conv2d(channels, channels, 3, padding=1)
        self.up1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.up2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.high = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, 3, 3, padding=1)

    def enlarge(self, lr: Tensor) -> Tensor:
        """The enlarged picture, not clamped."""
        x = self.first(lr.to(self.first.weight.dtype))
        x = x + self.body_out(self.body(x))
        for up in (self.up1, self.up2):
            x = F.leaky_relu(up(F.interpolate(x, scale_factor=2.0, mode="nearest")), 0.2)
        return self.last(F.leaky_relu(self.high(x), 0.2)).float()

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        lr: Tensor,
        condition: Tensor | None = None,
        fidelity: float | Tensor = 1.0,
    ) -> Tensor:
        """`enlarge(lr)`; the other arguments are not used."""
        return self.enlarge(lr)
