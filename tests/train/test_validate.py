"""Validation pairs are looked at before anything is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from addsr.errors import ConfigError
from addsr.train.validate import load_pairs


def put(folder: Path, name: str, width: int, height: int, level: int = 128) -> None:
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.full((height, width, 3), level, dtype=np.uint8)).save(folder / name)


def test_pairs_are_found_by_name_whatever_their_endings(tmp_path: Path) -> None:
    for k, name in enumerate("abcd"):
        put(tmp_path / "hr", f"{name}.png", 32, 16, 40 * k)
        put(tmp_path / "lr", f"{name}.bmp", 8, 4, 40 * k)
    put(tmp_path / "hr", "alone.png", 32, 16)
    pairs = load_pairs(str(tmp_path))
    assert [tuple(p.hr.shape) for p in pairs] == [(1, 3, 16, 32)] * 4
    assert [round(float(p.lr.mean()) * 255) for p in pairs] == [0, 40, 80, 120]
    assert all(p.hr.dtype == torch.float32 and float(p.hr.max()) <= 1 for p in pairs)
    few = load_pairs(str(tmp_path), limit=2)
    assert [round(float(p.lr.mean()) * 255) for p in few] == [0, 80]


def test_pairs_of_another_ratio_are_named_with_both_sizes(tmp_path: Path) -> None:
    put(tmp_path / "hr", "a.png", 32, 16)
    put(tmp_path / "lr", "a.png", 8, 5)
    with pytest.raises(ConfigError, match=r"data\.val = .*: a has 32 x 16 .* and 8 x 5 in lr/"):
        load_pairs(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_pictures_that_cannot_be_read_are_named(tmp_path: Path, content: bytes) -> None:
    put(tmp_path / "hr", "a.png", 32, 16)
    put(tmp_path / "lr", "a.png", 8, 4)
    (tmp_path / "lr" / "a.png").write_bytes(content)
    with pytest.raises(ConfigError, match=r"data\.val: .*a\.png"):
        load_pairs(str(tmp_path))


def test_a_picture_cut_short_is_named(tmp_path: Path) -> None:
    put(tmp_path / "hr", "a.png", 32, 16)
    put(tmp_path / "lr", "a.png", 8, 4)
    path = tmp_path / "hr" / "a.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ConfigError, match=r"data\.val: .*a\.png"):
        load_pairs(str(tmp_path))


def test_a_folder_without_pairs_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.val = .*none"):
        load_pairs(str(tmp_path / "none"))
    put(tmp_path / "hr", "a.png", 32, 16)
    put(tmp_path / "lr", "b.png", 8, 4)
    with pytest.raises(ConfigError, match=r"no picture stands in both hr/ and lr/"):
        load_pairs(str(tmp_path))
