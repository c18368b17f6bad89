"""From published files to words about pictures, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from addsr.cli import main
from addsr.models.store import find_installed
from addsr.pipelines.tagger import Tagger


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADDSR_MODELS", str(tmp_path / "models"))


@pytest.fixture()
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def imports(folder: Path, *more: str) -> int:
    files = [str(folder / "ram_swin_large_14m.pth"), str(folder / "DAPE.pth")]
    return main(["models", "import", *files, "--dtype", "fp32", *more])


def test_a_photo_is_tagged_after_an_import(
    ram_files: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imports(ram_files) == 0
    assert "addsr tag --model dape" in capsys.readouterr().out
    assert main(["tag", str(photo), "--device", "cpu"]) == 0
    told = capsys.readouterr().out.strip()
    model = find_installed("dape")
    assert model is not None
    pixels = torch.from_numpy(np.array(Image.open(photo))).permute(2, 0, 1)[None] / 255
    (found,) = Tagger.from_pretrained(model.folder)(pixels).tags
    assert found, "the photo says nothing; take another seed"
    assert told == f"{photo}: " + ", ".join(f"{one.name} {one.score:.2f}" for one in found)


def test_json_gives_scores_and_broken_files_do_not_stop_the_others(
    ram_files: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imports(ram_files, "--json") == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "ram"
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    command = ["tag", str(broken), str(photo), "--json", "--threshold", "0", "--model", "dape"]
    assert main([*command, "--no-antialias", "--dtype", "fp32", "--device", "cpu"]) == 1
    told = capsys.readouterr()
    report = json.loads(told.out)
    assert report["failed"] == 1 and report["files"][0]["kind"] == "InputError"
    assert [one["name"] for one in report["files"][1]["tags"]][:2] == ["river", "dog"]
    assert len(report["files"][1]["tags"]) == 6
    assert report["files"][1]["prompt"].startswith("river, dog, brick wall")
    assert "1 of 2 pictures failed" in told.err


def test_a_picture_may_have_no_tags(
    ram_files: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imports(ram_files, "-q") == 0
    folder = find_installed("dape")
    assert folder is not None
    command = ["tag", str(photo), "--threshold", "1", "--device", "cpu"]
    assert main([*command, "--model", str(folder.folder)]) == 0
    assert capsys.readouterr().out == f"{photo}: (no tags)\n"


def test_an_extractor_is_listed_verified_and_removed_and_enlarges_nothing(
    ram_files: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imports(ram_files, "-q") == 0
    assert main(["models", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["dape"]["state"] == "imported" and rows["dape"]["licence"] == "Apache-2.0"
    assert main(["models", "info", "dape"]) == 0
    assert main(["models", "verify", "dape"]) == 0
    assert main(["upscale", str(photo), "--model", "dape"]) == 1
    assert "it is for `addsr tag`" in capsys.readouterr().err
    model = find_installed("dape")
    assert model is not None
    (model.folder / "ram_tag_list.txt").write_text("river\n")
    assert main(["models", "verify", "dape"]) == 1
    assert main(["models", "remove", "dape", "-y"]) == 0
    assert not model.folder.exists()


def test_what_is_missing_is_named(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tag", str(photo)]) == 1
    assert "no prompt extractor is imported; import RAM and DAPE with" in capsys.readouterr().err
    assert main(["tag", str(photo), "--model", "gone"]) == 1
    assert "'gone' is neither a folder nor imported" in capsys.readouterr().err
    assert main(["tag", str(photo), "--model", str(tmp_path)]) == 1
    assert "is a folder without model.safetensors" in capsys.readouterr().err
    assert main(["tag", str(photo), "--threshold", "2"]) == 2
    assert main(["tag", str(tmp_path / "*.jpg")]) == 1
