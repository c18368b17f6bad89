"""What this installation and machine can do, for users and for bug reports."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = ("addsr", "torch", "numpy", "pillow", "safetensors", "huggingface_hub")


def examine() -> dict[str, Any]:
    """Versions, torch build, devices, bf16 support, memory and models, as plain values."""
    import torch

    from .engines.device import (
        DEVICES,
        choose_device,
        choose_dtype,
        free_host_memory,
        free_memory,
        has_bf16,
        is_present,
        total_host_memory,
    )
    from .models.hub import find_models
    from .models.registry import MODELS

    device = choose_device()
    devices: dict[str, Any] = {}
    for kind in DEVICES:
        if is_present(kind):
            where = torch.device(kind)
            devices[kind] = {
                "name": _device_name(kind),
                "bf16": has_bf16(where),
                "free_gib": round(free_memory(where) / 2**30, 2),
            }
    found = find_models()
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "torch_build": {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "threads": torch.get_num_threads(),
        },
        "devices": devices,
        "auto": {
            "device": str(device),
            "dtype": str(choose_dtype("auto", device)).removeprefix("torch."),
        },
        "memory_gib": {
            "total": round(total_host_memory() / 2**30, 2),
            "free": round(free_host_memory() / 2**30, 2),
        },
        "models": {
            name: {
                "available": found[name] is not None,
                "size_mb": found[name],
                "licence": info.licence,
                "steps": list(info.steps),
                "description": info.description,
            }
            for name, info in MODELS.items()
        },
    }


def print_table(facts: dict[str, Any]) -> None:
    """`examine`'s facts as a table on standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("python", f"{facts['python']} ({sys.executable})")
    table.add_row("system", facts["system"])
    for name, number in facts["packages"].items():
        table.add_row(name, number or "not installed as a package")
    build = facts["torch_build"]
    extras = [f"{k} {build[k]}" for k in ("cuda", "hip") if build[k]] or ["CPU only"]
    table.add_row("torch build", f"{', '.join(extras)}, {build['threads']} threads")
    for kind, device in facts["devices"].items():
        bf16 = "bf16 instructions" if device["bf16"] else "no bf16 instructions"
        table.add_row(f"device {kind}", f"{device['name']}, {bf16}, {device['free_gib']} GiB free")
    table.add_row("used for auto", f"{facts['auto']['device']}, {facts['auto']['dtype']}")
    memory = facts["memory_gib"]
    table.add_row("main memory", f"{memory['free']} of {memory['total']} GiB free")
    for name, model in facts["models"].items():
        state = f"{model['size_mb']:.1f} MB" if model["available"] else "weights missing"
        table.add_row(f"model {name}", f"{state}, {model['licence']}: {model['description']}")
    Console(soft_wrap=True).print(table)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _device_name(kind: str) -> str:
    import torch

    if kind == "cuda":
        return torch.cuda.get_device_name()
    if kind == "xpu":
        return torch.xpu.get_device_name()
    return platform.processor() or platform.machine()
