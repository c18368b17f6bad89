"""Pictures of one size go through the network together, and none of them notices."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from addsr import Upscaler
from addsr.batch.discovery import discover
from addsr.batch.events import Listener, Outcome, Progress, Summary
from addsr.batch.jobs import Job, make_jobs
from addsr.batch.manifest import Manifest
from addsr.batch.run import Batch
from addsr.engines.run import Engine, TileTooLarge
from addsr.errors import ModelError
from addsr.upscaler import Opened

COUNT = 7


@pytest.fixture()
def up(weights: str) -> Iterator[Upscaler]:
    with Upscaler(weights, device="cpu", dtype="fp32", tile_batch=4) as made:
        yield made


@pytest.fixture()
def photos(tmp_path: Path) -> Path:
    """Six photos of one size, the fourth white, and 3.png of another."""
    folder = tmp_path / "photos"
    folder.mkdir()
    dice = np.random.default_rng(0)
    for k in range(COUNT):
        values = dice.integers(0, 200, (20, 14 if k == 3 else 18, 3), np.uint8)
        Image.fromarray(values if k != 4 else values * 0 + 255).save(folder / f"{k}.png")
    return folder


@pytest.fixture()
def groups(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Names of those that went together; all is read before the first of them goes."""
    seen: list[list[str]] = []
    usual, take = Upscaler.restore_together, Batch._take_ready  # pyright: ignore[reportPrivateUsage]

    def noted(self: Upscaler, pictures: Any) -> Any:
        seen.append([Path(opened.name).name for opened, _ in pictures])
        return usual(self, pictures)

    def patient(self: Any, waiting: Any) -> None:
        while not waiting and self._read.qsize() < len(self.jobs) + 1 and not self._stop.is_set():
            time.sleep(0.001)
            if getattr(self, "has_begun", False):
                break
        self.has_begun = True
        take(self, waiting)

    monkeypatch.setattr(Upscaler, "restore_together", noted)
    monkeypatch.setattr(Batch, "_take_ready", patient)
    return seen


def jobs_of(photos: Path) -> list[Job]:
    out = photos.parent / "out"
    out.mkdir(exist_ok=True)
    return make_jobs(discover([photos]), f"{out}/", "x4")


def states(summary: Summary) -> dict[str, str]:
    return {one.source.name: one.state for one in summary.outcomes}


def warnings(summary: Summary) -> dict[str, list[str]]:
    return {one.source.name: list(one.warnings) for one in summary.outcomes if one.warnings}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def mode(path: Path) -> str:
    with Image.open(path) as image:
        return image.mode


def check_results(up: Upscaler, jobs: list[Job]) -> None:
    """Each is there, and what a single call gives but for rounding."""
    for job in jobs:
        assert np.abs(pixels(job.target) - np.asarray(up(job.source)).astype(int)).max() <= 1


GROUPS = [["0.png", "1.png", "2.png", "4.png"], ["5.png", "6.png"]]


def test_pictures_of_one_size_go_together_and_the_others_alone(
    up: Upscaler, photos: Path, groups: list[list[str]]
) -> None:
    jobs = jobs_of(photos)
    with Manifest(photos.parent / "out") as manifest:
        summary = Batch(up, jobs, manifest=manifest, settings_sha256="s").run()
        entries = [manifest.find(job.target) for job in jobs]
    # a lone one, 3.png, has nothing to gain on a CPU
    assert groups == GROUPS
    assert summary.count("done") == COUNT and not warnings(summary)
    assert summary.megapixels == pytest.approx(16 * 20 * (6 * 18 + 14) / 1e6)
    assert all(entry is not None and entry.state == "done" for entry in entries)
    reports = {one.source.name: one.report for one in summary.outcomes}
    for job in jobs:
        report = reports[job.source.name]
        assert (report["source"], report["output"]) == (str(job.source), str(job.target))
        assert report["seconds"] >= 0 and report["tiles"] == 1
    check_results(up, jobs)


def test_other_kinds_of_the_same_size_keep_their_own_kind(
    up: Upscaler, photos: Path, groups: list[list[str]]
) -> None:
    with Image.open(photos / "1.png") as image:
        image.convert("L").save(photos / "1.png")
    with Image.open(photos / "2.png") as image:
        image.putalpha(90)
        image.save(photos / "2.png")
    jobs = jobs_of(photos)
    assert Batch(up, jobs).run().count("done") == COUNT
    assert groups == GROUPS
    assert [mode(job.target) for job in jobs[:3]] == ["RGB", "L", "RGBA"]
    check_results(up, jobs)


