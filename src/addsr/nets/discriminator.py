"""Discriminators conditioned on the low-resolution input: on pixels, and on a teacher's features.

The pixel part works at several scales; every scale starts with a pixel-unshuffle, so that no layer
works at full resolution. The feature part puts small heads on the frozen teacher's feature maps, as
AddSR does with a frozen vision backbone (arXiv 2404.01717). There is no learnt normalisation:
relativistic pairing with an approximate R1 penalty needs none (arXiv 2501.05441).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import ChannelNorm


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Shape of a `Discriminator`."""

    width: int = 64
    """Channels of the first layer on pixels."""
    scales: int = 3
    feature_widths: tuple[int, ...] = ()
    """Channels of the feature maps that get a head; empty leaves the feature part out."""
    head_width: int = 128

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the metadata of a weights file."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @property
    def multiple(self) -> int:
        """Sides of pictures must be multiples of this."""
        return 16 * 2 ** (self.scales - 1)


class Discriminator(nn.Module):
    """The pixel part and the feature heads, trained together."""

    def __init__(self, config: DiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DiscriminatorConfig()
        self.patches = PatchDiscriminator(config.width, config.scales)
        self.heads = FeatureHeads(config.feature_widths, config.head_width)


class PatchDiscriminator(nn.Module):
    """Logit maps and features of a picture given the enlarged input, over `scales` octaves."""

    def __init__(self, width: int = 64, scales: int = 3) -> None:
        super().__init__()
        self.nets = nn.ModuleList(_ScaleNet(width) for _ in range(scales))

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


class FeatureHeads(nn.Module):
    """One logit map per feature map of a frozen network.

    The features know the low-resolution input already: their network is conditioned on it.
    """

    def __init__(self, widths: Sequence[int], width: int = 128) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width, 1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, width, 3, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, 1, 1),
            )
            for channels in widths
        )
        self.norms = nn.ModuleList(ChannelNorm(channels, learnt=False) for channels in widths)

    def forward(
        self, maps: Sequence[Tensor], jitter: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """One logit map `(B, 1, h, w)` per map `(B, C, h, w)`.

        Each map is normalised over its channels; `jitter` is added after that.
        """
        logits: list[Tensor] = []
        for k, (net, norm) in enumerate(zip(self.nets, self.norms, strict=True)):
            h = norm(maps[k])
            logits.append(net(h if jitter is None else h + jitter[k].to(h.dtype)))
        return logits


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
