"""Sizes, passes, tiles and the expected peak, before anything is computed."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addsr.errors import MemoryLimitError, OptionError
from addsr.image.tiling import smallest_tile
from addsr.models.registry import COMPACT
from addsr.plan import least_tile, make_passes, make_plan, target_size

GIB = 2**30


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(1, 8))
def test_passes_chain_up_to_the_rounded_target(height: int, width: int, scale: float) -> None:
    target = target_size((height, width), scale)
    assert all(
        abs(t - n * scale) <= 0.5 + 1e-6 for t, n in zip(target, (height, width), strict=True)
    )
    passes = make_passes((height, width), target, 4)
    assert passes[0].size_in == (height, width)
    assert len(passes) == (1 if scale <= 4 else len(passes)) <= 2
    for first, second in pairwise(passes):
        assert first.size_out == second.size_in
    last = passes[-1]
    if last.ratio is None:  # the surplus of the last pass is less than one pixel of its input
        for side, wanted in zip(last.size_in, target, strict=True):
            assert 0 <= side * 4 - wanted < 4
    else:
        assert last.size_out == target


@pytest.mark.parametrize(("scale", "count"), [(1, 1), (2.5, 1), (4, 1), (4.1, 2), (8, 2)])
def test_one_pass_up_to_four_and_two_above(scale: float, count: int) -> None:
    assert len(make_passes((100, 80), target_size((100, 80), scale), 4)) == count


def test_halves_are_rounded_up_and_nothing_vanishes() -> None:
    assert target_size((1, 3), 1.5) == (2, 5)
    assert target_size((1, 1), 1.0) == (1, 1)


@pytest.mark.parametrize("scale", [0.99, 8.01, 0.0, -4.0, float("nan"), float("inf")])
def test_scales_outside_of_one_to_eight_are_refused(scale: float) -> None:
    with pytest.raises(OptionError, match=r"scale: .* is outside of 1 to 8"):
        make_plan((10, 10), scale, COMPACT, host_free=GIB)


def test_less_memory_means_smaller_tiles_and_a_smaller_peak() -> None:
    plans = [
        make_plan((1000, 1000), 4, COMPACT, host_free=free) for free in (GIB // 2, GIB, 16 * GIB)
    ]
    assert [p.tile for p in plans] == sorted({p.tile for p in plans})
    assert plans[-1].tile == COMPACT.best_tile
    for plan, free in zip(plans, (GIB // 2, GIB, 16 * GIB), strict=True):
        assert plan.host_bytes <= free


def test_the_peak_of_a_small_picture_is_that_of_its_own_size() -> None:
    small = make_plan((8, 8), 4, COMPACT, host_free=GIB)
    assert small.tile_bytes == 2 * COMPACT.tile_bytes_per_pixel * 64


def test_what_does_not_fit_is_refused_with_peak_and_remedy() -> None:
    with pytest.raises(
        MemoryLimitError,
        match=r"20000x20000 -> 80000x80000 is expected to need \d+\.\d\d GiB of main memory, "
        r"4\.00 GiB are free; take a smaller --scale",
    ):
        make_plan((20_000, 20_000), 4, COMPACT, host_free=4 * GIB)


def test_an_asked_for_tile_that_does_not_fit_is_refused_with_its_remedy() -> None:
    with pytest.raises(MemoryLimitError, match="leave --tile at auto"):
        make_plan((2000, 2000), 4, COMPACT, tile=1024, host_free=2 * GIB)


def test_a_photo_of_seven_megapixels_is_planned_below_four_gib() -> None:
    plan = make_plan((2250, 3000), 4, COMPACT, host_free=4 * GIB)
    assert plan.target == (9000, 12000) and plan.host_bytes < 4 * GIB


def test_adain_is_planned_with_the_picture_it_has_to_hold() -> None:
    plain, adain = (
        make_plan((2250, 3000), 4, COMPACT, color=c, host_free=8 * GIB) for c in ("none", "adain")
    )
    assert adain.host_bytes - plain.host_bytes >= 6 * 9000 * 12000


def test_tiles_on_an_accelerator_follow_its_memory() -> None:
    small, large = (
        make_plan((2000, 2000), 4, COMPACT, host_free=8 * GIB, device_free=free)
        for free in (GIB, 40 * GIB)
    )
    assert small.tile < large.tile and small.tile_bytes <= GIB
    with pytest.raises(MemoryLimitError, match="of device memory"):
        make_plan((2000, 2000), 4, COMPACT, host_free=8 * GIB, device_free=1000)


def test_the_least_tile_is_the_one_the_grid_accepts() -> None:
    assert least_tile(COMPACT) == smallest_tile(COMPACT.halo, COMPACT.blend, COMPACT.multiple)
    with pytest.raises(OptionError, match=r"tile: 16 px is too small.*give \d+ or more"):
        make_plan((10, 10), 4, COMPACT, tile=16, host_free=GIB)
