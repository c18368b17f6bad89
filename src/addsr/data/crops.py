"""Random square crops of pictures that stay on the device.

All pictures lie in one long table of pixels, so that one gather fetches crops from pictures of any
size. Which crops is decided on the host; nothing waits for the device.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.errors import ConfigError, OptionError

log = logging.getLogger(__name__)

_CELL = 32
"""Side of the cells in which texture is measured."""

_SHRINK = (0.6, 1.0)
"""Range of the factors of rescaled crops."""


class CropSource:
    """Crops of side `crop_px` from uint8 `(N, 3, S, S)` pictures, kept on `device`.

    Pictures are chosen by area. A `rescaled` share of the groups of `group` crops is cut larger and
    shrunk by 0.6 to 1; a `textured` share of the crops is the one of two tries with more texture.

    Raises:
        ConfigError: no picture is large enough; smaller ones are left out with a warning.
        OptionError: a share outside 0 to 1, or pictures of the wrong type.
    """

    def __init__(
        self,
        pictures: Sequence[Tensor],
        crop_px: int,
        device: torch.device,
        *,
        rescaled: float = 0.3,
        textured: float = 0.5,
        group: int = 8,
    ) -> None:
        for name, share in (("rescaled", rescaled), ("textured", textured)):
            if not 0 <= share <= 1:
                raise OptionError(f"{name} = {share} is not allowed; give a number from 0 to 1")
        self.crop_px, self.device, self.group = crop_px, device, group
        self.rescaled, self.textured = rescaled, textured
        usable = [p for p in pictures if _checked(p) and min(p.shape[-2:]) >= crop_px]
        lost = sum(len(p) for p in pictures) - sum(len(p) for p in usable)
        if not usable:
            raise ConfigError(
                f"crop_px = {crop_px} is larger than every training picture ({lost} of them); "
                "give larger pictures or a smaller crop_px"
            )
        if lost:
            log.warning("%d pictures are smaller than crop_px = %d (left out)", lost, crop_px)
        counts = torch.tensor([len(p) for p in usable])
        sides = torch.tensor([p.shape[-1] for p in usable])
        self._side = sides.repeat_interleave(counts)  # (N,) on the host, as all that decides
        area = self._side**2
        self._start = area.cumsum(0) - area  # first pixel of each picture in the table
        self._share = area.double() / area.sum()
        pixels = torch.empty((int(area.sum()), 3), dtype=torch.uint8, device=device)
        cells: list[Tensor] = []
        at = 0
        for batch in usable:
            for few in batch.split(64):  # never two copies of everything
                few = few.to(device)
                flat = few.permute(0, 2, 3, 1).reshape(-1, 3)
                pixels[at : at + len(flat)] = flat
                at += len(flat)
                cells += list(_texture(few).cpu())
        self._pixels = pixels
        # (N, rows, columns), the short ones filled up; only their own cells are looked up
        most = max(c.shape[-1] for c in cells)
        self._cells = torch.stack(
            [F.pad(c, (0, most - c.shape[1], 0, most - c.shape[0])) for c in cells]
        )
        self._largest = int(sides.max())

    def __len__(self) -> int:
        return len(self._side)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` crops, uint8 `(count, 3, P, P)` on the device; `generator` is a CPU generator."""
        return self.draw_numbered(count, generator)[0]

    def draw_numbered(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What `draw` gives, and the number of the picture `(count,)` that each crop is of."""
        sizes = [min(self.group, count - start) for start in range(0, count, self.group)]
        rolls = torch.rand(len(sizes), 2, generator=generator, dtype=torch.float64).tolist()
        windows: dict[int, int] = {}
        low, high = _SHRINK
        for number, (chance, where) in enumerate(rolls):
            if chance < self.rescaled:
                window = round(self.crop_px / (low + (high - low) * where))
                windows[number] = min(window, self._largest)
        plain = sum(n for number, n in enumerate(sizes) if number not in windows)
        parts = [self._gather(plain, self.crop_px, generator)] if plain else []
        for number, window in windows.items():
            large, pictures = self._gather(sizes[number], window, generator)
            parts.append((_shrink(large, self.crop_px), pictures))
        crops, numbers = (torch.cat(column) for column in zip(*parts, strict=True))
        return crops, numbers

    def picture(self, number: int) -> Tensor:
        """A picture whole, uint8 `(3, S, S)` on the device."""
        side, start = int(self._side[number]), int(self._start[number])
        return self._pixels[start : start + side**2].view(side, side, 3).permute(2, 0, 1)

    def _gather(self, count: int, window: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        picture, y, x = self._choose(count, window, generator)
        table = torch.stack(
            (self._start[picture] + y * self._side[picture] + x, self._side[picture])
        )
        if self.device.type == "cuda":
            table = table.pin_memory()
        corner, stride = table.to(self.device, non_blocking=True).unbind()
        axis = torch.arange(window, device=self.device)
        rows = corner[:, None] + axis * stride[:, None]  # (B, window)
        index = (rows[:, :, None] + axis).flatten()
        crops = self._pixels.index_select(0, index).view(count, window, window, 3)
        return crops.permute(0, 3, 1, 2).contiguous(), picture

    def _choose(
        self, count: int, window: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers of pictures and top left corners `(count,)`."""
        share = torch.where(self._side >= window, self._share, 0.0)
        picture = torch.multinomial(share, 2 * count, replacement=True, generator=generator)
        room = (self._side[picture] - window + 1).double()
        place = torch.rand(2, 2 * count, generator=generator, dtype=torch.float64)
        y, x = (place * room).long()
        texture = self._texture_at(picture, y, x, window)
        is_second = (texture[count:] > texture[:count]) & (
            torch.rand(count, generator=generator) < self.textured
        )
        chosen = torch.arange(count) + count * is_second.long()
        return picture[chosen], y[chosen], x[chosen]

    def _texture_at(self, picture: Tensor, y: Tensor, x: Tensor, window: int) -> Tensor:
        """Mean texture at a 3 x 3 grid of points in each window."""
        total = torch.zeros(len(picture))
        for down in (1, 3, 5):
            for right in (1, 3, 5):
                row = (y + window * down // 6) // _CELL
                column = (x + window * right // 6) // _CELL
                total += self._cells[picture, row, column]
        return total


def _checked(pictures: Tensor) -> bool:
    shape = tuple(pictures.shape)
    if pictures.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise OptionError(
            f"pictures have shape {shape} and type {pictures.dtype}; give uint8 (N, 3, S, S)"
        )
    return True


def _texture(pictures: Tensor) -> Tensor:
    """Mean absolute gradient of the green channel in cells of 32 x 32, `(N, rows, columns)`."""
    green = pictures[:, 1:2].float()
    slope = F.pad(green.diff(dim=-1).abs(), (0, 1)) + F.pad(green.diff(dim=-2).abs(), (0, 0, 0, 1))
    return F.avg_pool2d(slope, _CELL, ceil_mode=True)[:, 0]


def _shrink(x: Tensor, size: int) -> Tensor:
    if x.shape[-1] == size:
        return x
    small = F.interpolate(x.float(), size=(size, size), mode="bicubic", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)
