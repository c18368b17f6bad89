"""The section of docs/results.md on what each part of AddSR does, from docs/ablation.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from score_tables import COLUMNS, TITLES, credit, join, name_of, steps_of, table


@dataclass(frozen=True)
class Arm:
    """One way of training the student."""

    change: str
    """What differs from the arm that it is compared with."""
    against: str = "baseline"
    """What it is compared with; empty: with nothing."""
    weight: float = 0.5
    """Weight of self-refinement that it was trained with and is sampled with."""
    claim: str = ""
    """What AddSR says of the part that is changed; empty where the question is not the paper's."""
    expected: tuple[tuple[str, int, tuple[int, ...]], ...] = ()
    """What follows of the claim: a metric, its sign in the differences, at these steps."""


FIRST = "baseline"
SEEDS = (FIRST, "baseline-1")
"""The same recipe with two seeds: what lies between them is chance."""
ARMS = {
    FIRST: Arm(
        "`recipes/student.toml` with `task.distill_weight = 8`, `task.perceptual_weight = 0` and "
        "`task.head_share = 0`, seed 0",
        against="",
    ),
    "baseline-1": Arm("the same, seed 1", against=""),
    "lr-regulated": Arm(
        "the teacher sees the input, not the clean picture (`task.regulation = lr`)",
        claim="A teacher that sees the clean picture gives a better target: more detail, better "
        "perception. So NIQE should rise here.",
        expected=(("niqe", 1, (1, 2, 4)),),
    ),
    "constant": Arm(
        "distillation weighs the same at every step, as much in all (`task.ta_adaptive = false`)",
        claim="Weights that grow with the step hold later steps to the teacher, which would make "
        "up too much otherwise. So SSIM and LR-PSNR should fall here at 4 steps, and the gradient "
        "rise.",
        expected=(("ssim-y", -1, (4,)), ("lr-psnr", -1, (4,)), ("gradient", 1, (4,))),
    ),
    "no-refinement": Arm(
        "the condition is the input at every step, in training and sampling "
        "(`task.psr_weight = 0`)",
        weight=0.0,
        claim="The last prediction as condition hands high frequencies to the next step. So the "
        "gradient should fall and NIQE rise here at 2 and 4 steps.",
        expected=(("gradient", -1, (2, 4)), ("niqe", 1, (2, 4))),
    ),
    "next": Arm(
        "from `training/gan.safetensors`, `task.distill_weight = 1`; else as the baseline",
        against="",
    ),
    "next-sharpened": Arm(
        "as *next*, L1 and Haar against sharpened targets (`task.sharpen = 0.5`)", against="next"
    ),
    "next-fifth": Arm(
        "as *next*, with a fifth of the shipped recipe's perceptual term "
        "(`task.perceptual_weight = 0.1`)",
        against="next",
    ),
    "no-distillation": Arm(
        "`task.distill_weight = 0`",
        claim="Distillation keeps what the adversary alone would make up in bounds. So SSIM and "
        "LR-PSNR should fall here.",
        expected=(("ssim-y", -1, (1, 2, 4)), ("lr-psnr", -1, (1, 2, 4))),
    ),
}
_TOLD = ("psnr-y", "ssim-y", "niqe", "niqe-addsr", "lr-psnr", "gradient")


def key(steps: int, weight: float, fidelity: float) -> str:
    """The name of a setting in the JSON file; one step has nothing to refine.

    >>> key(4, 0.5, 0.25), key(1, 0.5, 0.25)
    ('4/0.5/0.25', '1/0/0.25')
    """
    return f"{steps}/{weight if steps > 1 else 0:g}/{fidelity:g}"


