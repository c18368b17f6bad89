"""The compact restoration network: pixel-space diffusion with x-prediction, 128 px to 512 px.

A U-Net on the grid of the eightfold pixel-unshuffled output takes the noisy picture, the time, the
low-resolution picture and the previous prediction (AddSR's prediction-based self-refinement,
arXiv 2404.01717); a small decoder with a gated low-resolution skip (the role of StableSR's
controllable feature wrapping, arXiv 2305.07015) turns its features into the clean picture.
The same network is teacher and student. With `conditioning="time-aware"` the low-resolution picture
enters as in StableSR and not by concatenation (`time_aware.py`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import (
    NORMS,
    GlobalAttention,
    Norm,
    ResBlock,
    TimeEmbedding,
    in_strips,
    make_norm,
    may_overwrite,
    shuffle_conv,
)
from .time_aware import Modulate, TimeAwareGuide

Conditioning = Literal["concat", "time-aware"]
Base = Literal["lr", "grey"]

_STRIP_NUMBERS = 1 << 20
"""Numbers in a strip of the decoder's last features, halo aside: 4 MB in fp32."""


@dataclass(frozen=True)
class CompactConfig:
    """Shape of a `CompactNet`; the defaults are the published `compact` size."""

    widths: tuple[int, int, int] = (192, 288, 384)
    """Channels of the U-Net at output/8, /16 and /32."""
    depths: tuple[int, int, int] = (3, 2, 2)
    """Residual blocks of the encoder at each of the three grids (the last is the middle)."""
    decoder_widths: tuple[int, int, int] = (192, 128, 64)
    """Channels of the decoder at output/8, /4 and /2."""
    decoder_depth: int = 2
    time_channels: int = 256
    lr_channels: int = 32
    norm: Norm = "plain"
    decoder_norm: Norm = "plain"
    attention: bool = False
    context_channels: int = 128
    """Width of the picture-wide context encoder; 0 leaves it out."""
    conditioning: Conditioning = "concat"
    """How the low-resolution picture enters: beside the noisy one, or by modulation of each block
    with the features of a time-aware encoder (arXiv 2305.07015)."""
    guide_channels: int = 64
    """Channels of each feature map of the time-aware encoder."""
    guide_depth: int = 1
    """Residual blocks of the time-aware encoder at each of the three grids."""
    guide_time: bool = True
    """Whether the time-aware encoder knows the time; False is for the comparison only."""
    base: Base = "lr"
    """What the network adds its residual to: the enlarged low-resolution picture, or mid grey, as a
    prior has to that never saw one."""

    def __post_init__(self) -> None:
        for name in ("widths", "depths", "decoder_widths"):
            value: tuple[Any, ...] = getattr(self, name)
            if len(value) != 3 or not all(type(n) is int and n > 0 for n in value):
                raise ValueError(f"{name} = {value!r}: give three whole numbers from 1")
        for name in (
            "decoder_depth", "time_channels", "lr_channels", "guide_channels", "guide_depth",
        ):  # fmt: skip
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)!r}: give a whole number from 1")
        if self.context_channels < 0 or self.context_channels % 2:
            raise ValueError(f"context_channels = {self.context_channels!r}: give 0 or an even one")
        for name in ("norm", "decoder_norm"):
            if getattr(self, name) not in NORMS:
                known = ", ".join(NORMS)
                raise ValueError(f"{name} = {getattr(self, name)!r}: give one of {known}")
        for name, choices in (("conditioning", Conditioning), ("base", Base)):
            if getattr(self, name) not in get_args(choices):
                known = ", ".join(get_args(choices))
                raise ValueError(f"{name} = {getattr(self, name)!r}: give one of {known}")
        if type(self.guide_time) is not bool:
            raise ValueError(f"guide_time = {self.guide_time!r}: give true or false")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the metadata of a weights file."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


