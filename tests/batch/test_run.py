"""A batch survives its pictures: bad ones, large ones, signals, full disks; and it overlaps."""

from __future__ import annotations

import errno
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from addsr import Upscaler
from addsr.batch import run
from addsr.batch.discovery import discover
from addsr.batch.events import Listener, Outcome, Progress
from addsr.batch.jobs import Job, make_jobs
from addsr.batch.manifest import Manifest
from addsr.batch.run import Batch
from addsr.errors import MemoryLimitError
from addsr.image.reading import read_image
from addsr.upscaler import Opened


def jobs_of(photos: Path) -> list[Job]:
    out = photos.parent / "out"
    out.mkdir(exist_ok=True)
    return make_jobs(discover([photos]), f"{out}/", "x4")


def states(outcomes: tuple[Outcome, ...]) -> dict[str, str]:
    return {one.source.name: one.state for one in outcomes}


def test_a_batch_gives_the_same_pictures_as_single_calls(up: Upscaler, photos: Path) -> None:
    jobs = jobs_of(photos)
    summary = Batch(up, jobs).run()
    assert summary.count("done") == summary.total == 6 and summary.left == 0
    assert summary.megapixels == pytest.approx(
        sum(16 * w * h for w, h in ((10 + 7 * k, 31 - 4 * k) for k in range(6))) / 1e6
    )
    for job in jobs:
        single = photos.parent / f"single{job.target.suffix}"
        up(job.source, single)
        assert single.read_bytes() == job.target.read_bytes()
    reports = {one.source.name: one.report for one in summary.outcomes}
    assert reports["1.jpg"]["output"] == str(jobs[1].target)
    assert reports["1.jpg"]["output_size"] == [68, 108]


