"""Whether networks gave numbers, found out without having the device wait for the answer.

Asking a GPU means to wait until it is done, and only then to launch what comes next: milliseconds
of idleness before every network. So the answer of a stage is read when some more are launched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from addsr.errors import ModelError

_AHEAD = 4
"""Answers that may be outstanding. With one, a slow processor had not launched the U-Net,
which takes some milliseconds, when the GPU was done with the VAE."""
_LAGGING = ("cuda",)
"""Devices that are told what to do ahead of doing it, and can be asked for one thing alone."""


class NotFiniteError(ModelError):
    """The networks gave NaN or infinity; half precision may be to blame."""


class FiniteChecks:
    """Checks of tensors; on a GPU each is answered some stages later, or at the end.

    Errors so come four stages late at most, which costs time in a run that fails and in no other.
    """

    def __init__(self) -> None:
        self._asked: deque[tuple[Callable[[], bool], str]] = deque()

    def ask(self, x: Tensor, doing: str) -> None:
        """Has `x` looked at.

        Raises:
            NotFiniteError: it, or on a GPU what was asked for before, has NaN or infinity.
        """
        is_late = x.device.type in _LAGGING
        flag = x.isfinite().all()
        self._asked.append((_read_later(flag) if is_late else lambda: bool(flag), doing))
        self.settle(left=_AHEAD if is_late else 0)

    def settle(self, *, left: int = 0) -> None:
        """Waits for all answers but the last `left`.

        Raises:
            NotFiniteError: one is no.
        """
        while len(self._asked) > left:
            is_finite, doing = self._asked.popleft()
            if not is_finite():
                self.forget()
                raise NotFiniteError(
                    f"{doing} gave NaN or infinity; use pipe.to(torch.bfloat16) or "
                    "pipe.to(torch.float32)"
                )

    def forget(self) -> None:
        """Drops what was asked for: its run is over."""
        self._asked.clear()


def _read_later(flag: Tensor) -> Callable[[], bool]:
    """What waits for `flag` alone: reading it would wait for all that is launched by then."""
    here = torch.empty((), dtype=torch.bool, pin_memory=True)
    here.copy_(flag, non_blocking=True)
    copied = torch.cuda.Event()
    # of the flag's device, which need not be the current one
    copied.record(torch.cuda.current_stream(flag.device))

    def read() -> bool:
        copied.synchronize()
        return bool(here)

    return read
