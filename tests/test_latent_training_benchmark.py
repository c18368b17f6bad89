"""The benchmark of memory and speed in training: settings, budgets, page."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers", reason="the diffusion extra is not installed")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield importlib.import_module("latent_training")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        sys.modules.pop("latent_training", None)


def command(folder: Path, *more: str) -> list[str]:
    fixed = ["--tiny", "--device", "cpu", "--passes", "1", "--batch", "2"]
    return [*fixed, "--folder", str(folder / "weights"), "--docs", str(folder), *more]


def test_what_was_not_run_is_named_and_other_devices_figures_stay(
    bench: Any, tmp_path: Path
) -> None:
    other = {"device": "card", "is_tiny": False, "torch": "1", "rows": []}
    (tmp_path / "training-memory.json").write_text(json.dumps({"runs": [other]}))
    for _ in range(2):
        assert bench.main(command(tmp_path, "--minutes", "0", "--optim", "weight_decay=0.1")) == 0
    kept, run = json.loads((tmp_path / "training-memory.json").read_text())["runs"]
    assert kept == other and {row["not_run"] for row in run["rows"]} == {"the time was over"}
    told = [row["task"] for row in run["rows"] if row["optim"] != "offload=true"]
    assert told == ["addsr"] * 5 + ["stablesr"] * 5 + ["cfw"] * 4
    page = (tmp_path / "training-memory.md").read_text()
    assert page.count("not run: the time was over") == len(run["rows"])
    assert "| addsr | bf16 | 1 x 2 | yes | weight_decay=0.1 |" in page


def test_the_page_in_the_docs_is_made_of_the_figures_there(bench: Any) -> None:
    docs = ROOT / "docs"
    data = json.loads((docs / "training-memory.json").read_text(encoding="utf-8"))
    assert (docs / "training-memory.md").read_text(encoding="utf-8") == bench.render(data)


def test_a_budget_takes_the_quickest_that_fits(bench: Any) -> None:
    def row(seconds: float, gb: float, **changes: Any) -> dict[str, Any]:
        setting = asdict(bench.Setting(**{"task": "addsr", "batch": 2, **changes}))
        return setting | {"seconds": seconds, "reserved_bytes": gb * 1e9}

    rows = [
        row(1.0, 60, checkpointing=False), row(1.5, 37), row(1.0, 22, batch=1, accumulate=2),
        row(0.1, 5, task="cfw"), asdict(bench.Setting("addsr", 2)) | {"not_run": "out of memory"},
    ]  # fmt: skip
    assert bench.fitting(rows, 80)["seconds"] == 1.0
    assert bench.fitting(rows, 40) == rows[1]
    assert bench.fitting(rows, 24) == rows[2]
    assert bench.fitting(rows, 23) is None  # a twentieth is left free


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--only", "teacher"), "must be some of addsr, stablesr, cfw"),
        (("--budgets", "24,x"), "budgets: '24,x' must be whole numbers"),
        (("--optim", "speed=9"), "optim: 'speed=9' must be NAME=VALUE with one of learning_rate"),
        (("--optim", "clip"), "optim: 'clip' must be NAME=VALUE"),
    ],
)
def test_options_that_cannot_be_are_named(
    bench: Any, tmp_path: Path, more: tuple[str, ...], message: str, capsys: Any
) -> None:
    assert bench.main(command(tmp_path, *more)) == 2
    assert message in capsys.readouterr().err


def test_values_of_options_have_their_types(bench: Any) -> None:
    assert [bench._value(text) for text in ("0.5", "true", "8bit")] == [0.5, True, "8bit"]


@pytest.mark.slow
def test_addsrs_settings_are_measured(bench: Any, tmp_path: Path) -> None:
    assert bench.main(command(tmp_path, "--only", "addsr")) == 0
    (run,) = json.loads((tmp_path / "training-memory.json").read_text())["runs"]
    settings = [(row["batch"], row["checkpointing"]) for row in run["rows"] if not row["optim"]]
    assert settings == [(2, True), (2, False), (1, True)]
    assert all(row["seconds"] > 0 and row["flops"] > 0 for row in run["rows"])


def test_cards_are_set_against_as_many_single_ones(bench: Any, tmp_path: Path) -> None:
    def row(cards: int, seconds: float, accumulate: int) -> dict[str, Any]:
        setting = asdict(bench.Setting("addsr", 2, accumulate=accumulate))
        return {"cards": cards, **setting, "seconds": seconds}

    rows = [row(1, 1.0, 1), row(1, 0.8, 8), row(2, 1.25, 1), row(2, 0.8, 8)]
    page = "\n".join(bench._render_scaling([*rows, {"cards": 4, "not_run": "no such card"}]))
    assert "| 2 | 2 | 1 | 1.25 | 3.2 | 80.0% | |" in page
    assert "| 2 | 2 | 8 | 0.8 | 5 | 100.0% | |" in page
    assert "| 4 | - | - | - | - | - | not run: no such card |" in page


@pytest.mark.slow
def test_processes_train_together_and_are_measured(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    scaling = importlib.import_module("scaling")
    assert bench.main(command(tmp_path, "--minutes", "0", "--only", "cfw")) == 0
    more = ["--tiny", "--device", "cpu", "--passes", "1", "--accumulate", "2"]
    folders = ["--folder", str(tmp_path / "weights"), "--docs", str(tmp_path)]
    assert scaling.main([*more, *folders]) == 0
    (run,) = json.loads((tmp_path / "training-memory.json").read_text())["runs"]
    assert [(row["cards"], row["accumulate"]) for row in run["scaling"]] == [(1, 2), (2, 2)]
    assert all(row["seconds"] > 0 for row in run["scaling"])
    assert len(run["rows"]) == 4  # those of the other script stay
    assert scaling.main([*more, *folders, "--cards", "two"]) == 2
