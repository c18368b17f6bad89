"""Random choices on the host: one number per picture, from ranges that may differ per picture.

All parameters are drawn on the CPU and sent to the device in one copy, so that a batch needs no
host-device synchronisation, and the same seed gives the same parameters on every device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor


def derive_seed(*parts: int | str | bytes) -> int:
    """A 63-bit seed that depends on all `parts` and on their order."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "little") >> 1


def host_seed(generator: torch.Generator | None) -> int:
    """A seed drawn from `generator`, which moves on; never waits for the device."""
    if generator is None or generator.device.type == "cpu":
        return int(torch.randint(2**63 - 1, (), generator=generator).item())
    # a device generator keeps its state on the host: hashing it costs no synchronisation
    state = bytes(generator.get_state().tolist())
    torch.rand(1, device=generator.device, generator=generator)
    return derive_seed(state)


class Dice:
    """Draws of one number per picture; fields of its spec are named by path (`blur1.sigma`).

    Args:
        specs: what a picture may be drawn from.
        which: `(B,)` the number of each picture's spec.
        generator: a CPU generator.
    """

    def __init__(self, specs: Sequence[object], which: Tensor, generator: torch.Generator) -> None:
        self.specs, self.which, self.generator = specs, which, generator

    def column(self, path: str) -> Tensor:
        """`(B,)` each picture's value of a field, or `(B, n)` of a field with n values."""
        get = attrgetter(path)
        values = torch.tensor([get(spec) for spec in self.specs], dtype=torch.float32)
        return values[self.which]

    def unit(self) -> Tensor:
        """`(B,)` uniform in [0, 1)."""
        return torch.rand(len(self.which), generator=self.generator)

    def between(self, low: Tensor | float, high: Tensor | float) -> Tensor:
        """`(B,)` uniform from `low` to `high`."""
        return low + (high - low) * self.unit()

    def uniform(self, path: str) -> Tensor:
        """`(B,)` uniform in the range at `path`."""
        low, high = self.column(path).unbind(1)
        return self.between(low, high)

    def chance(self, path: str) -> Tensor:
        """`(B,)` booleans, true with the probability at `path`."""
        return self.unit() < self.column(path)

    def choice(self, path: str) -> Tensor:
        """`(B,)` positions in the list of shares at `path`."""
        bounds = self.column(path).cumsum(1)  # (B, n)
        return (self.unit()[:, None] >= bounds).sum(1).clamp(max=bounds.shape[1] - 1)


def upload(device: torch.device, *tables: tuple[Tensor, ...]) -> list[list[Tensor]]:
    """The columns of all `tables`, as float32 on `device`, by one copy that waits for nothing."""
    sheet = torch.stack([column.float() for table in tables for column in table])
    if device.type == "cuda":
        sheet = sheet.pin_memory()
    columns = list(sheet.to(device, non_blocking=True).unbind())
    out: list[list[Tensor]] = []
    for table in tables:
        out.append(columns[: len(table)])
        columns = columns[len(table) :]
    return out
