"""Files read: every bad one has its message, every good one comes out upright."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from addsr.errors import InputError
from addsr.image.reading import read_image, read_size, read_upright_size


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
