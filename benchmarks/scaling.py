"""How AddSR's distillation at full width scales over the GPUs of one machine.

    python benchmarks/scaling.py [--cards 1,2] [--accumulate 1,8]

starts torchrun for each number of cards, with random weights and gradients averaged over the
processes, and measures seconds of a pass. A step has `--accumulate` passes, after which gradients
are averaged and the optimiser runs. Figures go to training-memory.json, beside those of
benchmarks/latent_training.py (with which --folder can be shared), and both to training-memory.md.
`--tiny --device cpu` tries the script out: processes then share the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from latent_training import DOCS, Setting, measure, read_runs, render, write, write_folders

from addsr.errors import OptionError


def whole(text: str, name: str) -> list[int]:
    """The numbers of a list with commas.

    Raises:
        OptionError: one that is none above 0.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise OptionError(f"{name}: {text!r} must be whole numbers above 0, by commas")
    return [int(part) for part in parts]


def work(options: argparse.Namespace) -> None:
    """What one of torchrun's processes does; the first writes the rows to `--rows`."""
    rank = int(os.environ["LOCAL_RANK"])
    is_cuda = options.device.startswith("cuda")
    device = torch.device("cuda", rank) if is_cuda else torch.device(options.device)
    if is_cuda:
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    dist.init_process_group("nccl" if is_cuda else "gloo")
    rows: list[dict[str, Any]] = []
    for passes in options.accumulate:
        one = Setting("addsr", options.batch, accumulate=passes)
        # whole steps alone: their averaging is what is asked for
        count, warm = (-(-least // passes) * passes for least in (options.passes, 2))
        row = measure(one, options.folder, device, count, is_tiny=options.tiny, warm=warm)
        rows.append({"cards": dist.get_world_size(), **row})
        if rank == 0:
            write(options.rows, json.dumps(rows))
    dist.destroy_process_group()


def launch(cards: int, argv: Sequence[str], rows: Path) -> list[dict[str, Any]]:
    """The rows of `cards` processes; what failed is among them, by name."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, f"--nproc_per_node={cards}", __file__, *argv, "--rows", str(rows)], check=False
    )
    found: list[dict[str, Any]] = json.loads(rows.read_text()) if rows.is_file() else []
    if done.returncode and not any("not_run" in row for row in found):
        found.append({"cards": cards, "not_run": f"torchrun ended with {done.returncode}"})
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cards", default="1,2", help="numbers of GPUs, by commas")
    parser.add_argument("--accumulate", default="1,8", help="passes of a step, by commas")
    parser.add_argument("--batch", type=int, default=2, help="of each card in a pass")
    parser.add_argument("--passes", type=int, default=8, help="at least so many are measured")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/addsr-random-weights"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, to try the script")
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    try:
        cards = whole(options.cards, "cards")
        options.accumulate = whole(options.accumulate, "accumulate")
        there = torch.cuda.device_count()
        if options.device.startswith("cuda") and max(cards) > there and not options.rows:
            raise OptionError(f"cards: {max(cards)} wanted and {there} there; give fewer")
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.rows:
        work(options)
        return 0
    device = torch.device(options.device)
    write_folders(options.folder, ["addsr"], device, is_tiny=options.tiny)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    data = options.docs / "training-memory.json"
    runs, run = read_runs(data, device, is_tiny=options.tiny)
    run["scaling"] = []
    with tempfile.TemporaryDirectory() as folder:
        for count in cards:
            run["scaling"] += launch(count, given, Path(folder) / f"{count}.json")
            write(data, json.dumps({"runs": runs}, indent=1) + "\n")
    write(options.docs / "training-memory.md", render({"runs": runs}))
    for row in run["scaling"]:
        print(row)
    return int(any("not_run" in row for row in run["scaling"]))


if __name__ == "__main__":
    sys.exit(main())
