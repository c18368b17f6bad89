"""What files say of their numbers, in seldom ways too: white, planes, depth, colour, clear grey."""

from __future__ import annotations

import importlib.util
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from addsr.errors import DependencyError, InputError
from addsr.image.kinds import accept
from addsr.image.reading import read_file, read_format, read_image
from addsr.image.writing import write_image

_spec = importlib.util.spec_from_file_location("profiles", Path(__file__).parent / "profiles.py")
assert _spec is not None and _spec.loader is not None
profiles = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(profiles)

tifffile = pytest.importorskip("tifffile")  # of scikit-image
RAMP = np.linspace(0, 65535, 12 * 20).round().astype(np.uint16).reshape(12, 20)
COLOUR = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=2)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunks(path: Path, *chunks: bytes) -> None:
    """Puts chunks behind the head of a PNG."""
    data = path.read_bytes()
    path.write_bytes(data[:33] + b"".join(chunks) + data[33:])


def grey(path: Path) -> np.ndarray:
    return accept(path).pictures[0].rgb[0, 0].numpy()


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_whose_zero_is_white_is_no_negative(tmp_path: Path, bits: int) -> None:
    values = RAMP if bits == 16 else (RAMP >> 8).astype(np.uint8)
    top = 2**bits - 1
    tifffile.imwrite(tmp_path / "a.tif", top - values, photometric="miniswhite")
    np.testing.assert_allclose(grey(tmp_path / "a.tif"), values / top, atol=1e-4)
    assert np.asarray(read_image(tmp_path / "a.tif"))[-1, -1] == top


def test_grey_of_twelve_bits_is_as_bright_as_it_was(tmp_path: Path) -> None:
    values = np.arange(0, 4096, 65, dtype=int)[:64].reshape(2, 32)
    values[-1, -1] = 4095
    first, second = values[:, ::2], values[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2)
    data = packed.astype(np.uint8).tobytes()
    tags = [(256, 32), (257, 2), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 2),
            (279, len(data))]  # fmt: skip
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    (tmp_path / "a.tif").write_bytes(head + data + struct.pack("<H", len(tags)) + body + bytes(4))
    np.testing.assert_allclose(grey(tmp_path / "a.tif"), values / 4095, atol=1e-5)


def test_channels_that_stand_apart_are_read_right_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyvips")
    path = tmp_path / "a.tif"
    planes = np.ascontiguousarray(COLOUR.transpose(2, 0, 1))
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_file(path).pixels, COLOUR)
    with pytest.raises(InputError, match="stand apart, of which 8 bits cannot be read"):
        read_image(path)  # Pillow would give noise
    monkeypatch.setitem(sys.modules, "pyvips", None)
    with pytest.raises(InputError, match=r"needs libvips; install it: pip install 'addsr\[deep\]'"):
        read_file(path)
    tifffile.imwrite(
        path, (planes >> 8).astype(np.uint8), photometric="rgb", planarconfig="separate"
    )
    np.testing.assert_array_equal(np.asarray(read_image(path)), COLOUR >> 8)


@pytest.mark.parametrize("dtype", [np.int16, np.uint32])
def test_greys_that_pillow_makes_negative_are_refused(tmp_path: Path, dtype: type) -> None:
    values = RAMP.astype(np.int64) - 32768 if dtype is np.int16 else RAMP.astype(np.int64) * 65537
    tifffile.imwrite(tmp_path / "a.tif", values.astype(dtype), photometric="minisblack")
    with pytest.raises(InputError, match=r"greys below 0.*save it as unsigned 16 bits"):
        accept(tmp_path / "a.tif")


def test_the_clear_grey_of_a_png_of_16_bits_becomes_alpha(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RAMP).save(path)
    with_chunks(path, chunk(b"tRNS", struct.pack(">H", 65535)))
    picture = accept(path).pictures[0]
    assert picture.layout == "LA" and picture.bits == 16 and picture.alpha is not None
    np.testing.assert_array_equal(picture.alpha[0, 0].numpy(), RAMP != 65535)


def test_a_palette_of_many_alphas_is_read_without_a_word(tmp_path: Path) -> None:
    image = Image.linear_gradient("L").resize((16, 16)).quantize(4)
    image.save(tmp_path / "a.png", transparency=bytes([0, 64, 128, 255]))
    picture = accept(tmp_path / "a.png").pictures[0]  # warnings are errors here
    assert picture.layout == "LA" and picture.alpha is not None
    assert len(np.unique(picture.alpha.numpy())) == 4


def test_a_photo_that_a_camera_marks_as_adobe_rgb_is_taken_so(tmp_path: Path) -> None:
    path = tmp_path / "_a.jpg"
    for space, index, is_adobe in ((65535, "R03", True), (1, "R98", False), (2, "", True)):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0xA001] = space
        if index:
            exif.get_ifd(0x8769)[0xA005] = {1: index}
        Image.new("RGB", (16, 16), "red").save(path, exif=exif)
        source = accept(path)
        assert (source.profile is not None) == is_adobe
        if is_adobe:
            assert source.encoding.primaries is not None and source.encoding.curves is not None
            np.testing.assert_allclose(source.encoding.primaries, profiles.ADOBE, atol=2e-3)
            assert source.encoding.curves[0].g == pytest.approx(563 / 256, abs=1e-4)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif", "tif"])
