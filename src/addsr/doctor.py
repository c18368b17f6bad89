"""What this installation and machine can do, for users and for bug reports."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .errors import AddsrError, OptionError
from .settings import read_settings

_PACKAGES = (
    "addsr", "torch", "numpy", "pillow", "safetensors", "huggingface_hub", "cyclopts", "rich",
    "accelerate", "tensorboard", "diffusers", "transformers",
)  # fmt: skip
_VARIABLES = ("ADDSR_MODEL", "ADDSR_MODELS", "ADDSR_DEVICE", "ADDSR_DTYPE", "ADDSR_MEMORY")


def examine() -> dict[str, Any]:
    """Versions, torch build, devices, memory, settings and models, as plain values."""
    import torch

    from .engines.device import (
        DEVICES,
        free_host_memory,
        free_memory,
        has_bf16,
        is_present,
        total_host_memory,
    )
    from .models.hub import find_models
    from .models.registry import MODELS
    from .models.store import store_folder

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
        "variables": {name: os.environ.get(name) for name in _VARIABLES},
        "used": _used(),
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
        "store": str(store_folder()),
        "installed": _installed(),
    }


def _installed() -> dict[str, Any]:
    """Imported models by name; what is wrong with one is said in place of its facts."""
    from .models.hub import find_pipeline
    from .models.store import folders, read_facts

    found: dict[str, Any] = {}
    for folder in folders():
        try:
            model = read_facts(folder)
            pipeline = find_pipeline(folder)
        except AddsrError as error:
            found[folder.name] = {"error": str(error)}
            continue
        assert pipeline is not None, "a folder is a pipeline or an error"
        found[model.name] = {
            "kind": model.kind,
            "size_mb": round(pipeline.info.size_mb, 1),
            "licence": model.licence,
            "base": model.base,
            "imported": model.imported,
            "folder": str(model.folder),
        }
    return found


def _used() -> dict[str, str]:
    """What a command without options would run with; why it could not, where a variable is wrong.

    A doctor that stopped at the first wrong setting would help nobody to find it.
    """
    from .engines.device import choose_device, choose_dtype, choose_latent_dtype

    try:
        settings = read_settings()
        device = choose_device(settings.device)
        model, is_latent = _model_used(settings.model)
        dtype = (choose_latent_dtype if is_latent else choose_dtype)(settings.dtype, device)
    except OptionError as error:
        return {"error": str(error)}
    return {
        "model": model,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
    }


def _model_used(name: str) -> tuple[str, bool]:
    """The model's name with what is wrong with it, and whether it works in a latent space."""
    from .models.hub import find_pipeline
    from .models.published_folders import EVERY
    from .models.registry import MODELS

    try:
        is_latent = find_pipeline(name) is not None
    except AddsrError as error:
        return f"{name} ({'not installed' if name in EVERY else error})", True
    known = name in MODELS or is_latent or os.path.isfile(name)
    return name if known else f"{name} (no such file)", is_latent


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
        table.add_row(name, number or "not installed")
    build = facts["torch_build"]
    extras = [f"{k} {build[k]}" for k in ("cuda", "hip") if build[k]] or ["CPU only"]
    table.add_row("torch build", f"{', '.join(extras)}, {build['threads']} threads")
    for kind, device in facts["devices"].items():
        bf16 = "bf16 instructions" if device["bf16"] else "no bf16 instructions"
        table.add_row(f"device {kind}", f"{device['name']}, {bf16}, {device['free_gib']} GiB free")
    for name, value in facts["variables"].items():
        table.add_row(name, value or "not set")
    table.add_row("used", ", ".join(facts["used"].values()))
    memory = facts["memory_gib"]
    table.add_row("main memory", f"{memory['free']} of {memory['total']} GiB free")
    for name, model in facts["models"].items():
        state = f"{model['size_mb']:.1f} MB" if model["available"] else "weights missing"
        table.add_row(f"model {name}", f"{state}, {model['licence']}: {model['description']}")
    table.add_row("imported models", f"{len(facts['installed'])} in {facts['store']}")
    for name, model in facts["installed"].items():
        told = model.get("error") or (
            f"{model['size_mb']:.1f} MB, {model['licence']}: {model['kind']} in {model['folder']}"
        )
        table.add_row(f"model {name}", told)
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
    return _cpu_name() or platform.processor() or platform.machine()


def _cpu_name() -> str | None:
    """As Linux states it; Python's own answer there is the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else None
