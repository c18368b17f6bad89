"""A report as tables: in Markdown for files, by rich for terminals."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_ARROWS = {"higher": "↑", "lower": "↓", "one": "→1", "none": ""}
_WORDS = {"higher": "(high)", "lower": "(low)", "one": "(to 1)", "none": ""}
MOST_PROBLEMS = 40
"""Lines of problems that a terminal gets; report.md has all."""


def columns(report: dict[str, Any], dataset: str) -> list[dict[str, Any]]:
    """The metrics of which a data set has any figure, in the order of the report."""
    scores = report["scores"].get(dataset, {})
    sets = report["set_scores"].get(dataset, {})
    known = {name for table in (scores, sets) for by in table.values() for name in by}
    return [metric for metric in report["metrics"] if metric["name"] in known]


def cell(report: dict[str, Any], dataset: str, method: str, metric: dict[str, Any]) -> str:
    """The mean, or the figure of the set; a dash where there is none."""
    name = metric["name"]
    if metric["scope"] == "set":
        value = report["set_scores"].get(dataset, {}).get(method, {}).get(name)
    else:
        value = report["scores"][dataset].get(method, {}).get(name, {}).get("mean")
    return number(value, metric["digits"])


def number(value: float | str | None, digits: int) -> str:
    """A figure in the digits of its metric."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.{digits}f}"


def interval(report: dict[str, Any], dataset: str, method: str, metric: dict[str, Any]) -> str:
    """The ends of the interval in brackets, empty for figures without one."""
    figures = report["scores"][dataset].get(method, {}).get(metric["name"])
    if metric["scope"] == "set" or figures is None or figures["low"] is None:
        return ""
    low, high = (number(figures[end], metric["digits"]) for end in ("low", "high"))
    return f" [{low}, {high}]"


def speed(method: dict[str, Any]) -> list[str]:
    """Seconds per picture, megapixels per second, peak in GiB."""
    peak = method["peak_memory_bytes"]
    return [
        number(method["seconds_per_image"], 3),
        number(method["megapixels_per_second"], 2),
        "-" if peak is None else f"{peak / 2**30:.2f}",
    ]


SPEED_TITLES = ("s/picture", "MP/s", "peak GiB")


def to_markdown(report: dict[str, Any]) -> str:
    """The whole report for reading: settings, tables, differences, speed, problems."""
    protocol, bootstrap = report["protocol"], report["bootstrap"]
    lines = [
        f"# {protocol['title']}",
        "",
        f"Made by addsr {report['made_by']['addsr']} on {report['date']} with",
        "",
        f"    {report['command']}",
        "",
        f"Border {protocol['border']}, luma {protocol['luma']}, "
        f"enlargement x{protocol['scale']}. Brackets: {bootstrap['confidence']:.0%} interval of "
        f"the mean over pictures, {bootstrap['resamples']} bootstrap resamples.",
    ]
    if protocol["source"]:
        lines += ["", str(protocol["source"]).strip()]
    titles = {method["id"]: method["title"] for method in report["methods"]}
    for dataset in report["datasets"]:
        name = dataset["name"]
        shown = columns(report, name)
        lines += ["", f"## {name}: {len(dataset['images'])} pictures", ""]
        heads = [f"{_title(metric)} {_ARROWS[metric['better']]}".strip() for metric in shown]
        lines += _table(
            ["method", *heads],
            [
                [title, *(cell(report, name, key, m) + interval(report, name, key, m)
                          for m in shown)]
                for key, title in titles.items()
            ],
        )  # fmt: skip
        lines += _differences(report, name, titles)
    lines += ["", "## Methods", ""]
    lines += _table(
        ["method", "settings", "licence", "weights"],
        [
            [
                method["title"],
                ", ".join(f"{key} {value}" for key, value in method["details"].items()) or "-",
                method["licence"] or "-",
                f"sha256 {method['sha256'][:16]}" if method["sha256"] else "-",
            ]
            for method in report["methods"]
        ],
    )
    lines += ["", "## Speed and memory", ""]
    lines += _table(
        ["method", *SPEED_TITLES, "how measured"],
        [
            [method["title"], *speed(method), method["speed_note"] or ""]
            for method in report["methods"]
        ],
    )
    lines += ["", "## Metrics", ""]
    for metric in report["metrics"]:
        text = f"* **{metric['title']}** (`{metric['name']}`): {metric['note']}. "
        text += f"Range {metric['range']}"
        text += f", {metric['unit']}" if metric["unit"] else ""
        text += "." if metric["verified"] else ". Not verified by this project."
        text += f" *Not measured: {metric['missing']}.*" if metric["missing"] else ""
        lines.append(text)
    if report["gaps"]:
        lines += ["", "## Undefined figures", ""]
        lines += [
            f"* {one['dataset']}, {titles.get(one['method'], one['method'])}, {one['metric']}: "
            f"{one['count']} pictures ({one['reason']})"
            for one in report["gaps"]
        ]
    if report["problems"]:
        lines += ["", "## Problems", ""]
        lines += _table(
            ["data set", "picture", "method", "problem", "remedy"],
            [
                [one["dataset"], one["image"], one["method"] or "", one["problem"], one["remedy"]]
                for one in report["problems"]
            ],
        )
    return "\n".join(lines) + "\n"


