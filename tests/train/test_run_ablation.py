"""The script that runs the ablation, with a stand-in for Python: what is done is never lost."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from addsr.train.config import Recipe, load_recipe, parse_overrides

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "training" / "run-ablation.sh"
pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("bash", "awk", "timeout", "split", "tar")),
    reason="needs a shell",
)
STAND_IN = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then echo 2; exit; fi
echo "$CUDA_VISIBLE_DEVICES ${TORCHINDUCTOR_FORCE_DISABLE_CACHES:-0} $*" >>"$CALLS"
case $* in
  *addsr.train*)
    while (($#)); do [[ $1 == --output ]] && out=$2; shift; done
    mkdir -p "$out/weights"
    head -c 100 /dev/zero >"$out/weights/net-ema.safetensors"
    if [[ -n $SLOW ]]; then
      trap 'echo stopped >"$out/stopped"; exit 0' TERM
      sleep 20 & wait $!
    fi
    sleep "${LASTS:-0}"
    [[ $(grep -c -- "--output $out" "$CALLS") -gt ${FAILURES:-0} ]] ;;
  *--score-only*)
    [[ -n $UNSCORED ]] && exit 1
    while (($#)); do [[ $1 == --net ]] && net=$2; [[ $1 == --scores ]] && to=$2; shift; done
    mkdir -p "$to" && echo "{}" >"$to/${net%%=*}.json" ;;
esac
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for folder in ("bin", "shards", "val/lr", "val/hr"):
        (tmp_path / folder).mkdir(parents=True)
    python = tmp_path / "bin" / "python3"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return tmp_path


def settings(place: Path, **more: str) -> dict[str, Any]:
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "CALLS": str(place / "calls"), "SLOW": "", "UNSCORED": ""}
    env = {k: v for k, v in env.items() if k not in {"TINY", "STEPS", "KEEP", "NIQE_PARAMS"}}
    return {
        "env": {**env, **more}, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True
    }  # fmt: skip


def command(place: Path, *more: str) -> list[str]:
    folders = [str(place / name) for name in ("shards", "val", "out")]
    return ["bash", str(SCRIPT), *folders, *more]


def trainings(place: Path) -> list[str]:
    lines = (place / "calls").read_text().splitlines()
    return [line for line in lines if "addsr.train student" in line]


def arm_of(line: str) -> str:
    return line.rpartition("/")[2]


def test_every_arm_is_trained_once_with_its_change_and_scored(place: Path) -> None:
    done = subprocess.run(command(place, "26"), **settings(place, STEPS="7"))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = {arm_of(line): line for line in trainings(place)}
    changes = {
        "baseline": [],
        "baseline-1": ["run.seed=1"],
        "lr-regulated": ["task.regulation=lr"],
        "constant": ["task.ta_adaptive=false"],
        "no-refinement": ["task.psr_weight=0"],
        "next": ["task.distill_weight=1"],
        "next-sharpened": ["task.distill_weight=1", "task.sharpen=0.5"],
        "next-fifth": ["task.distill_weight=1", "task.perceptual_weight=0.1"],
        "no-distillation": ["task.distill_weight=0"],
    }
    common = ["task.perceptual_weight=0", "task.head_share=0", "task.distill_weight=8"]
    assert set(lines) == set(changes) and len(trainings(place)) == len(changes)
    for arm, line in lines.items():
        words = line.split()
        start = words.index("--init")  # of two for one field the last counts
        given = [w for w in words[start:] if w.startswith(("task.", "run.seed"))]
        assert given == [*common, *changes[arm]]
        last = max(k for k, word in enumerate(words) if word == "--init")
        weights = "gan" if arm.startswith("next") else "teacher"
        assert words[last + 1] == f"{ROOT}/training/{weights}.safetensors"
        assert "run.steps=7 --set run.minutes=0" in line and "data.val= " in line
        assert f"run.compile_cache={place}/out/compile.cache" in line
    assert {line.split()[0] for line in trainings(place)} == {"0", "1"}
    with tarfile.open(place / "out/results.tar") as results:
        names = results.getnames()
    assert {f"scores/{arm}.json" for arm in changes} <= set(names)
    assert not any("weights" in name for name in names)
    assert [p.name for p in sorted((place / "out/pieces").iterdir())] == ["next.00"]


def test_every_arm_is_a_recipe(place: Path) -> None:
    done = subprocess.run(command(place, "26"), **settings(place))
    assert done.returncode == 0, done.stdout + done.stderr
    recipes: dict[str, Recipe] = {}
    for line in trainings(place):
        words = line.split()
        texts = [words[k + 1] for k, word in enumerate(words) if word == "--set"]
        path = Path(words[words.index("--config") + 1])
        recipes[arm_of(line)] = load_recipe("student", path, parse_overrides(texts))
    base = recipes["baseline"]
    assert base.data.train == (f"{place}/shards/*.tar",) and base.data.val == ""
    assert (base.run.steps, base.run.minutes, base.run.compile) == (5000, 0, True)
    assert recipes["lr-regulated"].task.regulation == "lr"
    assert not recipes["constant"].task.ta_adaptive and base.task.ta_adaptive
    for arm, recipe in recipes.items():
        assert (recipe.run.seed == 1) is (arm == "baseline-1")
        assert recipe.data == base.data and recipe.optim == base.optim


def test_the_script_and_the_page_know_the_same_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    arms = importlib.import_module("ablation_page").ARMS
    for name in ("ablation_page", "score_tables"):
        sys.modules.pop(name, None)
    text = SCRIPT.read_text(encoding="utf-8")
    (known,) = re.findall(r"^all=\(([^)]*)\)", text, flags=re.MULTILINE)
    assert known.split() == list(arms)
    for arm in arms:
        assert re.search(rf"^#     {arm}  +\w", text, flags=re.MULTILINE)


def test_what_is_done_is_not_done_again(place: Path) -> None:
    (place / "out/scores").mkdir(parents=True)
    (place / "out/scores/baseline.json").write_text("{}")
    (place / "out/train/constant").mkdir(parents=True)
    (place / "out/train/constant/trained").touch()  # but not scored
    words = ("26", "baseline", "constant", "no-distillation")
    done = subprocess.run(command(place, *words), **settings(place))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [arm_of(line) for line in trainings(place)] == ["no-distillation"]
    assert "baseline: has been scored" in done.stdout
    assert (place / "out/scores/constant.json").is_file()
    again = subprocess.run(command(place, *words), **settings(place))
    assert again.returncode == 0 and len(trainings(place)) == 1


def test_a_failure_is_tried_without_the_cache_and_then_without_compilation(place: Path) -> None:
    done = subprocess.run(command(place, "26", "constant"), **settings(place, FAILURES="2"))
    assert done.returncode == 0, done.stdout + done.stderr
    first, second, third = trainings(place)
    assert "compile_cache" in first and " 0 " in first[:4]
    assert "compile_cache" not in second and second.split()[1] == "1"
    assert "run.compile=false" in third and third.split()[1] == "0"
    assert all("--resume latest" in line for line in (first, second, third))
    assert "constant: FAILED (cache)" in done.stdout


def test_an_arm_that_fails_does_not_end_the_others(place: Path) -> None:
    words = ("26", "constant", "no-distillation", "--", "--set", "optim.clip=2.0")
    (place / "out/train/no-distillation").mkdir(parents=True)
    (place / "out/train/no-distillation/trained").touch()
    done = subprocess.run(command(place, *words), **settings(place, FAILURES="9"))
    assert done.returncode == 1
    assert all("--set optim.clip=2.0" in line for line in trainings(place))
    assert (place / "out/scores/no-distillation.json").is_file()
    assert not (place / "out/scores/constant.json").exists()
    assert not (place / "out/train/constant/trained").exists()


def test_scores_that_fail_are_told_and_the_weights_stay(place: Path) -> None:
    done = subprocess.run(command(place, "26", "next"), **settings(place, UNSCORED="1"))
    assert done.returncode == 1
    assert "trial of the scores: FAILED" in done.stdout and "next: SCORES FAILED" in done.stdout
    assert (place / "out/train/next/trained").exists() and (place / "out/pieces/next.00").exists()


def test_no_arm_is_begun_that_cannot_end_in_time(place: Path) -> None:
    done = subprocess.run(command(place, "1", "baseline"), **settings(place))
    assert done.returncode == 1
    assert "baseline: not begun" in done.stdout
    calls = place / "calls"
    assert not calls.exists() or "student" not in calls.read_text()


@pytest.mark.slow  # it waits for real seconds
def test_a_card_that_has_less_time_than_an_arm_takes_begins_no_other(place: Path) -> None:
    words = (str(106 / 60), "baseline", "constant", "next", "next-fifth")
    done = subprocess.run(command(place, *words), **settings(place, LASTS="4"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert {arm_of(line) for line in trainings(place)} == {"baseline", "constant"}
    assert "next: not begun" in done.stdout and "next-fifth: not begun" in done.stdout
    assert (place / "out/scores/constant.json").is_file()


@pytest.mark.parametrize(
    ("words", "more", "message"),
    [
        (["x"], {}, "MINUTES: x is no number"),
        (["0"], {}, "MINUTES: 0"),
        (["1", "other"], {}, "arm: other is unknown; give some of baseline"),
        (["1"], {"STEPS": "many"}, "STEPS: many is no whole number"),
        (["1"], {"NIQE_PARAMS": "/nowhere"}, "NIQE_PARAMS: /nowhere is no file"),
    ],
)
def test_what_is_not_possible_is_named(
    place: Path, words: list[str], more: dict[str, str], message: str
) -> None:
    done = subprocess.run(command(place, *words), **settings(place, **more))
    assert done.returncode == 2
    assert message in done.stderr and not (place / "out").exists()


def test_folders_that_are_missing_are_named(place: Path) -> None:
    (place / "val/hr").rmdir()
    done = subprocess.run(command(place, "1"), **settings(place))
    assert done.returncode == 2 and f"{place}/val/hr: is no folder" in done.stderr


def test_sigterm_reaches_every_training_and_packs_what_there_is(place: Path) -> None:
    words = ("26", "baseline", "constant")
    running = subprocess.Popen(command(place, *words), **settings(place, SLOW="1"))
    folders = [place / "out/train" / name for name in words[1:]]
    deadline = time.monotonic() + 20
    while not all((f / "weights/net-ema.safetensors").is_file() for f in folders):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    running.send_signal(signal.SIGTERM)
    assert running.wait(15) == 143
    assert all((folder / "stopped").is_file() for folder in folders)
    assert not any((folder / "trained").exists() for folder in folders)
    assert (place / "out/results.tar").is_file()
    running.communicate()
