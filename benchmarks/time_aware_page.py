"""The section of docs/results.md on StableSR's way of conditioning, from docs/time-aware.json."""

from __future__ import annotations

from typing import Any

COLUMNS = {
    "psnr-y": ("PSNR-Y ↑", 2),
    "ssim-y": ("SSIM-Y ↑", 3),
    "niqe": ("NIQE ↓", 2),
    "niqe-addsr": ("NIQE (addsr) ↓", 2),
    "lr-psnr": ("LR-PSNR ↑", 2),
    "gradient": ("Gradient ratio →1", 2),
}
_TITLES = {
    "synthetic": "Degraded photos with an original",
    "real_lr_crops": "Photos from the web",
}


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
        "those above, which are distilled.\n",
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
        title = _TITLES.get(dataset, dataset)
        count = len(data["pictures"][dataset])
        parts.append(f"### {title}, {count} pictures: steps at w = {data['default']:g}\n")
        rows = [(name, n, data["default"]) for n in data["steps"] for name in data["nets"]]
        parts.append(_table(data, dataset, rows, lambda row: f"{row[0]}, {_steps(row[1])}"))
        for other in others:
            if lines := _differences(data, dataset, other, first):
                parts.append(
                    f"{other} less {first} on the same pictures, with its 95 % interval:\n"
                )
                parts.append(lines)
        parts.append(f"### {title}: fidelity at {_steps(swept)}\n")
        rows = [(name, swept, w) for name in data["nets"] for w in data["fidelities"]]
        parts.append(_table(data, dataset, rows, lambda row: f"{row[0]}, w = {row[2]:g}"))
    if data["gallery"]:
        parts.append(
            "### Pictures\n\n"
            f"The 256x256 with the most detail, at 100 %, {_steps(swept)}. First rows: bicubic, "
            f"{', '.join(data['nets'])} at w = {data['default']:g}, original. Second rows: "
            f"{list(data['nets'])[-1]} at w = {', '.join(f'{w:g}' for w in data['fidelities'])}.\n"
        )
        for entry in data["gallery"]:
            for file in entry["files"]:
                parts.append(f"![{entry['image']}](pictures/{file})\n")
            parts.append(
                f"*{entry['image']}*: {entry.get('source', 'unknown source')}, "
                f"{entry.get('licence', 'unknown licence')}; cropped, degraded and restored, under "
                "the same licence\n"
            )
    made = data["made_by"]
    parts.append(f"addsr {made['addsr']}, torch {made['torch']}, {made['device']}, fp32\n")
    return "\n".join(part.rstrip("\n") + ("\n" if part.endswith("\n") else "") for part in parts)


def key(steps: int, fidelity: float) -> str:
    """The name of a setting in the JSON file.

    >>> key(4, 0.25)
    '4/0.25'
    """
    return f"{steps}/{fidelity:g}"


def _table(data: dict[str, Any], dataset: str, rows: list[Any], title: Any) -> str:
    scores = data["scores"][dataset]
    found = {m for name, n, w in rows for m in scores.get(name, {}).get(key(n, w), {})}
    shown = [m for m in COLUMNS if m in found]
    lines = [
        "| | " + " | ".join(COLUMNS[m][0] for m in shown) + " |",
        "|---|" + "---:|" * len(shown),
    ]
    for row in rows:
        figures = scores.get(row[0], {}).get(key(row[1], row[2]), {})
        cells = [f"{figures[m]['mean']:.{COLUMNS[m][1]}f}" if m in figures else "-" for m in shown]
        lines.append(f"| {title(row)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _differences(data: dict[str, Any], dataset: str, other: str, first: str) -> str:
    lines: list[str] = []
    for entry in data["differences"]:
        if (entry["dataset"], entry["a"], entry["b"]) != (dataset, other, first):
            continue
        title, digits = COLUMNS[entry["metric"]]
        lines.append(
            f"- {_steps(entry['steps'])}: {title.rpartition(' ')[0]} {entry['mean']:+.{digits}f} "
            f"[{entry['low']:+.{digits}f}, {entry['high']:+.{digits}f}]"
        )
    return "\n".join(lines) + "\n" if lines else ""


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"


def _minutes(data: dict[str, Any]) -> str:
    return f" ({data['minutes']:g} minutes)" if data["minutes"] else ""


def _middle(steps: list[int]) -> int:
    return steps[len(steps) // 2]
