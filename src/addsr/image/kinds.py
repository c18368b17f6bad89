"""The kinds of picture a caller may hand in, and how each gets its own kind back.

Accepted: a path, a PIL image, an array `(H, W)` or `(H, W, 1..4)` of uint8, uint16 or floats in
[0, 1], a tensor `(B, 1 | 3 | 4, H, W)` of uint8 or floats in [0, 1]. Everything becomes a
`Picture`; a `Sink` takes the finished rows and ends as the kind that came in.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from addsr.errors import InputError

from .encoding import Encoding, convert_to_srgb, read_encoding
from .metadata import Metadata, read_metadata
from .options import IccChoice
from .reading import DEEP_GREYS, MAX_PIXELS, check_pixels, read_file, read_plain
from .sinks import ArraySink, DeepSink, Layout, PilSink, Sink, TensorSink
from .stored import describe, find_profile

log = logging.getLogger(__name__)

Kind = Literal["path", "pil", "array", "tensor"]
_LAYOUTS: dict[int, Layout] = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Picture:
    """One picture as the upscaler sees it."""

    rgb: Tensor
    """float32 `(1, 3, H, W)` in [0, 1] on the CPU; grey is repeated."""
    alpha: Tensor | None
    """float32 `(1, 1, H, W)` in [0, 1], None for opaque layouts."""
    layout: Layout
    bits: int = 8
    """Per channel of what came in; 32 for floats."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return int(self.rgb.shape[-2]), int(self.rgb.shape[-1])


@dataclass(frozen=True)
class Source:
    """What was handed in: its pictures (several for a batch tensor) and its kind."""

    pictures: Sequence[Picture]
    kind: Kind
    original: Any
    bytes_per_value: int
    """Of one channel of one output pixel, for the memory plan."""

    metadata: Metadata = field(default_factory=Metadata)
    """What the file, or the PIL image, says about the picture."""
    encoding: Encoding = field(default_factory=Encoding)
    name: str = "image"

    @property
    def profile(self) -> bytes | None:
        """The ICC profile of the pictures."""
        return self.encoding.profile

    @property
    def bits(self) -> int:
        """Per channel of the pictures."""
        return self.pictures[0].bits

    def sink(
        self,
        picture: Picture,
        height: int,
        width: int,
        bits: int | None = None,
        seed: int = 0,
        icc: IccChoice = "keep",
    ) -> Sink:
        """An empty result of this kind for one of the pictures.

        Args:
            bits: per channel of a file or PIL image, 8 or 16; None: what a PIL image can hold.
            seed: of the dither, where there were more bits than there are to be.
        """
        if self.kind == "array":
            return ArraySink(self.original, picture.layout, height, width)
        if self.kind == "tensor":
            return TensorSink(self.original, picture.layout, height, width)
        encoding = self.encoding.for_result(icc)
        if bits is None:
            bits = 16 if picture.bits == 16 and picture.layout == "L" else 8
        if bits == 16 and encoding.is_table and encoding.ends_as_srgb:
            raise InputError(
                f"{self.name}: its colour profile is made of tables and goes to sRGB in 8 bits "
                "only; take --bit-depth 8, or --icc keep"
            )
        if bits == 16:
            return DeepSink(picture.layout, height, width, encoding)
        if picture.bits == 16:
            log.warning("%s: has 16 bits per channel; the result has 8, dithered", self.name)
        dither = seed if picture.bits > 8 else None
        return PilSink(picture.layout, height, width, encoding, dither)

    def join(self, results: Sequence[Any]) -> Any:
        """The finished results as one object of this kind."""
        return torch.cat(list(results)) if self.kind == "tensor" else results[0]


