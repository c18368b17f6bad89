"""The text of docs/benchmarks.md, from docs/gpu.json alone."""

from __future__ import annotations

from typing import Any

_INTRODUCTION = """\
# StableSR on a GPU: seconds and memory

Made by `python benchmarks/gpu.py`; do not edit. The figures are in [gpu.json](gpu.json), from which
`--render-only` makes this page. [speed.md](speed.md) has the compact model on a CPU.

The networks have their full size and random weights, which cost what trained ones do. A row is one
call of `StableSRPipeline` for one picture at x4: input to the device, VAE encoding, all steps with
the encoder in each, decoding with feature wrapping (fidelity 0.5), colour fix, result in main
memory. The first run of each setting, which compiles and chooses kernels, is not in it. Rows of up
to 8 steps are the median of several runs. Memory is the peak of what torch had allocated, weights
included.
"""
_VARIANTS = {
    "plain": "as it comes: four tiles at once, VAE in strips above 1024x1024",
    "channels-last": "all networks in channels_last memory",
    "compile": "U-Net, encoder and modulation through torch.compile",
    "compile-channels-last": "both",
    "tile-batch-1": "one tile at a time",
    "tile-batch-16": "up to 16 tiles at once",
    "vae-whole": "the VAE never works in strips",
}


def render(data: dict[str, Any]) -> str:
    """The Markdown of the page."""
    parts = [_INTRODUCTION]
    for run in data["runs"]:
        size = "tiny networks, to try the script" if run["is_tiny"] else "full size"
        memory = f", {run['memory_bytes'] / 2**30:.0f} GiB" if run.get("memory_bytes") else ""
        parts.append(f"## {run['device']}{memory}: {size}\n")
        rows = [row for row in run["rows"] if row["variant"] == "plain"]
        others = [row for row in run["rows"] if row["variant"] != "plain"]
        parts.append(_table(rows, []))
        if others:
            parts.append("Variants, beside the same setting without them:\n")
            used = {row["variant"] for row in others}
            parts.append("\n".join(f"- {n}: {t}" for n, t in _VARIANTS.items() if n in used) + "\n")
            parts.append(_table(others, rows))
        cuda = f", CUDA {run['cuda']}, cuDNN {run['cudnn']}" if run.get("memory_bytes") else ""
        parts.append(
            f"torch {run['torch']}{cuda}, diffusers {run['diffusers']}, addsr {run['addsr']}\n"
        )
    return "\n".join(parts)


def _table(rows: list[dict[str, Any]], plain: list[dict[str, Any]]) -> str:
    """One line per row; with `plain` each beside the plain row of its setting."""
    heads = ["output", "type", "steps"] + (["variant"] if plain else [])
    heads += ["seconds", "s / step", "peak GiB"]
    heads += ["times faster"] if plain else ["MP/s"]
    heads += ["note"]
    lines = [
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * (4 if plain else 3) + "---:|" * 4 + "---|",
    ]
    for row in sorted(rows, key=lambda r: (r["size"], r["dtype"], r["steps"])):
        cells = [f"{row['size']}x{row['size']}", row["dtype"], str(row["steps"])]
        if plain:
            cells.append(row["variant"])
        if "not_run" in row:
            lines.append("| " + " | ".join([*cells, *"----", f"not run: {row['not_run']}"]) + " |")
            continue
        cells.append(_digits(row["seconds"]))
        cells.append(_digits(row.get("seconds_per_step")))
        peak = row.get("peak_bytes")
        cells.append(f"{peak / 2**30:.2f}" if peak else "-")
        if plain:
            cells.append(_faster(row, plain))
        else:
            cells.append(_digits(row["size"] ** 2 / 1e6 / row["seconds"]))
        cells.append(_note(row))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _faster(row: dict[str, Any], plain: list[dict[str, Any]]) -> str:
    for other in plain:
        if "seconds" in other and all(other[k] == row[k] for k in ("size", "dtype", "steps")):
            return f"{other['seconds'] / row['seconds']:.2f}"
    return "-"


def _note(row: dict[str, Any]) -> str:
    notes: list[str] = []
    if row["measured_steps"] < row["steps"]:
        notes.append(f"extrapolated from {row['measured_steps']} steps")
    if "compile" in row["variant"] and "first_run_seconds" in row:
        notes.append(f"first run {row['first_run_seconds']:.0f} s")
    return "; ".join(notes)


def _digits(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return "-"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
