"""The discriminator of feature wrapping: PatchGAN (arXiv 1611.07004), with hinge losses.

The published one normalises over the batch, and is trained with one picture in it, where that is a
normalisation over the picture: this one says so, and does the same at every batch size.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class PatchGanConfig:
    """Shape of a `PatchGan`; each logit sees 70 x 70 pixels with three layers."""

    width: int = 64
    layers: int = 3


class PatchGan(nn.Module):
    """Logits `(B, 1, h, w)` of pictures `(B, 3, H, W)` in [-1, 1]; real ones are to be positive."""

    def __init__(self, config: PatchGanConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PatchGanConfig()
        widths = [config.width * min(2**k, 8) for k in range(config.layers + 1)]
        stages: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), _act()]
        for k, (narrow, wide) in enumerate(pairwise(widths), start=1):
            stride = 2 if k < config.layers else 1
            stages += [
                nn.Conv2d(narrow, wide, 4, stride=stride, padding=1, bias=False),
                nn.InstanceNorm2d(wide, affine=True),
                _act(),
            ]
        stages.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.stages = nn.Sequential(*stages)
        for layer in self.stages:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)
            elif isinstance(layer, nn.InstanceNorm2d):
                nn.init.normal_(cast("Tensor", layer.weight), 1.0, 0.02)

    def forward(self, picture: Tensor) -> Tensor:
        return self.stages(picture)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss: mean of what real logits lack to 1 and fake ones exceed -1."""
    return (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()) / 2


def _act() -> nn.Module:
    return nn.LeakyReLU(0.2)
