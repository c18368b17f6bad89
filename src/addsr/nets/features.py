"""phi': a small feature net that measures pictures and is used in no loss.

Trained by us to name the degradation of a crop and to recognise two crops of one picture, so that
its features respond to both content and artefacts. It stands where
evaluation elsewhere takes an ImageNet network, whose weights we do not ship.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import ChannelNorm


@dataclass(frozen=True)
class FeatureNetConfig:
    """Shape of a `FeatureNet`."""

    widths: tuple[int, ...] = (32, 64, 128, 192, 256)
    degradations: int = 6
    """How many degradation parameters the first head predicts."""
    embedding: int = 128

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the metadata of a weights file."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


class FeatureNet(nn.Module):
    """Five convolution stages; features for distances and two heads for its own training."""

    def __init__(self, config: FeatureNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FeatureNetConfig()
        stages: list[nn.Module] = []
        previous = 3
        for i, width in enumerate(config.widths):
            stages.append(
                nn.Sequential(
                    nn.Conv2d(previous, width, 3, stride=1 if i == 0 else 2, padding=1),
                    ChannelNorm(width),
                    nn.SiLU(),
                    nn.Conv2d(width, width, 3, padding=1),
                    ChannelNorm(width),
                    nn.SiLU(),
                )
            )
            previous = width
        self.stages = nn.ModuleList(stages)
        self.degradation = nn.Linear(sum(config.widths), config.degradations)
        self.projection = nn.Sequential(
            nn.Linear(previous, previous), nn.SiLU(), nn.Linear(previous, config.embedding)
        )

    def features(self, picture: Tensor) -> list[Tensor]:
        """One map per stage for `picture` `(B, 3, H, W)` in [0, 1], finest first."""
        x = picture * 2 - 1
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """`(degradation, embedding)` of `picture` `(B, 3, H, W)` in [0, 1]."""
        # every stage helps to name the degradation: noise shows in the first, blur further on
        pooled = [m.mean(dim=(2, 3)) for m in self.features(picture)]
        embedding = F.normalize(self.projection(pooled[-1]), dim=1)
        return self.degradation(torch.cat(pooled, dim=1)), embedding
