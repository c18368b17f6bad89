"""What a batch tells of itself while it works: one outcome a picture, and a summary."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from addsr.errors import AddsrError

State = Literal["done", "skipped", "failed"]
log = logging.getLogger("addsr")


@dataclass(frozen=True)
class Outcome:
    """What became of one picture."""

    source: Path
    target: Path
    state: State
    report: dict[str, Any] = field(default_factory=dict[str, Any])
    """Of the upscaler, where it is done."""
    error: str | None = None
    kind: str | None = None
    """Name of the error's class."""
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a line of JSON."""
        values: dict[str, Any] = {"event": self.state, "source": str(self.source)}
        if self.error is not None:
            values |= {"output": str(self.target), "error": self.error, "kind": self.kind}
        elif self.state == "skipped":
            values |= {"output": str(self.target)}
        else:
            values |= self.report
        return values | ({"warnings": list(self.warnings)} if self.warnings else {})


def failed(source: Path, target: Path, error: Exception, warnings: Sequence[str] = ()) -> Outcome:
    """The outcome of a picture that `error` stopped."""
    message = str(error)
    if not isinstance(error, AddsrError):
        message = f"{source}: unexpected error: {type(error).__name__}: {error}; please report it"
        log.debug("%s", source, exc_info=error)
    return Outcome(
        source, target, "failed", error=message, kind=type(error).__name__, warnings=tuple(warnings)
    )


@dataclass(frozen=True)
class Progress:
    """How far a batch has come."""

    pictures: int
    """Done, skipped or failed."""
    of_pictures: int
    steps: int
    """Of the network, over the pictures that are worked on."""
    of_steps: int
    megapixels: float
    """Of the results so far."""
    seconds: float
    at_once: int = 1
    """Pictures that are worked on together."""

    @property
    def share(self) -> float:
        """Pictures with the part of the current ones, from 0 to `of_pictures`."""
        part = self.steps / self.of_steps if self.of_steps else 0.0
        return min(self.pictures + part * self.at_once, float(self.of_pictures))

    @property
    def pace(self) -> float:
        """Megapixels of result a second."""
        return self.megapixels / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Summary:
    """What a batch did."""

    outcomes: tuple[Outcome, ...]
    total: int
    """Pictures there were; those without an outcome were not reached."""
    megapixels: float
    seconds: float

    def count(self, state: State) -> int:
        """Pictures that ended so."""
        return sum(one.state == state for one in self.outcomes)

    @property
    def left(self) -> int:
        """Pictures that were not reached."""
        return self.total - len(self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the last line of JSON."""
        pace = self.megapixels / self.seconds if self.seconds else 0.0
        return {
            "event": "summary",
            "total": self.total,
            "done": self.count("done"),
            "skipped": self.count("skipped"),
            "failed": self.count("failed"),
            "left": self.left,
            "megapixels": round(self.megapixels, 3),
            "seconds": round(self.seconds, 3),
            "megapixels_per_second": round(pace, 3),
        }


class Listener:
    """What a batch calls; each may be left alone."""

    def __init__(
        self,
        on_outcome: Callable[[Outcome], None] = lambda _: None,
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self.on_outcome, self.on_progress = on_outcome, on_progress


class Notes(logging.Handler):
    """Collects the warnings of each thread, so that every picture gets its own."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._of_thread: dict[int, list[tuple[str, int | None]]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        # a network that sees several pictures says which of them it is about
        told = (record.getMessage(), getattr(record, "picture", None))
        self._of_thread.setdefault(threading.get_ident(), []).append(told)

    def take(self) -> tuple[str, ...]:
        """The warnings of the calling thread since it asked last."""
        return tuple(message for message, _ in self._take())

    def take_each(self, count: int) -> list[tuple[str, ...]]:
        """The same for each of so many pictures; what is about none in particular is for all."""
        told = self._take()
        return [
            tuple(message for message, picture in told if picture in (None, k))
            for k in range(count)
        ]

    def take_common(self) -> tuple[str, ...]:
        """The same, of those alone that are about no picture in particular."""
        return tuple(message for message, picture in self._take() if picture is None)

    def _take(self) -> list[tuple[str, int | None]]:
        return self._of_thread.pop(threading.get_ident(), [])

    @contextmanager
    def listening(self) -> Generator[None]:
        """Hears what the package logs while it lasts."""
        log.addHandler(self)
        try:
            yield
        finally:
            log.removeHandler(self)
