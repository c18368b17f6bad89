"""The figures of benchmarks/gpu.py on disk: machines, versions, rows of several runs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gpu_cases import Case

import addsr

Run = dict[str, Any]
"""The figures of one device."""


def facts(device: str, *, is_tiny: bool) -> dict[str, Any]:
    """What the figures depend on."""
    import diffusers

    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "diffusers": diffusers.__version__,
        "addsr": addsr.__version__,
        "is_tiny": is_tiny,
    }
    if device.startswith("cuda"):
        found["memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
    return found


def write(path: Path, text: str) -> None:
    """Writes `path` by way of a temporary file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def is_same(run: Run, machine: Run) -> bool:
    """Whether figures are of the same device and kind, whatever the versions."""
    return all(run[k] == machine[k] for k in ("device", "is_tiny"))


def take_over(machine: Run, runs: Sequence[Run], todo: Sequence[tuple[str, Case]]) -> None:
    """Gives `machine` earlier figures by the same versions of what is not in `todo`."""
    new = {(kind, *asdict(case).values()) for kind, case in todo}
    names = list(asdict(Case(0, "", 0)))
    for run in runs:
        if not is_same(run, machine) or any(run[k] != machine[k] for k in ("torch", "addsr")):
            continue
        for kind in ("rows", "parts"):
            kept = [row for row in run[kind] if (kind, *(row[n] for n in names)) not in new]
            machine[kind] += kept
        machine["counted"] |= run["counted"]
        if "note" in run:
            machine.setdefault("note", run["note"])


def add(data: Path, other: Path) -> None:
    """Puts the figures of `other` beside those in `data`, whose own stay where both have one."""
    runs = json.loads(data.read_text(encoding="utf-8"))["runs"] if data.is_file() else []
    for run in json.loads(other.read_text(encoding="utf-8"))["runs"]:
        names = list(asdict(Case(0, "", 0)))
        mine = next((one for one in runs if is_same(one, run)), None)
        if mine is None:
            runs.append(run)
            continue
        for kind in ("rows", "parts"):
            # one that was not run there may have been run here
            there = {tuple(r[n] for n in names) for r in mine[kind] if "not_run" not in r}
            new = [r for r in run[kind] if tuple(r[n] for n in names) not in there]
            known = {tuple(r[n] for n in names) for r in new}
            mine[kind] = [r for r in mine[kind] if tuple(r[n] for n in names) not in known] + new
        mine["counted"] = run["counted"] | mine["counted"]
        if "note" in run:
            mine.setdefault("note", run["note"])
    write(data, json.dumps({"runs": runs}, indent=1) + "\n")
