"""What a diffusion in a latent space will take: sizes, tiles, strips and the expected peak.

The numbers per pixel were counted over the full-size networks without their weights
(`benchmarks/stablesr_memory.py`): the most tensor elements that live at once, in units of the width
of a network's first level, so that they serve networks of other widths too.
"""

from __future__ import annotations

from dataclasses import dataclass

from addsr.diffusion.aggregate import tile_starts
from addsr.image.color import ColorFix
from addsr.nets.stablesr.strips import WAITING
from addsr.pipelines.canvas import Canvas, make_canvas
from addsr.plan import Pass, Plan, check_memory

from .base import Room, Wish

UNET = 27.2
"""Per latent pixel of a tile, in widths of the U-Net; the encoder and the modulation included."""
CONTROLLED_UNET = 35.5
"""The same of SeeSR's and AddSR's U-Net with its ControlNet; guidance takes it twice."""
VAE_WHOLE = 6.0
"""Per picture pixel, in widths of the VAE: the decoder; the encoder takes 5."""
VAE_STRIP = 6.0
"""Per picture pixel of a strip, on the device."""
VAE_MIDDLE = 0.45
"""Per picture pixel of the whole, on the device: the middle of the VAE is never cut."""
SLACK = 1.5
"""What kernels and the allocator take besides tensors, as a factor; 1.3 measured on a CPU."""
WORKSPACE = 475
"""Per squared width of the U-Net: kernels' own copies of weights, 190 MB measured on a CPU."""
LARGEST_STRIP = 1024**2
"""Pixels beyond which the VAE on a CPU, or a strip anywhere, gains nothing from more."""
LARGEST_WHOLE = 2048**2
"""Pixels that the VAE may see at once on a device, where strips cost copies to and from it: far
enough below 2**31 numbers in a map of twice the VAE's width."""
MOST_TILES = 16
"""That go through the networks of a device together: a step of 49 tiles takes 2.6 times as long by
four (docs/benchmarks.md)."""
_LEAST_ROWS = 8
_PICTURES = 8 * 12
"""Bytes per result pixel: float32 pictures that the colour correction holds at once."""
_OTHER = 100_000_000
_SHARE = 0.9
"""Of the free memory, what may be planned with."""


@dataclass(frozen=True)
class LatentFacts:
    """Sizes of a pipeline's networks."""

    tile: int
    """Side of the pictures it was trained with."""
    factor: int
    multiple: int
    unet_width: int
    vae_width: int
    tap_numbers: float
    """Of the features kept for the decoder, per picture pixel, where fidelity asks for them."""
    kept_numbers: float
    """Of what is kept beside the latent in any case, per picture pixel."""
    sampling_numbers: float
    """Of the networks in a step, per latent pixel of a tile and in widths of the U-Net."""
    bytes_per_number: int
    moved_bytes: int
    """Largest weights that come to the device and go again; 0 where they stay there."""


def make_latent_plan(source: tuple[int, int], wish: Wish, facts: LatentFacts, room: Room) -> Plan:
    """The plan for a picture of `source` (height, width): one pass, whatever the scale.

    Raises:
        MemoryLimitError: the expected peak is more than there is.
    """
    tile = facts.tile if wish.tile == "auto" else wish.tile
    canvas = _canvas(source, wish.scale, tile, facts)
    stages = _Stages(canvas, tile, facts, has_taps=wish.fidelity > 0)
    fixed = _pictures_bytes(source, canvas, wish.color, room.result_bytes_per_pixel)
    is_host = room.device is None
    # the network's tiles gain nothing from company on a CPU
    most = 1 if is_host else MOST_TILES
    batches = [n for n in (16, 8, 4, 2, 1) if n <= most and n < 2 * stages.tiles]
    free = (room.host - fixed if room.device is None else room.device) * _SHARE
    free -= facts.moved_bytes
    batch = next((n for n in batches if stages.sampling(n) <= free), 1)
    if wish.tile_batch != "auto":
        batch = min(wish.tile_batch, stages.tiles)
    strip = stages.choose_strip(free, is_host)
    waiting = stages.maps(strip)
    # as `LatentStages` decides when it comes to that
    stays = is_host or stages.vae(strip) + waiting <= free
    there = max(stages.sampling(batch), stages.vae(strip) + (waiting if stays else 0))
    device = there + facts.moved_bytes
    host = fixed + (there if is_host else 0 if stays else waiting)
    given = wish.tile != "auto"
    check_memory(source, canvas.target, host, room.host, "main memory", is_tile_given=given)
    if room.device is not None:
        check_memory(
            source, canvas.target, device, room.device, "device memory", is_tile_given=given
        )
    return Plan(
        source, canvas.target, (Pass(source, canvas.target, None),), tile, host, device,
        tile_batch=batch, strip_pixels=strip,
    )  # fmt: skip