class CompactNet(nn.Module):
    """Predicts the clean picture from its noisy version and the low-resolution input."""

    scale = 4
    multiple = 8
    """Sides of the low-resolution input must be multiples of this (pad before, crop after)."""

    def __init__(self, config: CompactConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CompactConfig()
        a, b, c = config.widths
        n_a, n_b, n_c = config.depths
        time = config.time_channels

        def blocks(channels_in: int, channels: int, count: int) -> nn.ModuleList:
            return nn.ModuleList(
                ResBlock(channels_in if i == 0 else channels, channels, time, config.norm)
                for i in range(count)
            )

        self.time = TimeEmbedding(time)
        self.context_encoder = (
            ContextEncoder(config.context_channels) if config.context_channels else None
        )
        self.context_in = (
            nn.Linear(2 * config.context_channels, time) if config.context_channels else None
        )
        is_guided = config.conditioning == "time-aware"
        if config.base == "grey" and self.context_in is not None:
            # a prior is undisturbed when it sees its first low-resolution picture
            nn.init.zeros_(self.context_in.weight)
            nn.init.zeros_(self.context_in.bias)
        self.lr_in = None if is_guided else nn.Conv2d(12, config.lr_channels, 3, padding=1)
        self.stem = nn.Conv2d(192 if is_guided else config.lr_channels + 2 * 192, a, 3, padding=1)
        self.enc0 = blocks(a, a, n_a)
        self.down0 = nn.Conv2d(a, b, 3, stride=2, padding=1)
        self.enc1 = blocks(b, b, n_b)
        self.down1 = nn.Conv2d(b, c, 3, stride=2, padding=1)
        self.mid = blocks(c, c, n_c)
        self.attention = GlobalAttention(c, 4, config.norm) if config.attention else None
        self.up1 = nn.Conv2d(c, b, 1)
        self.dec1 = blocks(2 * b, b, n_b)
        self.up0 = nn.Conv2d(b, a, 1)
        self.dec0 = blocks(2 * a, a, n_a)
        self.norm_out = make_norm(config.norm, a)
        self.decoder = Decoder(a, config)
        self.guide = None
        if is_guided:
            self.guide = TimeAwareGuide(
                config.widths,
                config.depths,
                config.guide_channels,
                config.guide_depth,
                time if config.guide_time or config.context_channels else 0,
                config.norm,
            )

    def context(self, lr: Tensor) -> Tensor | None:
        """Statistics `(B, 2 * context_channels)` of a whole low-resolution picture, or None.

        They are means over positions, so the context of a large photo is the area-weighted mean of
        its tiles' contexts. Passed to `forward` for every tile of the photo, it gives the network a
        view of the whole (how noisy, how blurred, how bright) that no cut can change.
        """
        if self.context_encoder is None:
            return None
        return self.context_encoder((lr * 2 - 1).to(self.stem.weight.dtype))

    def encode(
        self,
        x_t: Tensor,
        t: Tensor,
        lr: Tensor,
        condition: Tensor | None = None,
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features `(h0, h1, h2, time)` of the contracting half, at output/8, /16 and /32.

        Takes what `forward` takes. The frozen teacher's h0..h2 serve as perceptual features.
        """
        time, told = self._embed(t, lr, context)
        x, maps = self._enter(x_t, lr, condition, told)
        return (*self._contract(x, time, maps), time)

    def _embed(self, t: Tensor, lr: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Embedding `(B, time_channels)` of time and picture-wide context; what the guide is told.

        A guide that does not know the time is told the context alone, so that nothing else differs.
        """
        time, seen = self.time(t), None
        if self.context_in is not None:
            context = self.context(lr) if context is None else context
            if context is not None:
                seen = F.silu(self.context_in(context.to(self.stem.weight.dtype)))
                time = time + seen
        return time, time if self.config.guide_time else seen

    def _enter(
        self, x_t: Tensor, lr: Tensor, condition: Tensor | None, told: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The U-Net's input `(B, widths[0], H/8, W/8)`, and the guide's maps (none without one)."""
        dtype = self.stem.weight.dtype
        if condition is None:
            condition = enlarge(lr)
        low, noisy = (lr * 2 - 1).to(dtype), F.pixel_unshuffle(x_t.to(dtype), 8)
        condition = (condition * 2 - 1).to(dtype)
        if self.guide is not None:
            return self.stem(noisy), self.guide(low, condition, told)
        assert self.lr_in is not None
        x = torch.cat(
            [self.lr_in(F.pixel_unshuffle(low, 2)), noisy, F.pixel_unshuffle(condition, 8)], dim=1
        )  # (B, lr_channels + 384, H/8, W/8)
        return self.stem(x), ()

    def _contract(
        self, x: Tensor, time: Tensor, maps: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The contracting half with the middle, from what `_enter` gave."""
        for block, modulate in self._stage("enc0", maps):
            x = block(x, time, modulate)
        h0 = x
        x = self.down0(x)
        for block, modulate in self._stage("enc1", maps):
            x = block(x, time, modulate)
        h1 = x
        x = self.down1(x)
        for i, (block, modulate) in enumerate(self._stage("mid", maps)):
            x = block(x, time, modulate)
            if i == 0 and self.attention is not None:
                x = self.attention(x)
        return h0, h1, x

    def _stage(
        self, name: str, maps: tuple[Tensor, ...]
    ) -> list[tuple[nn.Module, Modulate | None]]:
        """The blocks of a stage, each with what modulates it."""
        blocks = list(getattr(self, name))
        if self.guide is None:
            return [(block, None) for block in blocks]
        return list(zip(blocks, self.guide.modulation(name, maps), strict=True))

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        lr: Tensor,
        condition: Tensor | None = None,
        fidelity: float | Tensor = 1.0,
        context: Tensor | None = None,
    ) -> Tensor:
        """The predicted clean picture `(B, 3, 4h, 4w)`, float32 in [0, 1] units, not clamped.

        Args:
            x_t: noisy picture `(B, 3, 4h, 4w)`, `(1 - t) x0 + t eps` with x0 in [-1, 1].
            t: time `(B,)` in [0, 1]; 1 is pure noise.
            lr: low-resolution picture `(B, 3, h, w)` in [0, 1]; h and w multiples of 8.
            condition: picture of the output's size in [0, 1] that carries the previous prediction
                (AddSR: `w x0 + (1 - w) x_LR`); None means the enlarged `lr`, as in the first step.
            fidelity: gate of the low-resolution skip in the decoder, in [0, 1]; a number or `(B,)`.
            context: what `context` gave for the photo this is a tile of; None means `lr` itself.
        """
        time, told = self._embed(t, lr, context)
        x, maps = self._enter(x_t, lr, condition, told)
        h0, h1, x = self._contract(x, time, maps)
        x = torch.cat([F.interpolate(self.up1(x), scale_factor=2.0, mode="nearest"), h1], dim=1)
        for block, modulate in self._stage("dec1", maps):
            x = block(x, time, modulate)
        x = torch.cat([F.interpolate(self.up0(x), scale_factor=2.0, mode="nearest"), h0], dim=1)
        for block, modulate in self._stage("dec0", maps):
            x = block(x, time, modulate)
        del h0, h1, maps  # the decoder needs the room
        x = F.silu(self.norm_out(x))
        residual = self.decoder(x, time, lr, fidelity)
        # The sum is float32: an 8-bit mantissa would band the smooth parts of the picture.
        if self.config.base == "grey":
            return residual.float() * 0.5 + 0.5
        return residual.float() * 0.5 + enlarge(lr.float())

    def sees_lr(self, parameter: str) -> bool:
        """Whether the parameter of that name belongs to what the low-resolution picture enters by.

        These are trained when the rest is a frozen prior.
        """
        return parameter.startswith(("guide.", "context_", "lr_in.", "decoder.lr_skip."))


class ContextEncoder(nn.Module):
    """Picture-wide statistics of the low-resolution input: mean and mean square of its features.

    Group normalisation and attention give a network this view of the whole, but as a side effect
    of the tile at hand; here it is an input, the same for every tile of a photo.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(12, channels // 2, 3, padding=1)
        self.down = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(ResBlock(channels, channels, 0, "none") for _ in range(2))

    def forward(self, lr: Tensor) -> Tensor:
        x = self.down(F.silu(self.stem(F.pixel_unshuffle(lr, 2))))
        for block in self.blocks:
            x = block(x)
        x = x.float()  # sums over many positions
        return torch.cat([x.mean(dim=(2, 3)), x.square().mean(dim=(2, 3))], dim=1)


class Decoder(nn.Module):
    """Features at output/8 to the residual picture at full size, in [-1, 1] units."""

    def __init__(self, channels_in: int, config: CompactConfig) -> None:
        super().__init__()
        a, b, c = config.decoder_widths
        norm = config.decoder_norm
        self.local = norm != "group"
        time = config.time_channels if config.context_channels else 0

        def stage(channels: int) -> nn.ModuleList:
            return nn.ModuleList(
                ResBlock(channels, channels, time, norm) for _ in range(config.decoder_depth)
            )

        self.link = nn.Conv2d(channels_in, a, 1)
        self.stage0 = stage(a)
        self.up0 = shuffle_conv(a, b)
        self.lr_skip = nn.Conv2d(3, b, 3, padding=1)
        self.stage1 = stage(b)
        self.up1 = shuffle_conv(b, c)
        self.stage2 = stage(c)
        self.out = shuffle_conv(c, 3, kernel=3)
        # zero, so that training starts from the ungated decoder and has to earn the skip
        nn.init.zeros_(self.lr_skip.weight)
        nn.init.zeros_(self.lr_skip.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, time: Tensor, lr: Tensor, fidelity: float | Tensor) -> Tensor:
        x = self.link(x)
        for block in self.stage0:
            x = block(x, time)
        x = F.pixel_shuffle(self.up0(x), 2)  # (B, b, H/4, W/4): the grid of lr
        if isinstance(fidelity, Tensor):
            fidelity = fidelity.to(x.dtype).view(-1, 1, 1, 1)
        # the skip has no name, so that its memory is free again in the blocks that follow
        x = x + fidelity * self.lr_skip((lr * 2 - 1).to(x.dtype))
        for block in self.stage1:
            x = block(x, time)
        if self.local and x.is_cpu and may_overwrite():
            # two 3x3 convolutions a block and the last one, on twice as many rows as x has
            halo = len(self.stage2) + 1
            rows = max(_STRIP_NUMBERS // (4 * self.out.in_channels * x.shape[-1]), 4 * halo)
            return in_strips(lambda x: self.finish(x, time), x, scale=4, halo=halo, rows=rows)
        return self.finish(x, time)

    def finish(self, x: Tensor, time: Tensor) -> Tensor:
        """The last two enlargements, where most of the memory goes."""
        x = F.pixel_shuffle(self.up1(x), 2)
        for block in self.stage2:
            x = block(x, time)
        return F.pixel_shuffle(self.out(F.silu(x, inplace=may_overwrite())), 2)


def enlarge(lr: Tensor, scale: int = 4) -> Tensor:
    """`lr` enlarged bilinearly by `scale`; the base that the network adds its residual to."""
    return F.interpolate(lr, scale_factor=float(scale), mode="bilinear", align_corners=False)