def test_reading_restoring_and_writing_overlap(
    up: Upscaler, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy: dict[str, int] = {"open": 0, "restore": 0, "write": 0}
    seen: set[frozenset[str]] = set()
    lock = threading.Lock()

    def slow(name: str) -> None:
        usual = getattr(Upscaler, name)

        def work(self: Upscaler, *arguments: Any) -> Any:
            with lock:
                busy[name] += 1
                seen.add(frozenset(k for k, count in busy.items() if count))
            time.sleep(0.05)
            try:
                return usual(self, *arguments)
            finally:
                with lock:
                    busy[name] -= 1

        monkeypatch.setattr(Upscaler, name, work)

    for name in busy:
        slow(name)
    assert Batch(up, jobs_of(photos)).run().count("done") == 6
    assert frozenset({"restore", "write"}) in {s & {"restore", "write"} for s in seen}
    assert frozenset({"open", "restore"}) in {s & {"open", "restore"} for s in seen}


def test_only_so_many_pixels_wait_between_the_stages(
    up: Upscaler, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "AHEAD_PIXELS", 1)
    monkeypatch.setattr(run, "BEHIND_PIXELS", 1)
    opened: list[str] = []
    written: list[str] = []
    most = 0
    usual = Upscaler.open

    def counted(self: Upscaler, image: Path) -> Opened:
        nonlocal most
        opened.append(image.name)
        most = max(most, len(opened) - len(written))
        return usual(self, image)

    monkeypatch.setattr(Upscaler, "open", counted)
    listener = Listener(on_outcome=lambda one: written.append(one.source.name))
    assert Batch(up, jobs_of(photos), listener=listener).run().count("done") == 6
    assert most <= 3  # one read, one restored or waiting, one written


def test_one_bad_picture_stops_none_and_is_remembered(up: Upscaler, photos: Path) -> None:
    (photos / "2.webp").write_bytes((photos / "2.webp").read_bytes()[:40])
    (photos / "4.bmp").unlink()
    (photos / "5.tif").write_text("")
    gone = Job(photos / "4.bmp", photos.parent / "out" / "4.bmp")
    jobs = [*jobs_of(photos), gone]
    with Manifest(photos.parent / "out") as manifest:
        summary = Batch(up, jobs, manifest=manifest, settings_sha256="s").run()
        entry = manifest.find(gone.target)
    assert states(summary.outcomes) == {
        "0.png": "done", "1.jpg": "done", "2.webp": "failed", "3.png": "done", "5.tif": "failed",
        "4.bmp": "failed",
    }  # fmt: skip
    reasons = {one.source.name: one.error or "" for one in summary.outcomes}
    assert "is damaged" in reasons["2.webp"] and "is empty" in reasons["5.tif"]
    assert "no such file" in reasons["4.bmp"]
    assert entry is not None and entry.state == "failed" and "no such file" in (entry.error or "")
    assert not gone.target.exists()


def test_done_ones_are_skipped_and_changed_ones_redone(up: Upscaler, photos: Path) -> None:
    jobs = jobs_of(photos)

    def again(settings: str = "s", **options: bool) -> dict[str, str]:
        with Manifest(photos.parent / "out") as manifest:
            batch = Batch(up, jobs, manifest=manifest, settings_sha256=settings, **options)
            return states(batch.run().outcomes)

    assert set(again().values()) == {"done"}
    assert set(again().values()) == {"skipped"}
    Image.new("RGB", (5, 5)).save(photos / "0.png")
    jobs[1].target.unlink()
    jobs[3].target.write_bytes(jobs[3].target.read_bytes()[:-7])
    assert again() == {
        "0.png": "done", "1.jpg": "done", "2.webp": "skipped", "3.png": "done",
        "4.bmp": "skipped", "5.tif": "skipped",
    }  # fmt: skip
    assert read_image(jobs[0].target).size == (20, 20)
    assert set(again(again=True).values()) == {"done"}
    assert set(again("t").values()) == {"done"}


def test_a_full_disk_fails_one_picture_and_leaves_no_half_of_it(
    up: Upscaler, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Image.Image.save

    def full(self: Image.Image, path: Any, **options: Any) -> None:
        usual(self, path, **options)
        if ".3.png." in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    summary = Batch(up, jobs_of(photos)).run()
    (bad,) = (one for one in summary.outcomes if one.state == "failed")
    assert bad.source.name == "3.png" and "No space left on device" in (bad.error or "")
    names = sorted(p.name for p in (photos.parent / "out").iterdir())
    assert names == ["0.png", "1.jpg", "2.webp", "4.bmp", "5.tif"]


def test_fail_fast_stops_and_keeps_what_was_done(up: Upscaler, photos: Path) -> None:
    (photos / "1.jpg").write_text("words")
    summary = Batch(up, jobs_of(photos), fail_fast=True).run()
    found = states(summary.outcomes)
    assert found["1.jpg"] == "failed" and summary.left >= 1
    assert all(
        (photos.parent / "out" / name).exists() == (state == "done")
        for name, state in found.items()
    )


def test_ctrl_c_stops_within_a_tile_and_what_was_restored_is_written(
    up: Upscaler, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of(photos)
    usual = Upscaler.write
    monkeypatch.setattr(Upscaler, "write", lambda *a: (time.sleep(0.2), usual(*a))[1])
    steps: list[Progress] = []

    def interrupt(progress: Progress) -> None:
        steps.append(progress)
        # the first step of the third picture, which would have more
        if len([p for p in steps if p.steps == p.of_steps > 0]) == 4 and progress.steps == 0:
            raise KeyboardInterrupt

    batch = Batch(up, jobs, listener=Listener(on_progress=interrupt))
    before = up.progress
    with pytest.raises(KeyboardInterrupt):
        batch.run()
    summary = batch.summary
    assert summary.count("done") == len(summary.outcomes) >= 1 and summary.left >= 1
    done = sorted(p.name for p in (photos.parent / "out").iterdir())
    assert done == sorted(one.target.name for one in summary.outcomes)
    assert up.progress is before and threading.active_count() < 4


def test_memory_that_was_short_for_a_moment_is_tried_again_alone(
    up: Upscaler, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []
    for name in ("open", "restore"):
        usual = getattr(Upscaler, name)

        def short(self: Upscaler, *what: Any, usual: Any = usual, name: str = name) -> Any:
            path = what[0] if name == "open" else what[0].path
            tries.append(f"{name} {path.name}")
            if path.name == ("0.png" if name == "open" else "3.png") and tries.count(tries[-1]) < 2:
                raise MemoryLimitError("3.00 GiB are expected, 2.00 GiB are free")
            return usual(self, *what)

        monkeypatch.setattr(Upscaler, name, short)
    assert Batch(up, jobs_of(photos)).run().count("done") == 6
    assert tries.count("open 0.png") == tries.count("restore 3.png") == 2


def test_memory_that_stays_short_fails_that_picture(
    up: Upscaler, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Upscaler.restore

    def short(self: Upscaler, opened: Opened, dst: Path) -> Any:
        if opened.path is not None and opened.path.name == "3.png":
            raise MemoryLimitError("3.00 GiB are expected, 2.00 GiB are free")
        return usual(self, opened, dst)

    monkeypatch.setattr(Upscaler, "restore", short)
    summary = Batch(up, jobs_of(photos)).run()
    (bad,) = (one for one in summary.outcomes if one.state == "failed")
    assert (bad.source.name, bad.kind) == ("3.png", "MemoryLimitError")


def test_warnings_are_told_with_the_picture_they_are_about(
    up: Upscaler, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logging.getLogger("addsr.test")
    monkeypatch.setattr(logging.getLogger("addsr"), "level", logging.WARNING)
    for name in ("open", "restore"):
        usual = getattr(Upscaler, name)

        def noisy(self: Upscaler, *what: Any, usual: Any = usual, name: str = name) -> Any:
            log.warning("%s of %s", name, (what[0] if name == "open" else what[0].path).name)
            return usual(self, *what)

        monkeypatch.setattr(Upscaler, name, noisy)
    for one in Batch(up, jobs_of(photos)).run().outcomes:
        name = one.source.name
        assert list(one.warnings) == [f"open of {name}", f"restore of {name}"]
        assert one.to_dict()["warnings"] == list(one.warnings)


def test_a_fault_in_a_thread_is_raised_and_not_waited_for(up: Upscaler, photos: Path) -> None:
    def fault(_: Outcome) -> None:
        raise ZeroDivisionError("in the listener")

    with pytest.raises(ZeroDivisionError, match="in the listener"):
        Batch(up, jobs_of(photos), listener=Listener(on_outcome=fault)).run()


def test_progress_counts_pictures_steps_and_megapixels(up: Upscaler, photos: Path) -> None:
    told: list[Progress] = []
    Batch(up, jobs_of(photos), listener=Listener(on_progress=told.append)).run()
    shares = [one.share for one in told]
    assert told[-1].pictures == told[-1].of_pictures == 6 and shares[-1] == 6
    assert told[-1].pace > 0 and max(one.of_steps for one in told) >= 1
    assert all(0 <= share <= 6 for share in shares)