def count_tiles(source: tuple[int, int], scale: float, tile: int, facts: LatentFacts) -> int:
    """Tiles of every sampling step."""
    canvas = _canvas(source, scale, tile, facts)
    return _Stages(canvas, tile, facts, has_taps=False).tiles


def _canvas(source: tuple[int, int], scale: float, tile: int, facts: LatentFacts) -> Canvas:
    return make_canvas(source, scale, tile, facts.factor, facts.multiple, facts.tile)


class _Stages:
    """Expected bytes of each stage for one canvas."""

    def __init__(self, canvas: Canvas, tile: int, facts: LatentFacts, *, has_taps: bool) -> None:
        self.facts = facts
        self.height, self.width = canvas.padded
        self.pixels = self.height * self.width
        sides = [min(tile, side) // facts.factor for side in canvas.padded]
        self.tile_pixels = sides[0] * sides[1]
        counts = [
            len(tile_starts(full // facts.factor, side, tile // facts.factor // 2))
            for full, side in zip(canvas.padded, sides, strict=True)
        ]
        self.tiles = counts[0] * counts[1]
        per_pixel = facts.kept_numbers + (facts.tap_numbers if has_taps else 0.0)
        self.taps = round(per_pixel * self.pixels * facts.bytes_per_number)

    def sampling(self, batch: int) -> int:
        """Of a step with `batch` tiles at once, with the features that wait for the decoder."""
        numbers = self.facts.sampling_numbers * self.facts.unet_width
        each = numbers * self.tile_pixels * self.facts.bytes_per_number
        kernels = WORKSPACE * self.facts.unet_width**2 * self.facts.bytes_per_number
        return round(each * min(batch, self.tiles) * SLACK) + kernels + self.taps

    def vae(self, strip: int | None) -> int:
        """Of the VAE on its device."""
        width = self.facts.vae_width * self.facts.bytes_per_number
        if strip is None:
            return round(VAE_WHOLE * width * self.pixels * SLACK) + self.taps
        cut = VAE_STRIP * min(strip, self.pixels) + VAE_MIDDLE * self.pixels
        return round(cut * width * SLACK)

    def maps(self, strip: int | None) -> int:
        """Of what waits, in main memory or on the device, while the VAE works."""
        if strip is None:
            return 0
        width = self.facts.vae_width * self.facts.bytes_per_number
        return round(WAITING * width * self.pixels) + self.taps

    def choose_strip(self, free: float, is_host: bool) -> int | None:
        """Pixels of the largest strip that fits, or the narrowest; None: all at once."""
        most = LARGEST_STRIP if is_host else LARGEST_WHOLE
        if self.pixels <= most and self.vae(None) <= free:
            return None
        strip = min(self.pixels, LARGEST_STRIP)
        while strip // 2 >= _LEAST_ROWS * self.width:
            if self.vae(strip) + (self.maps(strip) if is_host else 0) <= free:
                break
            strip //= 2
        return strip


def _pictures_bytes(
    source: tuple[int, int], canvas: Canvas, color: ColorFix, result_bytes_per_pixel: int
) -> int:
    """Main memory besides the networks: the pictures as they come, wait and go."""
    target = canvas.target[0] * canvas.target[1]
    padded = canvas.padded[0] * canvas.padded[1]
    held = 24 * padded + (_PICTURES if color != "none" else 3 * 12) * target
    return 16 * source[0] * source[1] + held + result_bytes_per_pixel * target + _OTHER
