"""`addsr evaluate` and `addsr ab` as a user meets them."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from addsr import cli
from addsr.cli import main
from addsr.evaluate.methods import Bicubic
from addsr.evaluate.ours import OurModel
from addsr.evaluate.pictures import to_image
from addsr.evaluate.speed import PeakMemory
from addsr.image.kinds import accept
from addsr.metrics.pixel import psnr_y
from addsr.models.files import save_weights
from addsr.nets import CompactConfig, CompactNet

TINY = CompactConfig(
    widths=(32, 32, 32), depths=(1, 1, 1), decoder_widths=(32, 16, 16), decoder_depth=1,
    time_channels=32, lr_channels=8,
)  # fmt: skip
SOURCE = Path(cli.__file__).parents[1]
FEW = "psnr-y,ssim-y,lr-psnr,swd,hf"


def photo(width: int, height: int, name: str) -> Image.Image:
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    small = generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def add(folder: Path, name: str, size: tuple[int, int] = (64, 48)) -> None:
    """A pair of pictures, and a result made elsewhere."""
    for role in ("hr", "lr", "sharp"):
        (folder / role).mkdir(parents=True, exist_ok=True)
    hr = photo(*size, name)
    lr = hr.resize((size[0] // 4, size[1] // 4), Image.Resampling.BOX)
    hr.save(folder / "hr" / f"{name}.png")
    lr.save(folder / "lr" / f"{name}.webp", lossless=True)
    lr.resize(size, Image.Resampling.LANCZOS).save(folder / "sharp" / f"{name}_x4.png")


@pytest.fixture()
def photos(tmp_path: Path) -> Path:
    for name in ("ant", "bee", "cat"):
        add(tmp_path / "photos", name)
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, CompactNet(TINY).state_dict(), {"kind": "compact", "config": TINY.to_dict()})
    return path


def words(photos: Path, *more: str, output: str = "report") -> list[str]:
    folders = ["--hr", str(photos / "hr"), "--lr", str(photos / "lr")]
    given = ["evaluate", *folders, "-o", str(photos.parent / output), *more]
    return given if "--bootstrap" in more else [*given, "--bootstrap", "50"]


def strict(path: Path) -> dict[str, Any]:
    """JSON without NaN and Infinity, which are none."""
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def report(photos: Path, output: str = "report") -> dict[str, Any]:
    return strict(photos.parent / output / "report.json")


def tensor(path: Path) -> torch.Tensor:
    return accept(path).pictures[0].rgb


def test_one_command_makes_the_whole_report(
    photos: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/addsr", "evaluate", "a folder"])
    scores = {"ant": {"psnr": 30.5, "ssim": 0.9}, "bee": {"psnr": 29.5}, "cat": {"psnr": 28.0}}
    (photos.parent / "scores.json").write_text(json.dumps({"theirs": scores}))
    place = f"Theirs={photos.parent / 'scores.json'}#theirs"
    assert main(words(
        photos, "bicubic", f"Sharp one={photos / 'sharp'}", str(weights), "--steps", "1,2",
        "--scores", place, "--metrics", f"{FEW},lpips-alex", "--device", "cpu", "--threads", "2",
    )) == 0  # fmt: skip
    out = capsys.readouterr()
    assert "PSNR-Y" in out.out and "Sharp one" in out.out and "not measured: lpips" in out.out
    assert "report.html" in out.out and out.err == ""
    folder = photos.parent / "report"
    found = report(photos)
    assert found["format"] == "addsr-report" and found["version"] == 1
    assert found["command"] == "addsr evaluate 'a folder'"
    assert [m["id"] for m in found["methods"]] == [
        "bicubic", "Sharp-one", "tiny-1", "tiny-2", "Theirs",
    ]  # fmt: skip
    assert found["datasets"] == [
        {"name": "photos", "images": ["ant", "bee", "cat"], "has_hr": True, "has_lr": True}
    ]
    # figures are those of the functions on the files
    measured = found["scores"]["photos"]["Sharp-one"]["psnr-y"]["images"]["bee"]
    wanted = psnr_y(tensor(photos / "sharp/bee_x4.png"), tensor(photos / "hr/bee.png"))
    assert measured == pytest.approx(float(wanted), rel=1e-6)
    theirs = found["scores"]["photos"]["Theirs"]
    assert theirs["psnr-y"]["mean"] == pytest.approx(88 / 3) and theirs["psnr-y"]["count"] == 3
    assert theirs["ssim-y"]["count"] == 1 and "swd" not in theirs
    for entry in found["scores"]["photos"]["bicubic"].values():
        assert entry["low"] <= entry["mean"] <= entry["high"]
    assert set(found["set_scores"]["photos"]) == {"bicubic", "Sharp-one", "tiny-1", "tiny-2"}
    # the first model against all others, and all pairs
    pairs = [(one["a"], one["b"]) for one in found["paired"]["photos"]["psnr-y"]]
    assert len(pairs) == 10 and pairs[0][0] == "tiny-1"
    speeds = {m["id"]: m for m in found["methods"]}
    assert speeds["tiny-1"]["seconds_per_image"] > 0 and speeds["tiny-1"]["peak_memory_bytes"] > 1e7
    assert "first left out as warm-up" in speeds["tiny-1"]["speed_note"]
    assert speeds["Theirs"]["seconds_per_image"] is None
    (missing,) = [m for m in found["metrics"] if m["missing"]]
    assert missing["name"] == "lpips-alex" and "download" in missing["missing"]
    shown = found["pictures"]["photos"]["cat"]
    assert set(shown) == {"hr", "lr", "bicubic", "Sharp-one", "tiny-1", "tiny-2"}
    for path in shown.values():
        with Image.open(folder / path) as image:
            assert image.size in ((64, 48), (16, 12))
    with (folder / "report.csv").open(newline="") as rows:
        table = list(csv.DictReader(rows))
    row = next(r for r in table if (r["method"], r["image"], r["metric"])
               == ("Sharp-one", "bee", "psnr-y"))  # fmt: skip
    assert float(row["value"]) == measured and row["dataset"] == "photos"
    assert sum(r["image"] == "" for r in table) == 4  # swd
    text = (folder / "report.md").read_text()
    assert "| Sharp one |" in text and "50 bootstrap resamples" in text
    assert (folder / "report.html").stat().st_size > 10_000
    assert not list(folder.rglob("*.part")) and found["problems"] == []


def test_the_next_run_only_reads(
    photos: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = words(photos, str(weights), "bicubic", "--metrics", FEW, "-q")
    assert main(command) == 0
    first = report(photos)
    for kind in (OurModel, Bicubic):
        monkeypatch.setattr(kind, "open", lambda _: pytest.fail("run again"))
    monkeypatch.setattr("addsr.evaluate.score.Scorer.score", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(
        "addsr.evaluate.sets.SetScorer._measure", lambda *_: pytest.fail("measured")
    )
    assert main(command) == 0
    second = report(photos)
    assert second["scores"] == first["scores"] and second["set_scores"] == first["set_scores"]
    for one, before in zip(second["methods"], first["methods"], strict=True):
        assert one["seconds_per_image"] == before["seconds_per_image"]
        assert "not measured in this run" in one["speed_note"]


def test_another_seed_or_picture_is_made_anew_and_the_rest_is_not(
    photos: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    usual = to_image
    monkeypatch.setattr("addsr.evaluate.results.to_image", lambda x: (made.append(1), usual(x))[1])
    command = words(photos, str(weights), "--metrics", "psnr-y", "-q", "--no-pictures")
    assert main(command) == 0 and len(made) == 3
    add(photos, "dog")
    assert main(command) == 0 and len(made) == 4
    assert "3 results came from the cache" in report(photos)["methods"][0]["speed_note"]
    assert main([*command, "--seed", "1"]) == 0 and len(made) == 8


def test_a_run_that_was_killed_goes_on_where_it_stopped(photos: Path, tmp_path: Path) -> None:
    for number in range(8):
        add(photos, f"more{number}")
    command = words(photos, "bicubic", "--metrics", FEW, "-q", "--no-pictures")
    code = (
        "import os, signal, sys, threading\n"
        "from addsr.cli import main\n"
        "from addsr.evaluate import cache\n"
        "cache.COMMIT_SECONDS = 0\n"
        "usual = cache.Cache.{method}\n"
        "def counting(*arguments, calls=[], one=threading.Lock()):\n"
        "    with one:\n"  # the fourth is whole, and no fifth has begun beside it
        "        made = usual(*arguments)\n"
        "        calls.append(1)\n"
        "        if len(calls) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return made\n"
        "cache.Cache.{method} = counting\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    for method in ("store_result", "store_scores"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(method=method), *command], capture_output=True,
            text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (photos.parent / "report" / "report.json").exists()
        made = list((photos.parent / "report" / "cache").rglob("*.png"))
        assert len(made) == (4 if method == "store_result" else 11)
    with pytest.MonkeyPatch.context() as patch:
        measured: list[str] = []
        from addsr.evaluate.score import Scorer

        usual = Scorer.score

        def counting(self: Scorer, shot: Any, names: list[str]) -> Any:
            measured.extend(names)
            return usual(self, shot, names)

        patch.setattr(Scorer, "score", counting)
        assert main(command) == 0
    assert len(measured) == (11 - 4) * 4
    assert main(words(photos, "bicubic", "--metrics", FEW, "-q", output="other")) == 0
    assert report(photos)["scores"] == report(photos, "other")["scores"]
    assert report(photos)["set_scores"] == report(photos, "other")["set_scores"]


def spoil(photos: Path) -> None:
    for name in ("torn", "lost", "grown", "twice", "flat", "short"):
        add(photos, name)
    torn = (photos / "hr/torn.png").read_bytes()
    (photos / "hr/torn.png").write_bytes(torn[: len(torn) // 2])
    (photos / "sharp/lost_x4.png").unlink()
    photo(72, 48, "x").save(photos / "sharp/grown_x4.png")
    (photos / "sharp/twice_out.png").write_bytes((photos / "sharp/twice_x4.png").read_bytes())
    photo(64, 40, "x").save(photos / "hr/flat.png")
    (photos / "lr/short.webp").unlink()


def test_bad_pictures_are_named_one_by_one_and_the_rest_is_scored(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(photos)
    command = words(photos, f"sharp={photos / 'sharp'}", "bicubic", "--metrics", FEW)
    assert main(command) == 1
    told = capsys.readouterr()
    assert "6 problems, listed in" in told.err and "problems: 6" in told.out
    found = report(photos)
    assert {(one["image"], one["method"]) for one in found["problems"]} == {
        ("torn", None), ("flat", None), ("short", None),
        ("lost", "sharp"), ("grown", "sharp"), ("twice", "sharp"),
    }  # fmt: skip
    problems = {one["image"]: one for one in found["problems"]}
    assert "damaged or cut short" in problems["torn"]["problem"]
    assert "is 72x48 and not 64x48" in problems["grown"]["problem"]
    assert "twice_out and twice_x4 could all be" in problems["twice"]["problem"]
    assert "has no result in" in problems["lost"]["problem"]
    assert all(one["remedy"] for one in found["problems"])
    scores = found["scores"]["photos"]
    assert set(scores["sharp"]["psnr-y"]["images"]) == {"ant", "bee", "cat"}
    assert set(scores["bicubic"]["psnr-y"]["images"]) == {
        "ant", "bee", "cat", "lost", "grown", "twice",
    }  # fmt: skip
    (pair,) = found["paired"]["photos"]["psnr-y"]
    assert pair["count"] == 3
    assert "## Problems" in (photos.parent / "report" / "report.md").read_text()
    assert main([*command, "--lenient", "-q"]) == 0
    capsys.readouterr()


@pytest.mark.usefixtures("installed")
def test_stablesr_is_compared_like_any_other_and_its_licence_is_told(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words(
        photos, "stablesr", "bicubic", "--steps", "1", "--fidelity", "0.5", "--metrics", "psnr-y",
        "--dtype", "fp32", "--device", "cpu", "-q",
    )  # fmt: skip
    assert main(command) == 0
    first = report(photos)
    row = first["methods"][0]
    assert (row["id"], row["steps"], row["details"]["fidelity"]) == ("stablesr-1", 1, 0.5)
    assert "(non-commercial)" in row["licence"] and len(row["sha256"]) == 64
    assert set(first["scores"]["photos"]["stablesr-1"]["psnr-y"]["images"]) == {"ant", "bee", "cat"}
    told = (photos.parent / "report" / "report.md").read_text()
    assert "S-Lab License 1.0 (non-commercial)" in told and row["sha256"][:16] in told
    # the second run finds everything in the cache and loads no network
    monkeypatch.setattr(OurModel, "open", lambda _self: pytest.fail("was loaded"))
    assert main(command) == 0
    assert report(photos)["scores"] == first["scores"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["{photos}/empty"], "nothing could be scored"),
        (["bicubic", "--metrics", "lpips-alex"], "nothing could be scored (no metric fits)"),
    ],
)
def test_where_nothing_can_be_scored_one_message_says_why(
    photos: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "empty").mkdir()
    assert main(words(photos, *(word.format(photos=photos) for word in more))) == 1
    told = capsys.readouterr()
    assert told.out == "" and message in told.err and len(told.err.splitlines()) == 1
    assert not (photos.parent / "report" / "report.json").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "METHOD: name what to evaluate"),
        (["bicubic", "--steps", "1,x"], "steps: '1,x' is no list of numbers"),
        (["bicubic", "--tile", "0"], "tile: '0' is no size"),
        (["bicubic", "--metrics", "psnr"], "metrics: 'psnr' is unknown"),
        (["bicubic", "--border", "-1"], "border: -1 is outside"),
        (["bicubic", "--threads", "0"], "threads: 0 is outside of 1 to 256"),
        (["bicubic", "--limit", "0"], "limit: 0 is not possible"),
        (["bicubic", "--bootstrap", "0"], "bootstrap: 0"),
        (["bicubic", "--protocol", "realsr"], "leave --hr and --lr out"),
        (["bicubic", "--data", "x"], "data: it belongs to a --protocol"),
        (["bicubic", "--luma", "rgb"], "luma"),
        (["nothing"], "is neither a model"),
    ],
)
def test_what_is_asked_wrongly_ends_with_two_before_any_work(
    photos: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(photos, *more)) == 2
    told = capsys.readouterr()
    assert told.out == "" and message in told.err
    assert not (photos.parent / "report").exists()


def test_photos_without_a_reference_get_figures_that_need_none(photos: Path) -> None:
    command = ["evaluate", "bicubic", f"sharp={photos / 'sharp'}", "--lr", str(photos / "lr")]
    folder = photos.parent / "real"
    assert main([*command, "-o", str(folder), "--metrics", "all", "-q"]) == 0
    found = strict(folder / "report.json")
    assert found["datasets"][0]["has_hr"] is False
    measured = set(found["scores"]["photos"]["bicubic"])
    assert {"lr-psnr", "piqe", "hf", "gradient-levels"} <= measured
    assert not measured & {"psnr-y", "gradient", "swd"} and found["set_scores"] == {}
    assert set(found["pictures"]["photos"]["ant"]) == {"lr", "bicubic", "sharp"}


def test_results_can_be_compared_with_references_alone(photos: Path) -> None:
    command = ["evaluate", f"sharp={photos / 'sharp'}", "bicubic", "--hr", str(photos / "hr")]
    folder = photos.parent / "alone"
    assert main([*command, "-o", str(folder), "--metrics", FEW, "-q"]) == 1
    found = strict(folder / "report.json")
    assert set(found["scores"]["photos"]["sharp"]) == {"psnr-y", "ssim-y", "hf"}
    (problem,) = found["problems"]  # one, and not one for every picture
    assert problem["method"] == "bicubic" and "give --lr" in problem["remedy"]


def test_figures_undefined_for_small_pictures_are_no_problems(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(photos, "bicubic", "--metrics", "ms-ssim,psnr-y")) == 0
    found = report(photos)
    (gap,) = found["gaps"]
    assert gap["metric"] == "ms-ssim" and gap["count"] == 3 and "160 pixels" in gap["reason"]
    assert "ms-ssim" not in found["scores"]["photos"]["bicubic"]
    assert "undefined: ms-ssim" in capsys.readouterr().out


def test_perfect_results_have_infinite_figures_in_strict_json(photos: Path) -> None:
    (photos / "worse").mkdir()
    for file in (photos / "hr").iterdir():
        photo(64, 48, "other").save(photos / "worse" / file.name)
    command = words(photos, f"same={photos / 'hr'}", f"worse={photos / 'worse'}", "-q")
    assert main([*command, "--metrics", "psnr-y,ssim-y"]) == 0
    found = report(photos)
    entry = found["scores"]["photos"]["same"]["psnr-y"]
    assert entry["mean"] == entry["low"] == "inf" and entry["images"]["ant"] == "inf"
    (pair,) = found["paired"]["photos"]["psnr-y"]
    assert pair["mean"] == "inf" and pair["wins"] == 3
    assert "inf" in (photos.parent / "report" / "report.csv").read_text()


def test_a_protocol_holds_several_sets_and_how_to_measure(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(tmp_path / "other", "one", size=(96, 128))
    scores = {"ant": {"psnr": 31.0}, "bee": {"psnr": 30.0}}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    (tmp_path / "mine.toml").write_text(
        """
        title = "Two sets"
        border = 2
        luma = "yiq"
        metrics = ["psnr-y", "lr-psnr"]
        [[dataset]]
        name = "first"
        hr = "photos/hr"
        lr = "photos/lr"
        images = ["ant", "bee"]
        [dataset.results]
        sharp = "photos/sharp"
        [dataset.scores]
        stated = "scores.json"
        [[dataset]]
        name = "second"
        hr = "other/hr"
        lr = "other/lr"
        crop = 64
        [dataset.results]
        sharp = "other/sharp"
        """
    )
    folder = tmp_path / "report"
    command = ["evaluate", "bicubic", "--protocol", str(tmp_path / "mine.toml"), "-o", str(folder)]
    assert main([*command, "--threads", "1"]) == 1
    found = strict(folder / "report.json")
    assert (found["protocol"]["border"], found["protocol"]["luma"]) == (2, "yiq")
    assert [one["name"] for one in found["datasets"]] == ["first", "second"]
    assert found["datasets"][0]["images"] == ["ant", "bee"]
    (problem,) = found["problems"]
    assert (problem["dataset"], problem["method"]) == ("second", "stated")
    # the middle of the large picture, two pixels less on every side, over the full range
    sr, hr = (tensor(tmp_path / "other" / name) for name in ("sharp/one_x4.png", "hr/one.png"))
    middle = (..., slice(32, 96), slice(16, 80))
    wanted = float(psnr_y(sr[middle], hr[middle], border=2)) - 20 * math.log10(255 / 219)
    measured = found["scores"]["second"]["sharp"]["psnr-y"]["mean"]
    assert measured == pytest.approx(wanted, abs=1e-4)
    with Image.open(folder / found["pictures"]["second"]["one"]["bicubic"]) as image:
        assert image.size == (64, 64)
    # options of the command win over the protocol
    assert main([*command, "-q", "--border", "4", "--luma", "bt601", "--metrics", "psnr-y"]) == 1
    again = strict(folder / "report.json")
    assert again["protocol"]["border"] == 4 and len(again["metrics"]) == 1
    capsys.readouterr()


def test_nothing_is_left_behind_without_cache_and_pictures(photos: Path) -> None:
    assert main(words(photos, "bicubic", "-q", "--no-cache", "--no-pictures")) == 0
    folder = photos.parent / "report"
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.csv", "report.html", "report.json", "report.md",
    ]  # fmt: skip
    assert report(photos)["pictures"] == {}


def test_pictures_of_an_earlier_report_make_room(photos: Path) -> None:
    command = words(photos, "bicubic", "-q", "--metrics", "psnr-y")
    assert main(command) == 0
    (photos / "hr/cat.png").unlink()
    (photos / "lr/cat.webp").unlink()
    assert main([*command, f"sharp={photos / 'sharp'}"]) == 0
    shown = {p.name for p in (photos.parent / "report" / "pictures" / "photos").iterdir()}
    assert shown == {"ant", "bee"}
    names = {path.name for path in (photos.parent / "report").iterdir()}
    assert not any(name.startswith(".") for name in names)


def test_a_folder_of_pictures_that_is_the_users_own_is_left_alone(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = photos.parent / "report/pictures"
    place.parent.mkdir()
    photos.rename(place)
    folders = ["--hr", str(place / "hr"), "--lr", str(place / "lr"), "-o", str(place.parent)]
    command = ["evaluate", "bicubic", *folders, "-q", "--metrics", "psnr-y"]
    assert main(command) == 1
    assert "is not replaced" in capsys.readouterr().err
    assert len(list(place.rglob("*.png"))) == 6 and not (place.parent / "cache").exists()
    assert main([*command, "--no-pictures"]) == 0
    assert len(list(place.rglob("*.png"))) == 6


def test_sets_in_other_letters_get_folders_of_their_own(photos: Path) -> None:
    for name in ("\u732b", "\u72ac"):
        add(photos.parent / name, "one")
    lines = ['metrics = ["psnr-y"]']
    for name in ("\u732b", "\u72ac", "photos"):
        lines += ["[[dataset]]", f'name = "{name}"', f'hr = "{name}/hr"', f'lr = "{name}/lr"']
    (photos.parent / "p.toml").write_text("\n".join(lines), encoding="utf-8")
    output = photos.parent / "report"
    protocol = ["--protocol", str(photos.parent / "p.toml"), "-o", str(output), "-q"]
    assert main(["evaluate", "bicubic", *protocol]) == 0
    shown = report(photos)["pictures"]
    places = {name: shown[name]["one"]["hr"] for name in ("\u732b", "\u72ac")}
    assert len(set(places.values())) == 2
    assert all((output / place).is_file() for place in places.values())


def test_a_result_that_a_power_cut_left_empty_is_made_anew(photos: Path) -> None:
    command = words(photos, "bicubic", "-q", "--metrics", "psnr-y", "--no-pictures")
    assert main(command) == 0
    first = report(photos)["scores"]
    result = next((photos.parent / "report/cache/results").glob("*/*.png"))
    result.write_bytes(b"")
    assert main(command) == 0
    assert report(photos)["scores"] == first and result.stat().st_size > 0


def test_what_is_in_the_cache_counts_for_a_model_that_cannot_be_loaded_any_more(
    photos: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = words(photos, str(weights), "-q", "--metrics", "psnr-y", "--no-pictures")
    assert main(command) == 0
    add(photos, "dog")
    add(photos, "eel")
    monkeypatch.setattr(OurModel, "open", lambda _: 1 / 0)
    assert main(command) == 1
    found = report(photos)
    assert len(found["problems"]) == 1
    assert found["scores"]["photos"]["tiny-1"]["psnr-y"]["count"] == 3


def test_results_may_be_named_as_inputs_that_have_names_of_their_own(photos: Path) -> None:
    for name in ("ant", "bee", "cat"):
        (photos / f"hr/{name}.png").rename(photos / f"hr/{name}_HR.png")
        (photos / f"lr/{name}.webp").rename(photos / f"lr/{name}_LR4.webp")
        (photos / f"sharp/{name}_x4.png").rename(photos / f"sharp/{name}_LR4.png")
    assert main(words(photos, str(photos / "sharp"), "-q", "--metrics", "psnr-y")) == 0
    assert report(photos)["scores"]["photos"]["sharp"]["psnr-y"]["count"] == 3


def test_a_terminal_without_the_letters_gets_the_table_all_the_same(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(words(photos, f"d\u00fc={photos / 'sharp'}", "--metrics", "psnr-y")) == 0
    out.seek(0)
    assert "d\\xfc" in out.read()


def test_a_model_that_fails_is_named_and_the_others_are_scored(
    photos: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: OurModel) -> Any:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(OurModel, "open", broken)
    assert main(words(photos, str(weights), "bicubic", "-q", "--metrics", "psnr-y")) == 1
    found = report(photos)
    (problem,) = found["problems"]
    assert problem["method"] == "tiny-1" and "ZeroDivisionError: by nought" in problem["problem"]
    assert found["scores"]["photos"]["tiny-1"] == {}
    assert found["scores"]["photos"]["bicubic"]["psnr-y"]["count"] == 3


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    memory = PeakMemory(torch.device("cpu"))
    memory.start()
    if "since its start" in memory.stop()[1]:
        pytest.skip("the system does not tell the peak of a part of a program")
    for role, size in (("hr", 96), ("lr", 24)):
        (tmp_path / "set" / role).mkdir(parents=True)
        for number in range(300):
            picture = photo(size, size, f"{number}")
            picture.save(tmp_path / "set" / role / f"{number:03}.png", compress_level=1)
    peaks: dict[int, int] = {}
    for count in (60, 300):
        memory.start()
        assert main(words(
            tmp_path / "set", "bicubic", "-q", "--limit", str(count), "--no-pictures",
            "--metrics", "psnr-y,hf", output=f"report{count}",
        )) == 0  # fmt: skip
        peaks[count] = memory.stop()[0]
    # 240 more pictures, inputs and results would be 55 MB as floats
    assert peaks[300] - peaks[60] < 12e6


def test_a_name_may_hold_anything_a_file_name_may(photos: Path) -> None:
    odd = 'a|b "c" <i> & d\u00fc'
    for folder, suffix in (("hr", "png"), ("lr", "webp"), ("sharp", "png")):
        source = next((photos / folder).glob("ant*"))
        source.rename(photos / folder / f"{odd}.{suffix}")
    assert main(words(photos, f"x|y={photos / 'sharp'}", "-q", "--metrics", "psnr-y")) == 0
    assert odd in report(photos)["scores"]["photos"]["x-y"]["psnr-y"]["images"]


# ab


def test_two_folders_are_judged_blind_and_the_answers_counted(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = photos.parent / "ab.html"
    folders = [str(photos / "hr"), str(photos / "hr2")]
    (photos / "hr2").mkdir()
    for file in (photos / "hr").iterdir():
        photo(64, 48, f"{file.stem}2").save(photos / "hr2" / file.name)
    command = ["ab", *folders, "-o", str(page), "--seed", "3", "--count", "2"]
    assert main([*command, "--lr", str(photos / "lr")]) == 0
    assert "2 pairs" in capsys.readouterr().out and page.stat().st_size > 5000
    answers = [{"image": str(k), "choice": c, "seconds": 1} for k, c in enumerate("aaaaaaab")]
    answers.append({"image": "t", "choice": "tie", "seconds": 2})
    saved = {
        "format": "addsr-ab", "version": 1, "titles": {"a": "ours", "b": "theirs"}, "seed": 3,
        "page": "x", "pairs": 9, "answers": answers,
    }  # fmt: skip
    (photos.parent / "answers.json").write_text(json.dumps(saved))
    assert main(["ab", "--tally", str(photos.parent / "answers.json")]) == 0
    told = capsys.readouterr().out
    assert "ours: better in 7" in told and "theirs: better in 1" in told
    assert "no difference: 1" in told and "p = 0.07031" in told


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["ab", "one"], 2, "1 are given; name two folders"),
        (["ab", "--tally"], 2, "none is given"),
        (["ab", "--tally", "gone.json"], 1, "cannot be read"),
        (["ab", "gone", "lost"], 1, "is no folder"),
    ],
)
def test_ab_says_what_it_needs(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    assert message in capsys.readouterr().err


def test_the_help_names_the_commands_and_what_they_take(
    capsys: pytest.CaptureFixture[str],
) -> None:
    helps: dict[str, Callable[[], int]] = {
        name: lambda name=name: main([name, "--help"]) for name in ("evaluate", "ab")
    }
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert "evaluate" in told and "Compare two folders of results blindly" in told
    assert helps["evaluate"]() == 0
    told = " ".join(capsys.readouterr().out.replace("│", "").split())
    for word in ("--hr", "--lr", "--steps", "--scores", "--niqe-params", "--no-cache", "METHOD",
                 "diffusers:ldm", "div2k-val", "--protocol", "--lenient"):  # fmt: skip
        assert word in told
    assert helps["ab"]() == 0
    assert "--tally" in capsys.readouterr().out
