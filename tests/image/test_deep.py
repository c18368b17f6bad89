"""16 bits per channel: read, turned, written, and said where they cannot be."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from addsr.errors import DependencyError, InputError, OptionError, OutputError
from addsr.image.kinds import accept
from addsr.image.metadata import Metadata, read_metadata
from addsr.image.options import FileOptions
from addsr.image.reading import read_file, read_image, read_size, read_upright_size
from addsr.image.writing import result_bits, write_image
from addsr.image.xmp import read_done


@pytest.fixture
def no_vips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyvips", None)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4), st.sampled_from(["png", "tif"]))
def test_every_size_and_layout_comes_back(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, channels: int, suffix: str
) -> None:
    pytest.importorskip("pyvips")
    values = np.random.default_rng(height).integers(0, 65536, (height, width, channels), np.uint16)
    path = tmp_path_factory.mktemp("deep") / f"a.{suffix}"
    write_image(values, path, None, Metadata(done={"Seed": "1"}))
    assert read_size(path) == (height, width)
    picture = accept(path).pictures[0]
    assert (picture.bits, picture.layout) == (16, ("L", "LA", "RGB", "RGBA")[channels - 1])
    found = picture.rgb[0, 0].numpy() * 65535
    np.testing.assert_allclose(found, values[..., 0], atol=0.02)
    if picture.alpha is not None:
        np.testing.assert_allclose(picture.alpha[0, 0] * 65535, values[..., -1], atol=0.02)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_deep_picture_is_turned_as_pillow_turns_it(tmp_path: Path, turn: int) -> None:
    pyvips = pytest.importorskip("pyvips")
    values = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(values).save(tmp_path / "a.tif", exif=exif)
    image = pyvips.Image.new_from_array(values.astype(np.uint16) * 257).copy(interpretation="rgb16")
    image = image.copy()
    image.set_type(pyvips.GValue.gint_type, "orientation", turn)
    image.tiffsave(str(tmp_path / "b.tif"))
    found = read_file(tmp_path / "b.tif").pixels
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found >> 8, np.asarray(read_image(tmp_path / "a.tif")))


def test_floats_are_read_with_one_as_white(tmp_path: Path) -> None:
    pyvips = pytest.importorskip("pyvips")
    values = np.array([[[0.0, 0.25, 1.0], [2.0, -1.0, 0.5]]], np.float32)
    pyvips.Image.new_from_array(values).tiffsave(str(tmp_path / "f.tif"))
    picture = accept(tmp_path / "f.tif").pictures[0]
    expected = values.clip(0, 1).transpose(2, 0, 1)
    np.testing.assert_allclose(picture.rgb[0].numpy(), expected, atol=1e-5)


def test_cmyk_of_sixteen_bits_is_read_with_eight_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pyvips = pytest.importorskip("pyvips")
    inks = np.full((6, 8, 4), 20_000, np.uint16)
    pyvips.Image.new_from_array(inks).copy(interpretation="cmyk").tiffsave(str(tmp_path / "c.tif"))
    source = accept(tmp_path / "c.tif")
    assert source.pictures[0].layout == "RGB" and source.pictures[0].size == (6, 8)
    assert caplog.messages == [f"{tmp_path / 'c.tif'}: has 16 bits per channel, 8 of them are used"]


def test_without_libvips_a_deep_file_is_read_with_eight_bits_or_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pyvips")
    write_image(np.full((4, 4, 3), 300, np.uint16), tmp_path / "a.png")
    write_image(np.full((4, 4, 2), 300, np.uint16), tmp_path / "b.tif")
    monkeypatch.setitem(sys.modules, "pyvips", None)
    assert accept(tmp_path / "a.png").pictures[0].bits == 8
    assert "8 of them are used; for all: pip install 'addsr[deep]'" in caplog.text
    for read in (read_file, read_size):
        with pytest.raises(InputError, match=r"needs libvips; install it: pip install 'addsr"):
            read(tmp_path / "b.tif")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_deep_file_cut_short_is_told(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("pyvips")
    noise = np.random.default_rng(0).integers(0, 65536, (200, 200, 3), np.uint16)
    write_image(noise, tmp_path / f"a.{suffix}")
    data = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"b.{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=rf"b\.{suffix}: is damaged or cut short"):
        read_file(tmp_path / f"b.{suffix}")


def test_a_huge_deep_picture_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    pytest.importorskip("pyvips")
    for channels in (2, 3):
        write_image(np.zeros((40, 50, channels), np.uint16), tmp_path / "a.tif")
        for read in (read_file, read_size):
            with pytest.raises(InputError, match="50 x 40 is more than"):
                read(tmp_path / "a.tif", 1999)


def test_without_libvips_grey_keeps_16_bits_and_colour_says_what_is_missing(
    tmp_path: Path, no_vips: None, caplog: pytest.LogCaptureFixture
) -> None:
    keep, force = FileOptions(), FileOptions(bit_depth="16")
    assert result_bits("a.png", 16, keep, is_grey=True) == 16
    assert caplog.messages == []
    assert result_bits("a.png", 16, keep, is_grey=False) == 8
    assert "a.png: 8 bits per channel are written; 16 bits per channel in colour" in caplog.text
    assert "pip install 'addsr[deep]'" in caplog.text
    result_bits("a.png", 16, keep, is_grey=False, is_told=False)
    assert len(caplog.messages) == 1
    with pytest.raises(DependencyError, match=r"libvips; install it: pip install 'addsr\[deep\]'"):
        result_bits("a.png", 8, force, is_grey=False)
    with pytest.raises(DependencyError, match="libvips"):
        write_image(np.zeros((2, 2, 3), np.uint16), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_sixteen_bits_are_refused_where_the_format_has_eight() -> None:
    assert result_bits("a.jpg", 16, FileOptions(), is_grey=False) == 8
    assert result_bits("a.png", 16, FileOptions(bit_depth="8"), is_grey=False) == 8
    with pytest.raises(OutputError, match=r"JPEG holds 8 bits per channel; write a \.png or \.tif"):
        result_bits("a.jpg", 8, FileOptions(bit_depth="16"), is_grey=False)


def test_heic_without_its_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DependencyError, match=r"pip install 'addsr\[heif\]'"):
        write_image(Image.new("RGB", (4, 4)), tmp_path / "a.heic")
    (tmp_path / "b.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    Image.init()  # or the plugins would enter the list that is put aside afterwards
    monkeypatch.setattr("PIL.Image.ID", [x for x in Image.ID if x not in ("HEIF", "AVIF")])
    with pytest.raises(DependencyError, match=r"b\.jpg: HEIC and HEIF need.*addsr\[heif\]"):
        read_file(tmp_path / "b.jpg")


def test_options_name_field_value_and_what_is_allowed() -> None:
    for options, message in (
        ({"quality": 0}, "quality: 0 is outside of 1 to 100"),
        ({"bit_depth": "12"}, "bit_depth: '12' is unknown; use one of auto, 8, 16"),
        ({"icc": "p3"}, "icc: 'p3' is unknown; use one of keep, srgb, strip"),
        ({"metadata": "some"}, "metadata: 'some' is unknown; use one of keep, strip"),
    ):
        with pytest.raises(OptionError, match=message):
            FileOptions(**options)  # type: ignore[arg-type]


def test_a_png_of_16_bits_says_what_it_is_told_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("pyvips")
    values = np.zeros((4, 6, 3), np.uint16)
    source = tmp_path / "source.jpg"
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    Image.new("RGB", (6, 4)).save(source, exif=exif, dpi=(300, 300))
    told = replace(read_file(source).metadata, done={"Prompt": "ein Hé 😀"})
    write_image(values, tmp_path / "a.png", None, told)
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert image.getexif()[0x010F] == "Maker" and round(image.info["dpi"][0]) == 300
        assert read_done(image.info["xmp"])["Prompt"] == "ein Hé 😀"
    write_image(values, tmp_path / "b.png", FileOptions(metadata="strip"), Metadata())
    with Image.open(tmp_path / "b.png") as image:
        image.load()
        assert not {"exif", "dpi", "xmp"} & image.info.keys() and not image.getexif()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png", "source.jpg"]


@pytest.mark.parametrize("suffix", ["tif", "png", "bmp", "jpg"])
@pytest.mark.parametrize("choice", ["keep", "strip"])
@pytest.mark.parametrize("bits", [8, 16])
def test_no_resolution_is_stated_where_none_is_known(
    tmp_path: Path, suffix: str, choice: Any, bits: int
) -> None:
    values: Any = np.zeros((4, 6, 3), np.uint16)
    if bits == 8 or suffix in ("bmp", "jpg"):
        values = Image.new("RGB", (6, 4))
    else:
        pytest.importorskip("pyvips")
    path = tmp_path / f"a.{suffix}"
    write_image(values, path, FileOptions(metadata=choice), Metadata())
    assert read_file(path).metadata.dpi is None
    with Image.open(path) as image:
        if suffix != "jpg":  # Pillow makes one up for those; 1 and 0 are its unknown ones
            assert max(image.info.get("dpi", (0, 0))) <= 1
        assert not {282, 283, 296} & dict(getattr(image, "tag_v2", {})).keys()
    assert read_size(path) == (4, 6)


def test_a_jpeg_that_states_no_resolution_has_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    Image.new("RGB", (6, 4)).save(path, exif=exif)
    data = path.read_bytes()
    assert data[2:4] == b"\xff\xe0"  # as cameras write them, without JFIF's head
    path.write_bytes(data[:2] + data[4 + int.from_bytes(data[4:6], "big") :])
    with Image.open(path) as image:
        assert image.info["dpi"] == (72, 72) and "jfif" not in image.info
        image.format = "MPO"  # what phones write: a JPEG with more of them behind it
        assert read_metadata(image).dpi is None
    assert read_file(path).metadata.dpi is None
    exif[0x011A], exif[0x011B], exif[0x0128] = 300.0, 300.0, 2
    Image.new("RGB", (6, 4)).save(path, exif=exif)
    assert read_file(path).metadata.dpi == (300, 300)


def test_a_resolution_that_is_known_is_kept_in_16_bits(tmp_path: Path) -> None:
    pytest.importorskip("pyvips")
    values = np.zeros((4, 6, 3), np.uint16)
    write_image(values, tmp_path / "a.tif", None, Metadata(dpi=(300, 72)))
    assert read_file(tmp_path / "a.tif").metadata.dpi == (300, 72)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("is_big", [False, True])
def test_the_size_of_a_tiff_that_only_libvips_opens_is_told_as_it_will_be_read(
    tmp_path: Path, turn: int, is_big: bool
) -> None:
    pyvips = pytest.importorskip("pyvips")
    image = pyvips.Image.new_from_array(np.full((4, 6, 3), 0.5, np.float32))
    image = image.copy(interpretation="rgb").copy()
    image.set_type(pyvips.GValue.gint_type, "orientation", turn)
    path = tmp_path / "a.tif"
    image.tiffsave(str(path), bigtiff=is_big)
    with pytest.raises(InputError):
        read_image(path)  # Pillow does not
    found = read_file(path)
    assert found.metadata.orientation == turn
    assert isinstance(found.pixels, np.ndarray)
    assert read_upright_size(path) == found.pixels.shape[:2]
    assert read_size(path) == (4, 6)
