"""A folder of mixed photos through `addsr.batch` against one Upscaler called in a loop.

    python benchmarks/batch.py                 # 50 photos, compact, what the machine has
    python benchmarks/batch.py --count 12 --largest 96

Both ways read the same files and write the same results; they take turns of
ten photos, so that other programs on the machine disturb both alike.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

from PIL import Image

from addsr import Upscaler
from addsr.batch.discovery import discover
from addsr.batch.jobs import Job, make_jobs
from addsr.batch.run import Batch

_SHARE = 10
"""Photos after which the other way has its turn."""
PHOTO = Path(__file__).parent.parent / "examples" / "cat.jpg"


def make_photos(folder: Path, count: int, smallest: int, largest: int) -> None:
    """Crops of the example photo in the formats people have, of mixed sizes."""
    folder.mkdir()
    dice = random.Random(0)
    with Image.open(PHOTO) as photo:
        photo = photo.convert("RGB")
        for k in range(count):
            width, height = (dice.randint(smallest, largest) for _ in range(2))
            path = folder / f"{k:03d}{dice.choice(('.jpg', '.jpg', '.png', '.webp'))}"
            photo.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)


def loop(up: Upscaler, jobs: list[Job]) -> None:
    for job in jobs:
        up(job.source, job.target)


def batch(up: Upscaler, jobs: list[Job]) -> None:
    assert Batch(up, jobs).run().count("done") == len(jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--smallest", type=int, default=48)
    parser.add_argument("--largest", type=int, default=160)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--device", default=None)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"loop": [], "batch": []}
    with (
        tempfile.TemporaryDirectory() as root,
        Upscaler(arguments.model, device=arguments.device) as up,
    ):
        source = Path(root) / "in"
        make_photos(source, arguments.count, arguments.smallest, arguments.largest)
        ways = {"loop": loop, "batch": batch}
        jobs: dict[str, list[Job]] = {}
        for name in ways:
            out = Path(root) / name
            out.mkdir()
            jobs[name] = make_jobs(discover([source]), str(out), "x4")
        loop(up, jobs["loop"][:1])
        megapixels = sum(
            16 * image.width * image.height / 1e6
            for image in (Image.open(job.source) for job in jobs["loop"])
        )
        for turn in range(arguments.turns):
            spent = dict.fromkeys(ways, 0.0)
            for k, first in enumerate(range(0, arguments.count, _SHARE)):
                for name in sorted(ways, reverse=bool((turn + k) % 2)):
                    started = time.monotonic()
                    ways[name](up, jobs[name][first : first + _SHARE])
                    spent[name] += time.monotonic() - started
            for name, value in spent.items():
                seconds[name].append(round(value, 2))
            print(spent, flush=True)
        same = all(
            a.target.read_bytes() == b.target.read_bytes()
            for a, b in zip(jobs["loop"], jobs["batch"], strict=True)
        )
        device = str(up.restorer.device)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        json.dumps(
            {
                "photos": arguments.count,
                "megapixels": round(megapixels, 1),
                "device": device,
                "model": arguments.model,
                "seconds": seconds,
                "megapixels_per_second": {n: round(megapixels / s, 3) for n, s in middle.items()},
                "batch_times_faster": round(middle["loop"] / middle["batch"], 3),
                "same_files": same,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
