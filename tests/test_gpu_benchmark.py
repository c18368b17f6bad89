"""The GPU benchmark at toy size: rows, what is left out when time is over, and the page."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="the diffusion extra is not installed")
EMPTY: dict[str, Any] = {
    "rows": [], "parts": [], "counted": {}, "torch": "1", "diffusers": "1", "addsr": "1"
}  # fmt: skip
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield importlib.import_module("gpu")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in ("gpu", "gpu_cases", "gpu_data", "gpu_models", "gpu_page"):
            sys.modules.pop(name, None)


def options(docs: Path, **changes: str) -> list[str]:
    chosen = {
        "sizes": "32,64", "steps": "2,9", "dtypes": "fp32",
        "variants": "channels-last,tile-batch-1",
        "repeats": "1", "shorten-from": "64", "measured-steps": "2", "device": "cpu",
        "only": "stablesr", "docs": str(docs), **changes,
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
    for row in rows.values():  # another layout rounds otherwise and no more
        assert row.get("mean_difference", 0.0) < 1e-3
    assert "mean_difference" in rows[64, 2, "tile-batch-1"]
    short, whole = rows[64, 9, "plain"], rows[32, 9, "plain"]
    assert short["measured_steps"] == 2 and whole["measured_steps"] == 9
    assert short["seconds"] > 7 * short["seconds_per_step"]
    page = (tmp_path / "benchmarks.md").read_text()
    assert page.count("extrapolated from 2 steps") == 1
    assert "tile-batch-1: one tile at a time" in page
    (tmp_path / "benchmarks.md").unlink()
    assert gpu.main(["--render-only", "--docs", str(tmp_path)]) == 0
    assert (tmp_path / "benchmarks.md").read_text() == page


def test_the_page_in_the_docs_is_made_of_the_figures_there(gpu: Any, tmp_path: Path) -> None:
    docs = ROOT / "docs"
    (tmp_path / "gpu.json").write_bytes((docs / "gpu.json").read_bytes())
    assert gpu.main(["--render-only", "--docs", str(tmp_path)]) == 0
    page = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert page == (docs / "benchmarks.md").read_text(encoding="utf-8")


def test_when_the_time_is_over_the_rest_is_named(gpu: Any, tmp_path: Path) -> None:
    other = {"device": "another card", "is_tiny": False, **EMPTY}
    (tmp_path / "gpu.json").write_text(json.dumps({"runs": [other]}))
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
    bench.per_tile["stablesr", "bf16"] = bench.per_tile["addsr", "bf16"] = 1.0
    bench.end = time.monotonic() + 60.5
    assert bench._affordable(gpu.Case(512, "bf16", 200)) == 59
    assert bench._affordable(gpu.Case(1024, "bf16", 200)) == 5
    assert bench._affordable(gpu.Case(2048, "bf16", 4)) == 0
    assert bench._affordable(gpu.Case(512, "bf16", 4, "compile")) == 0
    assert bench._affordable(gpu.Case(512, "bf16", 4, "plain", "addsr")) == 4
    # AddSR's steps are not alike, so that none can stand for others
    assert bench._affordable(gpu.Case(2048, "bf16", 4, "plain", "addsr")) == 0
    bench.per_pixel["stablesr", "bf16"] = 10 / 512**2  # 20 s go into what is not a step
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


def test_addsr_and_seesr_are_measured_with_their_parts(gpu: Any, tmp_path: Path) -> None:
    chosen = options(
        tmp_path, sizes="32", steps="1,3", variants="tiny-decoder,batch-4", only="seesr,addsr"
    )
    assert gpu.main(chosen) == 0
    (run,) = json.loads((tmp_path / "gpu.json").read_text())["runs"]
    rows = {(r["model"], r["steps"], r["variant"]): r for r in run["rows"]}
    assert list(rows) == [
        ("addsr", 1, "plain"), ("addsr", 3, "plain"), ("seesr", 1, "plain"),
        ("seesr", 3, "plain"), ("addsr", 3, "tiny-decoder"), ("addsr", 1, "batch-4"),
        ("addsr", 3, "batch-4"), ("seesr", 1, "batch-4"),
    ]  # fmt: skip
    for row in rows.values():
        for name in ("tagger_seconds", "text_encoder_seconds", "seconds_without_words"):
            assert row[name] > 0
    assert rows["addsr", 3, "tiny-decoder"]["mean_difference"] > 1e-5
    assert "mean_difference" not in rows["addsr", 3, "batch-4"]
    (parts,) = run["parts"]
    counted = run["counted"]["addsr 32"]
    assert parts["parts"].keys() == counted["parts"].keys() >= {"network", "tiny decoder"}
    whole = counted["parts"]["U-Net alone"] + counted["parts"]["ControlNet alone"]
    assert counted["parts"]["network"] == pytest.approx(whole)
    # three networks, three maps, three decodings, three looks, and once each all else
    one = counted["parts"]
    wanted = 3 * (one["network"] + one["map of the picture"] + one["VAE decoder"])
    wanted += one["VAE encoder"] + 3 * one["tagger, tokens"] + one["tagger, tags"]
    assert counted["runs"]["3"] == pytest.approx(wanted + one["text encoder"])
    less = 2 * (one["VAE decoder"] - one["tiny decoder"])
    assert counted["runs"]["3 tiny"] == pytest.approx(counted["runs"]["3"] - less)
    page = (tmp_path / "benchmarks.md").read_text()
    assert "| 32x32 | fp32 | plain | 3 steps, " in page and "3 steps, tiny decoder, " in page
    assert "| without words |" in page and "| tagger, tokens |" in page


def test_what_was_aimed_at_is_judged_by_the_best_row_without_words(gpu: Any) -> None:
    page = importlib.import_module("gpu_page")
    row = {
        "model": "addsr", "size": 512, "dtype": "bf16", "steps": 1, "variant": "plain",
        "seconds": 0.04, "tagger_seconds": 0.008, "text_encoder_seconds": 0.002,
    }  # fmt: skip
    told = page._aims([row, row | {"variant": "graphs", "seconds": 0.034}])
    assert "1 step at 512 px in 25 ms without words: reached, 24.0 ms (bf16, graphs; 34.0" in told
    assert "not reached, 30.0 ms" in page._aims([row])
    four = row | {"variant": "graphs-batch-4", "seconds": 0.02}
    assert "not reached, 30.0 ms" in page._aims([row, four])  # not what a single picture takes
    assert "reached, 21.0 ms" in page._aims([row | {"seconds_without_words": 0.021}])
    assert page._aims([row | {"size": 2048}, row | {"not_run": "x", "seconds": None}][:1]) == ""


def test_memory_of_cuda_graphs_is_told_though_it_does_not_count_as_allocated(gpu: Any) -> None:
    page = importlib.import_module("gpu_page")
    row = {
        "model": "stablesr", "size": 512, "dtype": "bf16", "steps": 4, "measured_steps": 4,
        "variant": "plain", "seconds": 1.0, "peak_bytes": 3 * 2**30, "reserved_bytes": 5 * 2**30,
    }  # fmt: skip
    graphs = row | {"variant": "graphs-channels-last"}
    assert "| 3.00 |" in page._table([row], [], {"device": "card", "counted": {}})
    assert "| 5.00 reserved |" in page._table([graphs], [row], {"device": "card", "counted": {}})


def test_what_finds_words_is_put_back(gpu: Any) -> None:
    pipe = gpu.build("addsr", "cpu", torch.float32, is_tiny=True)
    parts = pipe.tagger, pipe.text_encoder
    with pytest.raises(KeyError), gpu.without_words(pipe):
        assert pipe.tagger is pipe.text_encoder is None
        raise KeyError
    assert (pipe.tagger, pipe.text_encoder) == parts


def test_rows_of_two_runs_come_together(gpu: Any, tmp_path: Path) -> None:
    def data(*rows: dict[str, Any]) -> str:
        run = {"device": "card", "is_tiny": False, "torch": "1", "addsr": "1", "diffusers": "1"}
        whole = {**run, "rows": list(rows), "parts": [], "counted": {rows[0]["dtype"]: {}}}
        return json.dumps({"runs": [whole]})

    def row(dtype: str, **more: Any) -> dict[str, Any]:
        case = {"size": 512, "steps": 4, "variant": "plain", "model": "addsr", "dtype": dtype}
        return {**case, "measured_steps": 4, "seconds": 1.0, **more}

    other = tmp_path / "other.json"
    (tmp_path / "gpu.json").write_text(data(row("bf16"), row("fp32", not_run="time")))
    other.write_text(data(row("fp16"), row("bf16", seconds=9.0), row("fp32")))
    assert gpu.main(["--add", str(other), "--docs", str(tmp_path), "--device", "cuda"]) == 0
    (run,) = json.loads((tmp_path / "gpu.json").read_text())["runs"]
    assert {(r["dtype"], r["seconds"], r.get("not_run")) for r in run["rows"]} == {
        ("bf16", 1.0, None), ("fp16", 1.0, None), ("fp32", 1.0, None)
    }  # fmt: skip
    assert set(run["counted"]) == {"bf16", "fp16"} and "note" not in run
    noted = json.loads(other.read_text())
    noted["runs"][0]["note"] = "beside other work"
    other.write_text(json.dumps(noted))
    assert gpu.main(["--add", str(other), "--docs", str(tmp_path)]) == 0
    page = (tmp_path / "benchmarks.md").read_text()
    assert "## card: full size\n\nbeside other work\n" in page
    assert gpu.main(["--add", str(other), "--docs", str(tmp_path), "--note", "loud"]) == 2
    assert gpu.main(["--add", str(tmp_path / "gone"), "--docs", str(tmp_path)]) == 2


def test_a_second_run_keeps_what_it_does_not_measure(gpu: Any, tmp_path: Path) -> None:
    for dtype, note in (("fp32", ["--note", "quiet"]), ("bf16", [])):
        told = options(tmp_path, minutes="0", sizes="32", dtypes=dtype)
        assert gpu.main([*told, *note]) == 0
    assert (
        "## cpu: tiny networks, to try the script\n\nquiet\n"
        in (tmp_path / "benchmarks.md").read_text()
    )
    (run,) = json.loads((tmp_path / "gpu.json").read_text())["runs"]
    kept = {(row["dtype"], row["variant"]) for row in run["rows"]}
    assert kept == {(d, v) for d in ("fp32", "bf16") for v in ("plain", "channels-last")}
    assert len(run["rows"]) == 6


def test_variants_are_undone(gpu: Any) -> None:
    pipe = gpu.build("stablesr", "cpu", torch.bfloat16, is_tiny=True)
    assert all(p.dtype == torch.bfloat16 for p in pipe.unet.parameters())
    gpu.set_variant(pipe, "compile-channels-last")
    weight = pipe.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert pipe._stages.compile_mode == "default"
    gpu.set_variant(pipe, "graphs-channels-last")
    assert pipe._stages.compile_mode == "reduce-overhead"
    gpu.set_variant(pipe, "plain")
    assert weight.is_contiguous() and pipe._stages.compile_mode is None


def test_what_is_compiled_is_kept_for_other_sizes_and_steps(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(gpu.VARIANTS)
    args = gpu.argparse.Namespace(
        sizes=[512, 1024], steps=[1, 4], dtypes=["bf16"], variants=names, tiny=False,
        only=["addsr", "stablesr"],
    )  # fmt: skip
    compiled = [c for kind, c in gpu.ordered(args) if kind == "rows" and c.is_compiled]
    settings = [(c.model, c.variant) for c in compiled]
    changes = sum(a != b for a, b in itertools.pairwise(settings))
    assert changes == len(set(settings)) - 1  # no setting comes twice
    resets: list[bool] = []
    monkeypatch.setattr(gpu.torch.compiler, "reset", lambda: resets.append(True))
    pipe = gpu.build("addsr", "cpu", torch.float32, is_tiny=True)
    for case in compiled:
        if case.model == "addsr":
            gpu.set_variant(pipe, case.variant)
    # CUDA graphs with and without the tiny decoder, or with more pictures, are of one compilation
    assert len(resets) == 5


def test_fused_products_give_the_same_and_are_undone(gpu: Any) -> None:
    pipe = gpu.build("addsr", "cpu", torch.float32, is_tiny=True)
    lr = torch.rand(1, 3, 8, 8)

    def run() -> Any:
        return pipe(lr, 2, generator=torch.Generator().manual_seed(0), output_type="pt").images

    wanted, names = run(), [set(net.state_dict()) for net in pipe.networks.values()]
    gpu.fuse(pipe, is_wanted=True)
    assert any(name.endswith("to_qkv.weight") for name in pipe.networks["controlnet"].state_dict())
    torch.testing.assert_close(run(), wanted, rtol=1e-3, atol=1e-4)
    gpu.fuse(pipe, is_wanted=False)
    assert [set(net.state_dict()) for net in pipe.networks.values()] == names
    assert torch.equal(run(), wanted)


def test_parts_are_timed_where_their_code_is_there_already(gpu: Any) -> None:
    args = gpu.argparse.Namespace(
        sizes=[512], steps=[1], dtypes=["bf16"], variants=list(gpu.VARIANTS), tiny=False,
        only=["addsr", "seesr"],
    )  # fmt: skip
    todo = gpu.ordered(args)
    parts = [k for k, (kind, _) in enumerate(todo) if kind == "parts"]
    assert [todo[k][1].variant for k in parts] == [
        "plain", "channels-last", "graphs-channels-last", "compile-channels-last"
    ]  # fmt: skip
    for k in parts:
        before, case = todo[k - 1][1], todo[k][1]
        assert (before.model, before.variant) == (case.model, case.variant) and case.steps == 0


def test_trying_it_out_leaves_the_figures_of_the_full_size(gpu: Any, tmp_path: Path) -> None:
    full = {"device": "cpu", "is_tiny": False, **EMPTY}
    (tmp_path / "gpu.json").write_text(json.dumps({"runs": [full]}))
    for _ in range(2):
        assert gpu.main(options(tmp_path, minutes="0")) == 0
    runs = json.loads((tmp_path / "gpu.json").read_text())["runs"]
    assert [run["is_tiny"] for run in runs] == [False, True]


def test_a_page_without_figures_is_refused(gpu: Any, tmp_path: Path, capsys: Any) -> None:
    assert gpu.main(["--render-only", "--docs", str(tmp_path)]) == 2
    assert "gpu.json is not there" in capsys.readouterr().err


@pytest.mark.slow
def test_the_full_size_is_the_published_one(gpu: Any) -> None:
    pipe = gpu.build("stablesr", "meta", torch.float16, is_tiny=False)
    counts = {k: sum(p.numel() for p in n.parameters()) for k, n in pipe.networks.items()}
    assert counts == {
        "unet": 865_910_724,
        "encoder": 52_494_080,
        "sft": 53_020_160,
        "vae": 83_653_863,
        "cfw": 44_393_728,
    }
    pipe = gpu.build("addsr", "meta", torch.float16, is_tiny=False)
    nets = {**pipe.networks, "tagger": pipe.tagger.net, "text": pipe.text_encoder.encoder}
    counts = {k: sum(p.numel() for p in n.parameters()) for k, n in nets.items()}
    assert counts == {
        "unet": 1_126_760_324,
        "controlnet": 489_031_440,
        "tiny_decoder": 1_222_531,
        "vae": 83_653_863,
        "tagger": 212_117_045,
        "text": 340_387_840,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtypes": "fp8"}, "dtypes: 'fp8' must be some of fp16"),
        ({"variants": "fast"}, "variants: 'fast' must be some of plain"),
        ({"only": "sinsr"}, "only: 'sinsr' must be some of addsr, seesr, stablesr"),
        ({"sizes": "500"}, "sizes: '500' must be multiples of 32"),
        ({"steps": "0"}, "steps: '0' must be numbers from 1 to 1000"),
    ],
)
def test_options_that_are_not_possible_are_named(
    gpu: Any, change: dict[str, str], message: str, tmp_path: Path, capsys: Any
) -> None:
    assert gpu.main(options(tmp_path, **change)) == 2
    assert message in capsys.readouterr().err
