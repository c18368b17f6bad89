"""phi': a small feature net that measures pictures and is used in no loss.

Trained by us to name the degradation of a crop, to recognise two crops of one picture and to see
right-angle turns, so that its features respond to both content and artefacts. It stands where
evaluation elsewhere takes an ImageNet network, whose weights we do not ship.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

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
    """Five convolution stages; features for distances and three heads for its own training."""

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
        self.degradation = nn.Linear(previous, config.degradations)
        self.rotation = nn.Linear(previous, 4)
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

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(degradation, rotation logits, embedding)` of `picture` `(B, 3, H, W)` in [0, 1]."""
        pooled = self.features(picture)[-1].mean(dim=(2, 3))
        embedding = F.normalize(self.projection(pooled), dim=1)
        return self.degradation(pooled), self.rotation(pooled), embedding
