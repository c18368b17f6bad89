"""Projected discriminator: small heads on the feature maps of a frozen network.

After StyleGAN-T (arXiv 2301.09515) and Projected GANs (arXiv 2111.01007), as AddSR has it (arXiv
2404.01717): one head per map, spectrally normalised, with normalisation over groups, and a
projection (arXiv 1802.05637) onto what is known of the low-resolution input. Which network gives
the maps is open: DINO's (`nets.dino.TokenMaps`), or the diffusion teacher itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addsr.errors import InputError, OptionError

_GROUPS = 4
_REACH = 9
"""Tokens that the residual block's convolution sees together."""


@dataclass(frozen=True)
class HeadsConfig:
    """Shape of `ProjectedHeads`."""

    widths: tuple[int, ...]
    condition: int
    mapped: int


class ProjectedHeads(nn.Module):
    """One `ProjectedHead` per feature map; 7 630 720 numbers with AddSR's five of 384 channels.

    Args:
        widths: channels of the maps.
        condition: width of the vector that is known of the input; 0 leaves it out.
        mapped: channels of the inner product between features and condition.
    """

    def __init__(self, widths: Sequence[int], condition: int, mapped: int = 64) -> None:
        super().__init__()
        if not widths:
            raise OptionError("widths: () has no feature map; give the channels of one or more")
        self.config = HeadsConfig(tuple(widths), condition, mapped)
        self.heads = nn.ModuleList(ProjectedHead(width, condition, mapped) for width in widths)

    def forward(self, maps: Sequence[Tensor], condition: Tensor | None = None) -> list[Tensor]:
        """Logits `(B, N)` of each map `(B, C, N)`; real pictures are to have positive ones."""
        if len(maps) != len(self.heads):
            raise InputError(f"maps: {len(maps)} of them for {len(self.heads)} heads; give as many")
        return [head(m, condition).flatten(1) for head, m in zip(self.heads, maps, strict=True)]


class ProjectedHead(nn.Module):
    """Logits `(B, 1, N)` of a feature map `(B, C, N)`, given a condition `(B, D)`."""

    def __init__(self, width: int, condition: int, mapped: int = 64) -> None:
        super().__init__()
        if width % _GROUPS:
            raise OptionError(f"width: {width} is no multiple of {_GROUPS}, its groups")
        self.mix = _layer(width, 1)
        self.residual = _layer(width, _REACH)
        self.out = SpectralConv1d(width, mapped if condition else 1, 1)
        self.project = EqualLinear(condition, mapped) if condition else None

    def forward(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        if (condition is None) != (self.project is None):
            wanted = "none" if self.project is None else "a vector (B, D) per picture"
            raise InputError(f"condition: this head was built for another one; give {wanted}")
        if features.shape[-1] < _REACH // 2:
            raise InputError(
                f"features: {tuple(features.shape)} has too few tokens; give {_REACH // 2} or more"
            )
        h = self.mix(features)
        h = (self.residual(h) + h) / 2**0.5
        h = self.out(h)
        if self.project is None or condition is None:
            return h
        direction = self.project(condition)[:, :, None]
        return (h * direction).sum(1, keepdim=True) / direction.shape[1] ** 0.5


class SpectralConv1d(nn.Conv1d):
    """A circular convolution whose weight, as a matrix, is divided by its largest singular value.

    The value is estimated by power iteration, one step per call in training mode (arXiv 1802.05957,
    algorithm 1), and never in evaluation mode. torch's parametrisation takes the two halves of a
    step in the other order; published weights go with this one.
    """

    u: Tensor
    v: Tensor

    def __init__(self, channels_in: int, channels: int, kernel: int) -> None:
        super().__init__(
            channels_in, channels, kernel, padding=kernel // 2, padding_mode="circular"
        )
        matrix = self.weight.detach().flatten(1)
        self.register_buffer("u", F.normalize(torch.randn(len(matrix)), dim=0))
        self.register_buffer("v", F.normalize(torch.randn(matrix.shape[1]), dim=0))
        for _ in range(15):  # so that the first value is close already
            self._iterate(matrix)

    def forward(self, input: Tensor) -> Tensor:
        matrix = self.weight.flatten(1).float()
        if self.training:
            self._iterate(matrix.detach())
        # cloned: the next call changes them before this one's backward pass
        u, v = self.u.clone().float(), self.v.clone().float()
        weight = (matrix / (u @ (matrix @ v))).to(input.dtype).view_as(self.weight)
        bias = None if self.bias is None else self.bias.to(input.dtype)
        side = self.kernel_size[0] // 2
        padded = F.pad(input, (side, side), mode="circular") if side else input
        return F.conv1d(padded, weight, bias)

    @torch.no_grad()
    def _iterate(self, matrix: Tensor) -> None:
        v = F.normalize(matrix.T @ self.u.to(matrix), dim=0, eps=1e-12)
        self.u.copy_(F.normalize(matrix @ v, dim=0, eps=1e-12))
        self.v.copy_(v)


class EqualLinear(nn.Module):
    """A linear layer with weights of unit variance, scaled when used (arXiv 1710.10196, 4.1)."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels_in))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype) / self.weight.shape[1] ** 0.5
        return F.linear(x, weight, self.bias.to(x.dtype))


def _layer(width: int, kernel: int) -> nn.Module:
    return nn.Sequential(
        SpectralConv1d(width, width, kernel), nn.GroupNorm(_GROUPS, width), nn.LeakyReLU(0.2)
    )