def accept(image: Any, max_pixels: int = MAX_PIXELS) -> Source:
    """The `Source` for anything a caller may hand in.

    Raises:
        InputError: an unusable file, kind, shape, dtype or value range; the message says which.
    """
    if isinstance(image, (str, Path)) or hasattr(image, "__fspath__"):
        file = read_file(image, max_pixels)
        if isinstance(file.pixels, np.ndarray):
            picture = from_array(file.pixels, max_pixels)
            return _encoded(picture, file.profile, "path", None, file.metadata, str(image))
        picture, profile = _from_opened(file.pixels, file.profile)
        return _encoded(picture, profile, "path", None, file.metadata, str(image))
    if isinstance(image, Image.Image):
        check_pixels("image", image.width, image.height, max_pixels)
        stored = describe(image)
        metadata = read_metadata(image)
        profile = find_profile(image, stored, "image")
        if stored.bits > 8 and image.mode not in DEEP_GREYS:
            log.warning(
                "image: its file has %d bits per channel, of which Pillow gives 8; hand in the "
                "file's name for all",
                stored.bits,
            )  # fmt: skip
        turned = read_plain(image, "image", stored.bits)
        if profile:
            turned.info["icc_profile"] = profile
        picture, profile = _from_opened(turned, profile)
        return _encoded(picture, profile, "pil", turned, metadata, "image")
    if isinstance(image, np.ndarray):
        return Source([from_array(image, max_pixels)], "array", image, image.dtype.itemsize)
    if isinstance(image, Tensor):
        return Source(from_tensor(image, max_pixels), "tensor", image, image.element_size())
    raise InputError(
        f"image: {type(image).__name__} cannot be used; give a path, a PIL image, an array "
        "(H, W, 3) or a tensor (B, 3, H, W)"
    )


def _from_opened(image: Image.Image, profile: bytes | None) -> tuple[Picture, bytes | None]:
    """A `Picture` and the profile of its numbers; CMYK and Lab leave theirs behind for sRGB."""
    if image.mode in ("CMYK", "LAB"):
        image = convert_to_srgb(image, profile)
        profile = image.info.get("icc_profile")
    elif image.mode in ("YCbCr", "HSV"):
        profile = None  # it describes numbers that are gone after conversion
    return from_pil(
        image, keeps_colour=bool(profile) and (profile or b"")[16:20] == b"RGB "
    ), profile


def _encoded(
    picture: Picture,
    profile: bytes | None,
    kind: Kind,
    original: Any,
    metadata: Metadata,
    name: str,
) -> Source:
    """The `Source` of one picture, whose tone curve becomes sRGB's."""
    encoding = read_encoding(profile, is_grey=picture.layout.startswith("L"))
    picture = replace(picture, rgb=encoding.to_working(picture.rgb))
    return Source([picture], kind, original, 1, metadata, encoding, name)


def from_pil(image: Image.Image, *, keeps_colour: bool = False) -> Picture:
    """A `Picture` from any mode; 16-bit and float greys keep their precision up to the network.

    A palette of greys alone becomes grey unless `keeps_colour`, say for an RGB profile.
    """
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        values = np.asarray(image).astype(np.float32)
        if mode == "I" and float(values.min(initial=0)) < 0:
            raise InputError(
                "image: holds greys below 0, or beyond 2147483647; save it as unsigned 16 bits"
            )
        grey = np.nan_to_num(values / _white(values, mode)).clip(0, 1)[:, :, None]
        if "transparency" in image.info:
            clear = values[:, :, None] == image.info["transparency"]
            grey = np.concatenate([grey, np.where(clear, np.float32(0), np.float32(1))], axis=2)
        deep = mode != "I" or float(values.max(initial=0)) > 255
        return replace(_picture(grey), bits=16 if deep else 8)
    if mode in ("P", "PA", "1", "RGBa", "La") or "transparency" in image.info:
        clear = mode in ("PA", "RGBa", "La") or "transparency" in image.info
        is_grey = mode in ("1", "L", "La") or (_is_grey_palette(image) and not keeps_colour)
        image = image.convert(("LA" if clear else "L") if is_grey else "RGBA" if clear else "RGB")
    elif mode not in ("L", "LA", "RGB", "RGBA"):
        try:
            image = image.convert("RGB")
        except ValueError as error:
            raise InputError(
                f"image: mode {mode!r} cannot be used; convert it to RGB first"
            ) from error
    values = np.asarray(image)
    values = values.reshape(image.height, image.width, -1)
    return _picture(values.astype(np.float32) / 255)


