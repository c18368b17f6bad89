from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from addsr.errors import InputError
from addsr.metrics.pictures import picture_files, read_picture


def test_reading_gives_back_the_levels(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    expected = torch.from_numpy(levels).permute(2, 0, 1)[None].float() / 255
    torch.testing.assert_close(read_picture(tmp_path / "a.png"), expected, atol=0, rtol=0)


def test_pictures_are_found_by_name_and_other_files_are_not(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    assert list(picture_files(tmp_path)) == ["a", "b"]
    with pytest.raises(InputError, match="holds no pictures"):
        picture_files(tmp_path / "nothing")


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken\.png: cannot be read"):
        read_picture(tmp_path / "broken.png")
