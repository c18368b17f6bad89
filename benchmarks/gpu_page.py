"""The text of docs/benchmarks.md, from docs/gpu.json alone."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

_INTRODUCTION = """\
# Full-size models on a GPU: seconds and memory

Made by `python benchmarks/gpu.py`; do not edit. The figures are in [gpu.json](gpu.json), from which
`--render-only` makes this page. [speed.md](speed.md) has the compact model on a CPU.

The networks have their full size and random weights, which cost what trained ones do. A row is one
call of the pipeline for one picture at x4: input to the device, VAE encoding, all steps, decoding,
colour fix, result in main memory. StableSR decodes with feature wrapping (fidelity 0.5). AddSR
looks at its own predictions from the second step on: the VAE decodes each, and the tagger sees it
again; SeeSR runs its networks twice a step, for guidance. The first run of each setting, which
compiles and chooses kernels, is not in it. Rows of up to 8 steps are the median of several runs.
Without CUDA graphs the GPU waits for launches from the CPU: such rows differ by up to a half from
one run to the next, so that smaller gaps between variants say nothing.
Memory is the peak of what torch had allocated, weights included; with CUDA graphs, whose own memory
does not count as allocated while they run, of what it had reserved: more, by memory it would give
back and, in the first row of a setting, by what the first run left. The two do not compare.

"Words" is what finds words for a picture and is part of the seconds: the tagger (RAM) and the text
encoder, each timed in a run that waits for it. "Without words" are calls that are handed prompt and
tokens: VAE, ControlNet, U-Net and what lies between. Steps are timed in a run that waits for each,
and so take longer there than in the others. TFLOP/s are counted operations (torch's
FlopCounterMode, two for a multiplication and its addition) by the seconds of the row; the floor is
those operations at what the card can do at most in half precision without sparsity. "Differs by" is
the mean difference of a variant's picture from the plain one, of 1: layouts and compilation change
rounding alone, which random networks amplify.
"""
_NAMES = {"addsr": "AddSR", "seesr": "SeeSR", "stablesr": "StableSR"}
_VARIANTS = {
    "plain": "as it comes: four tiles at once, VAE in strips above 1024x1024",
    "channels-last": "all networks in channels_last memory",
    "tiny-decoder": "predictions between steps through the tiny decoder",
    "compile": "networks, VAE and tagger through torch.compile",
    "compile-channels-last": "torch.compile, in channels_last memory",
    "graphs": "torch.compile with CUDA graphs",
    "graphs-channels-last": "torch.compile and CUDA graphs, in channels_last memory",
    "graphs-tiny-decoder": "the same with the tiny decoder between steps",
    "graphs-vae-whole": "graphs-channels-last, the VAE never in strips; size measured by itself",
    "graphs-batch-4": "torch.compile and CUDA graphs, channels_last, four pictures at once",
    "graphs-fused": "graphs-channels-last, queries, keys and values of one matrix product",
    "batch-4": "channels_last, four pictures at once, figures for each",
    "tile-batch-1": "one tile at a time",
    "tile-batch-16": "up to 16 tiles at once",
    "vae-whole": "the VAE never works in strips",
}
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Of cards by a word in their name: operations a second, dense, 16 bits, as the maker states."""
_AIMS = ((1, 0.025), (4, 0.080))
"""AddSR at 512 px without words: steps, and seconds that were aimed at."""


