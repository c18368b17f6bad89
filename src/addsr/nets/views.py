"""What a discriminator is shown of a picture: moved, with a hole, and sometimes a part of it only.

Differentiable augmentation (arXiv 2006.10738) keeps a discriminator from learning the training set
by heart; only what a picture can be shown under is drawn here, so gradients pass through.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.errors import OptionError

_GREY = 0.5
"""What fills gaps: 0 in pictures of -1 to 1."""


@dataclass(frozen=True)
class ViewSpec:
    """How strongly views differ from their pictures; the defaults are AddSR's."""

    shift: float = 0.125
    """Largest move to each side, as a share of the side."""
    hole: float = 0.2
    """Sides of the filled rectangle, as a share of the picture's; 0 leaves it out."""
    crop_px: int = 224
    """Side of the part that is cut out."""
    crop_share: float = 0.5
    """How often it is, of pictures that are wider."""

    def __post_init__(self) -> None:
        for name in ("shift", "hole", "crop_share"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise OptionError(f"{name}: {value} is not between 0 and 1")
        if self.crop_px < 1:
            raise OptionError(f"crop_px: {self.crop_px} is no side of a picture; give 1 or more")


PLAIN = ViewSpec(shift=0.0, hole=0.0, crop_share=0.0)
"""Pictures as they are."""


@dataclass(frozen=True)
class View:
    """The draws of one call, on the device of their generator."""

    move: Tensor
    """`(B, 2)` pixels down and right."""
    hole: Tensor
    """`(B, 2)` row and column of the hole's middle."""
    hole_px: tuple[int, int]
    crop: tuple[int, int, int] | None
    """Top, left and side of the part that is kept of all pictures; None keeps all."""


def draw_view(picture: Tensor, spec: ViewSpec, generator: torch.Generator) -> View:
    """A view of each picture of `(B, 3, H, W)`; where it is cut, all are cut alike.

    With a generator on the CPU nothing waits for the picture's device.
    """
    n, height, width = len(picture), *picture.shape[-2:]

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=generator.device)

    def below(limits: tuple[int, int]) -> Tensor:
        """Whole numbers `(B, 2)` from 0, below `limits`."""
        size = torch.tensor(limits, device=generator.device)
        return torch.minimum((rand(n, 2) * size).long(), size - 1)

    reach = tuple(int(side * spec.shift + 0.5) for side in (height, width))
    centre = torch.tensor(reach, device=generator.device)
    move = below((2 * reach[0] + 1, 2 * reach[1] + 1)) - centre
    hole_px = (int(height * spec.hole + 0.5), int(width * spec.hole + 0.5))
    # the middle of a hole of even size lies between pixels, and may lie behind the last one
    middle = below((height + 1 - hole_px[0] % 2, width + 1 - hole_px[1] % 2))
    side, crop = spec.crop_px, None
    if width > side and height >= side and float(rand(1)) < spec.crop_share:
        top, left = below((height - side + 1, width - side + 1))[0].tolist()
        crop = (top, left, side)
    return View(move, middle, hole_px, crop)


def show(picture: Tensor, view: View) -> Tensor:
    """`picture` `(B, 3, H, W)` in [0, 1] under `view`; gaps are grey."""
    n, height, width = len(picture), *picture.shape[-2:]
    down, right = view.move.to(picture.device).unbind(1)
    rows = torch.arange(height, device=picture.device)
    columns = torch.arange(width, device=picture.device)
    # the picture has a rim of one grey pixel, where all that lies outside is read
    from_rows = (rows - down[:, None] + 1).clamp(0, height + 1)
    from_columns = (columns - right[:, None] + 1).clamp(0, width + 1)
    padded = F.pad(picture, (1, 1, 1, 1), value=_GREY)
    sample = torch.arange(n, device=picture.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[sample, from_rows[:, :, None], from_columns[:, None, :]]
    moved = moved.permute(0, 3, 1, 2)
    if all(view.hole_px):
        inside: list[Tensor] = []
        for k, place in enumerate((rows, columns)):
            first = view.hole[:, k].to(picture.device)[:, None] - view.hole_px[k] // 2
            inside.append((place >= first) & (place < first + view.hole_px[k]))
        is_hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        moved = torch.where(is_hole, _GREY, moved)
    if view.crop is None:
        return moved
    top, left, side = view.crop
    return moved[..., top : top + side, left : left + side]
