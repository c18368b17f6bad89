"""The kinds of picture a caller may hand in, and how each gets its own kind back.

Accepted: a path, a PIL image, an array `(H, W)` or `(H, W, 1..4)` of uint8, uint16 or floats in
[0, 1], a tensor `(B, 1 | 3 | 4, H, W)` of uint8 or floats in [0, 1]. Everything becomes a
`Picture`; a `Sink` takes the finished rows and ends as the kind that came in.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from addsr.errors import InputError

from .io import MAX_PIXELS, check_pixels, load, read_image, upright, warn_of_depth

log = logging.getLogger(__name__)

Layout = Literal["L", "LA", "RGB", "RGBA"]
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
    """Per channel of an array of whole numbers; of files and PIL images `accept` tells itself."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return int(self.rgb.shape[-2]), int(self.rgb.shape[-1])


class Sink(Protocol):
    """Takes finished rows `(1, channels, rows, W)` in [0, 1] from top to bottom."""

    def write(self, rows: Tensor) -> None: ...

    def result(self) -> Any: ...


@dataclass(frozen=True)
class Source:
    """What was handed in: its pictures (several for a batch tensor) and its kind."""

    pictures: Sequence[Picture]
    kind: Literal["path", "pil", "array", "tensor"]
    original: Any
    bytes_per_value: int
    """Of one channel of one output pixel, for the memory plan."""

    def sink(self, picture: Picture, height: int, width: int) -> Sink:
        """An empty result of this kind for one of the pictures."""
        if self.kind == "array":
            return ArraySink(self.original, picture.layout, height, width)
        if self.kind == "tensor":
            return TensorSink(self.original, picture.layout, height, width)
        profile: Any = self.original.info.get("icc_profile") if self.kind == "pil" else None
        if self.kind == "path":
            profile = self.original
        if picture.bits > 8:  # an array on its way into a file
            log.warning("image: has %d bits per channel; the result has 8", picture.bits)
        return PilSink(picture.layout, height, width, profile)

    def join(self, results: Sequence[Any]) -> Any:
        """The finished results as one object of this kind."""
        return torch.cat(list(results)) if self.kind == "tensor" else results[0]


def accept(image: Any, max_pixels: int = MAX_PIXELS) -> Source:
    """The `Source` for anything a caller may hand in.

    Raises:
        InputError: an unusable file, kind, shape, dtype or value range; the message says which.
    """
    if isinstance(image, (str, Path)) or hasattr(image, "__fspath__"):
        opened = read_image(image, max_pixels)
        profile = _profile(opened)
        return Source([from_pil(opened)], "path", profile, 1)
    if isinstance(image, Image.Image):
        check_pixels("image", image.width, image.height, max_pixels)
        warn_of_depth(image, "image")
        load(image, "image")
        turned = upright(image)
        turned.info["icc_profile"] = _profile(turned)
        return Source([from_pil(turned)], "pil", turned, 1)
    if isinstance(image, np.ndarray):
        return Source([from_array(image, max_pixels)], "array", image, image.dtype.itemsize)
    if isinstance(image, Tensor):
        return Source(from_tensor(image, max_pixels), "tensor", image, image.element_size())
    raise InputError(
        f"image: {type(image).__name__} cannot be used; give a path, a PIL image, an array "
        "(H, W, 3) or a tensor (B, 3, H, W)"
    )


def _profile(image: Image.Image) -> bytes | None:
    # a CMYK or Lab profile describes numbers that are gone after conversion to RGB
    keeps = image.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA") or image.mode.startswith("I")
    return image.info.get("icc_profile") if keeps else None


def from_pil(image: Image.Image) -> Picture:
    """A `Picture` from any mode; 16-bit and float greys keep their precision up to the network."""
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        values = np.asarray(image).astype(np.float32)
        grey = np.nan_to_num(values / _white(values, mode)).clip(0, 1)
        return _picture(grey[:, :, None])
    if mode in ("P", "PA", "1", "RGBa", "La") or "transparency" in image.info:
        clear = mode in ("PA", "RGBa", "La") or "transparency" in image.info
        palette_grey = mode in ("1", "La") or (mode == "L")
        image = image.convert(("LA" if palette_grey else "RGBA") if clear else _opaque(mode))
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


def _opaque(mode: str) -> str:
    return "L" if mode == "1" else "RGB"


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
    return _picture(_checked(torch.from_numpy(values.astype(np.float32))).numpy())


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
    return [_picture(one.permute(1, 2, 0).numpy()) for one in values]


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


def _channels(rows: Tensor, layout: Layout) -> Tensor:
    """RGB(A) rows reduced to the layout; grey by the weights of BT.601, as Pillow does."""
    rows = rows.clamp(0, 1)
    if layout.startswith("L"):
        weights = rows.new_tensor([0.299, 0.587, 0.114])[:, None, None]
        grey = (rows[:, :3] * weights).sum(dim=1, keepdim=True)
        rows = torch.cat([grey, rows[:, 3:]], dim=1)
    return rows


def _whole(rows: Tensor, top: int) -> Tensor:
    return (rows * top).round_().clamp_(0, top)


class PilSink:
    """Rows pasted into a PIL image as they come, so no second copy of the result is held."""

    def __init__(self, layout: Layout, height: int, width: int, profile: bytes | None) -> None:
        self.layout: Layout = layout
        self.top = 0
        self.image = Image.new(layout, (width, height))
        if profile:
            self.image.info["icc_profile"] = profile

    def write(self, rows: Tensor) -> None:
        values = _whole(_channels(rows, self.layout)[0].permute(1, 2, 0), 255).byte().numpy()
        values = np.ascontiguousarray(values)
        size = (values.shape[1], values.shape[0])
        band = Image.frombytes(self.layout, size, values.tobytes())
        self.image.paste(band, (0, self.top))
        self.top += values.shape[0]

    def result(self) -> Image.Image:
        return self.image


class ArraySink:
    """Rows into an array of the dtype and number of axes that came in."""

    def __init__(self, like: np.ndarray, layout: Layout, height: int, width: int) -> None:
        shape = (height, width) if like.ndim == 2 else (height, width, like.shape[2])
        self.layout: Layout = layout
        self.top = 0
        self.array = np.empty(shape, like.dtype)

    def write(self, rows: Tensor) -> None:
        values = _channels(rows, self.layout)[0].permute(1, 2, 0)
        if np.issubdtype(self.array.dtype, np.integer):
            values = _whole(values, np.iinfo(self.array.dtype).max)
        flat = values.numpy()
        bottom = self.top + flat.shape[0]
        self.array[self.top : bottom] = flat[:, :, 0] if self.array.ndim == 2 else flat
        self.top = bottom

    def result(self) -> np.ndarray:
        return self.array


class TensorSink:
    """Rows into a tensor `(1, C, H, W)` of the dtype and on the device that came in."""

    def __init__(self, like: Tensor, layout: Layout, height: int, width: int) -> None:
        self.layout: Layout = layout
        self.top = 0
        self.device = like.device
        self.tensor = torch.empty(1, like.shape[1], height, width, dtype=like.dtype)

    def write(self, rows: Tensor) -> None:
        values = _channels(rows, self.layout)
        if self.tensor.dtype == torch.uint8:
            values = _whole(values, 255)
        bottom = self.top + rows.shape[-2]
        self.tensor[..., self.top : bottom, :] = values.to(self.tensor.dtype)
        self.top = bottom

    def result(self) -> Tensor:
        return self.tensor.to(self.device)
