"""Tiles of aggregation sampling: grids, windows and seams."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from addsr.diffusion.aggregate import TileSpec, aggregate, gaussian_window, tile_starts, windows
from addsr.errors import InputError, OptionError


@st.composite
def grids(draw: st.DrawFn) -> tuple[int, int, int]:
    tile = draw(st.integers(1, 96))
    return draw(st.integers(tile, 400)), tile, draw(st.integers(0, tile - 1))


@given(grids())
def test_tiles_cover_the_axis_with_at_least_the_overlap(grid: tuple[int, int, int]) -> None:
    length, tile, overlap = grid
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] + tile == length
    steps = [b - a for a, b in pairwise(starts)]
    assert all(0 < step <= tile - overlap for step in steps)
    # one tile less would not reach
    assert (len(starts) - 2) * (tile - overlap) + tile < length or len(starts) == 1


@given(st.integers(1, 400), st.integers(1, 96), st.data())
def test_weights_sum_to_one_everywhere(length: int, tile: int, data: st.DataObject) -> None:
    spec = TileSpec(tile, data.draw(st.integers(0, tile - 1)))
    starts, weights = windows(length, spec, data.draw(st.sampled_from([0.0, 0.5])))
    total = torch.zeros(length)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + len(weight)] += weight
    assert torch.allclose(total, torch.ones(length), atol=1e-6)


def test_the_window_is_centred_unless_the_published_one_is_asked_for() -> None:
    assert torch.equal(gaussian_window(64), gaussian_window(64).flip(0))
    published = gaussian_window(64, 0.5)
    assert torch.equal(published[1:], published[1:].flip(0))
    assert float(gaussian_window(64)[0] / gaussian_window(64).max()) == pytest.approx(
        5.5e-6, rel=0.05
    )


SIZES = [(96, 80), (64, 64), (100, 65), (40, 200), (7, 9)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("parity", [False, True])
def test_constants_and_gradients_come_through_without_a_seam(
    size: tuple[int, int], parity: bool
) -> None:
    spec = TileSpec(parity=parity, batch=3)
    t, z_lr = torch.tensor([500, 20]), torch.rand(2, 4, *size)
    flat = torch.full((2, 4, *size), 0.7)
    slope = torch.linspace(-1, 1, size[0])[:, None] + torch.linspace(0, 2, size[1])
    slope = slope.expand(2, 4, -1, -1)

    def same(z: Tensor, _t: Tensor, _lr: Tensor) -> Tensor:
        return z

    predict = aggregate(same, z_lr, spec)
    assert (predict(flat, t) - flat).abs().max() < 1e-6
    assert (predict(slope, t) - slope).abs().max() < 2e-6


def test_tiles_that_disagree_are_blended_without_an_edge() -> None:
    def which(z: Tensor, _t: Tensor, _lr: Tensor) -> Tensor:
        return z[..., :1, :1].expand_as(z)  # the tile's left end

    ramp = torch.linspace(0, 1, 96).expand(1, 4, 64, -1)
    got = aggregate(which, ramp, TileSpec(64, 32))(ramp, torch.tensor([0]))[0, 0, 30]
    jump = float(ramp[..., 32].max())
    assert float(got[32]) == pytest.approx(0, abs=0.005)
    assert float(got[63]) == pytest.approx(jump, abs=0.005)
    assert (got.diff() >= -1e-6).all()
    assert got.diff().max() < 0.2 * jump


def test_networks_see_the_tile_its_timestep_and_its_own_input() -> None:
    seen: list[tuple[int, ...]] = []
    z_t, z_lr = torch.rand(2, 4, 100, 70), torch.rand(2, 4, 100, 70)

    def model(z: Tensor, t: Tensor, lr: Tensor) -> Tensor:
        seen.append(tuple(z.shape))
        return z + lr + t[:, None, None, None]

    got = aggregate(model, z_lr, TileSpec(64, 32, batch=4))(z_t, torch.tensor([1, 2]))
    expected = z_t + z_lr + torch.tensor([1, 2])[:, None, None, None]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert seen == [(8, 4, 64, 64), (4, 4, 64, 64)]  # 3 x 2 tiles of two pictures


def test_one_tile_is_the_network_itself() -> None:
    z = torch.rand(1, 4, 64, 64)

    def double(z: Tensor, _t: Tensor, _lr: Tensor) -> Tensor:
        return 2 * z

    assert torch.equal(aggregate(double, z, TileSpec())(z, torch.tensor([0])), 2 * z)


def test_the_number_of_tiles_at_a_time_changes_nothing() -> None:
    z, t = torch.rand(1, 4, 130, 90), torch.tensor([7])

    def model(z: Tensor, _t: Tensor, lr: Tensor) -> Tensor:
        return z.mean((1, 2, 3), keepdim=True) + lr

    first, *others = (
        aggregate(model, z, TileSpec(32, 16, batch=batch))(z, t) for batch in (1, 3, 100)
    )
    for other in others:
        torch.testing.assert_close(other, first, atol=1e-6, rtol=0)


def test_impossible_tiles_are_refused() -> None:
    for wrong in ({"tile": 0}, {"overlap": 64}, {"overlap": -1}, {"batch": 0}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            TileSpec(**wrong)
    predict = aggregate(lambda z, _t, _lr: z, torch.zeros(1, 4, 8, 8), TileSpec())
    with pytest.raises(InputError, match="differ in shape"):
        predict(torch.zeros(1, 4, 8, 9), torch.tensor([0]))
