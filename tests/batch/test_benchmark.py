"""The benchmark of batches: both kinds of photos, its limit of time, its figures."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "batch.py"


@pytest.fixture()
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("benchmark_of_batches", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def run(bench: Any, weights: str, capsys: pytest.CaptureFixture[str], *more: str) -> Any:
    words = ["--model", weights, "--device", "cpu", "--smallest", "8", "--largest", "14", *more]
    bench.main(words)
    told = capsys.readouterr().out
    assert f"mixed: loop / batch = {json.loads(told[told.index('{') :])['batch_times_faster']}" in (
        told
    )
    return json.loads(told[told.index("{") :])


def test_both_kinds_of_photos_are_measured_in_turns(
    bench: Any, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(bench, weights, capsys, "--count", "12", "--equal", "--side", "12")
    for kind in (found, found["equal"]):
        # ten photos and two, twice, both ways
        assert kind["photos"] == 12 and kind["photos_measured"] == 24
        assert [len(values) for values in kind["seconds"].values()] == [4, 4]
        sums = {name: sum(values) for name, values in kind["seconds"].items()}
        assert kind["batch_times_faster"] == pytest.approx(sums["loop"] / sums["batch"], rel=0.05)
        assert kind["of_turns"]["least"] <= kind["of_turns"]["median"] <= kind["of_turns"]["most"]
        assert kind["largest_difference"] <= 1 and kind["milliseconds_of_a_photo"]["restore"] > 0
    assert found["equal"]["megapixels"] == 0.0 and found["device"] == "cpu"


def test_when_the_time_is_over_one_turn_is_enough(
    bench: Any, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(bench, weights, capsys, "--count", "11", "--minutes", "0", "--turns", "9")
    assert found["photos_measured"] == 10 and found["photos"] == 11
    assert "equal" not in found


def test_a_difference_between_the_ways_is_told(
    bench: Any, weights: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = bench.WAYS["batch"]

    def spoils(up: Any, jobs: Any) -> None:
        usual(up, jobs)
        with bench.Image.open(jobs[0].target) as image:
            size = image.size
        bench.Image.new("RGB", size).save(jobs[0].target)

    monkeypatch.setitem(bench.WAYS, "batch", spoils)
    found = run(bench, weights, capsys, "--count", "2", "--turns", "1")
    assert not found["same_files"] and found["largest_difference"] > 20
