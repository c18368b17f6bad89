"""`addsr upscale --model stablesr` and `addsr doctor` as a user meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from addsr.cli import main
from addsr.image.reading import read_image


@pytest.fixture()
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.linear_gradient("L").resize((12, 8)).convert("RGB").save(path)
    return path


@pytest.mark.usefixtures("installed")
def test_every_option_is_honoured_and_summed_up_as_json(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        f"upscale {photo} -o {photo.parent / 'o.tif'} --model stablesr --scale 2.5 --steps 1 "
        "--fidelity 0.25 --color wavelet --seed 7 --device cpu --dtype fp32 --tile 40 --json"
    )
    assert main(words.split()) == 0
    one = json.loads(capsys.readouterr().out.splitlines()[0])
    wanted = {
        "model": "stablesr", "steps": 1, "fidelity": 0.25, "color": "wavelet", "seed": 7,
        "device": "cpu", "dtype": "float32", "tile": 40, "output_size": [30, 20],
    }  # fmt: skip
    assert {key: one[key] for key in wanted} == wanted
    assert "non-commercial" in one["licence"]
    assert read_image(photo.parent / "o.tif").size == (30, 20)


@pytest.mark.usefixtures("installed")
def test_several_photos_go_into_a_folder_and_the_licence_is_told_once(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = photo.with_name("notes.png")
    bad.write_text("no picture")
    second = photo.with_name("second.gif")
    Image.new("L", (5, 5)).save(second)
    out = photo.parent / "out"
    words = ["upscale", str(photo), str(bad), str(second), "-o", str(out), "--dtype", "fp32"]
    assert main([*words, "--model", "stablesr-turbo", "--steps", "1", "-v"]) == 1
    told = capsys.readouterr()
    made = sorted(p.name for p in out.iterdir() if p.suffix != ".sqlite")
    assert made == ["photo.jpg", "second.png"]
    assert f"error: {bad}: is no picture" in told.err and told.out.count("->") == 2
    assert told.err.count("S-Lab License 1.0 (non-commercial)") == 1


def test_a_folder_can_be_given_and_the_same_seed_gives_the_same_file(
    bare: Path, photo: Path
) -> None:
    made: list[bytes] = []
    for seed in ("1", "1", "2"):
        words = ["upscale", str(photo), "--model", str(bare), "--seed", seed, "-q", "--steps", "1"]
        assert main([*words, "--scale", "2", "--dtype", "fp32"]) == 0
        made.append(photo.with_name("photo_x2.jpg").read_bytes())
        photo.with_name("photo_x2.jpg").unlink()
    assert made[0] == made[1] != made[2]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model stablesr-turbo --steps 2", "steps: 2 is not possible with stablesr-turbo; use 1"),
        ("--model stablesr --tile 100", "tile: 100 px is no multiple of 8; give 96 or 104"),
        ("--model stablesr --fidelity 2", "fidelity: 2.0 is outside of 0 to 1"),
        ("--model {bare} --fidelity 0.5", "model bare has no feature wrapping (CFW)"),
    ],
)
def test_what_is_asked_wrongly_is_one_message_and_status_two(
    bare: Path, photo: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upscale", str(photo), *words.format(bare=bare).split()]) == 2
    told = capsys.readouterr()
    assert told.out == "" and message in told.err and len(told.err.splitlines()) == 1
    assert [p.name for p in photo.parent.iterdir()] == ["photo.jpg"]


def test_a_model_that_is_not_there_says_how_to_get_it(
    bare: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photo.parent
    monkeypatch.setenv("ADDSR_MODELS", str(folder / "empty"))
    (folder / "stablesr_000117.ckpt").write_bytes(b"PK")
    name = "structcond_stage_model.time_embed.0.weight"
    save_file({name: torch.zeros(1)}, folder / "adapter.safetensors")
    (folder / "plain").mkdir()
    (folder / "base").mkdir()
    (folder / "base" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    part = bare / "sft" / "diffusion_pytorch_model.safetensors"
    for model, message in (
        ("stablesr", "'stablesr' is not installed; get it with `addsr models pull stablesr`"),
        (folder / "stablesr_000117.ckpt", "as it was published; import it once with `addsr models"),
        (folder / "adapter.safetensors", "is an adapter of StableSR, not converted; import it"),
        (part, f"is one part of a pipeline; give the folder '{bare}'"),
        (folder / "plain", "is a folder without model_index.json; give one that `addsr models"),
        (
            folder / "base",
            "class 'StableDiffusionPipeline', not StableSRPipeline or SeeSRPipeline or ",
        ),
        ("bigger", "neither a known model (compact, stablesr, stablesr-768, "),
    ):
        assert main(["upscale", str(photo), "--model", str(model)]) == 1
        told = capsys.readouterr().err
        assert message in told and len(told.splitlines()) == 1, told


def test_doctor_lists_what_is_imported_and_what_is_wrong_with_it(
    installed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    facts_writer: Callable[..., None],
) -> None:
    monkeypatch.setenv("ADDSR_MODEL", "stablesr")
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert sorted(facts["installed"]) == ["stablesr", "stablesr-turbo"]
    one = facts["installed"]["stablesr-turbo"]
    assert one["kind"] == "stablesr-turbo" and "non-commercial" in one["licence"]
    assert one["folder"] == str(installed / "stablesr-turbo") and one["size_mb"] > 0.1
    assert facts["used"]["model"] == "stablesr" and "diffusers" in facts["packages"]
    assert main(["doctor"]) == 0
    table = capsys.readouterr().out
    assert "model stablesr-turbo" in table and f"2 in {installed}" in "".join(table.split("\n"))
    monkeypatch.setenv("ADDSR_MODELS", str(tmp_path))
    (tmp_path / "half").mkdir()
    facts_writer(tmp_path / "half", "stablesr")
    assert main(["doctor"]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert "without model_index.json" in table and "stablesr (not installed)" in table
    (tmp_path / "half" / "addsr.json").write_text("{")
    assert main(["doctor", "--json"]) == 0
    told = capsys.readouterr()
    assert "half/addsr.json: cannot be read" in json.loads(told.out)["installed"]["half"]["error"]


@pytest.mark.usefixtures("installed")
def test_doctor_tells_the_type_that_the_model_would_be_run_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("addsr.engines.device.choose_device", lambda _name: torch.device("cuda"))
    monkeypatch.setattr("addsr.engines.device.has_bf16", lambda _device: True)
    for model, dtype in (("stablesr", "float16"), ("compact", "bfloat16")):
        monkeypatch.setenv("ADDSR_MODEL", model)
        assert main(["doctor", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["used"]["dtype"] == dtype
