"""The VAE by strips of rows: the whole picture's values in a fraction of the device's memory.

Tiles with a halo cannot do that for this network: its group normalisations and its attention look
at everything, so each tile would get a brightness of its own, and the reach of its convolutions
(with feature wrapping some 340 pixels) is wider than most tiles. Here every layer runs over the
whole picture, strip after strip, with the one row of neighbours that a convolution needs. Nothing
is computed twice and there is nothing to blend. Maps wait in host memory or, where there is room
for them, on the device, which saves each layer its copies: they take far longer than it does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addsr.errors import InputError

from .cfw import DenseBlock, DenseChain, FeatureWrapping, FusionBlock, Taps

WAITING = 4.6
"""Numbers that wait per picture pixel, in widths of the VAE's first level, besides taps: 4.0 are
counted, the rest is what the process was measured to take beyond it at 512 px in four strips."""

Maps = Sequence[Tensor]
"""Maps `(B, C, H, W)` of one grid, read as if concatenated along the channels."""
_After = Callable[[Tensor, int, int], Tensor]


class StripVae:
    """A diffusers `AutoencoderKL`, with feature wrapping, that works in strips.

    `encode` and `decode` are those of `WrappedVae`, to rounding.
    """

    def __init__(
        self,
        vae: nn.Module,
        wrapping: FeatureWrapping | None,
        pixels: int,
        store: torch.device | None = None,
    ) -> None:
        """
        Args:
            pixels: picture pixels of a strip, about; all grids use as many strips as the picture.
            store: where maps wait: the CPU if None, or the device of the VAE.
        """
        # typed as Any, for diffusers' own types are partial
        self.vae: Any = vae
        self.wrapping = wrapping
        self.pixels = pixels
        self.store = store or torch.device("cpu")
        self._count = 1

    def encode(self, image: Tensor, *, has_taps: bool = True) -> tuple[Tensor, Taps]:
        """`(moments, taps)` of `image` `(B, 3, H, W)` in [-1, 1]; no taps where none are needed."""
        encoder = self.vae.encoder
        self._plan(image.shape[-2], image.shape[-1])
        taps: list[Tensor] = []
        x = self._conv([image.to(self.store)], encoder.conv_in)
        for level, block in enumerate(encoder.down_blocks):
            for resnet in block.resnets:
                x = self._resnet(x, resnet)
            if has_taps and 0 < level < len(encoder.down_blocks) - 1:
                taps.append(x)
            if block.downsamplers is not None:
                x = self._conv([x], block.downsamplers[0].conv, stride=2)
        x = encoder.mid_block(x.to(self.vae.device))
        x = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(x)))
        return self.vae.quant_conv(x), tuple(taps)

    def decode(self, latent: Tensor, taps: Sequence[Tensor] = (), w: float = 0.0) -> Tensor:
        """The picture, where maps wait, of an unscaled latent.

        Raises:
            InputError: taps that do not fit the latent.
        """
        decoder = self.vae.decoder
        blocks = decoder.up_blocks
        factor = 2 ** (len(blocks) - 1)
        if w and (self.wrapping is None or len(taps) != len(self.wrapping.fusions)):
            raise InputError(f"taps: {len(taps)} given; encode the picture that is restored")
        self._plan(latent.shape[-2] * factor, latent.shape[-1] * factor)
        x = decoder.mid_block(decoder.conv_in(self.vae.post_quant_conv(latent)))
        x = x.to(self.store)
        for k, block in enumerate(blocks):
            for resnet in block.resnets:
                x = self._resnet(x, resnet)
            level = len(blocks) - 1 - k
            if w and self.wrapping is not None and 0 < level < len(blocks) - 1:
                self._fuse(x, taps[level - 1], w, self.wrapping.fusions[level - 1])
            if block.upsamplers is not None:
                x = self._conv([x], block.upsamplers[0].conv, stretch=2)
        return self._conv([x], decoder.conv_out, before=self._norm([x], decoder.conv_norm_out))

    def _plan(self, height: int, width: int) -> None:
        self._count = max(1, math.ceil(height * width / self.pixels))

    def _strips(self, height: int) -> Iterator[tuple[int, int]]:
        rows = math.ceil(height / self._count)
        for first in range(0, height, rows):
            yield first, min(first + rows, height)

    def _rows(self, maps: Maps, first: int, last: int) -> Tensor:
        """Rows on the device."""
        device = self.vae.device
        return torch.cat([m[..., first:last, :].to(device) for m in maps], dim=1)

    def _norm(self, maps: Maps, norm: Any) -> Callable[[Tensor], Tensor]:
        """Group normalisation by the statistics of all rows, then SiLU, as a function of rows."""
        count, mean, spread = 0, torch.zeros(()), torch.zeros(())
        for first, last in self._strips(maps[0].shape[-2]):
            rows = self._rows(maps, first, last).float()
            grouped = rows.reshape(len(rows), norm.num_groups, -1)  # (B, groups, values)
            variance, here = torch.var_mean(grouped, dim=-1, correction=0)
            number = grouped.shape[-1]
            if not count:
                count, mean, spread = number, here, variance * number
                continue
            # Chan's update: a difference of two large sums would lose the digits
            share = number / (count + number)
            gap = here - mean
            mean = mean + gap * share
            spread = spread + variance * number + gap * gap * (count * share)
            count += number
        deviation = (spread / count + norm.eps).sqrt()
        per_group = norm.num_channels // norm.num_groups
        scale = norm.weight.float() / deviation.repeat_interleave(per_group, dim=-1)
        shift = norm.bias.float() - mean.repeat_interleave(per_group, dim=-1) * scale
        scale, shift = scale[:, :, None, None], shift[:, :, None, None]
        return lambda rows: F.silu((rows.float() * scale + shift).to(rows.dtype))

    def _conv(
        self,
        maps: Maps,
        conv: Any,
        *,
        before: Callable[[Tensor], Tensor] | None = None,
        after: _After | None = None,
        stretch: int = 1,
        stride: int = 1,
        out: Tensor | None = None,
    ) -> Tensor:
        """A convolution of `maps`, enlarged `stretch` times; `out` may be a map no longer needed.

        With a `stride` of 2 zeros go below and to the right alone, as in the VAE's encoder.
        """
        height, width = maps[0].shape[-2] * stretch, maps[0].shape[-1] * stretch
        reach = conv.kernel_size[0] // 2
        lead = 0 if stride > 1 else reach
        for first, last in self._strips(height // stride):
            start, stop = first * stride - lead, (last - 1) * stride + 2 * reach + 1 - lead
            top, bottom = max(start, 0), min(stop, height)
            rows = self._rows(maps, top // stretch, -(-bottom // stretch))
            if before is not None:
                rows = before(rows)
            if stretch > 1:
                rows = F.interpolate(rows, scale_factor=float(stretch), mode="nearest")
                skip = top - top // stretch * stretch
                rows = rows[..., skip : skip + bottom - top, :]
            rows = F.pad(rows, (lead, reach, top - start, stop - bottom))
            result = F.conv2d(rows, conv.weight, conv.bias, stride=stride)
            if after is not None:
                result = after(result, first, last)
            if out is None:
                shape = (*result.shape[:2], height // stride, width // stride)
                out = torch.empty(shape, dtype=result.dtype, device=self.store)
            out[..., first:last, :] = result
        assert out is not None
        return out

    def _resnet(self, x: Tensor, block: Any) -> Tensor:
        """A residual block of the VAE; takes the place of its input where it can."""
        return self._residual([x], block, block.conv_shortcut, x)

    def _residual(self, maps: Maps, block: Any, shortcut: Any, old: Tensor | None) -> Tensor:
        h = self._conv(maps, block.conv1, before=self._norm(maps, block.norm1))

        def add(rows: Tensor, first: int, last: int) -> Tensor:
            x = self._rows(maps, first, last)
            return (x if shortcut is None else shortcut(x)) + rows

        place = old if shortcut is None else None
        return self._conv(
            [h], block.conv2, before=self._norm([h], block.norm2), after=add, out=place
        )

    def _fuse(self, decoded: Tensor, encoded: Tensor, w: float, fusion: Any) -> None:
        """Adds to `decoded` in place what the fusion makes of both maps."""
        assert isinstance(fusion, FusionBlock)
        if encoded.shape != decoded.shape:
            raise InputError(
                f"taps: {tuple(encoded.shape)} do not fit decoder features "
                f"{tuple(decoded.shape)}; encode the picture that is decoded"
            )
        x = self._residual([encoded, decoded], fusion.reduce, fusion.reduce.shortcut, None)
        for chain in fusion.dense:
            assert isinstance(chain, DenseChain)
            y = x
            for block in chain.blocks:
                assert isinstance(block, DenseBlock)
                y = self._dense(y, block)
            x.add_(y, alpha=0.2)
        decoded.add_(self._residual([x], fusion.finish, fusion.finish.shortcut, x), alpha=w)

    def _dense(self, x: Tensor, block: DenseBlock) -> Tensor:
        *inner, final = block.convs
        known = [x]
        for conv in inner:
            known.append(self._conv(known, conv, after=lambda rows, *_: F.leaky_relu(rows, 0.2)))
        return self._conv(known, final, after=lambda rows, a, b: self._rows([x], a, b) + 0.2 * rows)
