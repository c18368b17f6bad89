"""Grids cover every pixel once in sum, stay on the network's grid and stream in little memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from addsr.errors import OptionError
from addsr.image.tiling import make_grid, merge_rows, smallest_tile, windows

facts = st.tuples(st.integers(0, 9), st.integers(1, 9), st.sampled_from([1, 2, 8]))


@given(st.integers(1, 200), st.integers(1, 200), facts, st.integers(0, 60), st.integers(1, 3))
def test_merge_keeps_a_picture_whatever_the_grid(
    height: int, width: int, facts: tuple[int, int, int], extra: int, scale: int
) -> None:
    halo, blend, multiple = facts
    tile = smallest_tile(halo, blend, multiple) + extra
    grid = make_grid(height, width, tile, halo=halo, blend=blend, multiple=multiple)
    for spans in (grid.rows, grid.columns):
        assert all(s.start % multiple == 0 and s.stop - s.start <= tile for s in spans)
    assert max(grid.tile) <= tile
    picture = torch.rand(1, 1, height * scale, width * scale)
    bands = merge_rows(grid, (tile.cut(picture, scale) for tile in grid), scale)
    torch.testing.assert_close(torch.cat(list(bands), dim=-2), picture, atol=1e-6, rtol=0)


def test_pixels_in_the_halo_of_a_cut_have_no_weight() -> None:
    grid = make_grid(100, 100, 48, halo=8, blend=8, multiple=8)
    assert len(grid.rows) > 2
    for window, span in zip(windows(grid.rows, 8, 8, 4), grid.rows, strict=True):
        if span.start > 0:
            assert float(window[:32].max()) == 0
        if span.stop < 100:
            assert float(window[-32:].max()) == 0


def test_merge_blends_smoothly_and_leaves_no_seam() -> None:
    grid = make_grid(20, 200, 64, halo=4, blend=16, multiple=4)
    tiles = (
        torch.full_like(tile.cut(torch.empty(1, 1, 20, 200)), grid.columns.index(tile.columns) % 2)
        for tile in grid
    )
    row = torch.cat(list(merge_rows(grid, tiles, 1)), dim=-2)[0, 0, 10]
    assert float(row.max() - row.min()) == 1
    # a hard cut would jump by 1; the steepest slope of a cosine over 16 pixels is pi/32
    assert float(row.diff().abs().max()) < 0.1


def test_merge_gives_rows_out_before_all_tiles_were_asked_for() -> None:
    grid = make_grid(300, 50, 40, halo=4, blend=4, multiple=4)
    asked = 0

    def results():
        nonlocal asked
        for tile in grid:
            asked += 1
            yield tile.cut(torch.zeros(1, 3, 300, 50))

    first = next(merge_rows(grid, results(), 1))
    assert asked == len(grid.columns) < len(grid)
    assert first.shape[-2] < 40


def test_a_tile_that_cannot_progress_is_refused_with_the_least_size() -> None:
    with pytest.raises(OptionError, match=r"tile: 40 px.*give 80 or more"):
        make_grid(500, 500, 40, halo=16, blend=16, multiple=8)