def test_no_result_points_to_a_directory_that_it_lacks(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R98"}
    exif.get_ifd(0x8769)[0x9003] = "2020:01:02 03:04:05"
    Image.new("RGB", (16, 16)).save(tmp_path / "source.jpg", exif=exif)
    found = read_file(tmp_path / "source.jpg")
    assert isinstance(found.pixels, Image.Image)
    write_image(found.pixels, tmp_path / f"a.{suffix}", None, found.metadata)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        camera = image.getexif().get_ifd(0x8769)
    assert 0x9003 in camera and 0xA005 not in camera


def test_code_points_of_a_png_become_a_profile_and_come_before_its_gamma(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for points, is_p3 in (((12, 13), True), ((1, 13), False)):
        Image.new("RGB", (8, 8), "red").save(path)
        gamma = chunk(b"gAMA", struct.pack(">I", 100_000))
        with_chunks(path, chunk(b"cICP", bytes([*points, 0, 1])), gamma)
        source = accept(path)
        assert (source.profile is not None) == is_p3
    assert accept(path).encoding.curves is None


def test_a_png_for_hdr_screens_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    with_chunks(tmp_path / "a.png", chunk(b"cICP", bytes([9, 16, 0, 1])))
    assert accept(tmp_path / "a.png").profile is None
    assert "a.png: its brightness is meant for HDR screens (PQ)" in caplog.text


@pytest.mark.parametrize(
    ("gamma", "points", "has_profile"),
    [
        (100_000, None, True),
        (45_455, None, False),
        (45_455, (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000), False),
        (45_455, (31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000), True),
        (45_455, (0, 0, 0, 0, 0, 0, 0, 0), False),
        (45_455, (31270, 32900, 31270, 32900, 31270, 32900, 31270, 32900), False),
        (1, None, False),
    ],
)
def test_gamma_and_primaries_of_a_png_are_used_where_they_make_sense(
    tmp_path: Path, gamma: int, points: tuple[int, ...] | None, has_profile: bool
) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8), (128, 128, 128)).save(path)
    chunks = [chunk(b"gAMA", struct.pack(">I", gamma))]
    chunks += [chunk(b"cHRM", struct.pack(">8I", *points))] if points else []
    with_chunks(path, *chunks)
    source = accept(path)
    assert (source.profile is not None) == has_profile
    if gamma == 100_000:  # linear light: brighter than the number says
        assert float(source.pictures[0].rgb.mean()) == pytest.approx(0.736, abs=0.01)
    with_chunks(path, chunk(b"sRGB", b"\0"))
    assert accept(path).profile is None


@pytest.mark.parametrize("name", ["a.avif", "a.png", "a.jpg", "a.gif"])
def test_a_head_cut_short_is_called_damaged_and_not_unknown(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:14])
    with pytest.raises(InputError, match=r"is damaged or cut short .*; copy or download it again"):
        read_file(tmp_path / name)


def test_avif_that_this_pillow_does_not_know_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.avif")
    Image.init()
    monkeypatch.setattr("PIL.Image.ID", [x for x in Image.ID if x != "AVIF"])
    monkeypatch.setattr("PIL.features.check", lambda _name: False)
    with pytest.raises(DependencyError, match=r"install 11\.3 or newer: pip install -U pillow"):
        read_file(tmp_path / "a.avif")


def test_a_damaged_png_is_told_in_one_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    with pytest.raises(InputError, match=r"a\.png: is damaged or cut short"):
        read_file(tmp_path / "a.png")
    assert caplog.messages == []


def test_an_image_of_pillow_that_lost_bits_says_so_and_its_way_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pyvips")
    write_image(COLOUR, tmp_path / "a.png")
    write_image(Image.fromarray(RAMP), tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert accept(image).bits == 16
    assert caplog.messages == []
    with Image.open(tmp_path / "a.png") as image:
        assert accept(image).bits == 8
    assert caplog.messages == [
        "image: its file has 16 bits per channel, of which Pillow gives 8; hand in the file's name "
        "for all"
    ]


def test_an_image_of_pillow_takes_its_colours_from_what_its_file_says(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    with_chunks(tmp_path / "a.png", chunk(b"cICP", bytes([12, 13, 0, 1])))
    with Image.open(tmp_path / "a.png") as image:
        source = accept(image)
    assert source.profile is not None and source.encoding.primaries is not None


def test_a_jpeg_of_a_phone_with_more_pictures_behind_it_is_a_jpeg(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = Image.new("RGB", (16, 16))
    image.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[image])
    assert read_format(tmp_path / "a.jpg") == "JPEG"
    assert read_file(tmp_path / "a.jpg").pixels.size == (16, 16)
    assert "has several pictures; only the first one is used" in caplog.text


def test_pages_of_a_tiff_that_only_libvips_opens_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pyvips")
    pages = np.zeros((2, 8, 8, 3), np.float32)
    pages[1] = 1
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="rgb")
    found = read_file(tmp_path / "a.tif").pixels
    assert isinstance(found, np.ndarray) and found.max() == 0
    assert caplog.messages == [
        f"{tmp_path / 'a.tif'}: has several pictures; only the first one is used"
    ]
