"""Renaming of a foreign state dict that leaves no tensor unaccounted for."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from addsr.errors import ModelError


class Renaming:
    """Moves tensors from the names of one layout to those of another, layer by layer.

    What is asked for and not there, and what is never asked for, ends in one `ModelError`.
    """

    def __init__(self, state: Mapping[str, Tensor], what: str) -> None:
        """`what` names the network in messages."""
        self._state = state
        self._what = what
        self._moved: dict[str, Tensor] = {}
        self._used: set[str] = set()
        self._missing: list[str] = []

    def has(self, name: str) -> bool:
        """Whether the foreign layout has a tensor of this name."""
        return name in self._state

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a foreign tensor."""
        return tuple(self._state[name].shape)

    def indices(self, prefix: str, suffix: str) -> list[int]:
        """All n, rising, for which there is a tensor `prefix.n` + `suffix`.

        Raises:
            ValueError: n is beyond the number of tensors, which no numbering of layers reaches;
                whoever counts up to it would never end.
        """
        pattern = re.compile(rf"{re.escape(prefix)}\.([0-9]{{1,9}}){re.escape(suffix)}")
        found = sorted(int(m[1]) for name in self._state if (m := pattern.fullmatch(name)))
        if found and found[-1] >= len(self._state):
            raise ValueError(f"{prefix}.{found[-1]}{suffix} among {len(self._state)} tensors")
        return found

    @contextmanager
    def reading(self) -> Generator[None]:
        """Turns what goes wrong while a shape is deduced into a `ModelError`."""
        try:
            yield
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ModelError(
                f"{self._what}: unknown layout ({type(error).__name__}: {error}); "
                f"{layout_of(self._state)}"
            ) from error

    def layer(
        self, old: str, new: str, *, parts: Sequence[str] = ("weight", "bias"), flat: bool = False
    ) -> None:
        """Moves weight and bias; `flat` makes the matrix of a linear layer of a 1x1 kernel."""
        for part in parts:
            tensor = self._take(f"{old}.{part}")
            if tensor is not None:
                if flat and part == "weight":
                    tensor = tensor.flatten(1)
                self._moved[f"{new}.{part}"] = tensor

    def tensor(self, old: str, new: str) -> None:
        """Moves one tensor."""
        tensor = self._take(old)
        if tensor is not None:
            self._moved[new] = tensor

    def split_heads(self, old: str, new: Sequence[str], heads: int) -> None:
        """Moves a joint projection stored head by head, `[heads, parts, C / heads, ...]`."""
        for part in ("weight", "bias"):
            tensor = self._take(f"{old}.{part}")
            if tensor is None:
                continue
            if not tensor.ndim or len(tensor) % (heads * len(new)):
                raise ModelError(
                    f"{self._what}: {old}.{part} {tuple(tensor.shape)} has no {heads} heads"
                )
            by_head = tensor.flatten(1) if tensor.ndim > 1 else tensor
            by_head = by_head.unflatten(0, (heads, len(new), -1))
            for k, name in enumerate(new):
                self._moved[f"{name}.{part}"] = by_head[:, k].flatten(0, 1)

    def finish(self) -> dict[str, Tensor]:
        """The renamed state dict.

        Raises:
            ModelError: tensors were missing or are left over.
        """
        left = [name for name in self._state if name not in self._used]
        if self._missing or left:
            raise ModelError(
                f"{self._what}: {len(self._missing)} tensors missing{few(self._missing)}, "
                f"{len(left)} unknown{few(left)}; {layout_of(self._state)}"
            )
        return self._moved

    def _take(self, name: str) -> Tensor | None:
        if name not in self._state:
            self._missing.append(name)
            return None
        self._used.add(name)
        return self._state[name]


def few(names: Iterable[str]) -> str:
    """The first few of `names` in brackets, or nothing."""
    listed = list(names)
    shown = ", ".join(listed[:4]) + (", ..." if len(listed) > 4 else "")
    return f" ({shown})" if listed else ""


def layout_of(names: Iterable[str]) -> str:
    """A short account of the tensor names found, for messages about layouts that are unknown."""
    listed = sorted(names)
    return f"found {len(listed)} tensors{few(listed)}"
