"""A batch at work: one thread reads ahead, the networks run, another thread writes behind.

The networks run in the caller's thread, which is where Ctrl-C arrives: they stop between two
operations, and what was restored before is still written. Between the stages wait no more pictures
than a fixed number of pixels, so that memory does not grow with the batch.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from addsr.errors import MemoryLimitError
from addsr.image.io import check_output
from addsr.upscaler import Opened, Report, Upscaler

from .events import Listener, Notes, Outcome, Progress, Summary, failed
from .jobs import Job
from .manifest import Entry, Manifest, hash_file, plain

log = logging.getLogger(__name__)

AHEAD_PIXELS = 8_000_000
"""Of pictures that were read and wait, 12 bytes each; one more is read below that."""
BEHIND_PIXELS = 64_000_000
"""Of results that wait to be written, 3 to 4 bytes each."""
GRACE_SECONDS = 8.0
"""After a signal, for what is being written; systems kill what takes longer than some ten."""
_LONGEST_QUEUE = 64
_PATIENCE = 0.1
"""Seconds between looks at whether the batch was stopped; also lets Windows notice Ctrl-C."""


@dataclass(frozen=True)
class _Read:
    """A picture that was read, or what became of it instead."""

    job: Job
    sha256: str | None = None
    opened: Opened | None = None
    pixels: int = 0
    warnings: tuple[str, ...] = ()
    outcome: Outcome | None = None


@dataclass(frozen=True)
class _Restored:
    """A result on its way to the disk."""

    read: _Read
    opened: Opened
    result: Any
    report: Report
    pixels: int
    warnings: tuple[str, ...]


class _Room:
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
                self._changed.wait(_PATIENCE)


class Batch:
    """Pictures to be restored by one upscaler.

    Args:
        upscaler: the model; its `progress` is taken over.
        jobs: what becomes what.
        manifest: where it is kept; None: nothing is skipped and nothing kept.
        settings_sha256: of all that decides what the results look like (`hash_settings`).
        listener: told of every outcome and step, from any of the threads, one at a time.
        fail_fast: stop at the first picture that fails.
        again: skip nothing.
    """

    def __init__(
        self,
        upscaler: Upscaler,
        jobs: Sequence[Job],
        *,
        manifest: Manifest | None = None,
        settings_sha256: str = "",
        listener: Listener | None = None,
        fail_fast: bool = False,
        again: bool = False,
    ) -> None:
        self.upscaler, self.jobs, self.manifest = upscaler, jobs, manifest
        self.settings_sha256, self.fail_fast, self.again = settings_sha256, fail_fast, again
        self._listener = listener or Listener()
        self._notes = Notes()
        self._outcomes: list[Outcome] = []
        self._megapixels = 0.0
        self._started = time.monotonic()
        self._seconds: float | None = None
        self._telling = threading.Lock()
        self._stop = threading.Event()
        self._read: queue.Queue[_Read | None] = queue.Queue(_LONGEST_QUEUE)
        self._restored: queue.Queue[_Restored | None] = queue.Queue()
        self._ahead, self._behind = _Room(AHEAD_PIXELS), _Room(BEHIND_PIXELS)
        self._crash: BaseException | None = None

    @property
    def summary(self) -> Summary:
        """What was done so far; whole after `run`, also after one that an exception ended."""
        seconds = self._seconds or time.monotonic() - self._started
        with self._telling:
            return Summary(tuple(self._outcomes), len(self.jobs), self._megapixels, seconds)

    def run(self) -> Summary:
        """Works through all pictures; one that fails stops none, without `fail_fast`.

        Raises:
            KeyboardInterrupt, SystemExit: after what was restored is written, or some seconds.
        """
        self._started = time.monotonic()
        # daemons: a read or write that hangs must not keep a process from ending on a signal
        reader = threading.Thread(target=self._guard, args=(self._read_all,), daemon=True)
        writer = threading.Thread(target=self._guard, args=(self._write_all,), daemon=True)
        before, self.upscaler.progress = self.upscaler.progress, self._step
        with self._notes.listening():
            reader.start()
            writer.start()
            try:
                self._restore_all()
                self._restored.put(None)
                # not in one long wait, which a signal might not reach, and on Windows does not
                while writer.is_alive():
                    writer.join(_PATIENCE)
            finally:
                self._stop.set()
                self._restored.put(None)
                writer.join(GRACE_SECONDS)
                reader.join(GRACE_SECONDS)
                self.upscaler.progress = before
                self._seconds = time.monotonic() - self._started
        if self._crash is not None:
            raise self._crash
        return self.summary

    def _guard(self, work: Any) -> None:
        try:
            work()
        except BaseException as error:  # a fault of ours: told, and not waited for forever
            self._crash = error
            self._stop.set()

    # reading

    def _read_all(self) -> None:
        for job in self.jobs:
            self._ahead.wait(self._stop)
            if self._stop.is_set():
                return
            item = self._read_one(job)
            self._ahead.add(item.pixels)
            self._hand_on(item)
        self._hand_on(None)

    def _hand_on(self, item: _Read | None) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._read.put(item, timeout=_PATIENCE)
                return

    def _read_one(self, job: Job) -> _Read:
        digest: str | None = None
        try:
            if self.manifest is not None:
                digest = hash_file(job.source)
                if not self.again and self.manifest.is_done(
                    job.target, digest, self.settings_sha256
                ):
                    skipped = Outcome(job.source, job.target, "skipped")
                    return _Read(job, digest, outcome=skipped)
            opened = self._open(job)
        except MemoryLimitError:
            # what is free now may not be all: it is read again when nothing else is held
            return _Read(job, digest, warnings=self._notes.take())
        except Exception as error:
            outcome = failed(job.source, job.target, error, self._notes.take())
            return _Read(job, digest, outcome=outcome)
        pixels = sum(p.size[0] * p.size[1] for p in opened.source.pictures)
        return _Read(job, digest, opened, pixels, self._notes.take())

    def _open(self, job: Job) -> Opened:
        check_output(job.target)
        opened = self.upscaler.open(job.source)
        self.upscaler.check_place(opened, job.target)
        return opened

    # restoring, in the caller's thread

    def _restore_all(self) -> None:
        while not self._stop.is_set():
            try:
                item = self._read.get(timeout=_PATIENCE)
            except queue.Empty:
                continue
            if item is None:
                return
            if item.outcome is not None:
                self._end(item, item.outcome)
                continue
            self._behind.wait(self._stop)
            if not self._stop.is_set():
                self._restore_one(item)

    def _restore_one(self, item: _Read) -> None:
        job = item.job
        try:
            opened, result = self._restore(item)
        except Exception as error:
            self._end(item, failed(job.source, job.target, error, self._heard(item)))
            return
        finally:
            self._ahead.add(-item.pixels)
        report = self.upscaler.report
        assert report is not None
        pixels = report.output_size[0] * report.output_size[1]
        self._behind.add(pixels)
        self._restored.put(_Restored(item, opened, result, report, pixels, self._heard(item)))

    def _restore(self, item: _Read) -> tuple[Opened, Any]:
        if item.opened is not None:
            try:
                return item.opened, self.upscaler.restore(item.opened, item.job.target)
            except MemoryLimitError as error:
                log.info("%s: %s; tried once more alone", item.job.source, error)
        # results that wait hold memory; without them it may fit
        self._behind.wait(self._stop, limit=1)
        opened = item.opened or self._open(item.job)
        return opened, self.upscaler.restore(opened, item.job.target)

    def _heard(self, item: _Read | _Restored) -> tuple[str, ...]:
        """The warnings about a picture so far, those of this thread included."""
        return (*item.warnings, *self._notes.take())

    def _step(self, done: int, total: int) -> None:
        with self._telling:
            self._listener.on_progress(self._progress(done, total))

    def _progress(self, steps: int, of_steps: int) -> Progress:
        return Progress(
            len(self._outcomes), len(self.jobs), steps, of_steps, self._megapixels,
            time.monotonic() - self._started,
        )  # fmt: skip

    # writing

    def _write_all(self) -> None:
        while (item := self._restored.get()) is not None:
            try:
                self._write_one(item)
            finally:
                self._behind.add(-item.pixels)

    def _write_one(self, item: _Restored) -> None:
        job, started = item.read.job, time.monotonic()
        try:
            self.upscaler.write(item.result, item.opened, job.target, item.report)
        except Exception as error:
            self._end(item.read, failed(job.source, job.target, error, self._heard(item)))
            return
        seconds = round(item.report.seconds + time.monotonic() - started, 3)
        report = replace(item.report, output=str(job.target), seconds=seconds)
        outcome = Outcome(
            job.source, job.target, "done", report.to_dict(), warnings=self._heard(item)
        )
        self._end(item.read, outcome, item.pixels / 1e6)

    def _end(self, read: _Read, outcome: Outcome, megapixels: float = 0.0) -> None:
        if self.manifest is not None and outcome.state != "skipped":
            self.manifest.record(outcome.target, self._entry(read, outcome))
        with self._telling:
            self._outcomes.append(outcome)
            self._megapixels += megapixels
            self._listener.on_outcome(outcome)
            self._listener.on_progress(self._progress(0, 0))
        if outcome.state == "failed" and self.fail_fast:
            self._stop.set()

    def _entry(self, read: _Read, outcome: Outcome) -> Entry:
        size = None
        if outcome.state == "done":
            with contextlib.suppress(OSError):  # somebody took it away at once
                size = outcome.target.stat().st_size
        return Entry(
            source=plain(str(Path(read.job.source).absolute())),
            source_sha256=read.sha256,
            settings_sha256=self.settings_sha256,
            state="done" if outcome.state == "done" else "failed",
            output_bytes=size,
            error=None if outcome.error is None else plain(outcome.error),
            seconds=float(outcome.report.get("seconds", 0.0)),
        )
