"""Reading training pictures: what is good is kept, what is not is named."""

from __future__ import annotations

import io
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from addsr.data.shards import cut_squares, decode_picture, load_pictures
from addsr.errors import InputError


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_folders_and_shards_are_read_recursively_and_grouped_by_size(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    photo(640, 640, 1).save(tmp_path / "deep" / "er" / "a.PNG")
    photo(512, 512, 2).save(tmp_path / "b.webp", lossless=True)
    (tmp_path / "notes.txt").write_text("no picture")
    members = {
        "c.png": encoded(photo(640, 640, 3)),
        "d.webp": encoded(photo(512, 512, 4), "WEBP", lossless=True),
        "MANIFEST.csv": b"no picture",
    }
    write_tar(tmp_path / "shard.tar", members)
    large, small = load_pictures(tmp_path)
    assert large.shape == (2, 3, 640, 640)
    assert small.shape == (2, 3, 512, 512)
    assert large.dtype == small.dtype == torch.uint8
    assert large.is_contiguous()
    for got, seed, side in ((large[0], 1, 640), (large[1], 3, 640), (small[0], 2, 512)):
        expected = np.asarray(photo(side, side, seed)).transpose(2, 0, 1)
        np.testing.assert_array_equal(got.numpy(), expected)


def test_the_order_depends_on_the_names_and_not_on_timing(tmp_path: Path) -> None:
    sizes = {"a": 640, "b": 64, "c": 600, "d": 130, "e": 64}
    for name, side in sizes.items():
        photo(side, 64, ord(name)).save(tmp_path / f"{name}.png")
    one = load_pictures([tmp_path], side=64, threads=1)
    many = load_pictures([tmp_path], side=64, threads=8)
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))
    first = np.asarray(photo(640, 64, ord("a")))[:, :64].transpose(2, 0, 1)
    np.testing.assert_array_equal(one[0][0].numpy(), first)


@pytest.mark.parametrize(
    "width, height, side, count",
    [
        (640, 640, 640, 1),
        (1280, 640, 640, 2),
        (1000, 1000, 640, 4),
        (900, 900, 640, 1),
        (600, 700, 576, 1),
        (512, 1200, 512, 2),
        (64, 64, 64, 1),
        (63, 900, 0, 0),
    ],
)
def test_pictures_are_cut_into_squares(width: int, height: int, side: int, count: int) -> None:
    squares = cut_squares(np.zeros((height, width, 3), np.uint8))
    assert [s.shape for s in squares] == [(side, side, 3)] * count


