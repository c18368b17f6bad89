"""Results as they grow: rows come in from top to bottom, and end as what the caller handed in."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .encoding import Encoding, convert_to_srgb

Layout = Literal["L", "LA", "RGB", "RGBA"]


class Sink(Protocol):
    """Takes finished rows `(1, channels, rows, W)` in [0, 1] from top to bottom."""

    def write(self, rows: Tensor) -> None: ...

    def result(self) -> Any: ...


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


def _file_values(rows: Tensor, layout: Layout, encoding: Encoding) -> np.ndarray:
    """Rows as float32 `(h, W, C)` in [0, 1] in the encoding of their file."""
    rows = _channels(rows, layout)
    colours = 1 if layout.startswith("L") else 3
    rows = torch.cat([encoding.from_working(rows[:, :colours]), rows[:, colours:]], dim=1)
    return np.ascontiguousarray(rows[0].permute(1, 2, 0).numpy())


class PilSink:
    """Rows pasted into a PIL image as they come, so no second copy of the result is held.

    With a `dither` seed colours are rounded up or down by chance, up the more often the nearer
    they are to the upper step: smooth ramps stay smooth, and values that need no rounding, such
    as white, stay what they are. The same seed gives the same pixels under any banding.
    """

    def __init__(
        self,
        layout: Layout,
        height: int,
        width: int,
        encoding: Encoding | None = None,
        dither: int | None = None,
    ) -> None:
        self.layout: Layout = layout
        self.top = 0
        self.image = Image.new(layout, (width, height))
        self.encoding = encoding or Encoding()
        self.chance = None if dither is None else np.random.default_rng(dither % 2**64)

    def write(self, rows: Tensor) -> None:
        values = _file_values(rows, self.layout, self.encoding) * 255
        if self.chance is not None:
            colours = 1 if self.layout.startswith("L") else 3
            shape = (*values.shape[:2], colours)
            # values that came from whole steps are off by float32's rounding only
            whole = np.round(values[..., :colours])
            near = np.abs(values[..., :colours] - whole) < 1e-3
            dithered = np.floor(values[..., :colours] + self.chance.random(shape, np.float32))
            values[..., :colours] = np.where(near, whole, dithered)
        whole = values.round().clip(0, 255).astype(np.uint8)
        size = (whole.shape[1], whole.shape[0])
        band = Image.frombytes(self.layout, size, whole.tobytes())
        self.image.paste(band, (0, self.top))
        self.top += whole.shape[0]

    def result(self) -> Image.Image:
        image, encoding = self.image, self.encoding
        if encoding.is_table and encoding.ends_as_srgb:
            image = convert_to_srgb(image, encoding.original)
        if encoding.profile:
            image.info["icc_profile"] = encoding.profile
        return image


class DeepSink:
    """Rows into uint16 `(H, W, C)`, or a PIL image of 16 bits for grey, which Pillow holds."""

    def __init__(self, layout: Layout, height: int, width: int, encoding: Encoding) -> None:
        self.layout: Layout = layout
        self.top = 0
        self.encoding = encoding
        self.array = np.empty((height, width, len(layout)), np.uint16)

    def write(self, rows: Tensor) -> None:
        values = _file_values(rows, self.layout, self.encoding)
        bottom = self.top + values.shape[0]
        self.array[self.top : bottom] = (values * 65535).round().clip(0, 65535)
        self.top = bottom

    def result(self) -> Any:
        if self.layout != "L":
            return self.array
        image = Image.fromarray(self.array[:, :, 0])
        if self.encoding.profile:
            image.info["icc_profile"] = self.encoding.profile
        return image


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
