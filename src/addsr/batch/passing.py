"""What is passed between the stages of a batch, and how much of it may wait."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from addsr.upscaler import Opened, Rest

from .events import Outcome
from .jobs import Job

PATIENCE = 0.1
"""Seconds between looks at whether the batch was stopped; also lets Windows notice Ctrl-C."""


@dataclass(frozen=True, eq=False)
class Read:
    """A picture that was read, or what became of it instead."""

    job: Job
    sha256: str | None = None
    opened: Opened | None = None
    pixels: int = 0
    warnings: tuple[str, ...] = ()
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Restored:
    """A result on its way to the disk."""

    read: Read
    opened: Opened
    rest: Rest
    pixels: int
    """As they count while it waits."""
    warnings: tuple[str, ...]


class Room:
    """Counts the pixels that wait between two stages."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._changed = threading.Condition()

    def add(self, pixels: int) -> None:
        with self._changed:
            self.held += pixels
            self._changed.notify_all()

    def wait(self, stop: threading.Event, limit: int | None = None) -> None:
        """Until less than the limit is held, or `stop` is set."""
        most = self.limit if limit is None else limit
        with self._changed:
            while self.held >= most and not stop.is_set():
                self._changed.wait(PATIENCE)


def settled(rest: Rest) -> Rest:
    """`rest` after its work; what it raised is raised where its picture ends."""
    try:
        found = rest()
    except Exception as error:
        failure = error

        def fail() -> Any:
            raise failure

        return fail
    return lambda: found
