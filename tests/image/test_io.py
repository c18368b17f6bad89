"""Files: every bad one has its message, every good one comes out whole and upright."""

from __future__ import annotations

import os
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from addsr.errors import InputError, OutputError
from addsr.image.io import (
    FORMATS,
    check_output,
    read_image,
    read_size,
    read_upright_size,
    write_image,
)


def _photo(width: int = 20, height: int = 12) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def test_exif_orientation_is_applied_and_not_applied_twice(tmp_path: Path) -> None:
    image = _photo()
    exif = image.getexif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    upright = read_image(tmp_path / "a.png")
    assert upright.size == (12, 20)
    np.testing.assert_array_equal(np.asarray(upright), np.rot90(np.asarray(image), -1))
    assert 0x0112 not in upright.getexif()


def test_a_truncated_jpeg_is_told(tmp_path: Path) -> None:
    _photo(200, 200).save(tmp_path / "whole.jpg")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes((tmp_path / "whole.jpg").read_bytes()[:4000])
    with pytest.raises(InputError, match=r"cut\.jpg: is damaged or cut short.*download it again"):
        read_image(cut)


def test_a_text_file_named_png_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("dear diary")
    with pytest.raises(InputError, match=r"notes\.png: is no picture.*PNG, JPEG"):
        read_image(tmp_path / "notes.png")


def test_empty_missing_and_folder_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(InputError, match=r"empty\.png: is empty"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(InputError, match=r"gone\.png: no such file; check"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(InputError, match="is a folder; give picture files"):
        read_image(tmp_path)


@pytest.mark.parametrize("side", [13_000, 60_000])
def test_a_tiny_file_that_claims_a_huge_picture_is_refused(tmp_path: Path, side: int) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    (tmp_path / "bomb.png").write_bytes(data + chunk(b"IEND", b""))
    for read in (read_image, read_size):
        with pytest.raises(InputError, match=r"bomb\.png: .*more than the 160 megapixels"):
            read(tmp_path / "bomb.png")


def test_a_broken_exif_block_does_not_stop_a_good_picture(tmp_path: Path) -> None:
    _photo().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_image(tmp_path / "a.jpg").size == (20, 12)


def test_only_the_first_frame_is_taken_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (8, 8), name) for name in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif").size == (8, 8)
    assert "only the first" in caplog.text


def _png16(channels: int) -> bytes:
    """A PNG of 16 bits per channel, which Pillow reads but writes in grey alone."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 4, 4, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = (b"\0" + struct.pack(">H", 300) * 4 * channels) * 4
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_in_a_file_are_not_lost_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, channels: int
) -> None:
    path = tmp_path / "fine.png"
    path.write_bytes(_png16(channels))
    read_image(path)
    assert f"{path}: has 16 bits per channel; the result has 8" in caplog.messages


@pytest.mark.parametrize("compression", ["raw", "tiff_adobe_deflate"])
def test_a_tiff_of_sixteen_bits_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, compression: str
) -> None:
    image = Image.fromarray(np.full((4, 4), 300, np.uint16))
    image.save(tmp_path / "fine.tif", compression=compression)
    read_image(tmp_path / "fine.tif")
    assert "fine.tif: has 16 bits per channel" in caplog.text


def test_pictures_of_eight_bits_are_read_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # 16 bits per pixel, five or six for each channel: less than eight, not more
    head = struct.pack("<2sIHHI", b"BM", 66 + 32, 0, 0, 66)
    head += struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 16, 3, 32, 0, 0, 0, 0)
    (tmp_path / "a.bmp").write_bytes(head + struct.pack("<III", 0xF800, 0x7E0, 0x1F) + bytes(32))
    for suffix in (".png", ".jpg", ".webp", ".tif"):
        _photo().save(tmp_path / f"a{suffix}")
    for path in tmp_path.iterdir():
        read_image(path)
    assert caplog.messages == []


@pytest.mark.parametrize("suffix", [*FORMATS, ".PNG"])
def test_each_suffix_is_written_and_read_back(tmp_path: Path, suffix: str) -> None:
    if suffix in (".heic", ".heif"):
        pytest.importorskip("pillow_heif")
    path = tmp_path / f"out{suffix}"
    ramp = np.linspace(0, 255, 32 * 48).reshape(32, 48, 1).repeat(3, axis=2).astype(np.uint8)
    write_image(Image.fromarray(ramp), path)
    back = np.asarray(read_image(path).convert("RGB")).astype(int)
    lossy = suffix in (".jpg", ".jpeg", ".webp", ".avif", ".gif", ".heic", ".heif")
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


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGB", "I;16"])
@pytest.mark.parametrize("compression", [None, "tiff_adobe_deflate"])
def test_a_turned_tiff_is_read_upright_however_it_is_stored(
    mode: str, compression: str | None, tmp_path: Path
) -> None:
    ramp = Image.linear_gradient("L").resize((24, 10))
    stored = ramp.convert("I").convert("I;16") if mode == "I;16" else ramp.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    path = tmp_path / "turned.tif"
    stored.save(path, exif=exif, compression=compression)
    got = read_image(path)
    assert got.size == (10, 24) and read_upright_size(path) == (24, 10)
    wanted = stored.convert("L") if mode in ("CMYK", "P") else stored
    wanted = wanted.transpose(Image.Transpose.ROTATE_270)
    got = got.convert("L") if mode in ("CMYK", "P") else got
    assert np.array_equal(np.asarray(got), np.asarray(wanted))
