"""Seconds and peak memory of the compact network on a CPU beside an RRDBNet of Real-ESRGAN's size.

    python benchmarks/cpu.py --threads 2 --out docs/cpu.json

Both run with random weights through the same engine, number type, memory layout and tiles, in turns
within one process, so that a busy machine slows both. Every memory figure comes from a fresh
process: peak resident memory less what is resident after the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rrdbnet import RRDBNet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from addsr.engines.noise import NoiseField
from addsr.engines.run import Engine
from addsr.image.tiling import make_grid, merge_rows
from addsr.models.registry import COMPACT
from addsr.nets.compact import CompactNet

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NETS = ("rrdbnet", "compact")


def build(name: str, dtype: torch.dtype) -> nn.Module:
    """A network with random weights, made so that no larger copy ever exists.

    RRDBNet is made in `dtype`, ours in fp16 where `dtype` is fp32: so its file holds the weights,
    and so the engine keeps them.
    """
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    halves = name == "compact" and dtype == torch.float32
    torch.set_default_dtype(torch.float16 if halves else dtype)
    try:
        return RRDBNet() if name == "rrdbnet" else CompactNet()
    finally:
        torch.set_default_dtype(before)


def upscale(engine: Engine, lr: Tensor, steps: int, tile: int) -> Tensor:
    """`lr` `(1, 3, h, w)` four times larger in 8-bit levels, by tiles as the program does it.

    Rows become bytes as they are finished, and noise is drawn where a tile needs it, by the
    networks that need it.
    """
    height, width = lr.shape[-2:]
    grid = make_grid(
        height, width, tile, halo=COMPACT.halo, blend=COMPACT.blend, multiple=COMPACT.multiple
    )
    field = NoiseField(0)

    def results() -> Iterator[Tensor]:
        for part in grid:
            piece = part.cut(lr)
            rows, columns = piece.shape[-2] * 4, piece.shape[-1] * 4
            if isinstance(engine.net, RRDBNet):
                noise = torch.zeros(1).expand(1, 3, rows, columns)  # not looked at, takes no memory
            else:
                noise = field.read(part.rows.start * 4, part.columns.start * 4, rows, columns)
            yield engine.restore(piece, noise, steps)

    levels = torch.empty(1, 3, 4 * height, 4 * width, dtype=torch.uint8)
    top = 0
    for band in merge_rows(grid, results(), 4):
        for rows in band.split(256, dim=-2):
            levels[..., top : top + rows.shape[-2], :] = rows * 255 + 0.5
            top += rows.shape[-2]
    return levels


def picture(side: int) -> Tensor:
    """A random picture `(1, 3, side, side)`."""
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def measure_seconds(
    dtype: str, side: int, steps: Sequence[int], tile: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds of each run per contestant ("rrdbnet", "compact-1", ...), taken in turns."""
    engines = {
        name: Engine(build(name, DTYPES[dtype]), torch.device("cpu"), DTYPES[dtype])
        for name in NETS
    }
    contestants = [("rrdbnet", 1)] + [("compact", n) for n in steps]
    lr, small = picture(side), picture(min(side, 64))
    for name in NETS:
        upscale(engines[name], small, 1, tile)  # kernels are chosen and compiled on first use
    seconds: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, count in contestants:
            started = time.perf_counter()
            upscale(engines[name], lr, count, tile)
            key = name if name == "rrdbnet" else f"{name}-{count}"
            seconds.setdefault(key, []).append(time.perf_counter() - started)
    return seconds


def measure_memory(name: str, dtype: str, side: int, steps: int, tile: int, threads: int) -> float:
    """Peak MiB above the import's, measured in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--dtypes", dtype, "--sizes", str(side)]
    command += ["--steps", str(steps), "--tile", str(tile), "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["mib"])


def one(name: str, dtype: str, side: int, steps: int, tile: int) -> dict[str, float]:
    """What the fresh process does: one run, and its memory."""
    before = resident_mib("VmRSS")
    engine = Engine(build(name, DTYPES[dtype]), torch.device("cpu"), DTYPES[dtype])
    upscale(engine, picture(side), steps, tile)
    return {"mib": resident_mib("VmHWM") - before, "import_mib": before}


def resident_mib(field: str) -> float:
    """Resident memory now (VmRSS) or at its highest (VmHWM) of this process.

    Read from Linux' own account: `ru_maxrss` of a child starts at its parent's size.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}: memory is measured on Linux only")