def _is_grey_palette(image: Image.Image) -> bool:
    if image.mode not in ("P", "PA") or image.palette is None:
        return False
    # colours that no pixel has do not count: palettes are filled up with anything
    # not "RGB": Pillow warns of palettes of many alphas then
    used: Any = image.convert("RGBA").getcolors(256)
    return bool(used) and all(r == g == b for _, (r, g, b, _) in used)


def _white(values: np.ndarray, mode: str) -> float:
    """The value that stands for white; "I" and "F" files do not say, so the range decides."""
    if mode.startswith("I;16"):
        return 65535.0
    top = float(np.nanmax(values, initial=0.0))
    if mode == "F" and top <= 1:
        return 1.0
    return 255.0 if top <= 255 else max(65535.0, top)


def from_array(array: np.ndarray, max_pixels: int = MAX_PIXELS) -> Picture:
    """A `Picture` from `(H, W)` or `(H, W, C)`, C of 1 to 4: grey, grey + alpha, RGB, RGBA."""
    shape = array.shape
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in _LAYOUTS):
        raise InputError(f"image: an array of shape {shape} cannot be used; give (H, W, 3)")
    check_pixels("image", shape[1], shape[0], max_pixels)
    values = array if array.ndim == 3 else array[:, :, None]
    if array.dtype.name in ("uint8", "uint16"):
        picture = _picture(values.astype(np.float32) / np.iinfo(array.dtype).max)
        return replace(picture, bits=8 * array.dtype.itemsize)
    if not np.issubdtype(array.dtype, np.floating):
        way = (
            "array.astype(np.float32) makes 0 and 1 of it"
            if array.dtype == np.bool_
            else "array.astype(np.uint8) does for values from 0 to 255"
        )
        raise InputError(
            f"image: an array of {array.dtype} cannot be used; give uint8, uint16 or floats ({way})"
        )
    checked = _checked(torch.from_numpy(values.astype(np.float32)))
    return replace(_picture(checked.numpy()), bits=32)


def from_tensor(tensor: Tensor, max_pixels: int = MAX_PIXELS) -> list[Picture]:
    """One `Picture` per entry of `(B, C, H, W)`, C of 1 to 4, uint8 or floating point."""
    shape = tuple(tensor.shape)
    if tensor.ndim != 4 or shape[1] not in _LAYOUTS or shape[0] == 0:
        hint = "; add the batch axis with tensor[None]" if tensor.ndim == 3 else ""
        raise InputError(f"image: tensor shape {shape} cannot be used; give (B, 3, H, W){hint}")
    check_pixels("image", shape[3], shape[2], max_pixels)
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        way = (
            "tensor.float() makes 0 and 1 of it"
            if tensor.dtype == torch.bool
            else "tensor.to(torch.uint8) does for values from 0 to 255"
        )
        raise InputError(
            f"image: a tensor of {tensor.dtype} cannot be used; give uint8 or floats in [0, 1] "
            f"({way})"
        )
    values = tensor.detach().to("cpu", torch.float32)
    values = values / 255 if tensor.dtype == torch.uint8 else _checked(values)
    bits = 8 if tensor.dtype == torch.uint8 else 32
    return [replace(_picture(one.permute(1, 2, 0).numpy()), bits=bits) for one in values]


def _checked(values: Tensor) -> Tensor:
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(
            "image: holds NaN or infinity; look where they come from, or replace them "
            "with numbers in [0, 1]"
        )
    # a little outside is what float pipelines produce; 0..255 or -1..1 is a mistake to tell
    if low < -0.01 or high > 1.01:
        signed = -1.01 <= low < -0.01 and high <= 1.01
        way = "(x + 1) / 2 for values in [-1, 1]" if signed else "divide 8-bit values by 255"
        raise InputError(
            f"image: float values run from {low:.4g} to {high:.4g}; they must lie in [0, 1] ({way})"
        )
    return values.clamp(0, 1)


def _picture(values: np.ndarray) -> Picture:
    """From float32 `(H, W, C)` in [0, 1]."""
    x = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]
    layout = _LAYOUTS[x.shape[1]]
    alpha = x[:, -1:] if layout in ("LA", "RGBA") else None
    rgb = x[:, :3] if layout.startswith("RGB") else x[:, :1].expand(-1, 3, -1, -1)
    return Picture(rgb.contiguous(), alpha, layout)
