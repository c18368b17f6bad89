"""What a file says about its photo arrives in the result, with what became untrue corrected."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from addsr.image.formats import FORMATS
from addsr.image.metadata import Metadata, read_metadata
from addsr.image.options import FileOptions
from addsr.image.reading import read_file
from addsr.image.writing import write_image
from addsr.image.xmp import SOURCE_TYPE, correct_xmp, read_done

EXIF_IFD, GPS = 0x8769, 0x8825
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DONE = {"Version": "1.2", "Model": "compact", "Seed": "7"}


def packet(inside: str, attributes: str = "") -> bytes:
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}">'
        f'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
        f'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/" '
        f"{attributes}>{inside}</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def camera() -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0131], exif[0x0112] = "Maker", "Camera 1.0", 6
    exif[0x8298] = "Somebody"
    ifd = exif.get_ifd(EXIF_IFD)
    ifd[0x9003], ifd[0x829A] = "2020:01:02 03:04:05", IFDRational(1, 125)
    ifd[0xA002], ifd[0xA003], ifd[0x927C] = 30, 20, b"private"
    exif.get_ifd(GPS)[1] = "N"
    return exif


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))


WITH_EXIF = [s for s in FORMATS if s not in (".bmp", ".gif")]


@pytest.mark.parametrize("suffix", WITH_EXIF)
def test_camera_and_place_stay_and_size_turn_and_program_are_corrected(
    tmp_path: Path, suffix: str
) -> None:
    if suffix.startswith(".h"):
        pytest.importorskip("pillow_heif")
    photo().save(tmp_path / "in.jpg", exif=camera(), dpi=(240, 240))
    file = read_file(tmp_path / "in.jpg")
    assert isinstance(file.pixels, Image.Image) and file.pixels.size == (20, 30)
    large = file.pixels.resize((40, 60))
    write_image(large, tmp_path / f"out{suffix}", None, file.metadata.with_done(DONE))
    back = read_file(tmp_path / f"out{suffix}")
    assert isinstance(back.pixels, Image.Image) and back.pixels.size == (40, 60)
    with Image.open(tmp_path / f"out{suffix}") as opened:
        raw = opened.getexif()
        assert raw[0x010F] == "Maker" and raw[0x8298] == "Somebody"
        assert raw[0x0131] == "addsr 1.2" and raw.get(0x0112, 1) == 1
        ifd = raw.get_ifd(EXIF_IFD)
        assert (ifd[0xA002], ifd[0xA003]) == (40, 60)
        assert ifd[0x9003] == "2020:01:02 03:04:05" and ifd[0x927C] == b"private"
        assert float(ifd[0x829A]) == pytest.approx(1 / 125)
        assert raw.get_ifd(GPS)[1] == "N"
    assert back.metadata.dpi == pytest.approx((240, 240), abs=0.1)
    assert back.metadata.xmp is not None and read_done(back.metadata.xmp) == DONE
    assert SOURCE_TYPE.encode() in back.metadata.xmp


def test_strip_leaves_nothing(tmp_path: Path) -> None:
    known = Metadata(camera(), 1, packet("", 'dc:rights="me"'), b"iptc", (300, 300), DONE)
    for suffix in (".jpg", ".png", ".tif", ".webp", ".avif"):
        write_image(photo(), tmp_path / f"a{suffix}", FileOptions(metadata="strip"), known)
        data = (tmp_path / f"a{suffix}").read_bytes()
        assert not any(word in data for word in (b"Maker", b"rights", b"iptc", b"compact"))


def test_an_image_brings_nothing_along_that_nobody_asked_for(tmp_path: Path) -> None:
    image = photo()
    image.info |= {"exif": camera().tobytes(), "xmp": b"secret", "comment": b"secret"}
    for suffix in (".jpg", ".png", ".tif", ".webp", ".avif"):
        write_image(image, tmp_path / f"a{suffix}")
        data = (tmp_path / f"a{suffix}").read_bytes()
        assert b"Maker" not in data and b"secret" not in data
    assert "exif" in image.info, "the caller's image is changed"


def test_xmp_keeps_what_is_true_and_drops_what_is_not() -> None:
    old = packet(
        "<tiff:Orientation>6</tiff:Orientation><xmp:Thumbnails>AAAA</xmp:Thumbnails>"
        "<dc:title>A title &amp; more</dc:title>",
        'tiff:ImageWidth="30" xmp:CreatorTool="Camera" dc:rights="me"',
    )
    new = correct_xmp(old, (40, 60), "addsr 1", DONE).decode()
    assert "A title &amp; more" in new and 'dc:rights="me"' in new
    assert not any(w in new for w in ("Orientation", "Thumbnails", "Camera", '"30"'))
    assert new.count("ImageWidth") == 1 and 'tiff:ImageWidth="40"' in new
    assert read_done(new.encode()) == DONE


def test_a_second_enlargement_takes_the_place_of_the_first() -> None:
    once = correct_xmp(None, (4, 4), "addsr 1", {"Seed": "1", "Tile": "80"})
    twice = correct_xmp(once, (8, 8), "addsr 1", {"Seed": "2"})
    assert read_done(twice) == {"Seed": "2"} and twice.count(b"DigitalSourceType") == 1


@pytest.mark.parametrize(
    "broken",
    [
        b"<x:xmpmeta",
        b"no xml",
        b"<a/>",
        b'<!DOCTYPE a [<!ENTITY b "c">]>' + packet("&b;"),
        b"<?xml version='1.0' encoding='nonsense'?><a/>",
    ],
)
def test_xmp_that_cannot_be_read_is_left_out_and_told(
    broken: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_done(correct_xmp(broken, (4, 4), "addsr", DONE)) == DONE
    assert "XMP block cannot be read" in caplog.text


def test_values_that_look_like_xml_stay_values() -> None:
    hostile = {"Model": '"><script a="', "Seed": "1 & 2"}
    assert read_done(correct_xmp(None, (4, 4), "addsr", hostile)) == hostile


def test_iptc_travels_between_jpeg_and_tiff(tmp_path: Path) -> None:
    block = b"\x1c\x02\x05\x00\x05title"
    write_image(photo(), tmp_path / "a.jpg", None, Metadata(iptc=block))
    first = read_file(tmp_path / "a.jpg").metadata
    write_image(photo(), tmp_path / "b.tif", None, first)
    assert read_file(tmp_path / "b.tif").metadata.iptc == first.iptc == block


def test_a_private_block_too_long_for_jpeg_is_left_out_and_the_rest_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exif = camera()
    exif.get_ifd(EXIF_IFD)[0x927C] = bytes(70_000)
    known = Metadata(exif, 1, packet(f"<dc:title>{'x' * 70_000}</dc:title>"))
    write_image(photo(), tmp_path / "a.jpg", None, known)
    back = read_file(tmp_path / "a.jpg").metadata
    assert back.exif is not None and back.exif[0x010F] == "Maker" and back.xmp is None
    assert "private part is left out" in caplog.text and "XMP block is too long" in caplog.text


def test_a_tiff_keeps_its_photo_and_not_the_layout_of_its_file(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.tif", compression="tiff_lzw", exif=camera())
    known = read_file(tmp_path / "a.tif").metadata
    assert known.exif is not None and known.exif[0x010F] == "Maker"
    assert not {256, 257, 258, 259, 273, 278, 279} & set(known.exif)
    write_image(photo().convert("L"), tmp_path / "b.jpg", None, known)
    assert read_file(tmp_path / "b.jpg").metadata.exif is not None


def test_a_broken_exif_block_is_told_and_the_picture_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photo().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    known = read_file(tmp_path / "a.jpg").metadata
    write_image(photo(), tmp_path / "b.jpg", None, known)
    assert read_file(tmp_path / "b.jpg").metadata.exif is not None


def test_values_that_cannot_be_written_again_cost_the_exif_and_not_the_picture(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = photo()
    image.getexif()[0x010F] = object()
    known = read_metadata(image)
    assert "holds what cannot be written" in caplog.text
    for suffix in (".jpg", ".tif"):
        write_image(image, tmp_path / f"a{suffix}", None, known)
        assert read_file(tmp_path / f"a{suffix}").pixels is not None


def test_a_resolution_that_states_only_a_shape_is_none(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.jpg")
    assert read_file(tmp_path / "a.jpg").metadata.dpi is None
    photo().save(tmp_path / "b.tif")
    with Image.open(tmp_path / "b.tif") as image:
        assert read_metadata(image).dpi is None


def test_characters_that_xml_cannot_hold_do_not_cost_the_rest() -> None:
    packet = correct_xmp(None, (2, 2), "addsr", {"Prompt": "a\x01b\ud800", "Seed": "1"})
    assert read_done(packet) == {"Prompt": "a\ufffdb\ufffd", "Seed": "1"}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 32])
def test_iptc_stated_as_numbers_is_kept_as_photoshop_states_it(
    tmp_path: Path, order: str, bits: int
) -> None:
    tifffile = pytest.importorskip("tifffile")  # of scikit-image
    block = b"\x1c\x02\x05\x00\x05title\x1c\x02\x19\x00\x01a"
    count = len(block) // (bits // 8)
    numbers = struct.unpack(f"{order}{count}{'I' if bits == 32 else 'B'}", block)
    tag = (33723, "I" if bits == 32 else "B", count, numbers, True)
    for values in (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.float32)):
        if values.dtype != np.uint8:
            pytest.importorskip("pyvips")  # Pillow opens no colour of floats
        tifffile.imwrite(
            tmp_path / "a.tif", values, photometric="rgb", byteorder=order, extratags=[tag]
        )
        assert read_file(tmp_path / "a.tif").metadata.iptc == block


def test_places_in_pixels_of_the_source_are_left_out(tmp_path: Path) -> None:
    exif = camera()
    exif.get_ifd(EXIF_IFD)[0x9214] = (10, 10)  # the subject
    exif.get_ifd(EXIF_IFD)[0xA20E] = IFDRational(3000, 1)  # pixels to an inch of the sensor
    photo().save(tmp_path / "a.jpg", exif=exif)
    write_image(photo(), tmp_path / "b.jpg", None, read_file(tmp_path / "a.jpg").metadata)
    with Image.open(tmp_path / "b.jpg") as image:
        assert not {0x9214, 0xA20E} & set(image.getexif().get_ifd(EXIF_IFD))
    old = packet(
        "", 'xmlns:exif="http://ns.adobe.com/exif/1.0/" exif:FocalPlaneXResolution="3000/1" '
        'exif:FNumber="28/10"'
    )  # fmt: skip
    new = correct_xmp(old, (4, 4), "addsr", {}).decode()
    assert "FocalPlane" not in new and 'FNumber="28/10"' in new


def test_what_stood_behind_the_picture_in_its_file_is_no_longer_announced() -> None:
    old = packet(
        "<GCamera:MotionPhoto>1</GCamera:MotionPhoto><dc:title>stays</dc:title>",
        'xmlns:GCamera="http://ns.google.com/photos/1.0/camera/" '
        'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0" '
        'xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="0123"',
    )
    new = correct_xmp(old, (4, 4), "addsr", {}).decode()
    assert "stays" in new
    assert not any(w in new for w in ("MotionPhoto", "hdrgm:Version", "HasExtendedXMP"))


PANORAMA = {
    "FullPanoWidthPixels": 400, "FullPanoHeightPixels": 200, "CroppedAreaLeftPixels": 30,
    "CroppedAreaTopPixels": 20, "CroppedAreaImageWidthPixels": 300,
    "CroppedAreaImageHeightPixels": 100, "PoseHeadingDegrees": 90,
}  # fmt: skip


@pytest.mark.parametrize("has_children", [False, True])
def test_a_panorama_stays_where_it_was_on_its_sphere(has_children: bool) -> None:
    space = 'xmlns:GPano="http://ns.google.com/photos/1.0/panorama/"'
    children = "".join(f"<GPano:{k}>{v}</GPano:{k}>" for k, v in PANORAMA.items())
    attributes = " ".join(f'GPano:{k}="{v}"' for k, v in PANORAMA.items())
    old = packet(children, space) if has_children else packet("", f"{space} {attributes}")
    new = correct_xmp(old, (1200, 400), "addsr", {}).decode()
    for name, value in PANORAMA.items():
        wanted = value if "Degrees" in name else value * 4
        assert f">{wanted}<" in new.replace('="', ">").replace('"', "<"), name
        assert f"GPano:{name}" in new
    cut = correct_xmp(old, (400, 400), "addsr", {}).decode()
    assert not any(f"GPano:{name}" in cut for name in PANORAMA)
