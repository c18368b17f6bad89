"""A batch at work: one thread reads ahead, the networks run, another thread writes behind.

The networks run in the caller's thread, which is where Ctrl-C arrives: they stop between two
operations, and what was restored before is still written. Between the stages wait no more pictures
than a fixed number of pixels, so that memory does not grow with the batch.

Small pictures of one size that wait go through the network together where that is quicker. Beside
an accelerator, what is left to do for a picture after its network (colours, rows) is done behind as
well, and several files are written at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from addsr.errors import MemoryLimitError
from addsr.image.writing import check_output
from addsr.upscaler import Opened, Rest, Upscaler

from .events import Listener, Notes, Outcome, Progress, Summary, failed
from .jobs import Job
from .manifest import Entry, Manifest, hash_file, plain
from .passing import PATIENCE, Read, Restored, Room, settled

log = logging.getLogger(__name__)

AHEAD_PIXELS = 8_000_000
"""Of pictures that were read and wait, 12 bytes each; one more is read below that."""
BEHIND_PIXELS = 64_000_000
"""Of results that wait to be written, 3 to 4 bytes each."""
_UNFINISHED = 4
"""Results of which only the network's part is done count so many times: 12 bytes and more."""
_MOST_WRITERS = 3
"""Beside an accelerator, which is done with a small picture sooner than one thread with a file."""
GRACE_SECONDS = 8.0
"""After a signal, for what is being written; systems kill what takes longer than some ten."""
_LONGEST_QUEUE = 64


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
        self._read: queue.Queue[Read | None] = queue.Queue(_LONGEST_QUEUE)
        self._restored: queue.Queue[Restored | None] = queue.Queue()
        self._ahead, self._behind = Room(AHEAD_PIXELS), Room(BEHIND_PIXELS)
        self._crash: BaseException | None = None
        self._at_once = 1  # pictures in the network
        # there the network needs all cores: what else needs them waits for it
        self._is_cpu = upscaler.restorer.device.type == "cpu"
        self._finishing = threading.Lock()  # torch brings threads of its own: one at a time

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
        writers = [
            threading.Thread(target=self._guard, args=(self._write_all,), daemon=True)
            for _ in range(self._count_writers())
        ]
        before, self.upscaler.progress = self.upscaler.progress, self._step
        with self._notes.listening():
            for thread in (reader, *writers):
                thread.start()
            try:
                self._restore_all()
                self._end_writing(writers)
                # not in one long wait, which a signal might not reach, and on Windows does not
                while any(writer.is_alive() for writer in writers):
                    for writer in writers:
                        writer.join(PATIENCE)
            finally:
                self._stop.set()
                self._end_writing(writers)
                latest = time.monotonic() + GRACE_SECONDS
                for thread in (*writers, reader):
                    thread.join(max(latest - time.monotonic(), 0.0))
                self.upscaler.progress = before
                self._seconds = time.monotonic() - self._started
        if self._crash is not None:
            raise self._crash
        return self.summary

    def _count_writers(self) -> int:
        if self._is_cpu:
            return 1
        return max(min(_MOST_WRITERS, (os.cpu_count() or 1) - 1), 1)

    def _end_writing(self, writers: Sequence[threading.Thread]) -> None:
        for _ in writers:
            self._restored.put(None)

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

    def _hand_on(self, item: Read | None) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._read.put(item, timeout=PATIENCE)
                return

    def _read_one(self, job: Job) -> Read:
        digest: str | None = None
        try:
            if self.manifest is not None:
                digest = hash_file(job.source)
                if not self.again and self.manifest.is_done(
                    job.target, digest, self.settings_sha256
                ):
                    skipped = Outcome(job.source, job.target, "skipped")
                    return Read(job, digest, outcome=skipped)
            opened = self._open(job)
        except MemoryLimitError:
            # what is free now may not be all: it is read again when nothing else is held
            return Read(job, digest, warnings=self._notes.take())
        except Exception as error:
            outcome = failed(job.source, job.target, error, self._notes.take())
            return Read(job, digest, outcome=outcome)
        pixels = sum(p.size[0] * p.size[1] for p in opened.source.pictures)
        return Read(job, digest, opened, pixels, self._notes.take())

    def _open(self, job: Job) -> Opened:
        if os.path.lexists(job.source):  # or the folder of a misspelt input would be blamed
            check_output(job.target)
        opened = self.upscaler.open(job.source)
        self.upscaler.check_place(opened, job.target)
        return opened

    # restoring, in the caller's thread

    def _restore_all(self) -> None:
        waiting: deque[Read | None] = deque()
        while not self._stop.is_set():
            self._take_ready(waiting)
            if not waiting:
                continue
            item = waiting.popleft()
            if item is None:
                return
            if item.outcome is not None:
                self._end(item, item.outcome)
                continue
            self._behind.wait(self._stop)
            if self._stop.is_set():
                return
            company = self._find_company(item, waiting)
            if company:
                self._restore_together(company)
            else:
                self._restore_one(item)

    def _take_ready(self, waiting: deque[Read | None]) -> None:
        """Adds what was read by now to `waiting`; if there is nothing at all, waits a moment."""
        with contextlib.suppress(queue.Empty):
            if not waiting:
                waiting.append(self._read.get(timeout=PATIENCE))
            while len(waiting) < _LONGEST_QUEUE:
                waiting.append(self._read.get_nowait())

    def _find_company(self, item: Read, waiting: deque[Read | None]) -> list[Read]:
        """`item` and those that wait and can go with it, taken out; none: it goes the usual way."""
        if item.opened is None:
            return []
        try:
            most = self.upscaler.most_together(item.opened, item.job.target)
        except Exception:
            return []  # the usual way knows what to do with it
        if not most:
            return []
        company = [item]
        for other in list(waiting):
            if len(company) == most:
                break
            if other is not None and other.opened and other.opened.frame == item.opened.frame:
                company.append(other)
                waiting.remove(other)
        return [] if self._is_cpu and len(company) == 1 else company

    def _restore_together(self, items: Sequence[Read]) -> None:
        self._at_once = len(items)
        try:
            rests = self.upscaler.restore_together(
                [(item.opened, item.job.target) for item in items if item.opened is not None]
            )
        except Exception as error:
            # whichever picture it is about: alone, each has its own second tries and its own end
            log.info("%d pictures at once: %s; going on one by one", len(items), error)
            common = self._notes.take_common()
            self._at_once = 1
            for item in items:
                self._behind.wait(self._stop)
                if self._stop.is_set():
                    return
                self._restore_one(replace(item, warnings=(*item.warnings, *common)))
            return
        finally:
            self._at_once = 1
        for item, rest, told in zip(items, rests, self._notes.take_each(len(items)), strict=True):
            assert item.opened is not None
            self._ahead.add(-item.pixels)
            if self._is_cpu:
                rest = settled(rest)
            told = (*item.warnings, *told, *self._notes.take())
            self._put(item, item.opened, rest, 1 if self._is_cpu else _UNFINISHED, told)

    def _restore_one(self, item: Read) -> None:
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
        self._put(item, opened, lambda: (result, report), 1, self._heard(item))

    def _put(
        self, item: Read, opened: Opened, rest: Rest, weight: int, warnings: tuple[str, ...]
    ) -> None:
        """Hands a picture on to be finished and written."""
        height, width = opened.frame.size
        pixels = weight * height * width
        self._behind.add(pixels)
        self._restored.put(Restored(item, opened, rest, pixels, warnings))

    def _restore(self, item: Read) -> tuple[Opened, Any]:
        if item.opened is not None:
            try:
                return item.opened, self.upscaler.restore(item.opened, item.job.target)
            except MemoryLimitError as error:
                log.info("%s: %s; tried once more alone", item.job.source, error)
        # results that wait hold memory; without them it may fit
        self._behind.wait(self._stop, limit=1)
        opened = item.opened or self._open(item.job)
        return opened, self.upscaler.restore(opened, item.job.target)

    def _heard(self, item: Read | Restored) -> tuple[str, ...]:
        """The warnings about a picture so far, those of this thread included."""
        return (*item.warnings, *self._notes.take())

    def _step(self, done: int, total: int) -> None:
        with self._telling:
            self._listener.on_progress(self._progress(done, total))

    def _progress(self, steps: int, of_steps: int) -> Progress:
        return Progress(
            len(self._outcomes), len(self.jobs), steps, of_steps, self._megapixels,
            time.monotonic() - self._started, self._at_once,
        )  # fmt: skip

    # writing

    def _write_all(self) -> None:
        while (item := self._restored.get()) is not None:
            try:
                self._write_one(item)
            finally:
                self._behind.add(-item.pixels)

    def _write_one(self, item: Restored) -> None:
        job = item.read.job
        try:
            with self._finishing:
                result, report = item.rest()
            started = time.monotonic()
            self.upscaler.write(result, item.opened, job.target, report)
        except Exception as error:
            self._end(item.read, failed(job.source, job.target, error, self._heard(item)))
            return
        seconds = round(report.seconds + time.monotonic() - started, 3)
        report = replace(report, output=str(job.target), seconds=seconds)
        outcome = Outcome(
            job.source, job.target, "done", report.to_dict(), warnings=self._heard(item)
        )
        width, height = report.output_size
        self._end(item.read, outcome, width * height / 1e6)

    def _end(self, read: Read, outcome: Outcome, megapixels: float = 0.0) -> None:
        if self.manifest is not None and outcome.state != "skipped":
            self.manifest.record(outcome.target, self._entry(read, outcome))
        with self._telling:
            self._outcomes.append(outcome)
            self._megapixels += megapixels
            self._listener.on_outcome(outcome)
            self._listener.on_progress(self._progress(0, 0))
        if outcome.state == "failed" and self.fail_fast:
            self._stop.set()

    def _entry(self, read: Read, outcome: Outcome) -> Entry:
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
