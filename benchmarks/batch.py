"""A folder of photos through `addsr.batch` against one Upscaler called in a loop.

    python benchmarks/batch.py                          # 50 mixed photos, what the machine has
    python benchmarks/batch.py --equal --device cuda    # and 50 of one size
    python benchmarks/batch.py --count 12 --largest 96

Both ways read the same files and write the same results. On a CPU they take turns of ten photos, so
that other programs on the machine disturb both alike; on an accelerator, where ten are done before
reading, network and writing overlap, of whole folders. Turns that would go beyond `--minutes` are
left out, and only what both ways did is counted.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from addsr import Upscaler
from addsr.batch.discovery import discover
from addsr.batch.jobs import Job, make_jobs
from addsr.batch.run import Batch

_SHARE = 10
"""Photos after which, on a CPU, the other way has its turn."""
_PARTS = 10
"""Photos whose reading, restoring and writing are timed apart."""
PHOTO = Path(__file__).parent.parent / "examples" / "cat.jpg"


def make_photos(folder: Path, sizes: list[tuple[int, int]]) -> None:
    """Crops of the example photo in the formats people have, one of each size (width, height)."""
    folder.mkdir()
    dice = random.Random(0)
    with Image.open(PHOTO) as photo:
        photo = photo.convert("RGB")
        for k, size in enumerate(sizes):
            path = folder / f"{k:03d}{dice.choice(('.jpg', '.jpg', '.png', '.webp'))}"
            # no two alike, or the files would lie
            edge = k % 40
            part = photo.crop((edge, edge, photo.width - edge, photo.height - edge))
            part.resize(size, Image.Resampling.BICUBIC).save(path, quality=90)


def loop(up: Upscaler, jobs: list[Job]) -> None:
    for job in jobs:
        up(job.source, job.target)


def batch(up: Upscaler, jobs: list[Job]) -> None:
    assert Batch(up, jobs).run().count("done") == len(jobs)


WAYS: dict[str, Callable[[Upscaler, list[Job]], None]] = {"loop": loop, "batch": batch}


def timed(up: Upscaler, work: Callable[[], Any]) -> float:
    """Seconds that `work` takes, the device's included."""
    synchronize(up.restorer.device)
    started = time.monotonic()
    work()
    synchronize(up.restorer.device)
    return time.monotonic() - started


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    elif device.type == "xpu":
        torch.xpu.synchronize(device)


