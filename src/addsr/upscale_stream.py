"""`addsr upscale` with `-`: one picture through standard input or output."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import AddsrError, InputError, OptionError, OutputError
from .terminal import STREAM, BatchBar, Talk, silence, unwritable
from .upscale_telling import Teller

if TYPE_CHECKING:
    from .batch.events import Outcome, Summary
    from .upscaler import Upscaler

log = logging.getLogger("addsr")

_STDIN = Path("-")


def check_streams(inputs: list[Path], output: str | None) -> None:
    """Refuses before any work what cannot go through a stream.

    Raises:
        OptionError: several pictures, no output or a folder, a terminal, a closed stream.
    """
    if len(inputs) > 1:
        raise OptionError("input: - goes with one picture; give files for several")
    if output is None:
        raise OptionError("output: standard input has no name; give a file with -o, or -o -")
    if output != STREAM and (os.path.isdir(output) or not Path(output).suffix):
        raise OptionError(f"output: {output} is a folder; give a file, or -o -")
    if output == STREAM and sys.stdout is None:
        raise OptionError("output: - is standard output, which is closed; give a file with -o")
    if output == STREAM and sys.stdout.isatty():
        raise OptionError("output: - would print a picture on the terminal; send it into a file")
    if inputs == [_STDIN] and sys.stdin is None:
        raise OptionError("input: - is standard input, which is closed; give a file")
    if inputs == [_STDIN] and sys.stdin.buffer.isatty():
        raise OptionError("input: - would wait for the terminal; send a picture into it")


def run_stream(
    source: Path,
    output: str,
    suffix: str | None,
    open_upscaler: Callable[[], Upscaler],
    *,
    json_lines: bool,
    talk: Talk,
) -> int:
    """Restores one picture by way of files that are gone afterwards; the exit status.

    Args:
        source: `-` is standard input.
        output: `STREAM` is standard output, and JSON goes to standard error then.
        suffix: of the format on standard output; None: the input's, as far as results keep it.
    """
    from .batch.events import Summary

    to_stdout = output == STREAM
    quiet = talk.quiet or to_stdout
    teller = Teller(json_lines=json_lines, quiet=quiet, json_on_error=to_stdout)
    with _temporary_folder() as folder, _unnamed(folder):
        try:
            found = _restore(source, output, suffix, open_upscaler, Path(folder), talk)
        except (KeyboardInterrupt, SystemExit):
            teller.tell_summary(Summary((), 1, 0.0, 0.0))
            raise
        summary = replace(
            found,
            outcomes=tuple(
                _as_asked(one, folder, from_stdin=source == _STDIN, to_stdout=to_stdout)
                for one in found.outcomes
            ),
        )
    for outcome in summary.outcomes:
        teller.tell(outcome)
    teller.tell_summary(summary)
    return teller.conclude(summary)


def _restore(
    source: Path,
    output: str,
    suffix: str | None,
    open_upscaler: Callable[[], Upscaler],
    folder: Path,
    talk: Talk,
) -> Summary:
    from .batch.events import Listener, Summary, failed
    from .batch.jobs import Job
    from .batch.run import Batch

    started = time.monotonic()
    target = Path(output)
    try:
        if source == _STDIN:
            source = _receive(folder / "standard input")
        if output == STREAM:
            target = folder / f"standard output{suffix or _suffix(source)}"
    except AddsrError as error:
        return Summary((failed(source, target, error),), 1, 0.0, time.monotonic() - started)
    bar = BatchBar("upscaling", shown=not talk.quiet)
    with open_upscaler() as up, bar:
        done = Batch(up, [Job(source, target)], listener=Listener(on_progress=bar.show)).run()
    if output == STREAM and done.count("done"):
        try:
            _send(target)
        except OutputError as error:
            outcomes = tuple(failed(source, target, error, one.warnings) for one in done.outcomes)
            return replace(done, outcomes=outcomes, megapixels=0.0)
    return done


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="addsr-")
    except OSError as error:
        raise OutputError(
            f"temporary folder: cannot be made ({error.strerror}); set TMPDIR to a folder that can "
            "be written"
        ) from error


def _receive(place: Path) -> Path:
    """Keeps what comes through standard input in `place`."""
    try:
        with place.open("wb") as file:
            while True:
                try:
                    part = sys.stdin.buffer.read(1 << 20)
                except OSError as error:
                    raise InputError(
                        f"standard input: cannot be read ({error.strerror}); give a file"
                    ) from error
                if not part:
                    return place
                file.write(part)
    except OSError as error:
        if isinstance(error, AddsrError):
            raise
        raise OutputError(
            f"{place.parent.parent}: standard input cannot be kept there ({error.strerror}); free "
            "space, or set TMPDIR to a folder that has it"
        ) from error


def _send(place: Path) -> None:
    """Copies a file to standard output.

    Raises:
        OutputError: nobody takes it.
    """
    try:
        with place.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    except BrokenPipeError as error:
        silence(sys.stdout)
        raise OutputError(
            "standard output: its reader went away before the picture was whole; let it read to "
            "the end, or give a file with -o"
        ) from error
    except OSError as error:
        silence(sys.stdout)
        raise unwritable(error) from error


def _as_asked(outcome: Outcome, folder: str, *, from_stdin: bool, to_stdout: bool) -> Outcome:
    """`outcome` with `-` where it was given, and no word of our folder."""
    named: dict[str, str] = {}
    if from_stdin:
        outcome = replace(outcome, source=_STDIN)
        named["source"] = "-"
    if to_stdout:
        outcome = replace(outcome, target=Path("-"))
        named["output"] = "-"
    return replace(
        outcome,
        report={**outcome.report, **named} if outcome.report else {},
        error=None if outcome.error is None else _without(folder, outcome.error),
        warnings=tuple(_without(folder, one) for one in outcome.warnings),
    )


def _without(folder: str, text: str) -> str:
    """Files in `folder` by their names alone: nobody has heard of the folder."""
    return text.replace(f"{folder}{os.sep}", "")


@contextlib.contextmanager
def _unnamed(folder: str) -> Generator[None]:
    """While it lasts, what is logged says nothing of `folder` either."""

    def hide(record: logging.LogRecord) -> bool:
        record.msg, record.args = _without(folder, record.getMessage()), ()
        return True

    handlers = list(log.handlers)
    for handler in handlers:
        handler.addFilter(hide)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(hide)


def _suffix(source: Path) -> str:
    """Of the format that `source` is in, where results are kept in it, else .png."""
    from .image.formats import FORMATS, KEPT_SUFFIXES
    from .image.reading import read_format

    found = read_format(source)
    kept = (one for one, name in FORMATS.items() if name == found and one in KEPT_SUFFIXES)
    return next(kept, ".png")
