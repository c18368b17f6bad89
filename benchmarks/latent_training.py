"""Speed and memory of the trainings over Stable Diffusion at full width, with random weights.

    python benchmarks/latent_training.py [--only addsr] [--minutes 12] [--optim NAME=VALUE]

measures each setting of StableSR's two trainings and of AddSR's distillation: seconds of a pass,
pictures per second, peak memory and counted work. Then it looks which of AddSR's settings fit into
cards of 24, 40 and 80 GB (--budgets), and runs the quickest of them with torch held to that much.
`--optim` adds a field of a recipe's [optim] table as one more setting of AddSR's, and may be
repeated. Figures go to training-memory.json after each row and to training-memory.md, both in
--docs; losses mean nothing here. `--tiny --device cpu` tries the script out.

AddSR's run has neither tagger nor DINO, whose files are published: the tagger would add 0.4 GB and
the discriminator judges the teacher's features.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from addsr.errors import AddsrError, OptionError
from addsr.models.files import save_weights
from addsr.nets.seesr import build_controlnet
from addsr.nets.seesr import build_unet as build_seesr_unet
from addsr.nets.stablesr import build_unet, build_vae
from addsr.train.addsr_config import AddSRConfig
from addsr.train.addsr_networks import write_tiny_seesr
from addsr.train.base import write_tiny_base
from addsr.train.config import DataConfig, OptimConfig, Recipe, RunConfig
from addsr.train.latent_config import CfwTaskConfig, StableSRConfig
from addsr.train.run import make_task
from addsr.train.task import Batch

DOCS = Path(__file__).parent.parent / "docs"
TASKS = ("addsr", "stablesr", "cfw")
GB = 10**9
_SLACK = 0.95
"""Of a card, what a training may be expected to fill."""
TINY_NET: dict[str, Any] = {
    "widths": [32, 64], "blocks": 1, "attention": [True, False], "time_channels": 32,
    "features": 32, "hidden": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One training as it is measured."""

    task: str
    batch: int
    precision: str = "bf16"
    checkpointing: bool = True
    accumulate: int = 1
    reuse: int = 1
    """How often StableSR's latents are used."""
    optim: str = ""
    """A field of the recipe's [optim] table with its value."""
    budget_gb: int = 0
    """Memory that torch is held to; 0: all."""


def write_folders(
    folder: Path, only: Sequence[str], device: torch.device, *, is_tiny: bool
) -> None:
    """The base, with the shapes of Stable Diffusion 2.1, and SeeSR's networks, of random numbers.

    3.8 GB, and 3.2 GB as fp16; what is there already stays.
    """
    base, seesr = folder / "base", folder / "seesr"
    if is_tiny:
        if not base.is_dir():
            write_tiny_base(base)
        if not seesr.is_dir():
            write_tiny_seesr(seesr)
        return
    torch.manual_seed(0)
    builds: list[tuple[Path, Any]] = [(base / "vae", build_vae)]
    if set(only) != {"addsr"}:
        builds.append((base / "unet", build_unet))
    if "addsr" in only:
        builds += [(seesr / "unet", build_seesr_unet), (seesr / "controlnet", build_controlnet)]
    for place, build in builds:
        if not place.is_dir():
            with device:  # drawing so many numbers takes a CPU minutes
                net: Any = build()
            net = net.half() if place.parent == seesr else net
            net.save_pretrained(place)
    prompt = base / "empty_prompt" / "diffusion_pytorch_model.safetensors"
    prompt.parent.mkdir(exist_ok=True)
    save_weights(prompt, {"prompt_embeds": torch.randn(1, 77, 1024)}, {"kind": "empty_prompt"})