@given(width=st.integers(64, 300), height=st.integers(64, 300))
def test_squares_lie_inside_their_picture_and_leave_little_out(width: int, height: int) -> None:
    y, x = np.mgrid[:height, :width]
    picture = np.stack([x % 256, y % 256, x // 256 + 2 * (y // 256)], 2).astype(np.uint8)
    squares = cut_squares(picture, 128)
    side = len(squares[0])
    seen = np.zeros((height, width), bool)
    for square in squares:
        left = int(square[0, 0, 0]) + 256 * int(square[0, 0, 2] & 1)
        top = int(square[0, 0, 1]) + 256 * int(square[0, 0, 2] >> 1)
        np.testing.assert_array_equal(square, picture[top : top + side, left : left + side])
        seen[top : top + side, left : left + side] = True
    lost = [length - length // side * side for length in (width, height)]
    if all(n == 0 or n >= side / 2 for n in lost):
        assert seen.all()
    assert seen.mean() > 0.4


def test_damaged_members_are_named_and_the_others_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = encoded(photo(64, 64))
    members = {
        "good.png": whole,
        "cut.png": whole[: len(whole) // 2],
        "text.jpg": b"this is no picture",
        "empty.webp": b"",
        "last.png": whole,
    }
    with caplog.at_level(logging.WARNING):
        (pictures,) = load_pictures(write_tar(tmp_path / "s.tar", members))
    assert len(pictures) == 2
    for name in ("cut.png", "text.jpg", "empty.webp"):
        assert f"s.tar/{name}: cannot be read" in caplog.text
    assert "3 unreadable" in caplog.text
    assert "good.png" not in caplog.text


def test_a_shard_that_ends_early_gives_what_it_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = encoded(photo(64, 64))
    shard = write_tar(tmp_path / "s.tar", {"a.png": data, "b.png": data})
    shard.write_bytes(shard.read_bytes()[: 512 * 2 + -(-len(data) // 512) * 512 + 700])
    with caplog.at_level(logging.WARNING):
        (pictures,) = load_pictures(shard)
    assert len(pictures) == 1
    assert "s.tar" in caplog.text


def test_compressed_and_broken_shards_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photo(64, 64).save(tmp_path / "a.png")
    write_tar(tmp_path / "packed.tar", {"b.png": encoded(photo(64, 64))}, "w:gz")
    (tmp_path / "noise.tar").write_bytes(bytes(range(256)) * 8)
    with caplog.at_level(logging.WARNING):
        (pictures,) = load_pictures(tmp_path)
    assert len(pictures) == 1
    assert "packed.tar: cannot be read" in caplog.text
    assert "noise.tar: cannot be read" in caplog.text


def test_links_in_shards_are_not_followed_and_nothing_is_extracted(tmp_path: Path) -> None:
    photo(64, 64, 9).save(tmp_path / "secret.png")
    shard = tmp_path / "shards" / "s.tar"
    shard.parent.mkdir()
    with tarfile.open(shard, "w") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        tar.addfile(link)
        data = encoded(photo(64, 64, 1))
        outside = tarfile.TarInfo("../../outside.png")
        outside.size = len(data)
        tar.addfile(outside, io.BytesIO(data))
    before = sorted(tmp_path.rglob("*"))
    (pictures,) = load_pictures(shard)
    assert len(pictures) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_too_large_and_too_small_pictures_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photo(200, 200).save(tmp_path / "huge.png")
    photo(90, 90).save(tmp_path / "good.png")
    photo(100, 63).save(tmp_path / "low.png")
    with caplog.at_level(logging.WARNING):
        (pictures,) = load_pictures(tmp_path, max_pixels=20_000)
    assert pictures.shape == (1, 3, 64, 64)
    assert "huge.png: 200 x 200 is more than" in caplog.text
    assert "low.png: 100 x 63 is smaller than 64" in caplog.text
    assert "1 unreadable, 1 too small" in caplog.text


def test_only_the_first_of_many_bad_pictures_are_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = {f"{k:03}.png": b"bad" for k in range(60)} | {"x.png": encoded(photo(64, 64))}
    with caplog.at_level(logging.WARNING):
        load_pictures(write_tar(tmp_path / "s.tar", members))
    assert len(caplog.records) == 21
    assert "60 unreadable" in caplog.text


def test_nothing_to_read_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: does not exist; give a folder"):
        load_pictures(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no picture that can be used; give folders or \.tar"):
        load_pictures(tmp_path)
    (tmp_path / "a.png").write_bytes(b"bad")
    with pytest.raises(InputError, match=r"1 unreadable, 0 too small"):
        load_pictures([tmp_path])
    with pytest.raises(InputError, match="no path"):
        load_pictures([])
    with pytest.raises(InputError, match="side = 100"):
        load_pictures(tmp_path, side=100)


def test_pictures_are_turned_upright_and_laid_on_white() -> None:
    image = photo(20, 12)
    exif = image.getexif()
    exif[0x0112] = 6
    got = decode_picture(encoded(image, exif=exif), "a")
    np.testing.assert_array_equal(got, np.rot90(np.asarray(image), -1))
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert (decode_picture(encoded(clear), "b") == 255).all()
    gray = Image.new("L", (4, 4), 7)
    assert decode_picture(encoded(gray), "c").tolist() == [[[7, 7, 7]] * 4] * 4


def test_deep_pictures_are_refused_and_not_clipped() -> None:
    deep = Image.fromarray(np.full((4, 4), 40_000, np.uint16))
    with pytest.raises(InputError, match="8 bits per channel"):
        decode_picture(encoded(deep), "deep.png")
