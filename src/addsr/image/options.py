"""How files are written, as the user asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from addsr.errors import OptionError

BitDepth = Literal["auto", "8", "16"]
IccChoice = Literal["keep", "srgb", "strip"]
MetadataChoice = Literal["keep", "strip"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "bit_depth": ("auto", "8", "16"),
    "icc": ("keep", "srgb", "strip"),
    "metadata": ("keep", "strip"),
}


@dataclass(frozen=True)
class FileOptions:
    """What a result's file holds besides the picture, and how finely."""

    quality: int | None = None
    """From 1 to 100 for JPEG, WebP, AVIF and HEIC. [default: 95; AVIF and HEIC 90]"""
    bit_depth: BitDepth = "auto"
    """Bits per channel; auto keeps more than 8 where the source has and the format holds them; HEIC
    and AVIF hold 10 then, and 12 where 16 are asked for."""
    icc: IccChoice = "keep"
    """Colour profile: keep the file's own, convert to sRGB, or strip it and leave the numbers."""
    metadata: MetadataChoice = "keep"
    """keep writes the source's EXIF, XMP and IPTC and what was done; strip writes neither."""

    def __post_init__(self) -> None:
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise OptionError(
                f"quality: {self.quality} is outside of 1 to 100; leave it out for the usual one"
            )
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise OptionError(f"{name}: {value!r} is unknown; use one of {', '.join(allowed)}")


USUAL_FILES = FileOptions()
"""What is done where nothing is asked for."""
