"""StableSR's way of conditioning for the compact network: a time-aware encoder and modulation.

The low-resolution picture does not enter the U-Net with the noisy one. A small encoder sees it
beside the time and hands out one feature map per grid; each residual block of the U-Net is
modulated by the map of its grid, `(1 + gamma) h + beta` (arXiv 2305.07015, section 3.1 and
equation 1). Unlike the published layer there is no group normalisation in front, which would see
the whole tile: the blocks' own normalisation is per pixel. Gamma and beta start at zero, so that a
trained prior is undisturbed when its guide is new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Norm, ResBlock, may_overwrite

STAGES = ("enc0", "enc1", "mid", "dec1", "dec0")
"""The U-Net's stages in the order of their run."""
_GRIDS = (0, 1, 2, 1, 0)

Modulate = Callable[[Tensor], Tensor]


class SftLayer(nn.Module):
    """Scale and shift of a map `(B, channels, H, W)` from features `(B, features, H, W)`."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.shared = nn.Conv2d(features, features, 3, padding=1)
        self.gamma_beta = nn.Conv2d(features, 2 * channels, 1)
        nn.init.zeros_(self.gamma_beta.weight)
        nn.init.zeros_(self.gamma_beta.bias)  # type: ignore[arg-type]

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        """The modulated `h`; overwritten where nothing is differentiated."""
        spare = may_overwrite()
        shared = F.silu(self.shared(features), inplace=spare)
        gamma, beta = self.gamma_beta(shared).chunk(2, dim=1)
        return h.mul_(gamma.add_(1)).add_(beta) if spare else (1 + gamma) * h + beta


class TimeAwareGuide(nn.Module):
    """The encoder of the low-resolution picture and the modulation layers of all blocks."""

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        features: int,
        blocks: int,
        time_channels: int,
        norm: Norm,
    ) -> None:
        """
        Args:
            widths: the U-Net's channels at its three grids; `depths` are its blocks there.
            features: channels of each map that is handed out.
            blocks: residual blocks of the encoder at each grid.
            time_channels: width of the embedding it is told; 0 makes an encoder that is told none.
        """
        super().__init__()
        # the picture at half size (12 channels), and at the output's size (192), on one grid
        self.entry = nn.Conv2d(12 + 192, features, 3, padding=1)
        self.grids = nn.ModuleList(
            nn.ModuleList(ResBlock(features, features, time_channels, norm) for _ in range(blocks))
            for _ in range(3)
        )
        self.downs = nn.ModuleList(
            nn.Conv2d(features, features, 3, stride=2, padding=1) for _ in range(2)
        )
        self.sft = nn.ModuleDict(
            {
                stage: nn.ModuleList(SftLayer(widths[grid], features) for _ in range(depths[grid]))
                for stage, grid in zip(STAGES, _GRIDS, strict=True)
            }
        )

    def forward(self, lr: Tensor, condition: Tensor, time: Tensor | None) -> tuple[Tensor, ...]:
        """Feature maps `(B, features, H, W)` at output/8, /16 and /32.

        Args:
            lr: low-resolution picture `(B, 3, h, w)` in [-1, 1].
            condition: picture of the output's size `(B, 3, 4h, 4w)` in [-1, 1].
            time: embedding `(B, time_channels)` of the time and the picture-wide context, or of the
                context alone, which is the paper's ablation.
        """
        x = torch.cat([F.pixel_unshuffle(lr, 2), F.pixel_unshuffle(condition, 8)], dim=1)
        x = self.entry(x)  # (B, features, H/8, W/8)
        maps: list[Tensor] = []
        for grid, blocks in enumerate(self.grids):
            if grid:
                x = self.downs[grid - 1](x)
            for block in blocks:  # type: ignore[union-attr]
                x = block(x, time)
            maps.append(x)
        return tuple(maps)

    def modulation(self, stage: str, maps: Sequence[Tensor]) -> list[Modulate]:
        """One function per block of `stage`; gamma and beta are computed when it is called."""
        features = maps[_GRIDS[STAGES.index(stage)]]
        return [_bound(layer, features) for layer in self.sft[stage]]  # type: ignore[union-attr]


def _bound(layer: nn.Module, features: Tensor) -> Modulate:
    return lambda h: layer(h, features)
