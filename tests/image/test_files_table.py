"""docs/files.md says what each format keeps; every cell is read from a file written and read."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from addsr.image.encoding import srgb_profile
from addsr.image.formats import BY_NAME, Format
from addsr.image.io import File, read_file, write_image
from addsr.image.kinds import accept
from addsr.image.metadata import Metadata
from addsr.image.xmp import read_done

PAGE = Path(__file__).parents[2] / "docs" / "files.md"
COLUMNS = ("Format", "Bits per channel", "Lossless", "Alpha", "ICC", "EXIF", "XMP", "IPTC",
           "Resolution")  # fmt: skip
EXIF_IFD = 0x8769


def described() -> Metadata:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(EXIF_IFD)[0x9003] = "2020:01:02 03:04:05"
    return Metadata(exif, 1, None, b"\x1c\x02\x05\x00\x05title", (300, 300), {"Seed": "7"})


def smooth() -> np.ndarray:
    """RGBA of 16 bits, no two rows alike, alpha from 0 to full."""
    y, x = np.mgrid[0:48, 0:64]
    values = np.stack([x / 63, y / 47, (x + y) / 110, x / 63], axis=2)
    return (values * 65535).round().astype(np.uint16)


def yes(found: bool) -> str:
    return "yes" if found else "no"


def row(form: Format, folder: Path) -> tuple[str, ...]:
    """The line of one format, from what comes back out of its files."""

    def through(image: Image.Image | np.ndarray) -> File:
        path = folder / f"a{form.suffixes[0]}"
        write_image(image, path, None, described(), srgb_profile())
        return read_file(path)

    deep = smooth()
    image = Image.fromarray((deep >> 8).astype(np.uint8))
    opaque = image.convert("RGB")
    back = through(opaque)
    assert isinstance(back.pixels, Image.Image)
    is_lossless = bool((np.asarray(back.pixels.convert("RGB")) == np.asarray(opaque)).all())
    is_deep = False
    if form.is_deep:
        found = through(deep).pixels
        is_deep = isinstance(found, np.ndarray) and bool((found == deep).all())
    alpha = accept(folder / through_alpha(form, image, folder)).pictures[0].alpha
    shades = 0 if alpha is None else len(np.unique(alpha.numpy()))
    told = back.metadata
    exif = told.exif
    has_exif = exif is not None and exif.get(0x010F) == "Maker" and "2020" in str(
        exif.get_ifd(EXIF_IFD).get(0x9003)
    )  # fmt: skip
    dpi = told.dpi or (0.0, 0.0)
    return (
        form.name.replace("WEBP", "WebP").replace("HEIF", "HEIC"),
        "8, 16" if is_deep else "8",
        yes(is_lossless),
        "no: laid on white" if shades == 0 else "on or off" if shades == 2 else "yes",
        yes(back.profile == srgb_profile()),
        yes(has_exif),
        yes(told.xmp is not None and read_done(told.xmp) == {"Seed": "7"}),
        yes(told.iptc == described().iptc),
        yes(max(abs(one - 300) for one in dpi) < 1),
    )


def through_alpha(form: Format, image: Image.Image, folder: Path) -> str:
    name = f"alpha{form.suffixes[0]}"
    write_image(image, folder / name)
    return name


@pytest.mark.parametrize("form", BY_NAME.values(), ids=list(BY_NAME))
def test_the_page_says_what_each_format_keeps(form: Format, tmp_path: Path) -> None:
    if form.is_deep:
        pytest.importorskip("pyvips")
    if form.name == "HEIF":
        pytest.importorskip("pillow_heif")
    line = "| " + " | ".join(row(form, tmp_path)) + " |"
    assert line in PAGE.read_text(encoding="utf-8").splitlines(), line


def test_the_table_has_a_line_for_each_format_and_no_empty_cell() -> None:
    lines = [x for x in PAGE.read_text(encoding="utf-8").splitlines() if x.startswith("|")]
    assert lines[0] == "| " + " | ".join(COLUMNS) + " |"
    body = lines[2 : 2 + len(BY_NAME)]
    for line in body:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == len(COLUMNS) and all(re.match(r"\w", cell) for cell in cells)
