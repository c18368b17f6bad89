"""Camera noise: what the sensor adds and how the interpolation of the mosaic spreads it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from addsr.data.draw import Dice
from addsr.data.mosaic import (
    MosaicDraw,
    add_camera_noise,
    demosaic,
    develop,
    draw_mosaic,
    undevelop,
)
from addsr.data.spec import PRESETS, DegradationSpec, MosaicSpec
from addsr.errors import ConfigError


def camera(count: int = 1, **values: float) -> MosaicDraw:
    """A camera with a sigma of 4 levels at middle grey, unless `values` say otherwise."""
    spec = MosaicSpec(1.0, (4, 4), (0, 0), (2, 2), (1.5, 1.5), (0, 0))
    which = torch.zeros(count, dtype=torch.long)
    dice = Dice([DegradationSpec(mosaic=spec)], which, torch.Generator().manual_seed(0))
    _, draw = draw_mosaic(dice, "mosaic")
    draw = MosaicDraw(*(column.float() for column in draw))
    return draw._replace(**{name: torch.full((count,), value) for name, value in values.items()})


def flat(level: float, count: int = 1, side: int = 256) -> Tensor:
    return torch.full((count, 3, side, side), level)


def take(x: Tensor, draw: MosaicDraw, seed: int = 0) -> Tensor:
    return add_camera_noise(x, draw, generator=torch.Generator().manual_seed(seed))


def bayer(x: Tensor, row: int, column: int) -> Tensor:
    """The mosaic of `x`, pixel by pixel."""
    mosaic = torch.empty_like(x[:, :1])
    for i in range(x.shape[-2]):
        for j in range(x.shape[-1]):
            down, right = (i + row) % 2, (j + column) % 2
            channel = 0 if (down, right) == (0, 0) else 2 if (down, right) == (1, 1) else 1
            mosaic[:, 0, i, j] = x[:, channel, i, j]
    return mosaic


PHASES = pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 1), (1, 0), (1, 1)])


@PHASES
def test_a_flat_or_sloping_grey_survives_the_mosaic(row: int, column: int) -> None:
    down, right = torch.meshgrid(torch.arange(12.0), torch.arange(14.0), indexing="ij")
    x = (0.1 + 0.03 * down + 0.02 * right).expand(1, 3, -1, -1)
    phase = torch.tensor([row]), torch.tensor([column])
    got = demosaic(bayer(x, row, column), *phase)
    inside = (..., slice(2, -2), slice(2, -2))
    assert torch.allclose(got[inside], x[inside], atol=1e-6)
    tint = torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1).expand(1, 3, 7, 9)
    assert torch.allclose(demosaic(bayer(tint, row, column), *phase), tint, atol=1e-6)


@PHASES
def test_measured_pixels_keep_their_value(row: int, column: int) -> None:
    x = torch.rand(2, 3, 10, 12, generator=torch.Generator().manual_seed(1))
    phase = torch.full((2,), row), torch.full((2,), column)
    mosaic = bayer(x, row, column)
    assert torch.equal(bayer(demosaic(mosaic, *phase), row, column), mosaic)


def test_pictures_of_a_batch_may_have_mosaics_of_their_own() -> None:
    x = torch.rand(2, 3, 10, 12, generator=torch.Generator().manual_seed(1))
    mosaics = [bayer(x[:1], 0, 1), bayer(x[1:], 1, 0)]
    both = demosaic(torch.cat(mosaics), torch.tensor([0, 1]), torch.tensor([1, 0]))
    assert torch.equal(both[:1], demosaic(mosaics[0], torch.tensor([0]), torch.tensor([1])))
    assert torch.equal(both[1:], demosaic(mosaics[1], torch.tensor([1]), torch.tensor([0])))


def test_an_impulse_is_spread_as_published() -> None:
    # Malvar et al., figure 2, the kernel for green at a red pixel, over 8
    mosaic = torch.zeros(1, 1, 9, 9)
    mosaic[..., 4, 4] = 8
    got = demosaic(mosaic, torch.tensor([0]), torch.tensor([0]))
    assert got[0, :, 4, 4].tolist() == [8, 4, 6]
    assert got[0, 1, 4].tolist() == [0, 0, -1, 0, 4, 0, -1, 0, 0]
    # an impulse on a red pixel reaches red at its green neighbours by 4/8, at the blue by 2/8
    assert got[0, 0, 3:6, 3:6].tolist() == [[2, 4, 2], [4, 8, 4], [2, 4, 2]]


def test_developing_undoes_undeveloping() -> None:
    x = torch.linspace(0, 1, 256)
    light = undevelop(x)
    assert torch.allclose(develop(light), x, atol=1e-6)
    assert (light.diff() > 0).all()
    assert light[0] == 0
    assert light[-1] == 1


def test_the_sigma_of_a_measured_green_pixel_is_the_one_asked_for() -> None:
    noise = (take(flat(0.5), camera(row=0.0, column=0.0)) - 0.5)[0] * 255
    green = torch.cat((noise[1, 0::2, 1::2], noise[1, 1::2, 0::2]))
    assert green.std().item() == pytest.approx(4, rel=0.03)
    # a gain of 2 on a signal of one half: the square root of 2 more noise
    assert noise[0, 0::2, 0::2].std().item() == pytest.approx(4 * 2**0.5, rel=0.03)
    assert noise[2, 1::2, 1::2].std().item() == pytest.approx(4 * 1.5**0.5, rel=0.03)
    assert noise.mean((1, 2)).abs().max() < 0.1


def test_noise_is_correlated_between_neighbours_and_channels() -> None:
    noise = (take(flat(0.5), camera()) - 0.5)[0]
    right = torch.corrcoef(torch.stack((noise[0, :, :-1].flatten(), noise[0, :, 1:].flatten())))
    assert right[0, 1] > 0.2
    assert torch.corrcoef(noise.flatten(1))[0, 1] > 0.1


def test_noise_in_the_dark_is_the_read_noise_and_in_blown_highlights_there_is_none() -> None:
    shot = camera()
    read = shot._replace(read=torch.full((1,), 1e-5))
    assert take(flat(0.0), shot).abs().max() == 0
    assert take(flat(0.0), read).max() > 0
    assert torch.allclose(take(flat(1.0), read), flat(1.0), atol=1e-6)


def test_errors_of_the_interpolation_stay_as_far_as_asked() -> None:
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 0.2 + 0.4
    quiet = camera(shot=0.0, read=0.0)
    assert torch.allclose(take(x, quiet), x, atol=1e-5)
    half, full = (
        (take(x, quiet._replace(errors=torch.full((1,), share))) - x).square().mean().sqrt()
        for share in (0.5, 1.0)
    )
    assert full > 5 / 255
    assert (half / full).item() == pytest.approx(0.5, abs=0.1)


def test_each_picture_of_a_batch_has_its_camera() -> None:
    x = flat(0.5, 2)
    draw = camera(2, errors=0.0)
    got = take(x, draw._replace(shot=draw.shot * torch.tensor([0.0, 1.0]), read=torch.zeros(2)))
    assert torch.allclose(got[0], x[0], atol=1e-6)
    assert (got[1] - x[1]).std() > 2 / 255


def test_cameras_are_drawn_with_their_share() -> None:
    spec = DegradationSpec(mosaic=MosaicSpec(0.25, errors=(0.2, 0.4)))
    which = torch.zeros(2000, dtype=torch.long)
    wanted, draw = draw_mosaic(Dice([spec], which, torch.Generator().manual_seed(0)), "mosaic")
    assert 450 < int(wanted.sum()) < 550
    assert 0.2 <= draw.errors.min() < 0.21 < 0.39 < draw.errors.max() <= 0.4
    for phase in (draw.row, draw.column):
        assert 900 < int(phase.sum()) < 1100


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (3, 17)])
def test_any_size_works(size: tuple[int, int]) -> None:
    got = take(torch.rand(1, 3, *size), camera(errors=1.0))
    assert got.shape == (1, 3, *size)
    assert torch.isfinite(got).all()


def test_values_outside_the_range_do_no_harm() -> None:
    got = take(torch.linspace(-0.2, 1.2, 3 * 64).view(1, 3, 8, 8), camera())
    assert 0 <= got.min() <= got.max() <= 1


def test_only_the_near_clean_preset_has_a_camera() -> None:
    with_camera = [name for name, spec in PRESETS.items() if spec.mosaic.probability]
    assert with_camera == ["near-clean"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probability": 2}, r"MosaicSpec\.probability = 2 .*from 0 to 1"),
        ({"sigma": (3, 1)}, r"MosaicSpec\.sigma = \(3, 1\).*low <= high <= 64"),
        ({"read": (0, 2)}, r"MosaicSpec\.read"),
        ({"red": (0, 1)}, r"MosaicSpec\.red.*0.25 <= low"),
        ({"blue": (1, 9)}, r"MosaicSpec\.blue.*<= 8"),
        ({"errors": (-1, 1)}, r"MosaicSpec\.errors"),
    ],
)
def test_wrong_ranges_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(MosaicSpec(), **change)