def render(data: dict[str, Any]) -> str:
    """The Markdown of the section."""
    arms: dict[str, dict[str, Any]] = data["arms"]
    any_arm = next(iter(arms.values()))
    parts = [
        "## What AddSR's parts do in the compact network\n",
        "The student trained with one part left out or changed (`training/run-ablation.sh`). In "
        "the recipe of the shipped model distillation has a twentieth of the gradient and the "
        "perceptual term nearly all, so that AddSR's parts could not show; here there is no "
        "perceptual term and distillation leads, as in the paper. What "
        "the table does not name is the same for all: the teacher it starts from and is distilled "
        "from, a fresh discriminator, data, batch and number of steps, and with it the schedule of "
        "the learning rate; what a part costs in time is not judged. Each arm is sampled as it was "
        f"trained; fidelity {any_arm['default']:g} where none is given. Made by `python "
        "benchmarks/ablation.py`; the figures of every picture are in "
        "[ablation.json](ablation.json). No colour fix. These runs are short: they say which way a "
        "part works, not how good the model gets.\n",
        *_arms(arms),
    ]
    if lines := _claims(data):
        parts += [
            "### The paper's claims\n",
            "Each arm less the mean of the baselines, on the same degraded photos, with the 95 % "
            "interval over the pictures; in round brackets how far the baselines' means lie "
            "apart. In bold: more than twice that, and the interval without 0. Two seeds tell "
            "little of the spread over seeds, so what is not bold is not found, and what is bold "
            "may still be chance.\n",
            *lines,
        ]
    for dataset in any_arm["scores"]:
        title = TITLES.get(dataset, dataset)
        count = len(any_arm["pictures"][dataset])
        parts.append(f"### {title}, {count} pictures: every arm\n")
        rows = [(arm, n) for n in any_arm["steps"] for arm in arms]
        parts.append(
            table(
                (f"{arm}, {steps_of(n)}", _means(arms[arm], dataset, _own(arm, n, any_arm)))
                for arm, n in rows
            )
        )
        if text := _differences(data, dataset):
            parts += ["Less the mean of the baselines, or less *next*, marked as above:\n", text]
        if text := _equal_niqe(arms, dataset):
            parts += [
                "SSIM-Y at the NIQE that the baseline has at that number of steps (interpolated "
                "over fidelities; - where no fidelity comes there): a change that only moves along "
                "the curve between fidelity and realism shows no difference here.\n",
                text,
            ]
        parts += _refinement(data, dataset)
    if data["gallery"]:
        parts.append(_gallery(data))
    made = {tuple(arm["made_by"].values()) for arm in arms.values()}
    parts += [f"addsr {m[0]}, torch {m[1]}, {m[2]}, fp32\n" for m in sorted(made)]
    return join(parts)


def _own(arm: str, steps: int, data: dict[str, Any]) -> str:
    return key(steps, ARMS[arm].weight, data["default"])


def _means(arm: dict[str, Any], dataset: str, setting: str) -> dict[str, float]:
    columns = arm["scores"].get(dataset, {}).get(setting, {})
    known = {m: [v for v in values if v is not None] for m, values in columns.items()}
    return {m: float(np.mean(values)) for m, values in known.items() if values}


