"""Controllable feature wrapping: the low-resolution picture's own features inside the VAE decoder.

`F_d + w * C(cat[F_e, F_d])` at the inner grids of the decoder (arXiv 2305.07015, section 3.2).
With w = 0 it is the plain decoder; larger w is truer to the input and less free. Despite the
published name of the block there is no scale and shift in it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from addsr.errors import InputError, ModelError

from .encoder import GROUPS

Taps = tuple[Tensor, ...]
"""Encoder features of a picture for each fused grid, finest first."""


@dataclass(frozen=True)
class CfwConfig:
    """Shape of a `FeatureWrapping`; the defaults are the published size (44 393 728 numbers)."""

    widths: tuple[int, ...] = (256, 512)
    """Channels of the VAE at H/2, H/4, ...: all its grids but the finest and the coarsest."""
    growth: int = 32

    def __post_init__(self) -> None:
        if not self.widths or any(type(n) is not int or n < 1 or n % GROUPS for n in self.widths):
            raise ValueError(f"widths = {self.widths!r}: give multiples of {GROUPS}")
        if type(self.growth) is not int or self.growth < 1:
            raise ValueError(f"growth = {self.growth!r}: give a whole number from 1")


class FeatureWrapping(nn.Module):
    """The fusion blocks of all grids, finest first."""

    def __init__(self, config: CfwConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CfwConfig()
        self.fusions = nn.ModuleList(FusionBlock(w, config.growth) for w in config.widths)


class FusionBlock(nn.Module):
    """What is added to decoder features `(B, C, H, W)`, from them and the encoder's."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.reduce = ResBlock(2 * channels, channels)
        self.dense = nn.Sequential(*(DenseChain(channels, growth) for _ in range(2)))
        self.finish = ResBlock(channels, channels)

    def forward(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        return self.finish(self.dense(self.reduce(torch.cat([encoded, decoded], dim=1))))


class ResBlock(nn.Module):
    """Norm, SiLU, conv3x3, norm, SiLU, conv3x3, plus the input; normalised as in the VAE."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels_in, eps=1e-6)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))


class DenseChain(nn.Module):
    """Three dense blocks in a row, scaled by 0.2, plus the input (ESRGAN's, arXiv 1809.00219)."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DenseBlock(channels, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.blocks(x)


class DenseBlock(nn.Module):
    """Five convolutions, each of everything before it; scaled by 0.2, plus the input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels + k * growth, growth if k < 4 else channels, 3, padding=1)
            for k in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        *inner, last = self.convs
        known = x
        for conv in inner:
            known = torch.cat([known, F.leaky_relu(conv(known), 0.2)], dim=1)
        return x + 0.2 * last(known)


class WrappedVae:
    """A diffusers `AutoencoderKL` that can decode with the features of an encoded picture.

    The VAE itself stays as it is, and usable, at all times; a context manager for `detach`.
    """

    def __init__(self, vae: nn.Module, wrapping: FeatureWrapping) -> None:
        """Attaches `wrapping` to `vae`.

        Raises:
            ModelError: the wrapping was made for a VAE of other widths.
        """
        # typed as Any, for diffusers' own types are partial
        self.vae: Any = vae
        self.wrapping = wrapping
        down, up = self.vae.encoder.down_blocks, self.vae.decoder.up_blocks
        inner = range(1, len(down) - 1)
        tapped = [down[level].resnets[-1] for level in inner]
        fused = [up[len(up) - 1 - level].resnets[-1] for level in inner]
        theirs = tuple(int(block.conv2.out_channels) for block in tapped)
        if theirs != wrapping.config.widths:
            raise ModelError(
                f"the feature wrapping is made for widths {wrapping.config.widths}; "
                f"this VAE has {theirs}"
            )
        self._taps: list[Tensor] | None = None
        self._blend: tuple[Sequence[Tensor], float] | None = None
        self._handles: list[RemovableHandle] = [
            block.register_forward_hook(self._listen) for block in tapped
        ] + [block.register_forward_hook(self._mixer(k)) for k, block in enumerate(fused)]

    def encode(self, image: Tensor) -> tuple[Tensor, Taps]:
        """`(moments, taps)` of `image` `(B, 3, H, W)` in [-1, 1].

        Moments `(B, 8, H/8, W/8)` are mean and log variance of the latent, not yet scaled.
        """
        self._taps = []
        try:
            moments = cast("Tensor", self.vae.encode(image).latent_dist.parameters)
            return moments, tuple(self._taps)
        finally:
            self._taps = None

    def decode(self, latent: Tensor, taps: Sequence[Tensor] = (), w: float = 0.0) -> Tensor:
        """The picture `(B, 3, H, W)` in about [-1, 1] of an unscaled latent `(B, 4, H/8, W/8)`.

        `taps` are those of the picture that is restored; with `w` 0 they are not looked at and
        nothing is computed but the plain decoder.

        Raises:
            InputError: taps that do not fit the latent.
        """
        with self.blending(taps, w):
            return cast("Tensor", self.vae.decode(latent).sample)

    @contextmanager
    def blending(self, taps: Sequence[Tensor], w: float) -> Generator[None]:
        """Blends `taps` into whatever the decoder does inside this context.

        `decode` does so by itself; a backward pass that runs checkpointed blocks once more has to
        lie inside such a context too.

        Raises:
            InputError: not one tap for each fused grid.
        """
        if w and len(taps) != len(self.wrapping.fusions):
            raise InputError(f"taps: {len(taps)} given for {len(self.wrapping.fusions)} grids")
        before, self._blend = self._blend, (taps, w) if w else None
        try:
            yield
        finally:
            self._blend = before

    def detach(self) -> None:
        """Removes what was attached to the VAE."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> WrappedVae:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _listen(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        if self._taps is not None:
            self._taps.append(output)

    def _mixer(self, k: int) -> Any:
        fusion = self.wrapping.fusions[k]

        def mix(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor | None:
            if self._blend is None:
                return None
            taps, w = self._blend
            if taps[k].shape != output.shape:
                raise InputError(
                    f"taps: {tuple(taps[k].shape)} do not fit decoder features "
                    f"{tuple(output.shape)}; encode the picture that is decoded"
                )
            return output + w * fusion(taps[k], output)

        return mix
