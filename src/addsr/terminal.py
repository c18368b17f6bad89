"""What the commands share at a terminal: how much to say, safe printing, a progress bar."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, TextIO
from unicodedata import category

from cyclopts import Parameter

from .errors import OptionError, OutputError

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

log = logging.getLogger("addsr")

USAGE, FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143
"""Exit statuses besides 0."""
STREAM = "./-"
"""What `-` becomes on the command line: standard input or output. As a path it is the same."""
BAR_DELAY_SECONDS = 2.0


@Parameter(name="*")
@dataclass(frozen=True)
class Talk:
    """How much to say."""

    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], negative="")] = False
    """Tell what is decided and done."""
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative="")] = False
    """Only errors; no progress bar."""

    def set_up(self, usual: int = logging.WARNING) -> None:
        """Points the package's log at standard error; `usual` without either flag.

        Raises:
            OptionError: both flags.
        """
        if self.verbose and self.quiet:
            raise OptionError("--verbose and --quiet contradict each other; give one of them")
        level = logging.DEBUG if self.verbose else logging.ERROR if self.quiet else usual
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        log.handlers[:] = [handler]
        log.setLevel(level)


USUAL_TALK = Talk()
"""Warnings and errors."""


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints at once; where nobody reads any more the text is lost, and the work is not.

    Raises:
        OutputError: standard output cannot be written, once: what follows goes nowhere.
    """
    out = sys.stdout if stream is None else stream
    try:
        try:
            print(text, file=out, flush=True)
        except UnicodeEncodeError:  # a file name that this terminal has no letters for
            print(text.encode("ascii", "backslashreplace").decode(), file=out, flush=True)
    except BrokenPipeError:
        silence(out)
    except OSError as error:
        silence(out)
        if out is sys.stdout:  # of standard error nobody could be told
            raise unwritable(error) from error


def unwritable(error: OSError) -> OutputError:
    """What standard output met, in words."""
    return OutputError(
        f"standard output: cannot be written ({error.strerror}); send it elsewhere, or free space"
    )


def printable(text: str) -> str:
    r"""`text` of a stranger's file without what a terminal would obey; lines stay lines.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(
        c if c == "\n" or category(c)[0] != "C" else c.encode("unicode_escape").decode()
        for c in text
    )


def silence(stream: TextIO) -> None:
    """Lets what `stream` refused go nowhere, or Python would complain of it at its exit."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path}: folder cannot be made ({error.strerror}); give another"
        ) from error


class BatchProgress(Protocol):
    """What a batch tells of itself (`addsr.batch.events.Progress` does)."""

    @property
    def pictures(self) -> int: ...
    @property
    def of_pictures(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def of_steps(self) -> int: ...
    @property
    def share(self) -> float: ...
    @property
    def pace(self) -> float: ...


class Bar:
    """Give `update` to whatever counts, and hold the bar open with `with` while it works.

    Nothing appears before two seconds have passed, nor when standard error is no terminal.
    """

    def __init__(self, title: str, *, shown: bool = True, delay: float = BAR_DELAY_SECONDS) -> None:
        self.title, self.delay = title, delay
        self.shown = shown and sys.stderr.isatty()
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Bar:
        if not self.shown:
            return self
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[told]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(self.title, total=None, told="")
        # a timer and not a look at the clock in `update`: the first tile alone may take longer
        self._timer = threading.Timer(self.delay, self._progress.start)
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
            self._progress.stop()
            self._timer = None

    def update(self, done: int, total: int) -> None:
        """Shows `done` of `total`."""
        self._show(done, total, f"{done}/{total}")

    def _show(self, done: float, total: float, told: str) -> None:
        if self._timer is not None:
            self._progress.update(self._task, completed=done, total=total, told=told)


class BatchBar(Bar):
    """A bar over many pictures, with the tiles of the one at work and the pace of all."""

    def show(self, progress: BatchProgress) -> None:
        """Shows how far a batch has come."""
        told = f"{progress.pictures}/{progress.of_pictures} pictures"
        if progress.of_steps:
            told += f", {progress.steps}/{progress.of_steps} tile steps"
        if progress.pace:
            told += f", {progress.pace:.2f} MP/s"
        self._show(progress.share, progress.of_pictures, told)

    @contextlib.contextmanager
    def aside(self) -> Generator[None]:
        """Takes the bar away while something is printed."""
        live = self._timer is not None and self._progress.live.is_started
        if live:
            self._progress.stop()
        try:
            yield
        finally:
            if live and self._timer is not None:
                self._progress.start()