def _arms(arms: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| | change | steps of training | crops |", "|---|---|---:|---:|"]
    for name, arm in arms.items():
        facts = arm["facts"]
        lines.append(
            f"| {name} | {ARMS[name].change} | {facts['training_steps']:,} | {facts['crops']:,} |"
        )
    steps = {arm["facts"]["training_steps"] for arm in arms.values()}
    lines.append("")
    if len(steps) > 1:
        lines.append("**The arms were trained for different numbers of steps: read with care.**\n")
    if absent := [name for name in ARMS if name not in arms]:
        lines.append(f"Not scored here: {', '.join(absent)}.\n")
    return lines


def _claims(data: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for name in data["arms"]:
        found = [
            f"{steps_of(steps)}: {'; '.join(cells)}"
            for steps in data["arms"][name]["steps"]
            if (cells := _cells(data, "synthetic", name, steps, ("ssim-y", "lr-psnr", "gradient")))
            and (cells := [*cells, *_niqe_cells(data, name, steps)])
        ]
        if ARMS[name].claim and found:
            told = _verdict(data, name)
            lines.append(f"| {name} | {ARMS[name].claim} | {told} | {'<br>'.join(found)} |")
    heads = ["| | AddSR's claim | does it hold here? | differences |", "|---|---|---|---|"]
    return [*heads, *lines, ""] if lines else []


def _verdict(data: dict[str, Any], name: str) -> str:
    """Of what follows of the claim, how much is there; what is not bold counts as not found."""
    found, against, count = list[str](), list[str](), 0
    for metric, sign, all_steps in ARMS[name].expected:
        for steps in all_steps:
            entry = _entry(data, "synthetic", name, steps, metric)
            if entry is None:
                continue
            count += 1
            if _is_clear(entry):
                told = f"{name_of(metric)} at {steps_of(steps)}"
                (found if entry["mean"] * sign > 0 else against).append(told)
    if not count:
        return "not measured"
    word = "yes" if len(found) == count else "in part" if found and not against else "no"
    parts = [f"**{word}**: {len(found)} of {count} found"]
    parts += [", ".join(found)] if 0 < len(found) < count else []
    parts += [f"the reverse for {', '.join(against)}"] if against else []
    return "; ".join(parts)


def _entry(
    data: dict[str, Any], dataset: str, arm: str, steps: int, metric: str
) -> dict[str, Any] | None:
    wanted = (arm, dataset, steps, metric)
    for entry in data["differences"]:
        if (entry["arm"], entry["dataset"], entry["steps"], entry["metric"]) == wanted:
            return entry
    return None


def _niqe_cells(data: dict[str, Any], name: str, steps: int) -> list[str]:
    return _cells(data, "synthetic", name, steps, ("niqe",)) or _cells(
        data, "synthetic", name, steps, ("niqe-addsr",)
    )


def _cells(
    data: dict[str, Any], dataset: str, arm: str, steps: int, metrics: tuple[str, ...]
) -> list[str]:
    entries = {
        entry["metric"]: entry
        for entry in data["differences"]
        if (entry["arm"], entry["dataset"], entry["steps"]) == (arm, dataset, steps)
    }
    return [f"{name_of(m)} {_told(entries[m])}" for m in metrics if m in entries]


def _is_clear(entry: dict[str, Any]) -> bool:
    """Whether the interval is without 0 and the mean more than twice as far as the seeds lie."""
    apart = entry.get("seeds")
    is_off = entry["low"] > 0 or entry["high"] < 0
    return apart is not None and is_off and abs(entry["mean"]) > 2 * apart


def _told(entry: dict[str, Any]) -> str:
    digits, apart = COLUMNS[entry["metric"]][1], entry.get("seeds")
    mean = f"{entry['mean']:+.{digits}f}"
    text = f"{mean} [{entry['low']:+.{digits}f}, {entry['high']:+.{digits}f}]"
    if apart is None:
        return text
    if _is_clear(entry):
        text = text.replace(mean, f"**{mean}**", 1)
    return f"{text} ({apart:.{digits}f})"


def _differences(data: dict[str, Any], dataset: str) -> str:
    lines = [
        f"- {arm}, {steps_of(steps)}: {'; '.join(cells)}"
        for arm in data["arms"]
        for steps in data["arms"][arm]["steps"]
        if (cells := _cells(data, dataset, arm, steps, _TOLD))
    ]
    return "\n".join(lines) + "\n" if lines else ""


def _equal_niqe(arms: dict[str, dict[str, Any]], dataset: str) -> str:
    if FIRST not in arms:
        return ""
    base, lines = arms[FIRST], list[str]()
    for arm, data in arms.items():
        cells: list[str] = []
        for steps in base["steps"]:
            aim = _means(base, dataset, _own(FIRST, steps, base))
            metric = "niqe" if "niqe" in aim else "niqe-addsr"
            curve = [
                _means(data, dataset, key(steps, ARMS[arm].weight, fidelity))
                for fidelity in data["fidelities"]
            ]
            points = sorted((m[metric], m["ssim-y"]) for m in curve if {metric, "ssim-y"} <= set(m))
            cells.append(_at(points, aim[metric]) if metric in aim else "-")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    if all("0." not in line for line in lines):
        return ""
    head = " | ".join(steps_of(n) for n in base["steps"])
    return "\n".join([f"| | {head} |", "|---|" + "---:|" * len(base["steps"]), *lines]) + "\n"


def _at(points: list[tuple[float, float]], x: float) -> str:
    """The value of a curve of `(x, y)` with rising x at `x`, `-` outside of it."""
    # the baseline's own point may be an end of its curve
    if not points or not points[0][0] - 1e-9 <= x <= points[-1][0] + 1e-9:
        return "-"
    return f"{float(np.interp(x, [p[0] for p in points], [p[1] for p in points])):.3f}"


def _refinement(data: dict[str, Any], dataset: str) -> list[str]:
    """Self-refinement at sampling: its weights in networks trained with and without it."""
    arms, parts = data["arms"], list[str]()
    shown = [arm for arm in (*SEEDS, "no-refinement") if arm in arms]
    for steps in (n for n in next(iter(arms.values()))["steps"] if n > 1):
        rows = [
            (f"{arm}, w = {w:g}", _means(arms[arm], dataset, key(steps, w, arms[arm]["default"])))
            for arm in shown
            for w in arms[arm]["weights"]
        ]
        if not rows:
            continue
        title = TITLES.get(dataset, dataset)
        parts += [f"### {title}: self-refinement at {steps_of(steps)}\n", table(rows)]
        lines: list[str] = []
        for arm in shown:
            entries = [
                e
                for e in data["refinement"]
                if (e["arm"], e["dataset"], e["steps"]) == (arm, dataset, steps)
                and e["weight"] == ARMS[FIRST].weight
            ]
            if entries:
                cells = "; ".join(f"{name_of(e['metric'])} {_told(e)}" for e in entries)
                lines.append(f"- {arm}: {cells}")
        if lines:
            parts.append(f"w = {ARMS[FIRST].weight:g} less w = 0, with its 95 % interval:\n")
            parts.append("\n".join(lines) + "\n")
    return parts


def _gallery(data: dict[str, Any]) -> str:
    any_arm = next(iter(data["arms"].values()))
    steps, default = any_arm["steps"], any_arm["default"]
    most = max(steps)
    side = data["gallery"][0]["side"]
    fewer = "".join(f"{steps_of(n)}, " for n in steps if n != most)
    weights = ", ".join(f"{w:g}" for w in any_arm["weights"])
    lines = [
        "### Pictures of the arms\n",
        f"The {side}x{side} with the most detail, at 100 %, fidelity {default:g}. First rows, "
        f"{steps_of(most)}: bicubic, {', '.join(data['arms'])}, original. Second rows, {FIRST}: "
        f"{fewer}then {steps_of(most)} with a weight of self-refinement of {weights}.\n",
    ]
    for entry in data["gallery"]:
        lines += [f"![{entry['image']}](pictures/{file})\n" for file in entry["files"]]
        lines.append(credit(entry))
    return join(lines)