def render(data: dict[str, Any]) -> str:
    """The Markdown of the page."""
    parts = [_INTRODUCTION]
    for run in data["runs"]:
        size = "tiny networks, to try the script" if run["is_tiny"] else "full size"
        memory = f", {run['memory_bytes'] / 2**30:.0f} GiB" if run.get("memory_bytes") else ""
        parts.append(f"## {run['device']}{memory}: {size}\n")
        if run.get("note"):
            parts.append(f"{run['note']}\n")
        if {"addsr", "seesr"} <= {row["model"] for row in run["rows"]}:
            parts.append(_speed_up(run))
        if not run["is_tiny"]:
            parts.append(_aims(run["rows"]))
        for model, name in _NAMES.items():
            rows = [row for row in run["rows"] if row["model"] == model]
            if not rows:
                continue
            parts.append(f"### {name}\n")
            plain = [row for row in rows if row["variant"] == "plain"]
            others = [row for row in rows if row["variant"] != "plain"]
            parts.append(_table(plain, [], run))
            if others:
                parts.append("Variants, beside the same setting without them:\n")
                used = {row["variant"] for row in others}
                lines = [f"- {n}: {t}" for n, t in _VARIANTS.items() if n in used]
                parts.append("\n".join(lines) + "\n")
                parts.append(_table(others, plain, run))
            parts += [_parts(row, run) for row in run["parts"] if row["model"] == model]
        cuda = f", CUDA {run['cuda']}, cuDNN {run['cudnn']}" if run.get("memory_bytes") else ""
        parts.append(
            f"torch {run['torch']}{cuda}, diffusers {run['diffusers']}, addsr {run['addsr']}\n"
        )
    return "\n".join(part for part in parts if part)


def _table(rows: list[Row], plain: list[Row], run: Row) -> str:
    """One line per row; with `plain` each beside the plain row of its setting."""
    heads = ["output", "type", "steps"] + (["variant"] if plain else [])
    left = len(heads)
    has_words = any("tagger_seconds" in row for row in rows)
    heads += ["seconds", "s / step"]
    heads += ["tagger s", "text encoder s", "without words"] if has_words else []
    heads += ["TFLOP/s", "floor s", "peak GiB"]
    heads += ["times faster", "differs by"] if plain else ["MP/s"]
    lines = [
        "| " + " | ".join([*heads, "note"]) + " |",
        "|" + "---|" * left + "---:|" * (len(heads) - left) + "---|",
    ]
    for row in sorted(rows, key=lambda r: (r["size"], r["dtype"], r["steps"])):
        cells = [f"{row['size']}x{row['size']}", row["dtype"], str(row["steps"])]
        if plain:
            cells.append(row["variant"])
        if "not_run" in row:
            empty = ["-"] * (len(heads) - left)
            lines.append("| " + " | ".join([*cells, *empty, f"not run: {row['not_run']}"]) + " |")
            continue
        cells += [_digits(row["seconds"]), _digits(row.get("seconds_per_step"))]
        if has_words:
            words = [row.get("tagger_seconds"), row.get("text_encoder_seconds")]
            cells += [_digits(one) for one in words] + [_digits(_without_words(row))]
        flops = _flops(row, run)
        cells.append(_digits(flops / row["seconds"] / 1e12 if flops else None))
        peak_rate = _peak(run)
        cells.append(_digits(flops / peak_rate if flops and peak_rate else None))
        peak = row.get("reserved_bytes" if _has_graphs(row) else "peak_bytes")
        unit = " reserved" if _has_graphs(row) else ""
        cells.append(f"{peak / 2**30:.2f}{unit}" if peak else "-")
        if plain:
            cells += [_faster(row, plain), _digits(row.get("mean_difference"))]
        else:
            cells.append(_digits(row["size"] ** 2 / 1e6 / row["seconds"]))
        lines.append("| " + " | ".join([*cells, _note(row)]) + " |")
    return "\n".join(lines) + "\n"


def _has_graphs(row: Row) -> bool:
    return row["variant"].startswith("graphs")


