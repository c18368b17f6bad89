"""HEIC and AVIF of 10 and 12 bits: read, turned, written, and said where they cannot be."""

from __future__ import annotations

import importlib.util
import io
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from addsr import Upscaler
from addsr.errors import DependencyError, InputError, OutputError
from addsr.image import deep_heif
from addsr.image.encoding import SRGB, srgb_profile
from addsr.image.isobmff import Stored, read_stored, replace_exif
from addsr.image.kinds import accept
from addsr.image.metadata import Metadata
from addsr.image.options import FileOptions
from addsr.image.reading import read_file, read_image, read_size, read_upright_size
from addsr.image.writing import result_bits, write_image
from addsr.image.xmp import read_done

_spec = importlib.util.spec_from_file_location("profiles", Path(__file__).parent / "profiles.py")
assert _spec is not None and _spec.loader is not None
profiles = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(profiles)

MOST = FileOptions(bit_depth="16", quality=100)
FORMATS = ("heic", "avif")


@pytest.fixture(scope="module")
def up() -> Iterator[Upscaler]:
    with Upscaler(scale=2, device="cpu") as made:
        yield made


def need(suffix: str) -> None:
    pytest.importorskip("pillow_heif" if suffix == "heic" else "pyvips")


def ramp(channels: int, height: int = 32, width: int = 96) -> np.ndarray:
    """uint16 `(H, W, C)` with far more than 256 shades, brightest 65535; alpha falls."""
    values = np.linspace(0, 65535, height * width).round().astype(np.uint16)
    layers = [values.reshape(height, width)] * channels
    if channels in (2, 4):
        layers[-1] = layers[-1][::-1, ::-1]
    return np.stack(layers, axis=2)


def stored(path: Path) -> Stored:
    with path.open("rb") as file:
        return read_stored(file)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("choice", "bits"), [("auto", 10), ("16", 12)])
def test_every_layout_comes_back_with_all_bits(
    tmp_path: Path, suffix: str, channels: int, choice: str, bits: int
) -> None:
    need(suffix)
    path = tmp_path / f"a.{suffix}"
    values = ramp(channels)
    write_image(values, path, FileOptions(bit_depth=choice, quality=100))  # type: ignore[arg-type]
    assert stored(path).bits == bits
    assert read_size(path) == read_upright_size(path) == (32, 96)
    picture = accept(path).pictures[0]
    assert picture.bits == 16 and (picture.alpha is None) == (channels in (1, 3))
    if channels == 1:  # libvips writes AVIF in colour only
        assert picture.layout == ("L" if suffix == "heic" else "RGB")
    found = picture.rgb[0].numpy()
    expected = values[..., 0] / 65535
    assert np.abs(found - expected).max() < 8 / 2**bits
    assert len(np.unique(found)) > 2 ** (bits - 1)
    if picture.alpha is not None:
        assert np.abs(picture.alpha[0, 0].numpy() - values[..., -1] / 65535).max() < 8 / 2**bits


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("value", [0, 65535])
def test_black_and_white_stay_what_they_are(tmp_path: Path, suffix: str, value: int) -> None:
    need(suffix)
    write_image(np.full((16, 16, 3), value, np.uint16), tmp_path / f"a.{suffix}")
    found = read_file(tmp_path / f"a.{suffix}").pixels
    assert isinstance(found, np.ndarray)
    assert np.abs(found.astype(int) - value).max() <= 65  # one step of 10 bits


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_deep_picture_enlarged_keeps_more_shades_than_8_bits_have(
    tmp_path: Path, suffix: str, up: Upscaler
) -> None:
    need(suffix)
    path = tmp_path / f"a.{suffix}"
    # a dark slope over four of the steps that 8 bits have
    slope = np.linspace(2000, 3028, 64 * 24).reshape(24, 64, 1).repeat(3, 2).astype(np.uint16)
    write_image(slope, path, MOST)
    for target in (f"b.{suffix}", "b.png"):
        up(path, tmp_path / target)
        found = read_file(tmp_path / target).pixels
        assert isinstance(found, np.ndarray) and found.shape == (48, 128, 3)
        assert len(np.unique(found[8:-8, 8:-8])) > 12
    assert stored(tmp_path / f"b.{suffix}").bits == 10


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_a_deep_file_says_is_what_it_was_told_and_nothing_else(
    tmp_path: Path, suffix: str
) -> None:
    need(suffix)
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769)[0x927C] = b"\1\2\3 of the maker"
    told = Metadata(exif, 1, None, None, (300, 300), {"Prompt": "ein Hé 😀"})
    path = tmp_path / f"a.{suffix}"
    write_image(ramp(3), path, None, told, srgb_profile())
    found = read_file(path)
    assert found.profile == srgb_profile()
    assert found.metadata.dpi == (300, 300) and found.metadata.xmp is not None
    assert read_done(found.metadata.xmp) == {"Prompt": "ein Hé 😀"}
    assert found.metadata.exif is not None and found.metadata.exif[0x010F] == "Maker"
    assert found.metadata.exif.get_ifd(0x8769)[0x927C] == b"\1\2\3 of the maker"
    write_image(ramp(3), path, None, Metadata(done={"Seed": "1"}))
    found = read_file(path)
    assert found.metadata.dpi is None and found.profile is None
    with Image.open(path) as image:  # libvips would add a dozen tags of its own
        assert set(image.getexif()) - {0x0112} == {0x0131, 0x8769}
        assert set(image.getexif().get_ifd(0x8769)) == {0xA002, 0xA003}
    write_image(ramp(3), path, FileOptions(metadata="strip"), told)
    assert read_file(path).metadata.xmp is None and not read_file(path).metadata.exif


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_turned_avif_of_10_bits_is_upright(tmp_path: Path, turn: int) -> None:
    need("avif")
    exif = Image.Exif()
    exif[0x0112] = turn
    values = np.asarray(Image.linear_gradient("L").resize((40, 24))).copy()
    values[:8, :8] = 255
    eight = Image.fromarray(values).convert("RGB")
    eight.save(tmp_path / "a.avif", exif=exif, quality=100, subsampling="4:4:4")
    ten = deep_heif.read_deep_avif(tmp_path / "a.avif", "RGB")
    found = np.asarray(read_image(tmp_path / "a.avif"))
    assert found.shape == ten.shape
    assert np.abs((ten >> 8).astype(int) - found).max() <= 2


