"""Low-resolution pictures as the world makes them: blurred, resized, noisy, compressed.

Second-order degradation of Real-ESRGAN (arXiv 2107.10833, section 3), batched for a GPU:

    blur -> resize -> noise -> JPEG -> [blur -> resize -> noise] -> resize to LR, sinc, JPEG

with the last JPEG before or after the last resize. Where a preset asks for it, the first noise is
that of a camera's mosaic and the last compression WebP. Every strength is drawn per picture. What
fixes the shape of a tensor is shared by `group` pictures in a row: the preset, whether the second
round runs, and the three resizes (direction, factor, filter). `group=1` draws these per picture
too, at more launches per picture.

Noise and compression run on 16 x 16 macroblocks, which stack whatever the size of the picture
they come from; so only resizing, cameras and the second blur run group by group. WebP runs on the
host; a batch in which nobody draws it never waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from addsr.errors import InputError, OptionError

from .draw import Dice, derive_seed, host_seed, upload
from .filters import filter2d
from .jpeg import from_macroblocks, jpeg_blocks, to_macroblocks
from .kernels import KernelDraw, build_kernels, draw_final_sinc, draw_kernels
from .mosaic import MosaicDraw, add_camera_noise, draw_mosaic
from .noise import NoiseDraw, add_noise, draw_noise
from .resize import Resize, apply_resize, draw_filter, draw_resize
from .spec import (
    MIXTURES,
    PRESETS,
    BlurSpec,
    DegradationSpec,
    JpegSpec,
    MosaicSpec,
    NoiseSpec,
    Preset,
    ResizeSpec,
    WebpSpec,
    resolve,
)
from .webp import MAX_SIDE, WebpDraw, draw_webp, webp

__all__ = [
    "MIXTURES",
    "PRESETS",
    "BlurSpec",
    "DegradationSpec",
    "JpegSpec",
    "MosaicSpec",
    "NoiseSpec",
    "Preset",
    "ResizeSpec",
    "WebpSpec",
    "degrade",
    "resolve",
]


@dataclass(frozen=True)
class _Geometry:
    """What the pictures of a group share; `second` is None where the second round is left out."""

    preset: int
    first: Resize
    second: Resize | None
    final: Resize


class _Draws(NamedTuple):
    """Everything drawn per picture, on the device unless it says otherwise."""

    blur1: Tensor  # kernels (B, k, k), as are the next two
    blur2: Tensor
    sinc: Tensor
    mosaic: MosaicDraw
    camera_first: Tensor  # numbers of the pictures, first of those that a camera takes
    noise1: NoiseDraw
    noise2: NoiseDraw
    jpeg1: tuple[Tensor, Tensor]  # who is compressed, and the quality
    early: tuple[Tensor, Tensor]  # the last JPEG, before the last resize
    late: tuple[Tensor, Tensor]  # the same after it
    cameras: list[int]  # per group, how many pictures are taken by one; on the host
    webp: WebpDraw  # on the host


@torch.no_grad()
def degrade(
    hr: Tensor,
    preset: Preset = "mixture",
    *,
    scale: int = 4,
    generator: torch.Generator | None = None,
    group: int = 8,
) -> Tensor:
    """Low-resolution `(B, 3, H // scale, W // scale)` of `hr` `(B, 3, H, W)`, both in [0, 1].

    The result holds multiples of 1/255, as a file would.

    Args:
        hr: float pictures on any device.
        preset: `mild`, `strong`, `near-clean`, `mixture`, weights of those, or a spec.
        scale: how many times smaller the result is.
        generator: on the CPU or the device of `hr`; None takes torch's global one. A seed gives
            the same parameters on every device, and the same pictures on the same device.
        group: pictures in a row that share preset and resizes.

    Raises:
        InputError: `hr` is no such batch or has a side shorter than `scale`.
        OptionError: `scale` or `group` is below 1.
        ConfigError: an unknown preset.
    """
    _check(hr, scale, group)
    if len(hr) == 0:
        return hr.new_zeros(0, 3, hr.shape[-2] // scale, hr.shape[-1] // scale)
    specs, shares = resolve(preset)
    seed = host_seed(generator)
    host = torch.Generator().manual_seed(derive_seed(seed, "parameters"))
    count = len(hr)
    plans = _draw_geometry(specs, shares, -(-count // group), hr.shape[-2:], scale, host)
    sizes = [min(group, count - start) for start in range(0, count, group)]
    # autocast would run the DCT in half precision
    with torch.autocast(hr.device.type, enabled=False):
        draws = _draw(specs, plans, sizes, hr.device, host, seed)
        return _run(hr.float(), plans, sizes, draws, seed)


def _draw(
    specs: Sequence[DegradationSpec],
    plans: list[_Geometry],
    sizes: list[int],
    device: torch.device,
    host: torch.Generator,
    seed: int,
) -> _Draws:
    """What the pictures of the groups, as many as `sizes` says, do not share."""
    of_group = torch.tensor(sizes)
    which = torch.tensor([plan.preset for plan in plans]).repeat_interleave(of_group)
    has_second = torch.tensor([plan.second is not None for plan in plans])
    has_second = has_second.repeat_interleave(of_group)

    def own(name: str) -> Dice:
        """Numbers of its own for what only some presets ask for: the others keep their pictures."""
        return Dice(specs, which, torch.Generator().manual_seed(derive_seed(seed, name)))

    has_camera, mosaic = draw_mosaic(own("mosaic"), "mosaic")
    webp_draw = draw_webp(own("webp"), "webp")
    dice = Dice(specs, which, host)
    is_early = has_second & (dice.unit() < 0.5)
    is_compressed = dice.chance("jpeg2.probability") & ~webp_draw.wanted
    jpegs = (
        dice.chance("jpeg1.probability"),
        dice.uniform("jpeg1.quality"),
        is_compressed & is_early,
        is_compressed & ~is_early,
        dice.uniform("jpeg2.quality"),
    )
    kernels = draw_kernels(dice, "blur1"), draw_kernels(dice, "blur2"), draw_final_sinc(dice)
    noise1, noise2 = draw_noise(dice, "noise1"), draw_noise(dice, "noise2")
    # what comes from a camera has its noise
    noise1 = noise1._replace(
        sigma=torch.where(has_camera, 0.0, noise1.sigma),
        poisson=torch.where(has_camera, 0.0, noise1.poisson),
    )
    camera_first = torch.argsort(~has_camera, stable=True)
    tables = upload(device, *kernels, noise1, noise2, jpegs, mosaic, (camera_first,))
    blur1, blur2, sinc = (build_kernels(KernelDraw(*table)) for table in tables[:3])
    has_jpeg1, quality1, early, late, quality2 = tables[5]
    return _Draws(
        blur1=blur1,
        blur2=blur2,
        sinc=sinc,
        mosaic=MosaicDraw(*tables[6]),
        camera_first=tables[7][0].long(),
        noise1=NoiseDraw(*tables[3]),
        noise2=NoiseDraw(*tables[4]),
        jpeg1=(has_jpeg1, quality1),
        early=(early, quality2),
        late=(late, quality2),
        cameras=[int(part.sum()) for part in has_camera.split(sizes)],
        webp=webp_draw,
    )


def _run(hr: Tensor, plans: list[_Geometry], sizes: list[int], draws: _Draws, seed: int) -> Tensor:
    generator = torch.Generator(hr.device).manual_seed(derive_seed(seed, "noise"))
    whole = torch.arange(len(hr), device=hr.device)
    members = list(whole.split(sizes))  # per group: the numbers of its pictures
    parts = list(filter2d(hr, draws.blur1).split(sizes))
    parts = [apply_resize(part, plan.first) for part, plan in zip(parts, plans, strict=True)]
    if any(draws.cameras):
        sensor = torch.Generator(hr.device).manual_seed(derive_seed(seed, "sensor"))
        parts = _take(parts, members, draws, sensor)
    parts = _noise_and_jpeg(parts, members, draws.noise1, *draws.jpeg1, generator)

    again = [index for index, plan in enumerate(plans) if plan.second is not None]
    if again:
        kernels = draws.blur2.split(sizes)
        second: list[Tensor] = []
        for index in again:
            blurred, resize = filter2d(parts[index], kernels[index]), plans[index].second
            second.append(apply_resize(blurred, resize) if resize else blurred)
        chosen = [members[index] for index in again]
        second = _noise_and_jpeg(second, chosen, draws.noise2, *draws.early, generator)
        for index, part in zip(again, second, strict=True):
            parts[index] = part

    small = torch.cat([apply_resize(p, plan.final) for p, plan in zip(parts, plans, strict=True)])
    small = filter2d(small, draws.sinc)
    blocks = to_macroblocks(small)
    owner = whole.repeat_interleave(len(blocks) // len(hr), output_size=len(blocks))
    small = from_macroblocks(_jpeg_some(blocks, owner, *draws.late), small.shape)
    small = (small.clamp(0, 1) * 255).round() / 255
    return _webp_some(small, draws.webp)


def _take(
    parts: list[Tensor], members: list[Tensor], draws: _Draws, generator: torch.Generator
) -> list[Tensor]:
    """The pictures of each group, those that have a camera taken by it. Not as macroblocks: the
    interpolation of a mosaic reaches over their borders."""
    chosen = draws.camera_first[: sum(draws.cameras)].split(draws.cameras)
    out: list[Tensor] = []
    for part, numbers, taken in zip(parts, members, chosen, strict=True):
        if len(taken):
            rows = taken - numbers[0]
            own = MosaicDraw(*(column[taken] for column in draws.mosaic))
            noisy = add_camera_noise(part[rows], own, generator=generator)
            part = part.index_copy(0, rows, noisy)
        out.append(part)
    return out


def _noise_and_jpeg(
    parts: list[Tensor],
    members: list[Tensor],
    noise: NoiseDraw,
    chosen: Tensor,
    quality: Tensor,
    generator: torch.Generator,
) -> list[Tensor]:
    """All groups at once, as macroblocks; `members` holds each group's picture numbers."""
    pieces = [to_macroblocks(part) for part in parts]
    owner = torch.cat(
        [
            numbers.repeat_interleave(len(piece) // len(numbers), output_size=len(piece))
            for numbers, piece in zip(members, pieces, strict=True)
        ]
    )
    blocks = add_noise(torch.cat(pieces), noise, generator=generator, owner=owner)
    blocks = _jpeg_some(blocks, owner, chosen, quality)
    split = blocks.split([len(piece) for piece in pieces])
    return [from_macroblocks(piece, p.shape) for piece, p in zip(split, parts, strict=True)]


def _jpeg_some(blocks: Tensor, owner: Tensor, chosen: Tensor, quality: Tensor) -> Tensor:
    """Compressed where the owning picture is `chosen`; the rest is computed and thrown away,
    because picking rows by a condition would wait for the device."""
    mask = (chosen > 0.5)[owner].view(-1, 1, 1, 1)
    return torch.where(mask, jpeg_blocks(blocks, quality[owner]), blocks)


def _webp_some(small: Tensor, draw: WebpDraw) -> Tensor:
    """Compressed where wanted, on the host: those pictures alone go there and back. What the
    format cannot hold stays as it is."""
    chosen = draw.wanted.nonzero().flatten()
    if not len(chosen) or max(small.shape[-2:]) > MAX_SIDE:
        return small
    rows = chosen.to(small.device)
    return small.index_copy(0, rows, webp(small[rows], draw.quality[chosen].tolist()))


def _draw_geometry(
    specs: Sequence[DegradationSpec],
    shares: Sequence[float],
    groups: int,
    hr_size: Sequence[int],
    scale: int,
    host: torch.Generator,
) -> list[_Geometry]:
    """Preset and resizes of each group; the published factors of the second resize refer to LR."""
    height, width = hr_size
    lr_size = (height // scale, width // scale)
    preset = torch.multinomial(torch.tensor(shares), groups, replacement=True, generator=host)
    plans: list[_Geometry] = []
    rolls: list[list[float]] = torch.rand(groups, 11, generator=host, dtype=torch.float64).tolist()
    for number, roll in zip(preset.tolist(), rolls, strict=True):
        spec = specs[number]
        has_second = roll[0] < spec.second_order
        plans.append(
            _Geometry(
                preset=number,
                first=draw_resize(spec.resize1, (height, width), roll[1:5]),
                second=draw_resize(spec.resize2, lr_size, roll[5:9]) if has_second else None,
                final=Resize(
                    lr_size,
                    draw_filter(spec.final_lanczos, roll[9]),
                    roll[10] < spec.final_antialias,
                ),
            )
        )
    return plans


def _check(hr: Tensor, scale: int, group: int) -> None:
    if scale < 1:
        raise OptionError(f"scale = {scale} is not allowed; give a whole number from 1")
    if group < 1:
        raise OptionError(f"group = {group} is not allowed; give a whole number from 1")
    if hr.dim() != 4 or hr.shape[1] != 3 or not hr.is_floating_point():
        raise InputError(
            f"picture batch has shape {tuple(hr.shape)} and type {hr.dtype}; "
            "give floats (B, 3, H, W) in [0, 1]"
        )
    if min(hr.shape[-2:]) < scale:
        raise InputError(
            f"picture of {hr.shape[-1]} x {hr.shape[-2]} is smaller than scale {scale}; "
            "give pictures with sides of at least that many pixels"
        )