def recipe(one: Setting, folder: Path, *, is_tiny: bool) -> Recipe:
    """The recipe of a setting."""
    base = str(folder / "base")
    changes: dict[str, Any] = {"learning_rate": 5e-5, "clip": float("inf"), "warmup_steps": 1}
    if one.task == "addsr":
        changes |= {"learning_rate": 2e-5, "clip": 1.0}
    if one.optim:
        name, _, value = one.optim.partition("=")
        changes[name] = _value(value)
    task: Any
    if one.task == "addsr":
        seesr = str(folder / "seesr")
        task = AddSRConfig(base=base, seesr=seesr, checkpointing=one.checkpointing)
    elif one.task == "stablesr":
        reuse = {"latent_reuse": one.reuse, "latent_pool": one.batch} if one.reuse > 1 else {}
        task = StableSRConfig(base=base, checkpointing=one.checkpointing, **reuse)
    else:
        task = CfwTaskConfig(model=base, checkpointing=one.checkpointing, adversarial_start=0)
    net = TINY_NET if is_tiny and one.task == "stablesr" else {}
    return Recipe(
        one.task,
        RunConfig(
            batch=one.batch, accumulate=one.accumulate, precision=one.precision, compile=False
        ),
        DataConfig(train=("none",), crop_px=64 if is_tiny else 512),
        OptimConfig(**changes),
        task,
        net,
    )


def _value(text: str) -> Any:
    try:
        return json.loads(text)  # a number, true or false
    except ValueError:
        return text