def test_a_turned_heic_of_10_bits_is_upright(tmp_path: Path) -> None:
    need("heic")
    import pillow_heif

    exif = Image.Exif()
    exif[0x0112] = 6
    values = ramp(3)
    path = tmp_path / "a.heic"
    pillow_heif.encode(
        "RGB;16", (96, 32), values.tobytes(), path, quality=100, chroma=444, exif=exif.tobytes()
    )
    found = read_file(path).pixels
    assert isinstance(found, np.ndarray) and found.shape == (96, 32, 3)
    assert read_upright_size(path) == (96, 32)
    assert np.abs(found.astype(int) - np.rot90(values, -1)).max() < 300


def test_without_libvips_avif_of_10_bits_is_read_with_eight_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    need("avif")
    path = tmp_path / "a.avif"
    write_image(ramp(3), path)
    monkeypatch.setitem(sys.modules, "pyvips", None)
    assert accept(path).pictures[0].bits == 8
    remedy = "has 10 bits per channel, 8 of them are used; for all: pip install 'addsr[deep]'"
    assert caplog.messages == [f"{path}: {remedy}"]


def test_without_libvips_a_deep_avif_is_not_written_and_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pyvips", None)
    assert result_bits("a.avif", 16, FileOptions(), is_grey=False) == 8
    assert "a.avif: 8 bits per channel are written" in caplog.text
    assert "pip install 'addsr[deep]'" in caplog.text
    with pytest.raises(DependencyError, match=r"a\.avif: .*pip install 'addsr\[deep\]'"):
        result_bits("a.avif", 8, MOST, is_grey=False)
    with pytest.raises(DependencyError, match="libvips"):
        write_image(ramp(3), tmp_path / "a.avif")
    assert list(tmp_path.iterdir()) == []


def test_a_libvips_without_avif_is_found_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    need("avif")
    monkeypatch.setattr(deep_heif, "_avif_works", lambda _vips: False)
    with pytest.raises(DependencyError, match=r"needs a libvips with AVIF: pip install 'addsr"):
        result_bits("a.avif", 8, MOST, is_grey=False)


def test_sides_that_a_deep_avif_cannot_have_are_found_before_any_work(
    caplog: pytest.LogCaptureFixture,
) -> None:
    need("avif")
    size = (17_000, 10)
    with pytest.raises(OutputError, match=r"sides up to 16384; write a \.png or \.tif"):
        result_bits("a.avif", 8, MOST, is_grey=False, size=size)
    assert result_bits("a.avif", 16, FileOptions(), is_grey=False, size=size) == 8
    assert "8 bits per channel are written; AVIF of more" in caplog.text


