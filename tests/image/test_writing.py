"""Files written: whole or not at all, and what cannot be is told before the work."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from addsr.errors import InputError, OutputError
from addsr.image.formats import FORMATS
from addsr.image.kinds import accept
from addsr.image.reading import read_image
from addsr.image.writing import check_output, write_image


def _photo(width: int = 20, height: int = 12) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("suffix", [*FORMATS, ".PNG"])
def test_each_suffix_is_written_and_read_back(tmp_path: Path, suffix: str) -> None:
    if suffix in (".heic", ".heif", ".hif"):
        pytest.importorskip("pillow_heif")
    path = tmp_path / f"out{suffix}"
    ramp = np.linspace(0, 255, 32 * 48).reshape(32, 48, 1).repeat(3, axis=2).astype(np.uint8)
    write_image(Image.fromarray(ramp), path)
    back = np.asarray(read_image(path).convert("RGB")).astype(int)
    lossy = suffix.lower() not in (".png", ".tif", ".tiff", ".bmp")
    assert np.abs(back - ramp).mean() < (4 if lossy else 1e-9)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".avif", ".tif", ".bmp", ".gif"])
def test_every_layout_can_be_written_to_every_format(
    tmp_path: Path, mode: str, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    image = _photo().convert(mode)
    write_image(image, path)
    assert read_image(path).size == (20, 12)


def test_transparency_is_laid_on_white_for_jpeg(tmp_path: Path) -> None:
    write_image(Image.new("RGBA", (16, 16), (255, 0, 0, 0)), tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").getpixel((8, 8)) == (255, 255, 255)


def test_an_alpha_that_hides_nothing_is_no_loss(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_image(Image.new("RGBA", (16, 16), "red"), tmp_path / "a.jpg")
    assert caplog.messages == []
    write_image(Image.new("RGBA", (16, 16), (255, 0, 0, 254)), tmp_path / "a.jpg")
    assert "holds no transparency" in caplog.text


def test_an_icc_profile_is_carried(tmp_path: Path) -> None:
    image = _photo()
    image.info["icc_profile"] = b"profile" * 30
    write_image(image, tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").info["icc_profile"] == b"profile" * 30


def test_a_failed_write_keeps_the_old_file_and_leaves_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"precious")

    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match=r"a\.png: cannot be written .*No space left"):
        write_image(_photo(), path)
    assert path.read_bytes() == b"precious" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("letter", ["n", "ü", "猫"])
def test_the_longest_name_a_file_can_have_is_written(tmp_path: Path, letter: str) -> None:
    name = letter * (249 // len(letter.encode())) + ".png"
    check_output(tmp_path / name)
    write_image(_photo(), tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_name_that_is_too_long_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="name is too long; give a shorter one"):
        check_output(tmp_path / f"{'n' * 300}.png")
    with pytest.raises(InputError, match="too long"):
        read_image(tmp_path / f"{'n' * 300}.png")


def test_the_result_has_the_users_usual_permissions(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_image(_photo(), tmp_path / "a.png")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o644


def test_places_that_cannot_be_written_are_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"folder .* does not exist; create it"):
        check_output(tmp_path / "gone" / "a.png")
    with pytest.raises(OutputError, match=r"cannot be written .*; choose another"):
        check_output(tmp_path / "file" / "a.png")
    with pytest.raises(OutputError, match=r"suffix '\.xyz' cannot be written; use one of \.png"):
        check_output(tmp_path / "a.xyz")
    with pytest.raises(OutputError, match="too large for WEBP"):
        check_output(tmp_path / "a.webp", 20_000, 10)
    (tmp_path / "d.png").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path / "d.png")


def test_a_folder_without_write_permission_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_args: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)  # permission bits do not bind a root user
    with pytest.raises(OutputError, match=r"cannot be written .Permission denied.; choose another"):
        check_output(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".avif", ".tif", ".bmp", ".gif", ".heic"])
def test_grey_stays_grey(tmp_path: Path, suffix: str) -> None:
    if suffix == ".heic":
        pytest.importorskip("pillow_heif")
    write_image(_photo().convert("L"), tmp_path / f"a{suffix}")
    assert accept(tmp_path / f"a{suffix}").pictures[0].layout == "L"