def count(name: str, side: int = 128) -> dict[str, float]:
    """Multiply-adds of one step in units of 1e9, parameters, and MB of the weights in 16 bits."""
    with torch.device("meta"):
        net = build(name, torch.float32)
        lr, x_t = torch.empty(1, 3, side, side), torch.empty(1, 3, 4 * side, 4 * side)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(x_t, torch.empty(1), lr)
    parameters = sum(p.numel() for p in net.parameters())
    return {
        "gmac": counter.get_total_flops() / 2e9,
        "parameters": parameters,
        "mb_fp16": parameters * 2 / 1e6,
    }


def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    names = {}
    if info.is_file():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            names.setdefault(key.strip(), value.strip())
    flags = names.get("flags", "").split()
    return {
        "cpu": names.get("model name", model),
        "cores": os.cpu_count(),
        "threads": threads,
        "bf16_instructions": [f for f in ("avx512_bf16", "amx_bf16") if f in flags],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown: median seconds, MiB, and RRDBNet's over ours."""
    lines = [
        "| type | size | network | seconds | times faster | peak MiB | of RRDBNet's |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for case in result["cases"]:
        base = case["runs"]["rrdbnet"]
        for key, run in case["runs"].items():
            memory = run.get("mib")
            lines.append(
                f"| {case['dtype']} | {case['side']} -> {4 * case['side']} | {key} "
                f"| {run['seconds']:.2f} | {base['seconds'] / run['seconds']:.2f} | "
                + (f"{memory:.0f} | {memory / base['mib']:.2f} |" if memory else "- | - |")
            )
    lines.append("")
    for name, size in result["nets"].items():
        lines.append(
            f"{name}: {size['gmac']:.1f} GMAC for 128 -> 512 at one step, "
            f"{size['parameters'] / 1e6:.1f} M parameters, {size['mb_fp16']:.1f} MB in fp16"
        )
    facts = result["machine"]
    lines.append(
        f"{facts['cpu']}, {facts['threads']} threads, torch {facts['torch']}, "
        f"tiles of {result['tile']} px"
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", default="fp32,bf16")
    parser.add_argument("--sizes", default="128,512", help="sides of the inputs")
    parser.add_argument("--steps", default="1,2,4")
    parser.add_argument("--tile", type=int, default=COMPACT.best_tile)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--large-repeats", type=int, default=3, help="for sides over 256")
    parser.add_argument("--no-memory", action="store_true", help="seconds only")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--one", choices=NETS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    steps = [int(n) for n in args.steps.split(",")]
    sizes = [int(n) for n in args.sizes.split(",")]
    dtypes: list[str] = args.dtypes.split(",")
    if args.one:
        print(json.dumps(one(args.one, dtypes[0], sizes[0], steps[0], args.tile)))
        return
    result: dict[str, Any] = {
        "machine": machine(args.threads),
        "tile": args.tile,
        "nets": {name: count(name) for name in NETS},
        "cases": [],
    }
    for dtype in dtypes:
        for side in sizes:
            repeats = args.large_repeats if side > 256 else args.repeats
            seconds = measure_seconds(dtype, side, steps, args.tile, repeats)
            runs: dict[str, Any] = {}
            for key, values in seconds.items():
                runs[key] = {"seconds": statistics.median(values), "all_seconds": values}
                if not args.no_memory:
                    name, _, number = key.partition("-")
                    runs[key]["mib"] = measure_memory(
                        name, dtype, side, int(number or 1), args.tile, args.threads
                    )
            result["cases"].append({"dtype": dtype, "side": side, "runs": runs})
            print(f"{dtype} {side}: done", file=sys.stderr, flush=True)
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
