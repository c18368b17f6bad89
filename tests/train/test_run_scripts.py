"""The scripts that train for a fixed time, with a stand-in for Python: nothing is lost by them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "training" / "run-time-aware.sh"
pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("bash", "awk", "timeout")), reason="needs a shell"
)
STAND_IN = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then echo 2; exit; fi
echo "$CUDA_VISIBLE_DEVICES $*" >>"$CALLS"
while (($#)); do [[ $1 == --output ]] && out=$2; shift; done
mkdir -p "$out/weights"
echo "$out" >>"$out/weights/net-ema.safetensors"
if [[ -n $SLOW ]]; then
  trap 'echo stopped >"$out/stopped"; exit 0' TERM
  sleep 20 & wait $!
fi
[[ $(grep -c -- "$out" "$CALLS") -gt ${FAILURES:-0} ]]
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return tmp_path


def settings(place: Path, **more: str) -> dict[str, Any]:
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "CALLS": str(place / "calls"), "SLOW": "", **more}
    return {"env": env, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def command(place: Path, *more: str) -> list[str]:
    return ["bash", str(SCRIPT), str(place / "shards"), str(place / "out"), *more]


def calls(place: Path) -> list[str]:
    return sorted((place / "calls").read_text().splitlines())


def test_each_variant_has_a_card_of_its_own(place: Path) -> None:
    done = subprocess.run(command(place, "0.5"), **settings(place))
    assert done.returncode == 0, done.stderr
    concat, aware = calls(place)
    assert concat.startswith("0 ") and "recipes/teacher.toml" in concat
    assert aware.startswith("1 ") and "recipes/time-aware.toml" in aware
    assert "run.minutes=0.5" in concat and "reduce-overhead" in concat


def test_a_first_try_that_fails_is_gone_on_with_and_not_thrown_away(place: Path) -> None:
    done = subprocess.run(command(place, "0.5", "concat"), **settings(place, FAILURES="1"))
    assert done.returncode == 0, done.stderr
    second = next(line for line in calls(place) if "compile_mode=default" in line)
    assert second.endswith("--resume latest")
    assert (place / "out/concat/weights/net-ema.safetensors").read_text().count("\n") == 2


def test_a_failure_is_told_and_leaves_what_there_is(place: Path) -> None:
    done = subprocess.run(command(place, "0.5", "concat"), **settings(place, FAILURES="9"))
    assert done.returncode == 1
    assert "default failed, see" in done.stderr
    assert (place / "out/concat/weights/net-ema.safetensors").is_file()


def test_results_of_an_earlier_run_are_not_written_over(place: Path) -> None:
    earlier = place / "out" / "time-aware" / "weights"
    earlier.mkdir(parents=True)
    done = subprocess.run(command(place, "0.5"), **settings(place))
    assert done.returncode == 2
    assert "time-aware is there already" in done.stderr
    assert not (place / "calls").exists() and earlier.is_dir()


@pytest.mark.parametrize(
    ("words", "message"),
    [(["x"], "MINUTES: x is no number"), (["0"], "MINUTES: 0"), (["1", "other"], "other is unkn")],
)
def test_what_is_not_possible_is_named(place: Path, words: list[str], message: str) -> None:
    done = subprocess.run(command(place, *words), **settings(place))
    assert done.returncode == 2
    assert message in done.stderr


def test_sigterm_reaches_every_training(place: Path) -> None:
    running = subprocess.Popen(command(place, "5"), **settings(place, SLOW="1"))
    folders = [place / "out" / name for name in ("concat", "time-aware")]
    deadline = time.monotonic() + 20
    while not all((f / "weights/net-ema.safetensors").is_file() for f in folders):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    running.send_signal(signal.SIGTERM)
    assert running.wait(15) == 143
    assert all((folder / "stopped").is_file() for folder in folders)
    running.communicate()


def gpu_command(place: Path, *more: str) -> list[str]:
    return ["bash", str(ROOT / "training" / "run-gpu-sd2.sh"), str(place / "out"), *more]


def test_benchmarks_share_two_cards(place: Path) -> None:
    done = subprocess.run(
        gpu_command(place, "26"), **settings(place, OPTIM="states=8bit offload=true")
    )
    assert done.returncode == 0, done.stderr
    told = [line.replace(f"{ROOT}/benchmarks/", "") for line in calls(place)]
    first = [line for line in told if line.startswith("0 ")]
    second = [line for line in told if line.startswith("1 ")]
    assert len(first) == 2 and len(second) == 3
    assert any("gpu.py --device cuda --only addsr,seesr --dtypes bf16" in one for one in first)
    assert any("gpu.py --device cuda --only addsr,seesr --dtypes fp16" in one for one in second)
    (training,) = (one for one in second if "latent_training.py" in one and "--tiny" not in one)
    assert "--only addsr --optim states=8bit --optim offload=true" in training
    assert "--minutes 10.4 " in training
    assert (place / "out" / "results.tar").is_file()


def test_a_benchmark_that_fails_is_told_and_does_not_cost_the_others(place: Path) -> None:
    stand_in = place / "bin" / "python3"
    stand_in.write_text(
        STAND_IN.replace("while (($#))", "[[ $* == *fp16* ]] && exit 3\nwhile (($#))")
    )
    done = subprocess.run(gpu_command(place, "1"), **settings(place))
    assert done.returncode == 1
    assert "gpu-fp16: FAILED" in done.stdout and "gpu-bf16: done" in done.stdout
    assert (place / "out" / "results.tar").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [(["x"], "MINUTES: x is no number"), (["1"], "out is there already"), ([], "run-gpu-sd2.sh")],
)
def test_what_the_benchmarks_cannot_do_is_named(
    place: Path, words: list[str], message: str
) -> None:
    (place / "out").mkdir()
    done = subprocess.run(gpu_command(place, *words), **settings(place))
    assert done.returncode == 2
    assert message in done.stderr


def test_sigterm_reaches_both_benchmarks(place: Path) -> None:
    stand_in = place / "bin" / "python3"
    stand_in.write_text(
        STAND_IN.replace("--output ]]", "--docs ]]").replace("$out/stopped", "$out/stopped-$$")
    )
    running = subprocess.Popen(gpu_command(place, "5"), **settings(place, SLOW="1"))
    deadline = time.monotonic() + 20
    while (
        len((place / "calls").read_text().splitlines() if (place / "calls").is_file() else []) < 2
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    running.send_signal(signal.SIGTERM)
    assert running.wait(15) == 143
    assert len(list((place / "out" / "try").glob("stopped-*"))) == 2
    running.communicate()