@pytest.mark.parametrize("suffix", FORMATS)
def test_twelve_bits_where_sixteen_are_asked_for_are_said(
    suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    need(suffix)
    assert result_bits(f"a.{suffix}", 8, MOST, is_grey=False) == 16
    name = {"heic": "HEIF", "avif": "AVIF"}[suffix]
    assert caplog.messages == [f"a.{suffix}: {name} holds 12 bits per channel, which are written"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_deep_file_cut_short_is_told(tmp_path: Path, suffix: str) -> None:
    need(suffix)
    noise = np.random.default_rng(0).integers(0, 65536, (64, 64, 3), np.uint16)
    write_image(noise, tmp_path / f"a.{suffix}")
    data = (tmp_path / f"a.{suffix}").read_bytes()
    for length in (len(data) // 2, len(data) - 400, 60):
        (tmp_path / f"b.{suffix}").write_bytes(data[:length])
        with pytest.raises(InputError, match=rf"b\.{suffix}: is (damaged|no picture)"):
            read_file(tmp_path / f"b.{suffix}")


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_of_8_bits_are_read_without_a_word(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    need(suffix)
    write_image(Image.new("RGBA", (16, 16), "red"), tmp_path / f"a.{suffix}")
    assert stored(tmp_path / f"a.{suffix}").bits == 8
    assert accept(tmp_path / f"a.{suffix}").pictures[0].bits == 8
    assert caplog.messages == []


def test_eight_bit_readers_say_what_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    need("heic")
    write_image(ramp(3), tmp_path / "a.heic")
    read_image(tmp_path / "a.heic")
    assert f"{tmp_path / 'a.heic'}: has 10 bits per channel; the result has 8" in caplog.messages


@pytest.mark.parametrize("suffix", [*FORMATS, "webp"])
def test_grey_that_becomes_colour_keeps_its_look_and_loses_a_profile_of_greys(
    tmp_path: Path, suffix: str, up: Upscaler
) -> None:
    need("heic" if suffix == "heic" else "avif")
    profile = profiles.make_profile(profiles.gamma(1.0))
    grey = Image.new("LA", (32, 32), (128, 200))
    grey.save(tmp_path / "a.png", icc_profile=profile)
    up(tmp_path / "a.png", tmp_path / f"b.{suffix}")
    found = read_file(tmp_path / f"b.{suffix}")
    assert found.profile is None and isinstance(found.pixels, Image.Image)
    light = float(
        SRGB.encode(accept(tmp_path / "a.png").pictures[0].rgb[0, 0, 0, 0] * 0 + 128 / 255)
    )
    assert abs(found.pixels.getpixel((16, 16))[0] - 255 * light) <= 2  # type: ignore[index]


@pytest.mark.parametrize("suffix", ["bmp", "gif"])
def test_a_format_without_profiles_gets_the_numbers_of_srgb(
    tmp_path: Path, suffix: str, up: Upscaler
) -> None:
    red = Image.new("RGB", (32, 32), (200, 40, 40))
    red.save(
        tmp_path / "a.png", icc_profile=profiles.make_profile(profiles.gamma(2.2), profiles.P3)
    )
    up(tmp_path / "a.png", tmp_path / "b.png")
    up(tmp_path / "a.png", tmp_path / f"b.{suffix}")
    up.files = FileOptions(icc="srgb")
    up(tmp_path / "a.png", tmp_path / "c.png")
    up.files = FileOptions()
    kept, given, srgb = (
        np.asarray(read_image(tmp_path / name).convert("RGB")).astype(int)[16, 16]
        for name in ("b.png", f"b.{suffix}", "c.png")
    )
    assert np.abs(given - srgb).max() <= 1 and np.abs(kept - srgb).max() > 8


def with_code_points(path: Path, primaries: int, transfer: int) -> None:
    """Changes the code points in a file that Pillow or pillow-heif wrote."""
    data = path.read_bytes()
    place = data.index(b"nclx") + 4
    path.write_bytes(data[:place] + struct.pack(">2H", primaries, transfer) + data[place + 4 :])


@pytest.mark.parametrize("suffix", FORMATS)
def test_code_points_without_a_profile_become_one(tmp_path: Path, suffix: str) -> None:
    need(suffix)
    path = tmp_path / f"a.{suffix}"
    write_image(Image.new("RGB", (32, 32), (200, 40, 40)), path)
    assert read_file(path).profile is None
    with_code_points(path, 12, 13)  # Display P3
    source = accept(path)
    assert source.profile is not None and source.encoding.primaries is not None
    np.testing.assert_allclose(source.encoding.primaries.numpy(), profiles.P3, atol=2e-3)
    assert source.encoding.curves is None  # sRGB's
    with_code_points(path, 9, 1)  # BT.2020 with the curve of video
    source = accept(path)
    assert source.encoding.curves is not None
    # linear below 0.081, a power above it
    assert (
        abs(
            float(source.encoding.curves[0].light(source.pictures[0].rgb * 0 + 0.045)[0, 0, 0, 0])
            - 0.01
        )
        < 1e-4
    )


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_brightness_for_hdr_screens_is_said(
    tmp_path: Path, transfer: int, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.avif"
    write_image(Image.new("RGB", (32, 32)), path)
    with_code_points(path, 9, transfer)
    assert accept(path).profile is None
    assert f"meant for HDR screens ({name}); it is used as it is" in caplog.text
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    "data",
    [b"", b"\0\0\0\x08meta", b"\0\0\0\x0cmeta\0\0\0\0", b"\0\0\0\x10meta\0\0\0\0\0\0\0\1pitm",
     b"\0\0\0\0mdat", b"\0\0\0\1mdat\0\0\0\0\0\0\0\0", b"\xff" * 64],
)  # fmt: skip
def test_boxes_that_say_nothing_are_taken_as_8_bits(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(data)
    assert stored(path) == Stored()


def test_every_cut_and_flip_of_a_head_is_survived(tmp_path: Path) -> None:
    write_image(Image.new("RGB", (16, 16)), tmp_path / "a.avif")
    whole = (tmp_path / "a.avif").read_bytes()
    draw = np.random.default_rng(0)
    for length in range(0, 280, 3):
        data = bytearray(whole[:length])
        if length:
            data[int(draw.integers(length))] ^= int(draw.integers(1, 256))
        (tmp_path / "b").write_bytes(data)
        assert 8 <= stored(tmp_path / "b").bits <= 255


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_deep_file_that_the_library_cannot_write_is_told_by_its_name(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(suffix)

    def fail(*_args: object, **_options: object) -> None:
        raise (RuntimeError if suffix == "heic" else OSError)("no\nencoder")

    monkeypatch.setattr(deep_heif, f"write_deep_{suffix}", fail)
    with pytest.raises(OutputError, match=rf"/a\.{suffix}: cannot be written \(no encoder\)"):
        write_image(ramp(3), tmp_path / f"a.{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_libvips_says_why_it_writes_no_avif(tmp_path: Path) -> None:
    need("avif")
    with pytest.raises(OutputError, match=r"/a\.avif: cannot be written \(.*too large"):
        write_image(np.zeros((1, 17_000, 3), np.uint16), tmp_path / "a.avif")
    assert list(tmp_path.iterdir()) == []


def test_exif_that_cannot_be_placed_costs_the_file_and_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\0\0\0\x0cmeta\0\0\0\0")
    with pytest.raises(ValueError, match="its EXIF cannot be placed"):
        replace_exif(tmp_path / "a", b"")


def test_more_than_8_bits_do_not_go_where_8_are_all(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="JPEG holds 8 bits per channel"):
        write_image(ramp(3), tmp_path / "a.jpg")
    assert list(tmp_path.iterdir()) == []


def test_a_grey_avif_stays_grey_through_libvips(tmp_path: Path) -> None:
    need("avif")
    grey = Image.linear_gradient("L").resize((32, 32))
    write_image(grey, tmp_path / "a.avif", FileOptions(quality=100))
    with Image.open(tmp_path / "a.avif") as image:
        found = deep_heif.read_deep_avif(tmp_path / "a.avif", image.mode)
    assert found.shape == (32, 32, 1) and found.dtype == np.uint16
    assert np.abs(found[:, :, 0] / 257 - np.asarray(grey)).max() <= 2


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I4sQ", 1, b"free", 2**64 - 1),  # cannot be sought
        struct.pack(">I4sQ", 1, b"free", 2**62) + bytes(8),
        struct.pack(">I4s", 0, b"meta") + b"x" * 99,  # up to the end of the file
        struct.pack(">I4sQ", 1, b"meta", 3) + b"x" * 99,
        struct.pack(">I4s", 2**32 - 1, b"meta"),
    ],
)
def test_boxes_of_absurd_sizes_tell_nothing_and_cost_nothing(data: bytes) -> None:
    class Counting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None and 0 <= size <= 2**24
            return super().read(size)

    file = Counting(data)
    file.seek(5)
    assert read_stored(file) == Stored() and file.tell() == 5