@dataclass
class Folder:
    """One kind of photos, what was measured of it and until when it may be worked on."""

    jobs: dict[str, list[Job]]
    deadline: float
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in WAYS})
    """Of each turn, loop and batch at the same place over the same photos."""
    photos: list[int] = field(default_factory=list)

    def run(self, up: Upscaler, turns: int, share: int) -> None:
        """Takes the turns there is time for, at least one."""
        shares = range(0, len(self.jobs["loop"]), share)
        for turn in range(turns * len(shares)):
            place = slice(shares[turn % len(shares)], shares[turn % len(shares)] + share)
            longest = max((a + b for a, b in zip(*self.seconds.values(), strict=True)), default=0.0)
            if self.photos and time.monotonic() + longest > self.deadline:
                return
            # who goes first changes, for each place as well as from turn to turn
            is_turned = bool((turn + turn // len(shares)) % 2)
            for name in sorted(WAYS, reverse=is_turned):
                some = self.jobs[name][place]
                spent = timed(up, lambda way=WAYS[name], some=some: way(up, some))
                self.seconds[name].append(spent)
            self.photos.append(len(self.jobs["loop"][place]))

    def figures(self) -> dict[str, Any]:
        """What was measured, for JSON."""
        total = {name: sum(values) for name, values in self.seconds.items()}
        ratios = [a / b for a, b in zip(*self.seconds.values(), strict=True)]
        pixels = [16 * width * height for width, height in map(size_of, self.jobs["loop"])]
        measured = sum(self.photos) / len(pixels) * sum(pixels) / 1e6
        return {
            "photos": len(pixels),
            "photos_measured": sum(self.photos),
            "megapixels": round(sum(pixels) / 1e6, 1),
            "seconds": {n: [round(s, 3) for s in values] for n, values in self.seconds.items()},
            "megapixels_per_second": {n: round(measured / s, 3) for n, s in total.items()},
            "batch_times_faster": round(total["loop"] / total["batch"], 3),
            "of_turns": {"median": round(statistics.median(ratios), 3),
                         "least": round(min(ratios), 3), "most": round(max(ratios), 3)},
            **self._compare(),
        }  # fmt: skip

    def _compare(self) -> dict[str, Any]:
        """How far the results of both ways are apart, in steps of 8 bits."""
        pairs = [(a.target, b.target) for a, b in zip(*self.jobs.values(), strict=True)]
        pairs = [(a, b) for a, b in pairs if a.exists() and b.exists()]
        apart = [np.abs(pixels_of(a) - pixels_of(b)) for a, b in pairs]
        return {
            "same_files": all(a.read_bytes() == b.read_bytes() for a, b in pairs),
            "mean_difference": round(statistics.fmean(float(d.mean()) for d in apart), 4),
            "largest_difference": max(int(d.max()) for d in apart),
        }


def size_of(job: Job) -> tuple[int, int]:
    with Image.open(job.source) as image:
        return image.size


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(np.int16)


def time_parts(up: Upscaler, jobs: list[Job]) -> dict[str, float]:
    """Milliseconds for a photo of reading, restoring and writing, one after the other."""
    spent = dict.fromkeys(("open", "restore", "write"), 0.0)
    for job in jobs:
        kept: list[Any] = []
        spent["open"] += timed(up, lambda job=job, kept=kept: kept.append(up.open(job.source)))
        spent["restore"] += timed(
            up, lambda job=job, kept=kept: kept.append(up.restore(kept[0], job.target))
        )
        report = up.report
        assert report is not None
        spent["write"] += timed(
            up,
            lambda job=job, kept=kept, report=report: up.write(
                kept[1], kept[0], job.target, report
            ),
        )
    return {name: round(1000 * value / len(jobs), 2) for name, value in spent.items()}


def measure(
    up: Upscaler, root: Path, sizes: list[tuple[int, int]], turns: int, seconds: float
) -> dict[str, Any]:
    """The figures of one kind of photos."""
    started = time.monotonic()
    is_cpu = up.restorer.device.type == "cpu"
    root.mkdir()
    make_photos(root / "in", sizes)
    jobs: dict[str, list[Job]] = {}
    for name in WAYS:
        (root / name).mkdir()
        jobs[name] = make_jobs(discover([root / "in"]), str(root / name), "x4")
    # an accelerator's libraries prepare themselves for every new shape
    for name, way in WAYS.items():
        way(up, jobs[name][: 1 if is_cpu else None])
    parts = time_parts(up, jobs["loop"][: 1 if is_cpu else _PARTS])
    folder = Folder(jobs, started + seconds)
    folder.run(up, turns, min(_SHARE, len(sizes)) if is_cpu else len(sizes))
    return {**folder.figures(), "milliseconds_of_a_photo": parts}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--smallest", type=int, default=48)
    parser.add_argument("--largest", type=int, default=160)
    parser.add_argument("--equal", action="store_true", help="also photos of one size")
    parser.add_argument("--side", type=int, default=96, help="of those")
    parser.add_argument("--turns", type=int, default=2, help="over all photos; 6 on a GPU is good")
    parser.add_argument("--minutes", type=float, default=2.0, help="for all of it, about")
    parser.add_argument("--model", default="compact")
    parser.add_argument("--device", default=None)
    parser.add_argument("--tile-batch", type=int, default=None, help="default: auto")
    arguments = parser.parse_args(words)
    dice = random.Random(1)
    least, most, count = arguments.smallest, arguments.largest, arguments.count
    sizes = {
        "mixed": [(dice.randint(least, most), dice.randint(least, most)) for _ in range(count)]
    }
    if arguments.equal:
        sizes["equal"] = [(arguments.side, arguments.side)] * count
    found: dict[str, dict[str, Any]] = {}
    with (
        tempfile.TemporaryDirectory() as root,
        Upscaler(
            arguments.model, device=arguments.device, tile_batch=arguments.tile_batch or "auto"
        ) as up,
    ):
        device = up.restorer.device
        for kind, some in sizes.items():
            share = 60 * arguments.minutes / len(sizes)
            found[kind] = measure(up, Path(root) / kind, some, arguments.turns, share)
            print(f"{kind}: loop / batch = {found[kind]['batch_times_faster']}", flush=True)
        about = {
            "device": str(device),
            "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "dtype": str(up.restorer.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "model": arguments.model,
            "tile_batch": up.tile_batch,
        }
    more = {kind: figures for kind, figures in found.items() if kind != "mixed"}
    print(json.dumps({**found["mixed"], **about, **more}, indent=1))


if __name__ == "__main__":
    main()
