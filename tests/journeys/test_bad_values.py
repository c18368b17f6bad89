"""Bad values for every command end in one sentence that names field, value and remedy."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from PIL import Image

from addsr.cli import main


@pytest.fixture()
def place(tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pictures, folders of them, an empty folder, and files that are none; all stay as is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADDSR_MODEL", weights)
    monkeypatch.setenv("ADDSR_MODELS", str(tmp_path / "store"))
    for folder in ("hr", "lr", "res", "empty"):
        Path(folder).mkdir()
    noise = Image.effect_noise((64, 64), 60).convert("RGB")
    for name in ("a.jpg", "b.png", "hr/a.png", "res/a.png"):
        noise.save(name)
    noise.resize((16, 16)).save("lr/a.png")
    for name, text in (("text.png", "words"), ("notes.txt", "words"), ("s.json", "{}")):
        Path(name).write_text(text)
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """All that lies in a folder, with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def check(
    place: Path, status: int, command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(place)
    assert main(shlex.split(command)) == status
    told = capsys.readouterr()
    first, *rest = told.err.splitlines()
    assert first.startswith("error: ") and message in first, told.err
    # what cyclopts refuses has a second line
    assert rest in ([], ["Try: addsr --help"]) and told.out == ""
    assert snapshot(place) == before


EVALUATE = "evaluate bicubic --hr hr --lr lr"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        # empty, as the variable of a script that is not set
        ("upscale ''", "IN: '' is empty; give a value, or leave it out"),
        ("upscale a.jpg ''", "IN: '' is empty"),
        ("upscale a.jpg -o ''", "output: '' is empty"),
        ("upscale a.jpg --output=", "output: '' is empty"),
        ("upscale a.jpg --model ''", "model: '' is empty"),
        ("upscale a.jpg --scale ''", "scale: '' is empty"),
        ("upscale a.jpg --size ''", "size: '' is empty"),
        ("upscale a.jpg --device ''", "device: '' is empty"),
        ("degrade '' out", "HR_FOLDER: '' is empty"),
        ("degrade hr ''", "OUTPUT: '' is empty"),
        ("compare '' b.png", "IMAGE: '' is empty"),
        ("compare a.jpg b.png -o ''", "output: '' is empty"),
        ("inspect '' a.jpg", "MODEL: '' is empty"),
        ("inspect stablesr a.jpg -o ''", "output: '' is empty"),
        ("tag ''", "PHOTO: '' is empty"),
        ("tag a.jpg --model ''", "model: '' is empty"),
        ("models info ''", "NAME: '' is empty"),
        ("models remove ''", "NAME: '' is empty"),
        ("models import ''", "FILE: '' is empty"),
        ("evaluate '' --hr hr --lr lr", "METHOD: '' is empty"),
        (f"{EVALUATE} -o ''", "output: '' is empty"),
        # parts of what can only be whole
        ("upscale a.jpg --steps 1.5", "steps: 1.5 is no whole number; give one"),
        ("upscale a.jpg --seed inf", "seed: inf is no whole number"),
        ("upscale a.jpg --long-side 99.5", "long_side: 99.5 is no whole number"),
        ("upscale a.jpg --quality 9.5", "quality: 9.5 is no whole number"),
        ("degrade hr out --seed nan", "seed: nan is no whole number"),
        (f"{EVALUATE} --limit 1.5", "limit: 1.5 is no whole number"),
        ("models import a.jpg --tile 64.5", "tile: 64.5 is no whole number"),
        ("inspect stablesr a.jpg --encoder-timestep 1.5", "encoder_timestep: 1.5 is no whole"),
        # what no field can hold
        (f"upscale a.jpg --tile {'9' * 5000}", "tile: a number of 1000 digits is too long; give"),
        (f"inspect x a.jpg --seeds 1,{'9' * 5000}", "seeds: a number of 1000 digits is too long"),
        # out of range
        ("upscale a.jpg --scale nan", "scale: nan is outside of 1 to 8; give a factor in between"),
        ("upscale a.jpg --megapixels inf", "megapixels: inf is not possible; give more than 0"),
        ("upscale a.jpg --fidelity nan", "fidelity: nan is outside of 0 to 1; stay in between"),
        ("upscale a.jpg --quality 101", "quality: 101 is outside of 1 to 100; leave it out"),
        ("upscale a.jpg --preview 1,2,3", "preview: '1,2,3' is no part of a picture; give X,Y"),
        ("upscale a.jpg --device cpu:99999999999999999999", "is unknown; use auto, cpu"),
        ("upscale a.jpg --device cpu:٣", "device: 'cpu:٣' is unknown; use auto, cpu"),
        ("tag a.jpg --threshold nan", "threshold: nan is no score; give a number from 0 to 1"),
        ("inspect stablesr a.jpg --scale inf", "scale: inf is outside of 1 to 8"),
        ("inspect stablesr a.jpg --timesteps 0", "timesteps: 0 of them are not possible; give 1"),
        ("inspect stablesr a.jpg --timesteps 1001", "timesteps: 1001 of them are not possible"),
        ("inspect stablesr a.jpg --timesteps 5,5", "timesteps: [5, 5] must be different numbers"),
        ("inspect stablesr a.jpg --seeds 1,1", "seeds: [1, 1] must be different numbers"),
        ("inspect stablesr a.jpg --encoder-timestep 1000", "encoder_timestep: 1000 is not 0 to"),
        ("models import a.jpg --tile 65", "tile: 65 is no side of a tile; use a multiple of 64"),
        ("models import a.jpg --name ../x", "name: '../x' cannot be a model's name; use up to"),
        ("models pull gone", "'gone' is no published model; use one of stablesr"),
        (f"{EVALUATE} --threads 0", "threads: 0 is outside of 1 to 256; give as many as"),
        (f"{EVALUATE} --threads 99999999", "threads: 99999999 is outside of 1 to 256"),
        (f"{EVALUATE} --limit 0", "limit: 0 is not possible; give 1 or more"),
        (f"{EVALUATE} --bootstrap -1", "bootstrap: -1 is not possible; give 1 or more"),
        (f"{EVALUATE} --border 257", "border: 257 is outside of 0 to 256"),
        (f"{EVALUATE} --metrics gone", "metrics: 'gone' is unknown; use default, all or some of"),
        (f"{EVALUATE} --scores x", "scores: 'x' has no name; write NAME=FILE.json"),
        ("evaluate notes.txt --hr hr --lr lr", "METHOD: notes.txt is no model file"),
        (f"{EVALUATE} --protocol s.json", "protocol: it names the folders itself; leave --hr and"),
        ("evaluate bicubic --protocol hr", "protocol: 'hr' is neither packaged"),
        # an output in a picture's place
        ("upscale a.jpg -o ./empty/../a.jpg", "which is the input itself; originals are kept"),
        ("compare a.jpg b.png -o a.jpg", "output: a.jpg is no name for a page; give NAME.html"),
        ("compare a.jpg b.png -o new.png", "output: new.png is no name for a page"),
        ("ab res hr -o res/a.png", "output: res/a.png is no name for a page; give NAME.html"),
    ],
)
def test_what_is_asked_wrongly_ends_with_two(
    place: Path, command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check(place, 2, command, message, capsys)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        # names that no file can have; what is told differs with the version of Python
        (f"upscale a.jpg -o {'x' * 260}", "xxxx"),
        (f"upscale {'x' * 260}.jpg", "x.jpg: cannot be read (File name too long); check its name"),
        (f"degrade {'x' * 400} out", "xxxx"),
        (f"ab res {'x' * 300}", "xxxx"),
        (f"compare a.jpg b.png -o {'x' * 300}.html", "xxxx"),
        # missing, or a folder where a file belongs and the reverse
        ("upscale gone.jpg", "gone.jpg: no such file; check the spelling and the folder"),
        ("upscale a.jpg -o gone/o.png", "gone/o.png: folder gone does not exist; create it"),
        ("upscale a.jpg -o text.png/", "text.png: folder cannot be made (File exists); give"),
        ("upscale a.jpg --model empty", "model: 'empty' is a folder without model_index.json"),
        ("upscale empty -o out", "empty: no pictures in this folder; give another"),
        ("degrade gone out", "gone: is no folder; give the folder with the HR pictures"),
        ("degrade a.jpg out", "a.jpg: is no folder; give the folder"),
        ("degrade empty out", "empty: no pictures; give a folder with .png"),
        ("degrade hr a.jpg", "a.jpg/degrade.json: cannot be written"),
        ("degrade hr hr/out", "hr/out: would write into hr or over it; give an output folder"),
        ("compare a.jpg gone.png", "gone.png: no such file; check the spelling"),
        ("compare a.jpg hr", "hr: is a folder; give picture files, for example hr/*.jpg"),
        ("compare a.jpg text.png", "text.png: is no picture in a format that can be read; give"),
        ("compare a.jpg b.png -o gone/x.html", "gone/x.html: cannot be written"),
        ("inspect stablesr gone.jpg", "gone.jpg: no such file; check the spelling"),
        ("inspect stablesr a.jpg", "model: 'stablesr' is not installed; get it with `addsr models"),
        ("inspect empty a.jpg", "model: 'empty' is a folder without model_index.json; give one"),
        ("inspect stablesr a.jpg --reference hr", "hr: is a folder; give picture files"),
        ("tag a.jpg", "model: no prompt extractor is imported; import RAM and DAPE with"),
        ("tag a.jpg --model gone", "model: 'gone' is neither a folder nor imported; import RAM"),
        ("tag a.jpg --model hr", "model: 'hr' is a folder without model.safetensors; give one"),
        ("tag 'gone*.jpg'", "gone*.jpg: matches nothing; check the pattern and the folder"),
        ("models info gone", "gone: neither embedded, imported nor published; see `addsr models"),
        ("models verify gone", "gone: no imported model is called that in"),
        ("models remove ..", "..: no imported model is called that in"),
        ("models import gone.ckpt", "gone.ckpt: no file there; give the path of a published"),
        ("models import hr", "hr: is a folder without unet and controlnet; give one with both"),
        ("models import a.jpg", "a.jpg: cannot be read as tensors alone"),
        ("evaluate bicubic --lr gone", "lr: gone is no folder; give a folder of pictures"),
        ("evaluate bicubic --hr a.jpg --lr lr", "hr: a.jpg is no folder; give a folder"),
        (f"{EVALUATE} -o a.jpg", "a.jpg: folder cannot be made (File exists); give another"),
        ("ab res gone", "gone: is no folder; give a folder of pictures"),
        ("ab --tally gone.json", "gone.json: cannot be read"),
        ("ab --tally empty", "empty: cannot be read"),
    ],
)
def test_what_cannot_be_used_ends_with_one(
    place: Path, command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check(place, 1, command, message, capsys)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize(
    "command",
    [
        "upscale a.jpg -o closed/o.png",
        "upscale a.jpg -o closed/out",
        "degrade hr closed/out",
        "compare a.jpg b.png -o closed/o.html",
        f"{EVALUATE} -o closed/out",
        "ab res hr -o closed/o.html",
    ],
)
def test_a_folder_that_may_not_be_written_is_named(
    place: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("closed").mkdir(0o555)
    check(place, 1, command, "closed", capsys)


def test_a_page_takes_no_picture_s_place_whatever_its_name(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("b.png").rename("b.html")
    check(place, 2, "compare a.jpg b.html -o b.html", "b.html is a picture to compare", capsys)


def test_words_about_a_picture_may_be_empty_and_whole_numbers_may_have_a_point(
    place: Path,
) -> None:
    assert main(["upscale", "a.jpg", "-o", "o.png", "-q", "--prompt", "", "--seed", "3.0"]) == 0


def test_a_quality_that_counts_for_no_result_is_told_once(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "quality: no result is of a format that has it; write a .jpg"
    for command, count in (
        ("upscale b.png hr -o out --quality 80", 1),  # two pictures, both PNG
        ("upscale a.jpg b.png -o mixed --quality 80", 0),
        ("upscale b.png -o b.avif --quality 80", 0),
        ("upscale b.png -o c.png", 0),
    ):
        assert main(shlex.split(command)) == 0
        assert capsys.readouterr().err.count(told) == count, command
