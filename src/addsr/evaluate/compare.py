"""Pictures of the same scene under one slider: one page that needs nothing but itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from addsr import __version__
from addsr.errors import InputError, OptionError
from addsr.image.reading import read_image

from .embed import assemble, check_page, data_block, to_json, write_whole
from .packing import LONGEST_SIDE, LOSSLESS, PACKINGS, to_text

BUDGET_BYTES = 48_000_000
"""Of base64, all pictures together; more than a report's, as a page holds few."""
MOST = 8
_WHOLE = tuple(packing for packing in PACKINGS if packing.side is None)
_SCRIPTS = ("core.js", "zoom.js", "compare.js")


@dataclass(frozen=True)
class CompareSummary:
    """What `write_compare_page` wrote."""

    size_bytes: int
    packing: str
    """How the pictures are stored, in words."""


def write_compare_page(
    pictures: Sequence[Path],
    path: Path,
    *,
    titles: Sequence[str] | None = None,
    budget_bytes: int = BUDGET_BYTES,
) -> CompareSummary:
    """Writes one self-contained page that shows `pictures` over each other, whole or not at all.

    Pictures of different sizes are laid over one another at the size of the largest; the smaller
    ones are enlarged by the browser, in squares from 200 % on. The same input gives the same bytes.

    Args:
        pictures: 2 to 8 files of the same scene.
        titles: their names on the page; the files' names without it.
        budget_bytes: most bytes that pictures may take: lossless if that fits, else WebP.

    Raises:
        OptionError: fewer than 2 or more than 8 pictures, another number of titles, or `path` is no
            name for a page.
        InputError: a picture cannot be read, is too long for a page or of another shape.
        OutputError: `path` cannot be written.
    """
    if not 2 <= len(pictures) <= MOST:
        raise OptionError(f"compare: {len(pictures)} pictures cannot be compared; give 2 to {MOST}")
    if titles is not None and len(titles) != len(pictures):
        raise OptionError(
            f"titles: {len(titles)} for {len(pictures)} pictures; give one for each of them"
        )
    check_page(path)
    for one in pictures:  # whatever its name
        if os.path.realpath(one) == os.path.realpath(path):
            raise OptionError(f"output: {path} is a picture to compare; give another name")
    images = [_read(one) for one in pictures]
    frame = max((image.size for image in images), key=lambda size: size[0] * size[1])
    for one, image in zip(pictures, images, strict=True):
        _check_shape(one, image.size, frame)
    texts: list[str] = []
    packing = LOSSLESS
    for packing in _WHOLE:
        texts = [to_text(packing.encode(image)) for image in images]
        if sum(map(len, texts)) <= budget_bytes:
            break
    names = list(titles) if titles is not None else _names(pictures)
    index = {
        "frame": frame,
        "packing": str(packing),
        "made_by": f"addsr {__version__}",
        "pictures": [
            {"title": title, "size": image.size} for title, image in zip(names, images, strict=True)
        ],
    }
    page = assemble(
        "compare.html",
        styles=("base.css", "compare.css"),
        scripts=_SCRIPTS,
        texts={"title": f"{' / '.join(names)} - addsr compare"},
        blocks=[
            data_block("compare-data", to_json(index)),
            *(data_block(f"picture-{i}", to_json(text)) for i, text in enumerate(texts)),
        ],
    )
    write_whole(path, page)
    return CompareSummary(len(page.encode("utf-8", "backslashreplace")), str(packing))


def _read(path: Path) -> Image.Image:
    """The picture as it looks on white; pages hold no transparency."""
    image = read_image(path)
    if max(image.size) > LONGEST_SIDE:
        raise InputError(
            f"{path}: {image.width}x{image.height} is too long for a page, which holds sides up to "
            f"{LONGEST_SIDE}; compare a part of it"
        )
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        clear = image.convert("RGBA")
        image = Image.new("RGBA", clear.size, "white")
        image.alpha_composite(clear)
    return image.convert("RGB")


def _check_shape(path: Path, size: tuple[int, int], frame: tuple[int, int]) -> None:
    """InputError where `size`, enlarged to the frame's width, misses its height by much.

    A rounded side is up to half a pixel of the smaller picture off, hence one pixel of it.
    """
    exact = size[0] * frame[1] / frame[0]
    if abs(exact - size[1]) > max(1.0, 0.01 * size[1]):
        raise InputError(
            f"{path}: {size[0]}x{size[1]} has another shape than {frame[0]}x{frame[1]}; "
            "give pictures of the same scene, uncut"
        )


def _names(pictures: Sequence[Path]) -> list[str]:
    """Names of the files; with their folders where those alone tell them apart."""
    short = [one.name for one in pictures]
    return [
        name if short.count(name) == 1 else str(one)
        for name, one in zip(short, pictures, strict=True)
    ]
