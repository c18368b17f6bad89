"""What StableSR is expected to take, at its published size."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from addsr.errors import MemoryLimitError
from addsr.plan import Plan
from addsr.restorers.base import Room, Wish
from addsr.restorers.latent_plan import (
    CONTROLLED_UNET,
    LARGEST_STRIP,
    MOST_TILES,
    UNET,
    LatentFacts,
    count_tiles,
    make_latent_plan,
)

GIB = 2**30
HALF = LatentFacts(
    tile=512, factor=8, multiple=8, unet_width=320, vae_width=128, tap_numbers=96.0,
    kept_numbers=0.0, sampling_numbers=UNET, bytes_per_number=2, moved_bytes=0,
)  # fmt: skip
FULL = replace(HALF, bytes_per_number=4)
WISH = Wish(scale=4.0, steps=200, fidelity=0.5, color="adain", seed=0, tile="auto")


def plan(
    source: tuple[int, int], facts: LatentFacts = HALF, host: int = 64, device: int | None = 24
) -> Plan:
    room = Room(host * GIB, None if device is None else device * GIB, 4)
    return make_latent_plan(source, WISH, facts, room)


def test_a_picture_of_one_tile_goes_whole_through_a_small_device() -> None:
    one = plan((128, 128), device=8)
    assert (one.target, one.tile, one.tile_batch, one.strip_pixels) == ((512, 512), 512, 1, None)
    assert one.tile_bytes < 2 * GIB and one.host_bytes < GIB


def test_a_large_picture_goes_in_strips_and_many_tiles_go_together() -> None:
    large = plan((500, 1000))
    assert large.tile_batch == MOST_TILES and large.strip_pixels == LARGEST_STRIP
    assert count_tiles((500, 1000), 4.0, 512, HALF) == 7 * 15
    assert large.host_bytes < 2 * GIB and large.tile_bytes > 12 * GIB, "maps wait on the device"
    tight = plan((500, 1000), device=12)
    assert tight.host_bytes > 8 * GIB, "the maps of the VAE wait in main memory"
    assert tight.tile_bytes < 12 * GIB
    wish = replace(WISH, tile_batch=3)
    assert make_latent_plan((500, 1000), wish, HALF, Room(64 * GIB, 24 * GIB, 4)).tile_batch == 3
    assert plan((512, 512)).strip_pixels is None, "a device copies nothing it has room for"
    assert plan((512, 512), FULL, device=None).strip_pixels == LARGEST_STRIP


def test_less_memory_means_narrower_strips_fewer_tiles_and_a_smaller_peak() -> None:
    plans = [plan((500, 1000), device=free) for free in (24, 3, 2)]
    strips = [p.strip_pixels or 0 for p in plans]
    assert strips == sorted(strips, reverse=True) and strips[0] > strips[-1]
    peaks = [p.tile_bytes for p in plans]
    assert peaks == sorted(peaks, reverse=True)
    for one, free in zip(plans, (24, 3, 2), strict=True):
        assert one.tile_bytes <= free * GIB


def test_on_a_cpu_tiles_go_one_by_one_and_all_is_main_memory() -> None:
    one = plan((128, 128), FULL, device=None)
    assert one.tile_batch == 1 and one.host_bytes > one.tile_bytes
    assert 1 * GIB < one.host_bytes < 3 * GIB


def test_networks_that_come_and_go_count_on_the_device() -> None:
    moved = replace(HALF, moved_bytes=2 * GIB)
    assert plan((128, 128), moved).tile_bytes - plan((128, 128)).tile_bytes == 2 * GIB


def test_what_does_not_fit_is_refused_with_peak_and_remedy() -> None:
    with pytest.raises(MemoryLimitError, match=r"GiB of main memory.*smaller --scale"):
        plan((3000, 3000))
    with pytest.raises(MemoryLimitError, match="GiB of device memory"):
        make_latent_plan((128, 128), WISH, HALF, Room(64 * GIB, GIB // 8, 4))
    with pytest.raises(MemoryLimitError, match="or leave --tile at auto"):
        make_latent_plan((900, 900), replace(WISH, tile=2048), HALF, Room(64 * GIB, 2 * GIB, 4))
    small = make_latent_plan((128, 128), replace(WISH, tile=2048), HALF, Room(64 * GIB, 2 * GIB, 4))
    assert small.tile_bytes == plan((128, 128)).tile_bytes, "a small picture stays small"


@settings(max_examples=30)
@given(
    st.integers(1, 700), st.integers(1, 700), st.sampled_from([1.0, 2.0, 4.0, 8.0]),
    st.sampled_from([None, 4, 24]),
)  # fmt: skip
def test_a_plan_never_exceeds_what_is_free(
    height: int, width: int, scale: float, device: int | None
) -> None:
    room = Room(16 * GIB, None if device is None else device * GIB, 4)
    try:
        one = make_latent_plan((height, width), replace(WISH, scale=scale), HALF, room)
    except MemoryLimitError:
        return
    assert one.host_bytes <= room.host
    assert room.device is None or one.tile_bytes <= room.device
    assert one.strip_pixels is None or one.strip_pixels <= LARGEST_STRIP


def test_networks_that_hold_more_in_a_step_get_fewer_tiles_at_once() -> None:
    guided = replace(HALF, sampling_numbers=2 * CONTROLLED_UNET)
    counts = [plan((512, 512), facts, device=2).tile_batch for facts in (HALF, guided)]
    assert counts[0] > counts[1]
    kept = replace(HALF, kept_numbers=5.0)
    for device, name in ((8, "host_bytes"), (24, "tile_bytes")):
        with_it, without = (plan((500, 1000), one, device=device) for one in (kept, HALF))
        more = getattr(with_it, name) - getattr(without, name)
        assert more == 2 * 5 * 2000 * 4000
