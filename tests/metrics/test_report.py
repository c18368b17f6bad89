from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from addsr.errors import InputError
from addsr.metrics.niqe import NiqeParams
from addsr.metrics.report import (
    HIGHER_IS_BETTER,
    mean_scores,
    picture_files,
    read_picture,
    round_to_8_bit,
    score_folder,
    score_picture,
)

PARAMS = NiqeParams(torch.zeros(36, dtype=torch.float64), torch.eye(36, dtype=torch.float64))


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def save(folder: Path, name: str, image: Tensor) -> None:
    folder.mkdir(exist_ok=True)
    levels = (image[0].permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)
    Image.fromarray(levels).save(folder / name)


def test_all_figures_come_when_everything_is_given() -> None:
    scores = score_picture(noise(96, 192), noise(96, 192, 1), noise(24, 48), PARAMS)
    assert list(scores) == list(HIGHER_IS_BETTER)


def test_figures_that_need_an_absent_input_are_left_out() -> None:
    assert list(score_picture(noise(32, 32))) == ["piqe", "gradient", "hf"]
    assert "niqe" not in score_picture(noise(100, 100), niqe_params=PARAMS)
    assert "lr_psnr" in score_picture(noise(32, 32), lr=noise(8, 8))


def test_scores_are_those_of_the_stored_file(tmp_path: Path) -> None:
    sr, hr, lr = noise(48, 64), noise(48, 64, 1), noise(12, 16, 2)
    save(tmp_path / "sr", "a.png", sr)
    save(tmp_path / "hr", "a.png", hr)
    save(tmp_path / "lr", "a.bmp", lr)
    (tmp_path / "sr" / "notes.txt").write_text("not a picture")
    folder = score_folder(tmp_path / "sr", tmp_path / "hr", tmp_path / "lr")
    direct = score_picture(sr, round_to_8_bit(hr), round_to_8_bit(lr))
    assert folder["a"] == pytest.approx(direct, rel=1e-6)


def test_reading_gives_back_the_levels(tmp_path: Path) -> None:
    image = round_to_8_bit(noise(7, 5))
    save(tmp_path, "a.png", image)
    assert torch.allclose(read_picture(tmp_path / "a.png"), image, atol=1e-7)


def test_means_are_of_the_figures_that_every_picture_has() -> None:
    means = mean_scores({"a": {"piqe": 1.0, "niqe": 3.0}, "b": {"piqe": 2.0}})
    assert means == {"piqe": 1.5}
    with pytest.raises(InputError, match="no pictures"):
        mean_scores({})


def test_folders_that_do_not_match_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "sr", "a.png", noise(32, 32))
    save(tmp_path / "hr", "b.png", noise(32, 32))
    with pytest.raises(InputError, match="holds no picture named a"):
        score_folder(tmp_path / "sr", tmp_path / "hr")
    with pytest.raises(InputError, match="holds no pictures"):
        picture_files(tmp_path / "nothing")


def test_a_batch_and_a_broken_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one picture"):
        score_picture(torch.zeros(2, 3, 8, 8))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken\.png: cannot be read"):
        read_picture(tmp_path / "broken.png")
