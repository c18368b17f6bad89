"""A long batch of small pictures, broken ones among them, killed twice and run once more.

    python benchmarks/soak.py --count 2000

A random network of the smallest size stands for the model: what is under test is the batch. Every
picture must be accounted for at the end: the good ones whole on the disk, the broken ones with
their reasons in the manifest, and nothing half written. How memory goes is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from addsr.batch.manifest import NAME
from addsr.models.files import save_weights
from addsr.nets import CompactConfig, CompactNet

TINY = CompactConfig(
    widths=(32, 32, 32), depths=(1, 1, 1), decoder_widths=(32, 16, 16), decoder_depth=1,
    time_channels=32, lr_channels=8,
)  # fmt: skip


def make_pictures(folder: Path, count: int, dice: random.Random) -> set[str]:
    """Fills `folder`; gives the names of the broken ones, one in twenty."""
    folder.mkdir()
    broken: set[str] = set()
    ramp = Image.linear_gradient("L")
    for k in range(count):
        path = folder / f"{k:05d}{dice.choice(('.png', '.jpg', '.webp'))}"
        size = (dice.randint(4, 40), dice.randint(4, 40))
        ramp.resize(size).convert(dice.choice(("RGB", "L"))).save(path)
        if k % 20 == 7:
            broken.add(path.name)
            path.write_bytes(path.read_bytes()[: dice.choice((0, 10, 30))])
    return broken


def resident(pid: int) -> float:
    """MiB that a process holds."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
    return 0.0


def run(words: list[str], out: Path, kill_at: int | None) -> tuple[int, list[tuple[int, float]]]:
    """Status of one run, and (pictures, MiB) over its time; killed after `kill_at` pictures."""
    process = subprocess.Popen(
        [sys.executable, "-m", "addsr", *words], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    memory: list[tuple[int, float]] = []
    assert process.stdout is not None
    for told, _ in enumerate(process.stdout, start=1):
        if told % 50 == 0:
            memory.append((told, round(resident(process.pid), 1)))
        if kill_at is not None and told >= kill_at:
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    return process.wait(), memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    dice = random.Random(arguments.seed)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        source, out, weights = (
            Path(root) / "in",
            Path(root) / "out",
            Path(root) / "tiny.safetensors",
        )
        broken = make_pictures(source, arguments.count, dice)
        net = CompactNet(TINY)
        save_weights(weights, net.state_dict(), {"kind": "compact", "config": TINY.to_dict()})
        words = ["upscale", str(source), "-o", str(out), "--model", str(weights), "--json"]
        kills = [dice.randint(arguments.count // 5, arguments.count // 3) for _ in range(2)]
        runs = []
        for kill_at in (*kills, None):
            # skipped ones are told too: the kill comes so many after them
            before = 0 if not out.exists() else len(list(out.glob("[!.]*.[jpw]*")))
            status, memory = run(words, out, None if kill_at is None else before + kill_at)
            whole = len(list(out.glob("[!.]*.[jpw]*")))
            runs.append({"status": status, "results": whole, "memory": memory})
            print(f"status {status}, {whole} results, {memory[-1:]}", flush=True)
        status, _ = run(words, out, None)
        names = {p.name for p in out.iterdir() if not p.name.startswith((".", NAME))}
        half = [p.name for p in out.iterdir() if p.name.startswith(".")]
        damaged = 0
        for name in names:
            try:
                with Image.open(out / name) as image:
                    image.load()
            except OSError:
                damaged += 1
        with contextlib.closing(sqlite3.connect(out / NAME)) as rows:
            states = dict(rows.execute("SELECT state, COUNT(*) FROM pictures GROUP BY state"))
            unexplained = rows.execute(
                "SELECT COUNT(*) FROM pictures WHERE state = 'failed' AND error IS NULL"
            ).fetchone()[0]
    # skipping takes less memory than restoring: only what came after it is compared
    flat = [mib for told, mib in runs[-1]["memory"] if told >= runs[-2]["results"] + 200]
    figures = {
        "pictures": arguments.count, "broken": len(broken), "kills": kills, "runs": runs,
        "results": len(names), "states": states, "half_files": half, "damaged": damaged,
        "failures_without_reason": unexplained, "status_of_a_further_run": status,
        "memory_mib": flat,
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    print(json.dumps({k: v for k, v in figures.items() if k != "runs"}, indent=1))
    good = {p for p in names if p not in broken}
    assert not half and not damaged and not unexplained
    assert len(good) == len(names) == arguments.count - len(broken) == states["done"]
    assert states["failed"] == len(broken) and status == 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.manual_seed(0)
    main()
