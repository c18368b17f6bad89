"""The GPU benchmark at toy size: rows, what is left out when time is over, and the page."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="the diffusion extra is not installed")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield importlib.import_module("gpu")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in ("gpu", "gpu_page"):
            sys.modules.pop(name, None)


def options(docs: Path, **changes: str) -> list[str]:
    chosen = {
        "sizes": "32,64", "steps": "2,9", "dtypes": "fp32",
        "variants": "channels-last,tile-batch-1",
        "repeats": "1", "shorten-from": "64", "measured-steps": "2", "device": "cpu",
        "docs": str(docs), **changes,
    }  # fmt: skip
    return ["--tiny", *(word for name, value in chosen.items() for word in (f"--{name}", value))]


def test_every_case_becomes_a_row_and_the_page_comes_from_the_json(
    gpu: Any, tmp_path: Path
) -> None:
    assert gpu.main(options(tmp_path)) == 0
    data = json.loads((tmp_path / "gpu.json").read_text())
    rows = {(r["size"], r["steps"], r["variant"]): r for r in data["runs"][0]["rows"]}
    assert set(rows) == {
        (32, 2, "plain"), (64, 2, "plain"), (32, 9, "plain"), (64, 9, "plain"),
        (32, 2, "channels-last"), (64, 2, "channels-last"), (64, 2, "tile-batch-1"),
    }  # fmt: skip
    assert all(row["seconds"] > 0 for row in rows.values())
    short, whole = rows[64, 9, "plain"], rows[32, 9, "plain"]
    assert short["measured_steps"] == 2 and whole["measured_steps"] == 9
    assert short["seconds"] > 7 * short["seconds_per_step"]
    page = (tmp_path / "benchmarks.md").read_text()
    assert page.count("extrapolated from 2 steps") == 1
    assert "tile-batch-1: one tile at a time" in page
    (tmp_path / "benchmarks.md").unlink()
    assert gpu.main(["--render-only", "--docs", str(tmp_path)]) == 0
    assert (tmp_path / "benchmarks.md").read_text() == page


def test_when_the_time_is_over_the_rest_is_named(gpu: Any, tmp_path: Path) -> None:
    other = {"device": "another card", "is_tiny": False, "rows": [], "torch": "1", "diffusers": "1"}
    (tmp_path / "gpu.json").write_text(json.dumps({"runs": [other | {"addsr": "1"}]}))
    assert gpu.main(options(tmp_path, minutes="0")) == 0
    kept, run = json.loads((tmp_path / "gpu.json").read_text())["runs"]
    assert kept["device"] == "another card"
    assert {row["not_run"] for row in run["rows"]} == {"the time was over"}
    assert "not run: the time was over" in (tmp_path / "benchmarks.md").read_text()


def test_fewer_steps_are_measured_where_all_would_take_too_long(gpu: Any) -> None:
    args = gpu.argparse.Namespace(
        device="cpu", minutes=1.0, shorten_from=4096, measured_steps=20, tiny=False
    )
    bench = gpu.Bench(args)
    assert bench._affordable(gpu.Case(512, "bf16", 200)) == 200  # nothing is known yet
    bench.per_tile["bf16"] = 1.0
    bench.end = time.monotonic() + 60.5
    assert bench._affordable(gpu.Case(512, "bf16", 200)) == 59
    assert bench._affordable(gpu.Case(1024, "bf16", 200)) == 5
    assert bench._affordable(gpu.Case(2048, "bf16", 4)) == 0
    assert bench._affordable(gpu.Case(512, "bf16", 4, "compile")) == 0
    bench.per_pixel["bf16"] = 10 / 512**2  # 20 s go into what is not a step
    assert bench._affordable(gpu.Case(512, "bf16", 200)) == 39
    bench.end = time.monotonic() - 1
    assert bench._affordable(gpu.Case(512, "bf16", 1)) == 0


def test_a_case_that_fails_does_not_cost_the_others(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = gpu.set_variant

    def broken(pipe: Any, variant: str) -> None:
        change(pipe, variant)
        if variant == "channels-last":
            raise RuntimeError("no such kernel\nat all")

    monkeypatch.setattr(gpu, "set_variant", broken)
    chosen = options(tmp_path, sizes="32", steps="1", variants="channels-last,vae-whole")
    assert gpu.main(chosen) == 0
    rows = json.loads((tmp_path / "gpu.json").read_text())["runs"][0]["rows"]
    assert [row.get("not_run") for row in rows] == [None, "failed: RuntimeError: no such kernel"]


def test_variants_are_undone(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # the compiler itself takes seconds to load
    resets: list[bool] = []
    monkeypatch.setattr(gpu.torch, "compile", lambda function, dynamic: lambda *a: function(*a))
    monkeypatch.setattr(gpu.torch.compiler, "reset", lambda: resets.append(True))
    pipe = gpu.build("cpu", torch.bfloat16, is_tiny=True)
    assert all(p.dtype == torch.bfloat16 for p in pipe.unet.parameters())
    gpu.set_variant(pipe, "compile-channels-last")
    weight = pipe.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert "forward" in vars(pipe.guided)
    gpu.set_variant(pipe, "plain")
    assert weight.is_contiguous() and "forward" not in vars(pipe.guided)
    assert resets == [True]


def test_what_is_compiled_is_kept_for_the_other_sizes(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[bool] = []
    monkeypatch.setattr(gpu.torch, "compile", lambda f, dynamic: compiled.append(True) or f)
    monkeypatch.setattr(gpu.torch.compiler, "reset", lambda: None)
    names = ["plain", "compile", "tile-batch-1", "compile-channels-last"]
    args = gpu.argparse.Namespace(
        sizes=[512, 1024], steps=[4], dtypes=["bf16"], variants=names, tiny=False
    )
    order = [(c.variant, c.size) for c in gpu.cases(args) if "compile" in c.variant]
    assert order == [
        ("compile", 512), ("compile", 1024),
        ("compile-channels-last", 512), ("compile-channels-last", 1024),
    ]  # fmt: skip
    pipe = gpu.build("cpu", torch.float32, is_tiny=True)
    for variant, _ in order:
        gpu.set_variant(pipe, variant)
    assert len(compiled) == 2


def test_trying_it_out_leaves_the_figures_of_the_full_size(gpu: Any, tmp_path: Path) -> None:
    full = {"device": "cpu", "is_tiny": False, "rows": [], "torch": "1", "diffusers": "1"}
    (tmp_path / "gpu.json").write_text(json.dumps({"runs": [full | {"addsr": "1"}]}))
    for _ in range(2):
        assert gpu.main(options(tmp_path, minutes="0")) == 0
    runs = json.loads((tmp_path / "gpu.json").read_text())["runs"]
    assert [run["is_tiny"] for run in runs] == [False, True]


def test_a_page_without_figures_is_refused(gpu: Any, tmp_path: Path, capsys: Any) -> None:
    assert gpu.main(["--render-only", "--docs", str(tmp_path)]) == 2
    assert "gpu.json is not there" in capsys.readouterr().err


@pytest.mark.slow
def test_the_full_size_is_the_published_one(gpu: Any) -> None:
    pipe = gpu.build("meta", torch.float16, is_tiny=False)
    counts = {k: sum(p.numel() for p in n.parameters()) for k, n in pipe.networks.items()}
    assert counts == {
        "unet": 865_910_724,
        "encoder": 52_494_080,
        "sft": 53_020_160,
        "vae": 83_653_863,
        "cfw": 44_393_728,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtypes": "fp8"}, "dtypes: 'fp8' must be some of fp16"),
        ({"variants": "fast"}, "variants: 'fast' must be some of plain"),
        ({"sizes": "500"}, "sizes: '500' must be multiples of 32"),
        ({"steps": "0"}, "steps: '0' must be numbers from 1 to 1000"),
    ],
)
def test_options_that_are_not_possible_are_named(
    gpu: Any, change: dict[str, str], message: str, tmp_path: Path, capsys: Any
) -> None:
    assert gpu.main(options(tmp_path, **change)) == 2
    assert message in capsys.readouterr().err