def _parts(row: Row, run: Row) -> str:
    """Each part of a model by itself."""
    title = f"Parts at {row['size']} px, {row['dtype']}, {row['variant']}, each run alone"
    if "not_run" in row:
        return f"{title}: not run: {row['not_run']}\n"
    counted = run["counted"].get(f"{row['model']} {row['size']}", {}).get("parts", {})
    lines = [f"{title}:\n", "| part | ms | TFLOP | TFLOP/s |", "|---|---:|---:|---:|"]
    for name, seconds in row["parts"].items():
        flops = counted.get(name)
        cells = [name, _digits(1e3 * seconds)]
        cells += [_digits(flops / 1e12), _digits(flops / seconds / 1e12)] if flops else ["-", "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _speed_up(run: Row) -> str:
    """How many times faster AddSR's steps are than SeeSR's fifty."""
    rows = [row for row in run["rows"] if "seconds" in row]
    lines = [
        "How many times AddSR is faster than SeeSR, whole calls of the same setting:\n",
        "| output | type | variant | SeeSR | AddSR | times faster | without words "
        "| by operations |",
        "|---|---|---|---|---|---:|---:|---:|",
    ]
    count = len(lines)
    for theirs in (row for row in rows if row["model"] == "seesr"):
        for ours in (row for row in rows if row["model"] == "addsr"):
            tiny = {"tiny-decoder": "plain", "graphs-tiny-decoder": "graphs-channels-last"}
            variant = tiny.get(ours["variant"], ours["variant"])
            is_same = variant == theirs["variant"]
            if not is_same or any(ours[k] != theirs[k] for k in ("size", "dtype")):
                continue
            work = [_flops(row, run) for row in (theirs, ours)]
            told = f"{ours['steps']} steps" if ours["steps"] > 1 else "1 step"
            told += ", tiny decoder" if ours["variant"] in tiny else ""
            cells = [
                f"{ours['size']}x{ours['size']}", ours["dtype"], variant,
                f"{theirs['steps']} steps, {_digits(theirs['seconds'])} s",
                f"{told}, {_digits(ours['seconds'])} s",
                f"{theirs['seconds'] / ours['seconds']:.2f}",
                f"{_without_words(theirs) / _without_words(ours):.2f}",
                f"{work[0] / work[1]:.2f}" if work[0] and work[1] else "-",
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" if len(lines) > count else ""


def _aims(rows: list[Row]) -> str:
    """What was aimed at and what was reached."""
    lines: list[str] = []
    for steps, aim in _AIMS:
        found = [
            row for row in rows
            if row["model"] == "addsr" and row["steps"] == steps and row["size"] == 512
            and "seconds" in row and not {"tiny", "4"} & set(row["variant"].split("-"))
        ]  # fmt: skip
        if not found:
            continue
        best = min(found, key=_without_words)
        seconds = _without_words(best)
        told = "reached" if seconds <= aim else "not reached"
        lines.append(
            f"- {steps} step{'s' if steps > 1 else ''} at 512 px in {1e3 * aim:.0f} ms without "
            f"words: {told}, {1e3 * seconds:.1f} ms ({best['dtype']}, {best['variant']}; "
            f"{1e3 * best['seconds']:.1f} ms with them)"
        )
    return "\n".join(["Aimed at, for AddSR:\n", *lines]) + "\n" if lines else ""


def _without_words(row: Row) -> float:
    if "seconds_without_words" in row:
        return row["seconds_without_words"]
    words = row.get("tagger_seconds", 0.0) + row.get("text_encoder_seconds", 0.0)
    seconds: float = row["seconds"] - words
    return seconds


def _flops(row: Row, run: Row) -> float | None:
    whole_runs = run["counted"].get(f"{row['model']} {row['size']}", {}).get("runs", {})
    found: float | None = whole_runs.get(
        f"{row['steps']}{' tiny' if 'tiny' in row['variant'] else ''}"
    )
    return found


def _peak(run: Row) -> float | None:
    return next((rate for word, rate in _PEAKS.items() if word in run["device"]), None)


def _faster(row: Row, plain: list[Row]) -> str:
    for other in plain:
        if "seconds" in other and all(other[k] == row[k] for k in ("size", "dtype", "steps")):
            return f"{other['seconds'] / row['seconds']:.2f}"
    return "-"


def _note(row: Row) -> str:
    notes: list[str] = []
    if row["measured_steps"] < row["steps"]:
        notes.append(f"extrapolated from {row['measured_steps']} steps")
    is_compiled = row["variant"].startswith(("compile", "graphs"))
    if is_compiled and "first_run_seconds" in row:
        notes.append(f"first run {row['first_run_seconds']:.0f} s")
    return "; ".join(notes)


def _digits(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return "-"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
