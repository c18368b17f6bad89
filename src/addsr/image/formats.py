"""The file formats: what each can hold, and how it is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from addsr.errors import DependencyError, OutputError

from .options import FileOptions


@dataclass(frozen=True)
class Format:
    """One file format; `name` is Pillow's."""

    name: str
    suffixes: tuple[str, ...]
    longest_side: int | None = None
    """Pixels a side may have."""
    deep_bits: tuple[int, ...] = ()
    """Bits per channel beyond 8 that it is written with: the usual number first, the most last."""
    greys: tuple[str, ...] = ("L", "LA")
    """Layouts of grey that are written as they are; others become colour."""
    has_alpha: bool = True
    has_profile: bool = True
    has_exif: bool = True
    has_xmp: bool = True
    has_iptc: bool = False
    has_resolution: bool = True
    quality: int | None = None
    """Where the user gives none; None: there is no such setting."""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    """What else the encoder is told."""


_ALL = (
    Format("PNG", (".png",), deep_bits=(16,), settings={"compress_level": 4}),
    Format(
        "JPEG", (".jpg", ".jpeg", ".jfif"), longest_side=65_500, has_alpha=False, has_iptc=True,
        quality=95, settings={"subsampling": 0},
    ),
    Format("WEBP", (".webp",), longest_side=16_383, greys=(), quality=95),
    Format(
        "AVIF", (".avif",), longest_side=65_536, deep_bits=(10, 12), greys=("L",),
        quality=90, settings={"subsampling": "4:4:4"},
    ),
    Format(
        "TIFF", (".tif", ".tiff"), deep_bits=(16,), has_iptc=True,
        settings={"compression": "tiff_adobe_deflate"},
    ),
    Format(
        "BMP", (".bmp",), has_alpha=False, has_profile=False, has_exif=False, has_xmp=False,
        settings={"dpi": (0, 0)},  # unknown, where Pillow would state 96
    ),
    Format(
        "GIF", (".gif",), longest_side=65_535, has_profile=False, has_exif=False, has_xmp=False,
        has_resolution=False,
    ),
    Format(
        "HEIF", (".heic", ".heif", ".hif"), longest_side=16_384, deep_bits=(10, 12), greys=("L",),
        quality=90, settings={"chroma": 444},
    ),
)  # fmt: skip
BY_NAME = {one.name: one for one in _ALL}
FORMATS = {suffix: one.name for one in _ALL for suffix in one.suffixes}
"""Suffixes that can be written, and Pillow's name of their format."""


KEPT_SUFFIXES = frozenset(FORMATS) - {".gif"}
"""Those that a result takes over from its input; 256 colours would spoil an enlarged GIF."""


def find_format(path: str | Path) -> Format:
    """The format for the suffix of `path`.

    Raises:
        OutputError: the suffix is none that can be written.
    """
    path = Path(path)
    try:
        return BY_NAME[FORMATS[path.suffix.lower()]]
    except KeyError:
        raise OutputError(
            f"{path}: suffix {path.suffix!r} cannot be written; use one of {', '.join(FORMATS)}"
        ) from None


def encoder_settings(form: Format, files: FileOptions) -> dict[str, Any]:
    """Keyword arguments of Pillow's `save` for a format."""
    settings = dict(form.settings)
    if form.quality is not None:
        settings["quality"] = form.quality if files.quality is None else files.quality
    return settings


def check_encoder(form: Format) -> None:
    """Raises DependencyError where what writes (and reads) this format is not installed."""
    from PIL import features

    if form.name == "HEIF":
        register_heif()
    elif form.name == "AVIF" and not features.check("avif"):
        raise DependencyError(
            "AVIF: this Pillow neither reads nor writes it; install 11.3 or newer: "
            "pip install -U pillow"
        )


def register_heif() -> Any:
    """The module pillow_heif, after it taught Pillow HEIC and HEIF.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        import pillow_heif
    except ImportError as error:
        raise DependencyError(
            "HEIC and HEIF need pillow-heif; install it: pip install 'addsr[heif]'"
        ) from error
    # thumbnails would be made anew from the enlarged picture at the cost of a second encoding
    pillow_heif.register_heif_opener(thumbnails=False)
    return pillow_heif
