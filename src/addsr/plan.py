"""What an upscaling will do, decided before it starts: passes, sizes, tiles, expected memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from .errors import MemoryLimitError, OptionError

MIN_SCALE, MAX_SCALE = 1.0, 8.0
_TILE_SHARE = 0.5
"""Of the free memory, what a tile may be planned with: estimates err, other programs grow."""
_GPU_BEST_TILE = 512


class TileFacts(Protocol):
    """What a model states about tiles (`addsr.models.registry.ModelInfo` does)."""

    @property
    def scale(self) -> int: ...
    @property
    def multiple(self) -> int: ...
    @property
    def halo(self) -> int: ...
    @property
    def blend(self) -> int: ...
    @property
    def tile_bytes_per_pixel(self) -> int: ...
    @property
    def best_tile(self) -> int: ...


@dataclass(frozen=True)
class Pass:
    """One run of the network over the whole picture, then a resize of what it gave."""

    size_in: tuple[int, int]
    """Height and width the network sees."""
    size_out: tuple[int, int]
    """After the resize."""
    ratio: tuple[float, float] | None
    """Enlarged pixels per result pixel along each axis; None: no resize."""


@dataclass(frozen=True)
class Plan:
    """All decisions for one picture; sizes are (height, width)."""

    source: tuple[int, int]
    target: tuple[int, int]
    passes: tuple[Pass, ...]
    tile: int
    """Side of a tile: in input pixels for a network of pixels, else in pixels of the result."""
    host_bytes: int
    """Expected peak of main memory above what the process holds before."""
    tile_bytes: int
    """Expected peak of the network on its device, part of `host_bytes` when that is the CPU."""
    tile_batch: int = 1
    """Tiles that go through the network together."""
    strip_pixels: int | None = None
    """Pixels of a strip of the VAE; None: it sees the whole picture, or there is none."""


def target_size(source: tuple[int, int], scale: float) -> tuple[int, int]:
    """`source` times `scale`, each side rounded half up, at least 1."""
    height, width = (max(1, math.floor(n * scale + 0.5)) for n in source)
    return height, width


def check_scale(scale: float) -> float:
    """`scale` as a float; OptionError outside of 1 to 8."""
    if not MIN_SCALE <= scale <= MAX_SCALE:
        raise OptionError(f"scale: {scale:g} is outside of 1 to 8; give a factor in between")
    return float(scale)


def make_passes(
    source: tuple[int, int], target: tuple[int, int], model_scale: int
) -> tuple[Pass, ...]:
    """Runs of the network that reach `target`.

    Up to the model's scale it is one run and a reduction. Beyond, the first run's result is
    reduced to `target / model_scale` and run again, so that the second run sees a clean picture
    and ends exactly at the target: a quarter of the work at 8 of two full runs.
    """
    first_out = _times(source, model_scale)
    if target[0] <= first_out[0] and target[1] <= first_out[1]:
        return (_one_pass(source, target, model_scale),)
    # the last pixel of the middle picture may hang over the edge; the surplus is cut at the end
    middle = (-(-target[0] // model_scale), -(-target[1] // model_scale))
    ratio = (
        first_out[0] / (target[0] / model_scale),
        first_out[1] / (target[1] / model_scale),
    )
    return (
        Pass(source, middle, ratio),
        Pass(middle, target, None),
    )


def _one_pass(size: tuple[int, int], target: tuple[int, int], model_scale: int) -> Pass:
    full = _times(size, model_scale)
    ratio = None if full == target else (full[0] / target[0], full[1] / target[1])
    return Pass(size, target, ratio)


def make_plan(
    source: tuple[int, int],
    scale: float,
    facts: TileFacts,
    *,
    tile: int | Literal["auto"] = "auto",
    color: str = "wavelet",
    bytes_per_number: int = 4,
    result_bytes_per_pixel: int = 4,
    host_free: int,
    device_free: int | None = None,
) -> Plan:
    """The plan for a picture of `source` (height, width).

    Args:
        color: the colour fix; AdaIN holds the enlarged picture once more.
        bytes_per_number: of the type the network computes in.
        result_bytes_per_pixel: all channels of the finished picture as the caller gets it.
        host_free: bytes of main memory that may be taken.
        device_free: bytes on the accelerator; None: the network runs in main memory.

    Raises:
        OptionError: a scale outside of 1 to 8, a tile too small for the model.
        MemoryLimitError: the expected peak is more than there is; names it and the way out.
    """
    target = target_size(source, check_scale(scale))
    passes = make_passes(source, target, facts.scale)
    per_pixel = facts.tile_bytes_per_pixel * bytes_per_number // 2
    least = least_tile(facts)
    best = facts.best_tile if device_free is None else max(facts.best_tile, _GPU_BEST_TILE)

    def fixed(side: int) -> int:
        return _fixed_bytes(passes, target, side, facts, color, result_bytes_per_pixel)

    if tile == "auto":
        room = host_free if device_free is None else device_free
        side = best
        while side > least:
            own = fixed(side) if device_free is None else 0
            if per_pixel * _largest_tile(passes, side, facts) <= _TILE_SHARE * max(room - own, 0):
                break
            side -= facts.multiple
    else:
        side = tile
        if side < least:
            raise OptionError(f"tile: {side} px is too small for this model; give {least} or more")
    tile_bytes = per_pixel * _largest_tile(passes, side, facts)
    host = fixed(side) + (tile_bytes if device_free is None else 0)
    check_memory(source, target, host, host_free, "main memory", is_tile_given=tile != "auto")
    if device_free is not None:
        check_memory(
            source, target, tile_bytes, device_free, "device memory", is_tile_given=tile != "auto"
        )
    return Plan(source, target, passes, side, host, tile_bytes)


def _largest_tile(passes: tuple[Pass, ...], side: int, facts: TileFacts) -> int:
    """Pixels of the largest tile that the network will see."""
    sizes = [[min(side, _up(n, facts.multiple)) for n in p.size_in] for p in passes]
    return max(height * width for height, width in sizes)


def least_tile(facts: TileFacts) -> int:
    """The smallest tile side a user may ask for."""
    overlap = _up(2 * facts.halo + facts.blend, facts.multiple)
    return overlap + _up(max(facts.halo + facts.blend, 1), facts.multiple)


def _fixed_bytes(
    passes: tuple[Pass, ...],
    target: tuple[int, int],
    side: int,
    facts: TileFacts,
    color: str,
    result_bytes_per_pixel: int,
) -> int:
    """Main memory besides the tile: pictures and bands, of the most expensive pass."""
    peak = 0
    for step in passes:
        height, width = step.size_in
        full_width, full_height = width * facts.scale, height * facts.scale
        rows = min(side, height) * facts.scale
        held = 16 * height * width  # the input picture and its alpha, float32
        # a row of tiles is held up to five times: canvas, joined rows, colour fix (measured)
        held += 5 * 12 * rows * full_width + 100_000_000
        if color == "adain":
            held += 6 * full_height * full_width
        last = step is passes[-1]
        held += (result_bytes_per_pixel if last else 12) * step.size_out[0] * step.size_out[1]
        peak = max(peak, held)
    return peak + result_bytes_per_pixel * target[0] * target[1] // 8


def check_memory(
    source: tuple[int, int],
    target: tuple[int, int],
    needed: int,
    free: int,
    where: str,
    *,
    is_tile_given: bool = False,
) -> None:
    """MemoryLimitError, with the expected peak and the way out, where `needed` exceeds `free`."""
    if needed <= free:
        return
    remedy = "take a smaller --scale, cut the picture into parts, or free memory"
    if is_tile_given:
        remedy += ", or leave --tile at auto"
    raise MemoryLimitError(
        f"{source[1]}x{source[0]} -> {target[1]}x{target[0]} is expected to need "
        f"{needed / 2**30:.2f} GiB of {where}, {free / 2**30:.2f} GiB are free; {remedy}"
    )


def _times(size: tuple[int, int], factor: int) -> tuple[int, int]:
    return size[0] * factor, size[1] * factor


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