def _differences(report: dict[str, Any], dataset: str, titles: dict[str, str]) -> list[str]:
    """The first method of all pairs against the others."""
    rows: list[list[str]] = []
    for metric in columns(report, dataset):
        pairs = report["paired"].get(dataset, {}).get(metric["name"], [])
        for one in pairs:
            if one["a"] != pairs[0]["a"]:
                continue
            mean, low, high = (
                number(one[key], metric["digits"]) for key in ("mean", "low", "high")
            )
            wins = "-" if one["wins"] is None else f"{one['wins']} of {one['count']}"
            names = [titles.get(str(one[side]), str(one[side])) for side in ("a", "b")]
            ends = "" if one["low"] is None else f" [{low}, {high}]"
            rows.append([_title(metric), *names, mean + ends, wins])
    if not rows:
        return []
    head = ["metric", "a", "b", "a - b", "a better on"]
    return ["", "Differences on the same pictures:", "", *_table(head, rows)]


def _title(metric: dict[str, Any]) -> str:
    return metric["title"] if metric["verified"] else f"{metric['title']}*"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    def line(cells: list[str]) -> str:
        return (
            "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in cells) + " |"
        )

    return [line(head), line(["---"] * len(head)), *map(line, rows)]


def _fitting(first: list[str], rest: list[list[str]], width: int) -> list[list[list[str]]]:
    """Columns in groups that fit beside the first one; a terminal is never wide enough for all."""

    groups: list[list[list[str]]] = [[]]
    left = free = width - _first_width(first, width) - 4
    for column in rest:
        needed = _widest(column) + 3  # blanks and a line
        if groups[-1] and needed > left:
            groups.append([])
            left = free
        groups[-1].append(column)
        left -= needed
    return groups


def _first_width(first: list[str], width: int) -> int:
    """Of the column of titles: long ones are broken."""
    return min(_widest(first, whole=True), max(12, width // 3))


def _widest(column: list[str], whole: bool = False) -> int:
    """Letters that a column needs at least; only its head may be broken, between words."""
    return max(map(len, column if whole else [*column[0].split(), *column[1:]]))


def print_report(report: dict[str, Any], console: Console) -> None:
    """The means of every data set, what is missing and what went wrong."""
    from rich.markup import escape
    from rich.table import Table

    arrows = _ARROWS if console.encoding.lower().startswith("utf") else _WORDS
    for dataset in report["datasets"]:
        name = dataset["name"]
        first = ["method", *(method["title"] for method in report["methods"])]
        rest = [
            [f"{_title(metric)} {arrows[metric['better']]}".strip()]
            + [cell(report, name, method["id"], metric) for method in report["methods"]]
            for metric in columns(report, name)
        ]
        rest += [
            [SPEED_TITLES[k], *(speed(method)[k] for method in report["methods"])] for k in (0, 2)
        ]
        title = f"{escape(name)}: {len(dataset['images'])} pictures"
        for part in _fitting(first, rest, console.width):
            table = Table(title=title, title_justify="left")
            for number, column in enumerate([first, *part]):
                # broken here: rich would break the longest cell, be it a number
                head = textwrap.fill(column[0], _widest(column, whole=not number))
                justify = "right" if number else "left"
                table.add_column(
                    escape(head),
                    overflow="fold",
                    justify=justify,
                    max_width=None if number else _first_width(first, console.width),
                )
            for row in list(zip(first, *part, strict=True))[1:]:
                table.add_row(*map(escape, row))
            console.print(table)
            title = f"{escape(name)}, continued"
    if any(not metric["verified"] and not metric["missing"] for metric in report["metrics"]):
        console.print("* computed by another package, not verified by addsr", highlight=False)
    for metric in report["metrics"]:
        if metric["missing"]:
            console.print(escape(f"not measured: {metric['missing']}"), highlight=False)
    for one in report["gaps"]:
        text = f"undefined: {one['metric']} of {one['method']} on {one['dataset']} for "
        console.print(escape(f"{text}{one['count']} pictures: {one['reason']}"), highlight=False)
    problems = report["problems"]
    if not problems:
        return
    table = Table(title=f"problems: {len(problems)}", title_justify="left")
    for head in ("data set", "picture", "method", "problem", "remedy"):
        table.add_column(head, overflow="fold")
    for one in problems[:MOST_PROBLEMS]:
        cells = (one["dataset"], one["image"], one["method"] or "", one["problem"], one["remedy"])
        table.add_row(*map(escape, cells))
    console.print(table)
    if len(problems) > MOST_PROBLEMS:
        more = len(problems) - MOST_PROBLEMS
        console.print(f"and {more} more; report.md lists all", highlight=False)
