"""Encoded pairs that are used several times, for encoding costs as much as training on them.

What can be kept of a pair are the distributions of its latents, and what a tagger and a text
encoder made of it. Each use draws from the distributions anew, at another timestep and with other
noise. Crops and degradations stay random all the while: with every batch a part of the pairs is
replaced by new ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Moments:
    """Mean and log variance of latents, side by side `(B, 8, h, w)`, not yet scaled."""

    hr: Tensor
    lr: Tensor


class LatentPool:
    """A ring of `size` encoded pairs, each used `reuse` times on average.

    Until it is full every pair is new and used at once, so that no pair counts more than others.
    `kind` is a dataclass of tensors, one row a pair.
    """

    def __init__(self, size: int, reuse: int, kind: type[Any] = Moments) -> None:
        self.size, self.reuse, self.kind = size, reuse, kind
        self.kept: Any = None
        self.filled = 0
        self.next = 0

    def fresh(self, batch: int) -> int:
        """How many new pairs the next batch takes."""
        if self.reuse == 1:
            return batch
        return batch // self.reuse if self.filled == self.size else batch

    def exchange(self, new: T, batch: int, generator: torch.Generator) -> T:
        """Takes in `new` pairs; gives the `batch` of pairs to train on."""
        if self.reuse == 1:
            return new
        is_full = self.filled == self.size
        self._put(new)
        if not is_full:
            return new
        device = _tensors(self.kept)[0].device
        chosen = torch.randperm(self.size, generator=generator, device=device)[:batch]
        return cast("T", _each(self.kept, lambda x: x[chosen]))

    def _put(self, new: Any) -> None:
        if self.kept is None:
            self.kept = _each(new, lambda x: x.new_zeros(self.size, *x.shape[1:]))
        count = len(_tensors(new)[0])
        place = (self.next + torch.arange(count)) % self.size
        for kept, x in zip(_tensors(self.kept), _tensors(new), strict=True):
            kept[place] = x
        self.next = (self.next + count) % self.size
        self.filled = min(self.filled + count, self.size)

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on from here."""
        kept = None
        if self.kept is not None:
            names = [field.name for field in fields(self.kind)]
            kept = dict(zip(names, _tensors(self.kept), strict=True))
        return {"kept": kept, "filled": self.filled, "next": self.next}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Goes on where `state` was taken; a pool of another size starts anew."""
        kept = state["kept"]
        if kept is None or any(len(x) != self.size for x in kept.values()):
            return
        self.kept = self.kind(**{name: x.to(device) for name, x in kept.items()})
        self.filled, self.next = int(state["filled"]), int(state["next"])


def _tensors(known: Any) -> list[Tensor]:
    return [getattr(known, field.name) for field in fields(known)]


def _each(known: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return type(known)(*(change(x) for x in _tensors(known)))
