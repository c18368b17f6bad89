"""docs/files.md says what each format keeps; every cell is read from a file written and read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from addsr import Upscaler
from addsr.errors import OutputError
from addsr.image.encoding import srgb_profile
from addsr.image.formats import BY_NAME, Format
from addsr.image.isobmff import read_stored
from addsr.image.kinds import accept
from addsr.image.metadata import Metadata
from addsr.image.options import FileOptions
from addsr.image.reading import File, read_file
from addsr.image.stored import describe
from addsr.image.writing import write_image
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

    image = Image.fromarray((smooth() >> 8).astype(np.uint8))
    opaque = image.convert("RGB")
    back = through(opaque)
    assert isinstance(back.pixels, Image.Image)
    is_lossless = bool((np.asarray(back.pixels.convert("RGB")) == np.asarray(opaque)).all())
    depths = ["8", *(str(bits) for bits in form.deep_bits if is_held(form, bits, folder))]
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
        ", ".join(depths),
        yes(is_lossless),
        "no: laid on white" if shades == 0 else "on or off" if shades == 2 else "yes",
        yes(back.profile == srgb_profile()),
        yes(has_exif),
        yes(told.xmp is not None and read_done(told.xmp) == {"Seed": "7"}),
        yes(told.iptc == described().iptc),
        yes(max(abs(one - 300) for one in dpi) < 1),
    )


def stored_bits(path: Path) -> int:
    with path.open("rb") as file:
        return read_stored(file).bits


def is_held(form: Format, bits: int, folder: Path) -> bool:
    """Whether the picture comes back out of a file of so many bits, whose own steps it has."""
    path = folder / f"deep{form.suffixes[0]}"
    choice = FileOptions(bit_depth="auto" if bits == form.deep_bits[0] else "16", quality=100)
    write_image(smooth(), path, choice)
    found = read_file(path).pixels
    if not isinstance(found, np.ndarray):
        return False
    if bits == 16:
        return bool((found == smooth()).all())
    steps = found * ((2**bits - 1) / 65535)
    error = np.abs(found.astype(float) - smooth()).mean() / 65535
    is_exact = np.abs(steps - steps.round()).max() < 0.04
    return bool(is_exact and error < 0.5 / 255) and stored_bits(path) == bits


def through_alpha(form: Format, image: Image.Image, folder: Path) -> str:
    name = f"alpha{form.suffixes[0]}"
    write_image(image, folder / name)
    return name


@pytest.mark.parametrize("form", BY_NAME.values(), ids=list(BY_NAME))
def test_the_page_says_what_each_format_keeps(form: Format, tmp_path: Path) -> None:
    if form.deep_bits and form.name != "HEIF":
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


def written(up: Upscaler, form: Format, source: Path) -> str:
    """Bits of a result, or that it is refused."""
    path = source.with_name(f"result{form.suffixes[0]}")
    try:
        up(source, path)
    except OutputError:
        return "refused before any work"
    with Image.open(path) as image:
        return str(describe(image).bits)


@pytest.fixture(scope="module")
def up() -> Iterator[Upscaler]:
    with Upscaler(scale=1, device="cpu") as made:
        yield made


@pytest.mark.parametrize("choice", ["auto", "16", "8"])
@pytest.mark.parametrize("depth", [8, 16])
def test_the_page_says_how_many_bits_are_written(
    tmp_path: Path, up: Upscaler, choice: str, depth: int, caplog: pytest.LogCaptureFixture
) -> None:
    for package in ("pyvips", "pillow_heif"):
        pytest.importorskip(package)
    source = tmp_path / "source.png"
    flat = np.full((16, 16, 3), 40_000, np.uint16)
    write_image(flat if depth == 16 else Image.new("RGB", (16, 16), "gray"), source)
    lines = [x for x in PAGE.read_text(encoding="utf-8").splitlines() if x.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    head = next(row for row in rows if row[0] == "`--bit-depth`")
    body = [row for row in rows if row[0].split()[0] == choice and len(row) == len(head)]
    said = next(row for row in body if row[1] in ("any", "8" if depth == 8 else "more"))
    up.files = FileOptions(bit_depth=choice)  # type: ignore[arg-type]
    for group, cell in zip(head[2:], said[2:], strict=True):
        for name in group.replace("WebP", "WEBP").replace("HEIC", "HEIF").split(", "):
            caplog.clear()
            assert written(up, BY_NAME[name], source) == cell.split(",")[0], (name, cell)
            assert ("with a warning" in cell) == bool(caplog.messages), (name, cell)
