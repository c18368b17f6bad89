"""The command line as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from addsr import cli
from addsr.cli import main
from addsr.image.io import read_image
from addsr.models.files import save_weights
from addsr.nets import CompactConfig, CompactNet

TINY = CompactConfig(
    widths=(32, 32, 32), depths=(1, 1, 1), decoder_widths=(32, 16, 16), decoder_depth=1,
    time_channels=32, lr_channels=8,
)  # fmt: skip
SOURCE = Path(cli.__file__).parents[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    net = CompactNet(TINY)
    save_weights(path, net.state_dict(), {"kind": "compact", "config": TINY.to_dict()})
    return str(path)


@pytest.fixture()
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(path)
    return path


def _run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "addsr", *arguments],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(SOURCE), **variables},
    )  # fmt: skip


def test_a_photo_is_enlarged_in_one_command(weights: str, photo: Path) -> None:
    target = photo.with_name("large.png")
    done = _run("upscale", str(photo), "-o", str(target), ADDSR_MODEL=weights)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and f"{photo} -> {target} (96x64" in done.stdout
    assert read_image(target).size == (96, 64)
    assert sorted(p.name for p in photo.parent.iterdir()) == ["large.png", "photo.jpg"]


def test_help_and_version_are_quick_and_clean(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    help_text = capsys.readouterr().out
    assert all(word in help_text for word in ("upscale", "degrade", "train", "doctor"))
    assert main(["upscale", "--help"]) == 0
    help_text = capsys.readouterr().out
    for flag in ("model", "scale", "steps", "fidelity", "color", "seed", "device", "dtype", "tile"):
        assert f"--{flag}" in help_text
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    "words",
    [
        ["upscale"],
        ["upscale", "a.jpg", "--colour", "none"],
        ["upscale", "a.jpg", "--color", "sepia"],
        ["upscale", "a.jpg", "--scale", "big"],
        ["enlarge", "a.jpg"],
        ["train", "nothing", "--config", "a.toml"],
    ],
)
def test_wrong_usage_ends_with_two(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    out = capsys.readouterr()
    assert out.out == "" and out.err.startswith("error: ") and "addsr --help" in out.err


def test_every_option_is_honoured_and_summed_up_as_json(
    weights: str, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        f"upscale {photo} -o {photo.parent / 'o.tif'} --model {weights} --scale 2.5 --steps 2 "
        "--fidelity 0.5 --color adain --seed 7 --device cpu --dtype fp32 --tile 96 --json"
    )
    assert main(words.split()) == 0
    summary = json.loads(capsys.readouterr().out)
    (one,) = summary["files"]
    assert summary["failed"] == 0
    assert one["input_size"] == [24, 16] and one["output_size"] == [60, 40]
    wanted = {
        "steps": 2, "fidelity": 0.5, "color": "adain", "seed": 7, "device": "cpu",
        "dtype": "float32", "tile": 96,
    }  # fmt: skip
    assert {key: one[key] for key in wanted} == wanted
    assert read_image(photo.parent / "o.tif").size == (60, 40)


def test_several_photos_go_into_a_folder_and_a_bad_one_stops_none(
    weights: str, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = photo.with_name("notes.png")
    bad.write_text("no picture")
    second = photo.with_name("second.gif")
    Image.new("L", (5, 5)).save(second)
    out = photo.parent / "deep" / "out"
    words = ["upscale", str(photo), str(bad), str(second), "-o", str(out), "--model", weights]
    assert main(words) == 1
    told = capsys.readouterr()
    assert sorted(p.name for p in out.iterdir()) == ["photo.jpg", "second.png"]
    assert f"error: {bad}: is no picture" in told.err and "1 of 3 pictures failed" in told.err
    assert told.out.count("->") == 2


def test_without_an_output_the_result_lies_beside_the_photo(weights: str, photo: Path) -> None:
    assert main(["upscale", str(photo), "--model", weights, "--scale", "2", "-q"]) == 0
    assert read_image(photo.with_name("photo_x2.jpg")).size == (48, 32)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{gone}", "-o", "{out}"], "gone.jpg: no such file"),
        (["{cut}", "-o", "{out}"], "cut.jpg: is damaged or cut short"),
        (["{text}", "-o", "{out}"], "text.png: is no picture"),
        (["{photo}", "-o", "{text}/x.png"], "cannot be written"),
        (["{photo}", "-o", "{missing}/x.png"], "does not exist; create it"),
        (["{photo}", "-o", "{photo}"], "is the input itself"),
        (["{photo}", "{photo}", "-o", "{out}"], "is one file, but there are 2 inputs"),
        (["{photo}", "{photo}", "-o", "{folder}"], "would both become"),
        (["{photo}", "-o", "{out}", "--steps", "3"], "steps: 3 is not possible"),
        (["{photo}", "-o", "{out}", "--fidelity", "1.2"], "fidelity: 1.2 is outside of 0 to 1"),
        (["{photo}", "-o", "{out}", "--scale", "9"], "scale: 9 is outside of 1 to 8"),
        (["{photo}", "-o", "{out}", "--tile", "5"], "tile: 5 px is too small"),
        (["{photo}", "-o", "{out}", "--tile", "wide"], "tile: 'wide' is no size"),
        (["{photo}", "-o", "{out}", "--device", "abacus"], "device: 'abacus' is unknown"),
        (["{photo}", "-o", "{out}", "--model", "bigger"], "neither a known model (compact)"),
    ],
)
def test_what_goes_wrong_is_one_message_and_status_one(
    weights: str, photo: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photo.parent
    Image.effect_noise((200, 200), 90).save(folder / "whole.jpg")
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:2000])
    (folder / "text.png").write_text("words")
    names = {
        "photo": photo, "out": folder / "out.png", "gone": folder / "gone.jpg",
        "cut": folder / "cut.jpg", "text": folder / "text.png", "missing": folder / "missing",
        "folder": folder / "folder",
    }  # fmt: skip
    before = {path: path.read_bytes() for path in folder.iterdir()}
    tokens = ["upscale", *(word.format(**names) for word in words)]
    if "--model" not in tokens:
        tokens += ["--model", weights]
    assert main(tokens) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: ") and message in told.err
    assert len(told.err.splitlines()) == 1
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_quiet_says_nothing_and_verbose_tells_the_plan(
    weights: str, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["upscale", str(photo), "-o", str(photo.with_name("o.png")), "--model", weights]
    assert main([*words, "-q"]) == 0
    told = capsys.readouterr()
    assert told.out == told.err == ""
    assert main([*words, "-v"]) == 0
    assert "expected peak" in capsys.readouterr().err


def test_doctor_tells_versions_devices_and_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["packages"]["torch"] == torch.__version__
    assert "cpu" in facts["devices"] and "compact" in facts["models"]
    assert facts["devices"]["cpu"]["bf16"] in (True, False)
    assert 0 < facts["memory_gib"]["free"] <= facts["memory_gib"]["total"]
    assert main(["doctor"]) == 0
    table = capsys.readouterr().out
    for word in ("torch", "device cpu", "bf16", "main memory", "model compact"):
        assert word in table


def test_degrade_makes_pairs_and_tells_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "hr"
    folder.mkdir()
    Image.effect_noise((65, 40), 60).convert("RGB").save(folder / "a.png")
    words = ["degrade", str(folder), str(tmp_path / "out"), "--preset", "mild", "--seed", "1"]
    assert main(words) == 0
    assert "1 pairs in" in capsys.readouterr().out
    assert read_image(tmp_path / "out" / "hr" / "a.png").size == (64, 40)
    assert read_image(tmp_path / "out" / "lr" / "a.png").size == (16, 10)
    (folder / "b.png").write_text("words")
    assert main([*words, "-q"]) == 1
    assert "1 pictures were left out" in capsys.readouterr().err
    assert main(["degrade", str(tmp_path / "gone"), str(tmp_path / "out")]) == 1
    assert "give the folder" in capsys.readouterr().err


def test_train_without_its_recipe_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "teacher", "--config", str(tmp_path / "gone.toml")]) == 1
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and "gone.toml" in told.err


def test_the_keyboard_ends_with_130_and_leaves_no_half_file(weights: str, tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("no SIGINT to another process on Windows")
    source = tmp_path / "photo.png"
    Image.effect_noise((3000, 2000), 50).save(source)
    words = ["upscale", str(source), "-o", str(tmp_path / "o.png"), "--model", weights, "-v"]
    with subprocess.Popen(
        [sys.executable, "-m", "addsr", *words],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert "expected peak" in process.stderr.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130 and "interrupted" in rest
    assert [p.name for p in tmp_path.iterdir()] == ["photo.png"]


def test_the_bar_waits_and_needs_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with cli.Bar("working", delay=0.0) as bar:
        bar.update(1, 2)
        time.sleep(0.05)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with cli.Bar("working", delay=5.0) as bar:
        bar.update(1, 2)
    assert "1/2" not in capsys.readouterr().err
    with cli.Bar("working", delay=0.0) as bar:
        bar.update(1, 2)
        time.sleep(0.3)
    assert "1/2" in capsys.readouterr().err
    with cli.Bar("working", shown=False, delay=0.0) as bar:
        bar.update(1, 2)
        time.sleep(0.05)
    assert capsys.readouterr().err == ""
