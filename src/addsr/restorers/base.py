"""What the upscaler asks of a model, and the step counter it hands in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from addsr.image.color import ColorFix
from addsr.models.registry import ModelInfo
from addsr.plan import Plan

Progress = Callable[[int, int], None]
"""Called with (done, total) in steps of the network; total may grow when tiles are halved."""


RefineDecoder = Literal["full", "tiny"]


@dataclass(frozen=True)
class Words:
    """What the user says about pictures, for models that hear it."""

    prompt: str = ""
    negative_prompt: str | None = None
    """None: the model's own."""


@dataclass(frozen=True)
class Wish:
    """What is wanted of each picture, checked against the model."""

    scale: float
    steps: int
    fidelity: float
    color: ColorFix
    seed: int
    tile: int | Literal["auto"]
    words: Words = Words()
    refine_decoder: RefineDecoder = "full"
    """What shows AddSR its predictions between steps."""
    tile_batch: int | Literal["auto"] = "auto"
    """Tiles that may go through the networks together."""


@dataclass(frozen=True)
class Room:
    """Memory that a picture may take, in bytes."""

    host: int
    device: int | None
    """None: the networks run in main memory."""
    result_bytes_per_pixel: int
    """All channels of the finished picture as the caller gets it."""


class Restorer(Protocol):
    """A model on its device: a picture in, the rows of the larger picture out."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    weights: str | None
    """sha256 that tells the weights from others; None where none is on record."""

    @property
    def tags(self) -> tuple[str, ...] | None:
        """What the prompt extractor saw in the last picture; None: there is none."""
        ...

    def check_tile(self, tile: int) -> None:
        """OptionError where a tile of this side cannot be."""
        ...

    def check_decoder(self, refine_decoder: RefineDecoder) -> None:
        """OptionError where predictions cannot be looked at through that decoder."""
        ...

    def plan(self, source: tuple[int, int], wish: Wish, room: Room) -> Plan:
        """What will be done to a picture of `source` (height, width).

        Raises:
            MemoryLimitError: it would not fit; names the expected peak.
        """
        ...

    def count(self, plan: Plan, wish: Wish) -> tuple[int, int]:
        """Tiles of one picture, and steps that `bands` will tell of."""
        ...

    def bands(self, rgb: Tensor, plan: Plan, wish: Wish, counter: Counter) -> Iterator[Tensor]:
        """Bands of rows `(1, 3, rows, W)` in [0, 1], from top to bottom, on the CPU.

        At least as many rows and columns as `plan.target` has; what is more is to be cut.
        `rgb` is `(1, 3, H, W)` in [0, 1]. The same `wish.seed` gives the same rows.
        """
        ...


class Counter:
    """Steps done and to do, told to whoever asked."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.done, self.total = progress, 0, 0

    def step(self) -> None:
        """One more step is done."""
        self.done += 1
        self.tell()

    def tell(self) -> None:
        """Says how things stand."""
        if self.progress is not None:
            self.progress(self.done, self.total)

    def finish(self) -> None:
        """All is done."""
        self.done = self.total
        self.tell()
