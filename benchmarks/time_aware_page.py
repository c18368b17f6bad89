"""The section of docs/results.md on StableSR's way of conditioning, from docs/time-aware.json."""

from __future__ import annotations

from typing import Any

from score_tables import COLUMNS, TITLES, credit, join, name_of, steps_of, table


def render(data: dict[str, Any]) -> str:
    """The Markdown of the section."""
    first, *others = data["nets"]
    names = " and ".join(f"*{name}*" for name in data["nets"])
    swept = _middle(data["steps"])
    parts = [
        "## StableSR's conditioning in the compact network\n",
        f"{names}: the compact network as a many-step teacher, not distilled, each trained from "
        f"nothing for the same time on one GPU{_minutes(data)} (`training/run-time-aware.sh`). "
        "*concat* sees the low-resolution picture beside the noisy one; *time-aware* as StableSR, "
        "by modulation of each residual block with the features of a small encoder that knows the "
        "time. w is the gate of the low-resolution skip in the decoder, the role of StableSR's "
        "feature wrapping. Made by `python benchmarks/time_aware.py`; the figures of every picture "
        "are in [time-aware.json](time-aware.json). No colour fix; these rows do not compare with "
        "those above, which are distilled. What follows from the figures is in the "
        "[training log](training-log.md).\n",
        "| | steps of training | crops | parameters | GMAC a step, 128 -> 512 |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, net in data["nets"].items():
        crops = f"{net['crops']:,}" if net["crops"] else "?"
        parts.append(
            f"| {name} | {net['training_steps']:,} | {crops} | {net['parameters'] / 1e6:.1f} M | "
            f"{net['gmac']:.1f} |"
        )
    parts.append("")
    for dataset in data["scores"]:
        title = TITLES.get(dataset, dataset)
        count = len(data["pictures"][dataset])
        parts.append(f"### {title}, {count} pictures: steps at w = {data['default']:g}\n")
        rows = [(name, n, data["default"]) for n in data["steps"] for name in data["nets"]]
        parts.append(_table(data, dataset, rows, lambda row: f"{row[0]}, {steps_of(row[1])}"))
        for other in others:
            if lines := _differences(data, dataset, other, first):
                parts.append(
                    f"{other} less {first} on the same pictures, with its 95 % interval:\n"
                )
                parts.append(lines)
        parts.append(f"### {title}: fidelity at {steps_of(swept)}\n")
        rows = [(name, swept, w) for name in data["nets"] for w in data["fidelities"]]
        parts.append(_table(data, dataset, rows, lambda row: f"{row[0]}, w = {row[2]:g}"))
    if data["gallery"]:
        parts.append(
            "### Pictures\n\n"
            f"The 256x256 with the most detail, at 100 %, {steps_of(swept)}. First rows: bicubic, "
            f"{', '.join(data['nets'])} at w = {data['default']:g}, original. Second rows: "
            f"{list(data['nets'])[-1]} at w = {', '.join(f'{w:g}' for w in data['fidelities'])}.\n"
        )
        for entry in data["gallery"]:
            for file in entry["files"]:
                parts.append(f"![{entry['image']}](pictures/{file})\n")
            parts.append(credit(entry))
    made = data["made_by"]
    parts.append(f"addsr {made['addsr']}, torch {made['torch']}, {made['device']}, fp32\n")
    return join(parts)


def key(steps: int, fidelity: float) -> str:
    """The name of a setting in the JSON file.

    >>> key(4, 0.25)
    '4/0.25'
    """
    return f"{steps}/{fidelity:g}"


def _table(data: dict[str, Any], dataset: str, rows: list[Any], title: Any) -> str:
    scores = data["scores"][dataset]

    def means(name: str, steps: int, fidelity: float) -> dict[str, float]:
        figures = scores.get(name, {}).get(key(steps, fidelity), {})
        return {metric: figure["mean"] for metric, figure in figures.items()}

    return table((title(row), means(*row)) for row in rows)


def _differences(data: dict[str, Any], dataset: str, other: str, first: str) -> str:
    lines: list[str] = []
    for entry in data["differences"]:
        if (entry["dataset"], entry["a"], entry["b"]) != (dataset, other, first):
            continue
        digits = COLUMNS[entry["metric"]][1]
        lines.append(
            f"- {steps_of(entry['steps'])}: {name_of(entry['metric'])} {entry['mean']:+.{digits}f} "
            f"[{entry['low']:+.{digits}f}, {entry['high']:+.{digits}f}]"
        )
    return "\n".join(lines) + "\n" if lines else ""


def _minutes(data: dict[str, Any]) -> str:
    return f" ({data['minutes']:g} minutes)" if data["minutes"] else ""


def _middle(steps: list[int]) -> int:
    return steps[len(steps) // 2]