def measure(
    one: Setting,
    folder: Path,
    device: torch.device,
    passes: int,
    *,
    is_tiny: bool,
    warm: int | None = None,
) -> dict[str, Any]:
    """The row of a setting: figures of `passes` passes, or why there are none.

    `warm` come before that are not counted, a third as many if None. A pass is what one batch
    takes; with `accumulate` so many of them make a step.
    """
    row: dict[str, Any] = asdict(one)
    is_cuda = device.type == "cuda"
    if is_cuda:
        gc.collect()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        share = min(1.0, one.budget_gb * GB / total) if one.budget_gb else 1.0
        torch.cuda.set_per_process_memory_fraction(share, device)
        torch.cuda.reset_peak_memory_stats()
    try:
        row |= _run(one, folder, device, passes, warm or max(2, passes // 3), is_tiny=is_tiny)
    except torch.OutOfMemoryError:
        return row | {"not_run": "out of memory"}
    # one setting that fails must not cost the others
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        text = reason if isinstance(error, AddsrError) else f"{type(error).__name__}: {reason}"
        return row | {"not_run": f"failed: {text}"}
    finally:
        if is_cuda:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    if is_cuda:
        row["peak_bytes"] = torch.cuda.max_memory_allocated()
        row["reserved_bytes"] = torch.cuda.max_memory_reserved()
    return row


def _run(
    one: Setting, folder: Path, device: torch.device, passes: int, warm: int, *, is_tiny: bool
) -> dict[str, Any]:
    whole = recipe(one, folder, is_tiny=is_tiny)
    side, start = whole.data.crop_px, 0.0
    task = make_task(whole, device)
    factor = 4 if is_tiny else 8
    for k in range(warm + passes):
        if k == warm:
            _wait(device)
            start = time.perf_counter()
        n = task.fresh_samples(one.batch)
        hr = torch.rand(n, 3, side, side, device=device)
        lr = torch.rand(n, 3, side // 4, side // 4, device=device)
        latent = torch.randn(n, 4, side // factor, side // factor, device=device)
        task.step(Batch(hr, lr, latent))
    _wait(device)
    seconds = (time.perf_counter() - start) / passes
    flops = task.flops_per_sample() * one.batch
    return {"seconds": seconds, "flops": flops}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def settings(only: Sequence[str], batch: int, optims: Sequence[str]) -> list[Setting]:
    """All settings without a limit of memory, the most wanted first."""
    found: list[Setting] = []
    if "addsr" in only:
        found += [Setting("addsr", 2), Setting("addsr", 2, checkpointing=False)]
        found += [Setting("addsr", 2, optim=one) for one in optims]
        found.append(Setting("addsr", 1, accumulate=2))
        found += [Setting("addsr", 1, accumulate=2, optim=one) for one in optims]
    if "stablesr" in only:
        for precision in ("bf16", "fp32"):
            found += [Setting("stablesr", batch, precision, c) for c in (True, False)]
        found.append(Setting("stablesr", batch, reuse=batch))
    if "cfw" in only:
        for precision in ("bf16", "fp32"):
            found += [Setting("cfw", 1, precision, c) for c in (False, True)]
    return found


def fitting(rows: Sequence[dict[str, Any]], budget_gb: int) -> dict[str, Any] | None:
    """AddSR's quickest row per picture that should fit into `budget_gb`; None: none does."""
    limit = budget_gb * GB * _SLACK
    there = [
        row for row in rows
        if row["task"] == "addsr" and not row["budget_gb"]
        and row.get("reserved_bytes", limit + 1) <= limit
    ]  # fmt: skip
    # a step is of two pictures in all of them
    return min(there, key=lambda row: row["seconds"] / row["batch"], default=None)


def render(data: dict[str, Any]) -> str:
    """The Markdown of the page."""
    lines = [
        "# Memory and speed of trainings over Stable Diffusion\n",
        "Made by `python benchmarks/latent_training.py`; do not edit. Networks have their full "
        "size and random weights. A pass is one batch forward and back; AddSR's has four answers "
        "of the teacher and an update of the discriminator in it. Memory is what torch had "
        "reserved at most: weights, optimiser, average and activations. AddSR without tagger and "
        "DINO.\n",
    ]
    for run in data["runs"]:
        size = "tiny networks, to try the script" if run["is_tiny"] else "full size"
        lines.append(f"## {run['device']}: {size}\n")
        lines.append(
            "| training | type | batch | checkpointing | also | held to | s / pass | pictures / s "
            "| TFLOP/s | reserved GB | note |"
        )
        lines.append("|---|---|---:|---|---|---|---:|---:|---:|---:|---|")
        for row in run["rows"]:
            batch = f"{row['batch']}" + (f" x {row['accumulate']}" if row["accumulate"] > 1 else "")
            also = f"latents used {row['reuse']} times" if row["reuse"] > 1 else row["optim"]
            held = f"{row['budget_gb']} GB" if row["budget_gb"] else ""
            cells = [
                row["task"], row["precision"], batch, "yes" if row["checkpointing"] else "no",
                also, held,
            ]  # fmt: skip
            if "not_run" in row:
                cells += [*"----", f"not run: {row['not_run']}"]
            else:
                memory = row.get("reserved_bytes")
                cells += [
                    f"{row['seconds']:.3g}", f"{row['batch'] / row['seconds']:.3g}",
                    f"{row['flops'] / row['seconds'] / 1e12:.3g}",
                    f"{memory / GB:.1f}" if memory else "-", "",
                ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
        if run.get("scaling"):
            lines += ["", *_render_scaling(run["scaling"])]
        lines.append(f"\ntorch {run['torch']}\n")
    return "\n".join(lines)


def _render_scaling(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table of benchmarks/scaling.py."""
    lines = [
        "AddSR over several cards of this kind (`python benchmarks/scaling.py`): each has its own "
        "pictures, gradients are averaged after every step. The share is of what so many single "
        "cards would do.\n",
        "| cards | batch of a card | passes of a step | s / pass | pictures / s | share | note |",
        "|---:|---:|---:|---:|---:|---:|---|",
    ]
    single = {
        row["accumulate"]: row["seconds"]
        for row in rows if row["cards"] == 1 and "seconds" in row
    }  # fmt: skip
    for row in rows:
        if "not_run" in row:
            lines.append(f"| {row['cards']} | - | - | - | - | - | not run: {row['not_run']} |")
            continue
        alone = single.get(row["accumulate"])
        share = f"{alone / row['seconds']:.1%}" if alone else "-"
        lines.append(
            f"| {row['cards']} | {row['batch']} | {row['accumulate']} | {row['seconds']:.3g} "
            f"| {row['cards'] * row['batch'] / row['seconds']:.3g} | {share} | |"
        )
    return lines


def read_runs(
    data: Path, device: torch.device, *, is_tiny: bool
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All runs of the JSON file, and the one of this device, new if there was none."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    own = {"device": name, "torch": torch.__version__, "is_tiny": is_tiny}
    runs: list[dict[str, Any]] = []
    if data.is_file():
        runs = json.loads(data.read_text(encoding="utf-8"))["runs"]
    for run in runs:
        if (run["device"], run["is_tiny"]) == (name, is_tiny):
            run |= own
            return runs, run
    runs.append({**own, "rows": []})
    return runs, runs[-1]


def write(path: Path, text: str) -> None:
    """Writes `path` by way of a temporary file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def check(options: argparse.Namespace) -> None:
    """Lists out of texts.

    Raises:
        OptionError: one that cannot be.
    """
    options.only = [part for part in options.only.split(",") if part]
    strange = [one for one in options.only if one not in TASKS]
    if strange or not options.only:
        raise OptionError(f"only: {strange} must be some of {', '.join(TASKS)}")
    parts = [part for part in options.budgets.split(",") if part]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise OptionError(f"budgets: {options.budgets!r} must be whole numbers of GB, by commas")
    options.budgets = [int(part) for part in parts]
    known = [field.name for field in fields(OptimConfig)]
    # what a recipe can do for memory is measured unasked
    options.optim = [f"{one}=true" for one in ("offload",) if one in known] + options.optim
    for one in options.optim:
        if one.partition("=")[0] not in known or "=" not in one:
            raise OptionError(f"optim: {one!r} must be NAME=VALUE with one of {', '.join(known)}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise OptionError("device: torch sees no CUDA device here; give --device cpu --tiny")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(TASKS), help="some of the trainings, by commas")
    parser.add_argument("--batch", type=int, default=6, help="of StableSR's first stage")
    parser.add_argument("--passes", type=int, default=8)
    parser.add_argument("--optim", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--budgets", default="24,40,80", help="cards to fit into, GB by commas")
    parser.add_argument("--minutes", type=float, default=12.0, help="limit of the whole run")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/addsr-random-weights"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, to try the script")
    parser.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args(argv)
    try:
        check(options)
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    end = time.monotonic() + 60 * options.minutes
    device = torch.device(options.device)
    if device.type == "cuda" and device.index is None:  # torch limits the memory of a numbered one
        device = torch.device("cuda", torch.cuda.current_device())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    # what cuDNN tries needs memory of its own, which says nothing of the training
    torch.backends.cudnn.benchmark = not options.budgets
    write_folders(options.folder, options.only, device, is_tiny=options.tiny)
    data = options.docs / "training-memory.json"
    runs, run = read_runs(data, device, is_tiny=options.tiny)
    run["rows"] = []

    def add(one: Setting) -> None:
        if time.monotonic() >= end:
            row = asdict(one) | {"not_run": "the time was over"}
        else:
            row = measure(one, options.folder, device, options.passes, is_tiny=options.tiny)
        run["rows"].append(row)
        write(data, json.dumps({"runs": runs}, indent=1) + "\n")
        print(one, row.get("not_run") or f"{row['seconds']:.3f} s/pass", flush=True)

    wanted = settings(options.only, options.batch, options.optim)
    for one in (one for one in wanted if one.task == "addsr"):
        add(one)
    for budget in options.budgets if "addsr" in options.only else ():
        row = fitting(run["rows"], budget)
        if row is not None:
            known = {field.name: row[field.name] for field in fields(Setting)}
            add(Setting(**{**known, "budget_gb": budget}))
    for one in (one for one in wanted if one.task != "addsr"):
        add(one)
    write(options.docs / "training-memory.md", render({"runs": runs}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