def test_without_tiles_together_there_are_no_pictures_together(
    weights: str, photos: Path, groups: list[list[str]]
) -> None:
    with Upscaler(weights, device="cpu", dtype="fp32") as up:
        assert Batch(up, jobs_of(photos)).run().count("done") == COUNT
    assert groups == []


def test_one_that_fails_takes_none_of_its_neighbours_down(
    up: Upscaler, photos: Path, groups: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Engine.restore

    def breaks(self: Engine, lr: Tensor, *rest: Any) -> Tensor:
        if bool((lr > 0.99).flatten(1).all(dim=1).any()):
            raise ModelError("model: its output is not finite even in fp32")
        return usual(self, lr, *rest)

    monkeypatch.setattr(Engine, "restore", breaks)
    jobs = jobs_of(photos)
    with Manifest(photos.parent / "out") as manifest:
        summary = Batch(up, jobs, manifest=manifest, settings_sha256="s").run()
        entry = manifest.find(jobs[4].target)
        again = Batch(up, jobs, manifest=manifest, settings_sha256="s").run()
    assert groups[:2] == GROUPS
    assert states(summary) == {f"{k}.png": "failed" if k == 4 else "done" for k in range(COUNT)}
    assert entry is not None and entry.state == "failed" and "not finite" in (entry.error or "")
    assert not jobs[4].target.exists()
    assert states(again) == {f"{k}.png": "failed" if k == 4 else "skipped" for k in range(COUNT)}
    check_results(up, [job for job in jobs if job.source.name != "4.png"])


class Overflowing(nn.Module):
    """Enlarges; what is white becomes infinite in half precision."""

    scale, multiple = 4, 8

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

    def forward(self, x_t: Tensor, t: Tensor, lr: Tensor, *_: Any) -> Tensor:
        out = nn.functional.interpolate(lr, scale_factor=4.0)
        is_half = self.weight.dtype == torch.bfloat16
        return torch.where((out > 0.99) & is_half, torch.inf, out)


def test_an_overflow_is_told_of_the_picture_it_was_in(
    up: Upscaler, photos: Path, groups: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = up.restorer
    engine.engine.net, engine.engine.dtype = Overflowing(), torch.bfloat16
    monkeypatch.setattr(logging.getLogger("addsr"), "level", logging.WARNING)
    jobs = jobs_of(photos)
    summary = Batch(up, jobs).run()
    assert groups == GROUPS and summary.count("done") == COUNT
    told = warnings(summary)
    assert list(told) == ["4.png"]
    assert told["4.png"] == ["values overflowed in torch.bfloat16; this tile is done again in fp32"]
    assert pixels(jobs[4].target).min() > 250
    assert pixels(jobs[0].target).max() < 250


def test_memory_that_is_short_for_many_goes_on_with_fewer_and_all_are_told(
    up: Upscaler, photos: Path, groups: list[list[str]]
) -> None:
    restorer: Any = up.restorer

    def short(_: nn.Module, given: Any) -> None:
        if len(given[2]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    restorer.engine.net.register_forward_pre_hook(short)
    jobs = jobs_of(photos)
    summary = Batch(up, jobs).run()
    assert summary.count("done") == COUNT and groups == GROUPS
    told = warnings(summary)
    assert sorted(told) == GROUPS[0]
    assert all("going on with 2" in one[0] and len(one) == 1 for one in told.values())
    check_results(up, jobs)


def test_memory_that_is_short_for_one_is_tried_again_alone(
    up: Upscaler, photos: Path, groups: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Engine.restore
    tries: list[int] = []

    def short(self: Engine, lr: Tensor, *rest: Any) -> Tensor:
        tries.append(len(lr))
        if len(tries) == 1:
            raise TileTooLarge("tile: 18x20 px does not fit into the memory of cpu")
        return usual(self, lr, *rest)

    monkeypatch.setattr(Engine, "restore", short)
    assert Batch(up, jobs_of(photos)).run().count("done") == COUNT
    assert groups == GROUPS
    assert tries[:5] == [4, 1, 1, 1, 1]


def test_ctrl_c_among_them_leaves_all_of_them_for_the_next_run(
    up: Upscaler, photos: Path, groups: list[list[str]]
) -> None:
    def interrupt(progress: Progress) -> None:
        if len(groups) == 2 and progress.steps == 1 and progress.at_once == 2:
            raise KeyboardInterrupt

    jobs = jobs_of(photos)
    with Manifest(photos.parent / "out") as manifest:
        batch = Batch(
            up, jobs, manifest=manifest, settings_sha256="s",
            listener=Listener(on_progress=interrupt),
        )  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            batch.run()
        left = {job.source.name for job in jobs} - set(states(batch.summary))
        again = Batch(up, jobs, manifest=manifest, settings_sha256="s").run()
    assert left == {"5.png", "6.png"}
    assert states(again) == {f"{k}.png": "done" if k in (5, 6) else "skipped" for k in range(COUNT)}


def test_progress_counts_all_that_are_worked_on(
    up: Upscaler, photos: Path, groups: list[list[str]]
) -> None:
    told: list[Progress] = []
    Batch(up, jobs_of(photos), listener=Listener(on_progress=told.append)).run()
    assert max(one.at_once for one in told) == 4
    half = [one for one in told if one.at_once == 4 and one.steps == 2]
    assert half and half[0].of_steps == 4 and half[0].share == half[0].pictures + 2
    assert all(0 <= one.share <= COUNT for one in told) and told[-1].share == COUNT


@pytest.fixture()
def beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch as on an accelerator, with a CPU in its place."""
    usual = Batch.__init__

    def make(self: Any, *arguments: Any, **options: Any) -> None:
        usual(self, *arguments, **options)
        self._is_cpu = False

    monkeypatch.setattr(Batch, "__init__", make)
    monkeypatch.setattr("os.cpu_count", lambda: 8)


@pytest.mark.usefixtures("beside_a_gpu")
def test_beside_an_accelerator_several_threads_finish_and_write(
    up: Upscaler, photos: Path, groups: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    writing: set[int] = set()
    most = 0
    usual = Upscaler.write

    def slow(self: Upscaler, *what: Any) -> None:
        nonlocal most
        writing.add(threading.get_ident())
        most = max(most, len(writing))
        time.sleep(0.05)
        usual(self, *what)
        writing.discard(threading.get_ident())

    finished: list[int] = []
    finish = Upscaler._finish  # pyright: ignore[reportPrivateUsage]

    def noted(self: Upscaler, *what: Any) -> Any:
        finished.append(threading.get_ident())
        return finish(self, *what)

    monkeypatch.setattr(Upscaler, "write", slow)
    monkeypatch.setattr(Upscaler, "_finish", noted)
    jobs = jobs_of(photos)
    summary = Batch(up, jobs).run()
    assert summary.count("done") == COUNT
    assert groups == [GROUPS[0], ["3.png"], GROUPS[1]]
    assert most == 3 and threading.get_ident() not in finished
    check_results(up, jobs)


def break_finishing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has memory run out where the third picture is finished."""
    usual = Upscaler._finish  # pyright: ignore[reportPrivateUsage]

    def breaks(self: Upscaler, opened: Opened, *rest: Any) -> Any:
        if opened.name.endswith("2.png"):
            raise MemoryError
        return usual(self, opened, *rest)

    monkeypatch.setattr(Upscaler, "_finish", breaks)


@pytest.mark.usefixtures("beside_a_gpu")
def test_what_cannot_be_finished_fails_alone(
    up: Upscaler, photos: Path, groups: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_finishing(monkeypatch)
    summary = Batch(up, jobs_of(photos)).run()
    assert groups[0] == GROUPS[0]
    assert states(summary) == {f"{k}.png": "failed" if k == 2 else "done" for k in range(COUNT)}


def test_on_a_cpu_what_cannot_be_finished_fails_alone_too(
    up: Upscaler, photos: Path, groups: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_finishing(monkeypatch)
    summary = Batch(up, jobs_of(photos)).run()
    assert states(summary) == {f"{k}.png": "failed" if k == 2 else "done" for k in range(COUNT)}


@pytest.mark.usefixtures("beside_a_gpu")
def test_a_fault_in_one_of_the_writers_is_raised(up: Upscaler, photos: Path) -> None:
    def fault(_: Outcome) -> None:
        raise ZeroDivisionError("in the listener")

    with pytest.raises(ZeroDivisionError, match="in the listener"):
        Batch(up, jobs_of(photos), listener=Listener(on_outcome=fault)).run()
    assert threading.active_count() < 4
