"""Random crops: they come from the pictures, from everywhere in them, and prefer texture."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from addsr.data.crops import CropSource
from addsr.errors import ConfigError, OptionError

CPU = torch.device("cpu")


def numbered(count: int, side: int, first: int) -> Tensor:
    """Pictures whose pixels tell their picture, row and column."""
    out = torch.empty(count, 3, side, side, dtype=torch.uint8)
    out[:, 0] = torch.arange(first, first + count).view(-1, 1, 1)
    out[:, 1] = torch.arange(side).view(1, -1, 1)
    out[:, 2] = torch.arange(side).view(1, 1, -1)
    return out


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_crops_are_connected_parts_of_pictures_of_any_size() -> None:
    source = CropSource([numbered(3, 96, 0), numbered(5, 64, 3)], 32, CPU, rescaled=0)
    assert len(source) == 8
    crops = source.draw(500, seeded())
    assert crops.shape == (500, 3, 32, 32)
    assert crops.dtype == torch.uint8
    picture, row, column = crops[:, 0].long(), crops[:, 1].long(), crops[:, 2].long()
    assert (picture == picture[:, :1, :1]).all()
    assert (row == row[:, :1, :1] + torch.arange(32).view(-1, 1)).all()
    assert (column == column[:, :1, :1] + torch.arange(32)).all()
    number, top, left = picture[:, 0, 0], row[:, 0, 0], column[:, 0, 0]
    assert set(number.tolist()) == set(range(8))
    is_large = number < 3
    assert (top[is_large].min(), top[is_large].max()) == (0, 64)
    assert (left[~is_large].min(), left[~is_large].max()) == (0, 32)


def test_pictures_are_chosen_by_area() -> None:
    source = CropSource([numbered(1, 128, 0), numbered(1, 64, 1)], 32, CPU, rescaled=0, textured=0)
    share = (source.draw(2000, seeded())[:, 0, 0, 0] == 0).float().mean().item()
    assert share == pytest.approx(0.8, abs=0.03)


def test_rescaled_crops_show_more_of_the_picture() -> None:
    source = CropSource([numbered(2, 128, 0)], 64, CPU, rescaled=1, group=1)
    crops = source.draw(40, seeded())
    assert crops.shape == (40, 3, 64, 64)
    span = crops[:, 2, 0, -1].float() - crops[:, 2, 0, 0]
    assert span.min() >= 62
    assert 85 < span.max() <= 64 / 0.6


def test_windows_of_rescaled_crops_come_from_pictures_that_hold_them() -> None:
    source = CropSource([numbered(9, 66, 0), numbered(2, 90, 9)], 64, CPU, rescaled=1, group=1)
    crops = source.draw(60, seeded()).float()
    span, number = crops[:, 2, 0, -1] - crops[:, 2, 0, 0], crops[:, 0].mean((1, 2))
    assert span[number < 8.5].max() <= 66
    assert 80 < span.max() <= 90


def test_textured_crops_are_preferred() -> None:
    flat_left = torch.zeros(1, 3, 256, 256, dtype=torch.uint8)
    noise = torch.randint(256, (1, 3, 256, 128), generator=seeded(), dtype=torch.uint8)
    flat_left[..., 128:] = noise

    def share_of_texture(textured: float) -> float:
        source = CropSource([flat_left], 32, CPU, rescaled=0, textured=textured)
        crops = source.draw(1000, seeded(1)).float()
        return (crops.std((1, 2, 3)) > 30).float().mean().item()

    plain = share_of_texture(0)
    assert plain == pytest.approx(0.57, abs=0.05)
    assert share_of_texture(1) > 1 - (1 - plain) ** 2 - 0.05
    assert plain + 0.05 < share_of_texture(0.5) < share_of_texture(1) - 0.05


def test_the_generator_decides_the_crops() -> None:
    source = CropSource([numbered(4, 96, 0)], 32, CPU)
    assert torch.equal(source.draw(20, seeded(1)), source.draw(20, seeded(1)))
    assert not torch.equal(source.draw(20, seeded(1)), source.draw(20, seeded(2)))


def test_small_pictures_are_left_out_and_none_left_is_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        source = CropSource([numbered(2, 96, 0), numbered(3, 48, 2)], 64, CPU)
    assert len(source) == 2
    assert "3 pictures are smaller than crop_px = 64" in caplog.text
    with pytest.raises(ConfigError, match=r"crop_px = 64 is larger than every .*\(3 of them\)"):
        CropSource([numbered(3, 48, 2)], 64, CPU)
    with pytest.raises(OptionError, match=r"textured = 2"):
        CropSource([numbered(2, 96, 0)], 64, CPU, textured=2)
    with pytest.raises(OptionError, match=r"uint8 \(N, 3, S, S\)"):
        CropSource([torch.zeros(2, 3, 96, 96)], 64, CPU)
