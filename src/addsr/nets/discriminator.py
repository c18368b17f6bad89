"""Patch discriminators conditioned on the low-resolution input, at several scales.

Every scale starts with a pixel-unshuffle, so that no layer works at full resolution. There is no
normalisation: relativistic pairing with an approximate R1 penalty needs none (arXiv 2501.05441).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Shape of a `PatchDiscriminator`."""

    width: int = 64
    scales: int = 3

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the metadata of a weights file."""
        return asdict(self)


class PatchDiscriminator(nn.Module):
    """Logit maps and features of a picture given the enlarged input, over `scales` octaves."""

    def __init__(self, config: DiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DiscriminatorConfig()
        self.nets = nn.ModuleList(_ScaleNet(config.width) for _ in range(config.scales))

    def forward(self, picture: Tensor, enlarged: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """`(logits, features)`: two logit maps and three feature maps per scale, finest first.

        Args:
            picture: `(B, 3, H, W)` in [0, 1]; H and W multiples of `16 * 2**(scales - 1)`.
            enlarged: the low-resolution input enlarged to the same size, in [0, 1].
        """
        x = torch.cat([picture, enlarged], dim=1) * 2 - 1
        x = x.to(next(self.parameters()).dtype)
        logits: list[Tensor] = []
        features: list[Tensor] = []
        for k, net in enumerate(self.nets):
            maps, logit = net(x if k == 0 else F.avg_pool2d(x, 2**k))
            logits += logit
            features += maps
        return logits, features


class _ScaleNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(6 * 4, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            [_Down(width, 2 * width), _Down(2 * width, 4 * width), _Down(4 * width, 4 * width)]
        )
        self.fine = nn.Conv2d(2 * width, 1, 3, padding=1)
        self.coarse = nn.Conv2d(4 * width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        h = self.stem(F.pixel_unshuffle(x, 2))
        maps: list[Tensor] = []
        for block in self.blocks:
            h = block(h)
            maps.append(h)
        return maps, [
            self.coarse(F.leaky_relu(maps[2], 0.2)),
            self.fine(F.leaky_relu(maps[0], 0.2)),
        ]


class _Down(nn.Module):
    """Residual block that halves both sides."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels_in, channels, 1)
        nn.init.normal_(self.conv2.weight, std=1e-2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x, 0.2)), 0.2))
        # pooled separately: the 1x1 shortcut on the pooled map costs a quarter
        return F.avg_pool2d(h, 2) + self.shortcut(F.avg_pool2d(x, 2))
