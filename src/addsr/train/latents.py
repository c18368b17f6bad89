"""Encoded pairs that are used several times, for encoding costs as much as training on them.

What can be kept of a pair are the distributions of its two latents. Each use draws from them anew,
at another timestep and with other noise. Crops and degradations stay random all the while: with
every batch a part of the pairs is replaced by new ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Mean and log variance of latents, side by side `(B, 8, h, w)`, not yet scaled."""

    hr: Tensor
    lr: Tensor


class LatentPool:
    """A ring of `size` encoded pairs, each used `reuse` times on average.

    Until it is full every pair is new and used at once, so that no pair counts more than others.
    """

    def __init__(self, size: int, reuse: int) -> None:
        self.size, self.reuse = size, reuse
        self.kept: Moments | None = None
        self.filled = 0
        self.next = 0

    def fresh(self, batch: int) -> int:
        """How many new pairs the next batch takes."""
        if self.reuse == 1:
            return batch
        return batch // self.reuse if self.filled == self.size else batch

    def exchange(self, new: Moments, batch: int, generator: torch.Generator) -> Moments:
        """Takes in `new` pairs; gives the `batch` of pairs to train on."""
        if self.reuse == 1:
            return new
        is_full = self.filled == self.size
        self._put(new)
        if not is_full:
            return new
        assert self.kept is not None
        device = self.kept.hr.device
        chosen = torch.randperm(self.size, generator=generator, device=device)[:batch]
        return Moments(self.kept.hr[chosen], self.kept.lr[chosen])

    def _put(self, new: Moments) -> None:
        if self.kept is None:
            self.kept = Moments(*(x.new_zeros(self.size, *x.shape[1:]) for x in (new.hr, new.lr)))
        place = (self.next + torch.arange(len(new.hr))) % self.size
        self.kept.hr[place] = new.hr
        self.kept.lr[place] = new.lr
        self.next = (self.next + len(new.hr)) % self.size
        self.filled = min(self.filled + len(new.hr), self.size)

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on from here."""
        kept = None if self.kept is None else {"hr": self.kept.hr, "lr": self.kept.lr}
        return {"kept": kept, "filled": self.filled, "next": self.next}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Goes on where `state` was taken; a pool of another size starts anew."""
        kept = state["kept"]
        if kept is None or len(kept["hr"]) != self.size:
            return
        self.kept = Moments(kept["hr"].to(device), kept["lr"].to(device))
        self.filled, self.next = int(state["filled"]), int(state["next"])
