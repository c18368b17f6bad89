"""Batches at the command line: folders, names, plans, streams."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import addsr
from addsr.batch import planning
from addsr.batch.events import Progress
from addsr.batch.manifest import NAME, Manifest
from addsr.cli import main
from addsr.image.reading import read_image
from addsr.terminal import BatchBar


@pytest.fixture(autouse=True)
def model(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADDSR_MODEL", weights)


@pytest.fixture()
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("photos/a.jpg", "photos/my trip/ü b.png", "photos/my trip/-c.gif"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def pictures(folder: str) -> list[str]:
    return sorted(
        str(p.relative_to(folder)).replace(os.sep, "/")
        for p in Path(folder).rglob("*.*")
        if p.name != NAME and p.is_file()
    )


def test_a_tree_is_mirrored_and_the_second_run_skips(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["upscale", "photos", "-r", "-o", "out"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert pictures("out") == ["a.jpg", "my trip/-c.png", "my trip/ü b.png"]
    assert "3 pictures: 0.0 megapixels in" in told and "MP/s" in told
    assert main(words) == 0
    assert capsys.readouterr().out == "0 pictures, 3 done before\n"
    assert main([*words, "--seed", "1"]) == 0
    assert "3 pictures:" in capsys.readouterr().out
    assert main([*words, "--seed", "1", "--again", "--json"]) == 0
    *done, summary = lines(capsys.readouterr().out)
    assert [one["event"] for one in done] == ["done"] * 3
    assert summary["done"] == 3 and summary["skipped"] == 0


def test_results_in_the_folder_of_the_photos_are_no_inputs_of_the_next_run(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(["upscale", "photos", "-o", "photos", "-q"]) == 0
    assert pictures("photos")[:2] == ["a.jpg", "a_x4.jpg"] and len(pictures("photos")) == 4
    assert main(["upscale", "photos", "-r", "-o", "photos/out", "-q"]) == 0
    assert main(["upscale", "photos", "-r", "-o", "photos/out", "-q"]) == 0
    assert "a.jpg" in pictures("photos/out") and not Path("photos/out/out").exists()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["photos"], 2, "results of a folder need a place; give a folder with -o"),
        (["photos", "photos/a.jpg", "-o", "b.png", "--name", "x"], 2, "give all"),
        (["photos", "-o", "o", "--name", "x"], 2, "put {stem} into it"),
        (["photos", "-r", "-o", "o", "--size", "9000x"], 1, "a factor of 375; that is beyond 8"),
        (["photos", "-o", "o", "--size", "9x", "--scale", "2"], 2, "contradict each other"),
        (["photos/a.jpg", "-o", "o", "--preview", "20,0,9,9"], 1, "lies outside of the picture"),
        (["photos", "-", "-o", "o"], 2, "goes with one picture"),
        (["-"], 2, "standard input has no name"),
        (["-", "-o", "o"], 2, "o is a folder"),
        (["-", "-o", "o.png", "--dry-run"], 2, "goes with none of --dry-run"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(
    photos: Path, words: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if message == "give all":
        message = "all results one name"
    assert main(["upscale", *words]) == status
    assert message in capsys.readouterr().err
    assert not Path("o").exists() or pictures("o") == []


def test_names_follow_the_template(photos: Path) -> None:
    words = ["upscale", "photos/a.jpg", "-o", "out", "--scale", "2", "-q"]
    assert main([*words, "--name", "{stem}_x{scale}_s{seed}{suffix}"]) == 0
    assert main([*words[:4], "--long-side", "40", "-q", "--name", "{stem} {target}{suffix}"]) == 0
    assert pictures("out") == ["a long40.jpg", "a_x2_s0.jpg"]
    assert read_image("out/a long40.jpg").size == (40, 27)


def test_a_preview_does_not_take_the_place_of_the_whole_result(photos: Path) -> None:
    words = ["upscale", "photos/a.jpg", "-q", "-o", "out"]
    assert main(words) == main([*words, "--preview", "0,0,4,4"]) == 0
    assert main([*words, "--preview", "8,2,5,4"]) == 0
    parts = ["a_preview-0-0-4-4_x4.jpg", "a_preview-8-2-5-4_x4.jpg"]
    assert pictures("out") == ["a.jpg", *parts]
    assert read_image("out/a.jpg").size == (96, 64)
    assert [read_image(f"out/{name}").size for name in parts] == [(16, 16), (20, 16)]
    assert main([*words, "--preview", "8,2,5,4", "--name", "{stem} {preview}{suffix}"]) == 0
    assert main([*words, "--name", "{stem} {preview}{suffix}"]) == 0
    assert pictures("out") == ["a 8-2-5-4.jpg", "a whole.jpg", "a.jpg", *parts]


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (["--size", "60x"], (60, 40)),
        (["--size", "60x60"], (60, 40)),
        (["--size", "60x60", "--fit", "cover"], (60, 60)),
        (["--size", "60x60", "--fit", "stretch"], (60, 60)),
        (["--megapixels", "0.0024"], (60, 40)),
        (["--preview", "4,4,10,8"], (40, 32)),
    ],
)
def test_targets_give_that_size(photos: Path, words: list[str], size: tuple[int, int]) -> None:
    assert main(["upscale", "photos/a.jpg", "-o", "o.png", "-q", *words]) == 0
    assert read_image("o.png").size == size


def test_what_is_cut_and_stretched_lies_where_it_belongs(photos: Path) -> None:
    quarters = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
    quarters.paste((0, 255, 0, 255), (16, 0, 32, 16))
    quarters.paste((0, 0, 255, 0), (0, 16, 16, 32))
    quarters.save("q.png")
    common = ["upscale", "q.png", "-q", "--color", "adain"]
    assert main([*common, "-o", "wide.png", "--size", "128x64", "--fit", "stretch"]) == 0
    assert main([*common, "-o", "cut.png", "--size", "128x64", "--fit", "cover"]) == 0
    assert main([*common, "-o", "part.png", "--preview", "0,16,16,16"]) == 0
    wide, cut = (np.asarray(read_image(name)) for name in ("wide.png", "cut.png"))
    assert wide.shape == cut.shape == (64, 128, 4)
    for picture in (wide, cut):
        assert picture[60, 4, 3] == 0 and picture[4, 4, 3] == picture[60, 124, 3] == 255
    assert np.asarray(read_image("part.png"))[..., 3].max() == 0


def test_a_dry_run_foresees_what_the_format_does_not_hold(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["upscale", "photos/a.jpg", "-o", "out", "--dry-run", "--bit-depth", "16"]
    assert main(words) == 1
    assert "JPEG holds 8 bits per channel; write a .png or .tif" in capsys.readouterr().err


def test_a_dry_run_tells_all_and_does_nothing(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_PROBE_SIDE", 16)
    Path("photos/bad.png").write_text("words")
    words = ["upscale", "photos", "-r", "-o", "out", "--dry-run"]
    assert main(words) == 1
    told = capsys.readouterr()
    assert "24x16 -> 96x64, passes 1, tiles 1 of" in told.out and "GiB, about" in told.out
    assert "3 pictures, about" in told.out and "bad.png: is no picture" in told.err
    assert not Path("out").exists()
    assert main([*words, "--json"]) == 1
    plans = lines(capsys.readouterr().out)
    assert [one["state"] for one in plans] == ["to do", "failed", "to do", "to do"]
    assert plans[0]["output_size"] == [96, 64] and plans[0]["expected_seconds"] is not None
    Path("photos/bad.png").unlink()
    assert main(["upscale", "photos", "-o", "out", "-q"]) == 0
    assert main(words) == 0
    assert "a.jpg: done already" in capsys.readouterr().out


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_works(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    with Manifest(Path("out")):
        assert main(["upscale", "photos", "-o", "out"]) == 1
    assert "another addsr works in this folder" in capsys.readouterr().err


def test_half_files_of_a_killed_run_are_removed(photos: Path) -> None:
    Path("out").mkdir()
    Path("out/.a.jpg.0123abcd.part").write_text("half")
    assert main(["upscale", "photos", "-o", "out", "-q"]) == 0
    assert sorted(p.name for p in Path("out").iterdir()) == ["a.jpg", NAME]


def test_several_failures_are_listed_at_the_end(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("y.png", "z.png"):
        Path(f"photos/{name}").write_text("words")
    assert main(["upscale", "photos", "-o", "out"]) == 1
    *_, count, first, second = capsys.readouterr().err.splitlines()
    assert count == "2 of 3 pictures failed"
    assert first.startswith(f"  {Path('photos/y.png')}: is no picture") and "z.png" in second
    assert main(["upscale", "photos", "-o", "o2", "--fail-fast", "--json"]) == 1
    assert lines(capsys.readouterr().out)[-1]["failed"] == 1


def test_warnings_go_with_their_picture_into_json(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGBA", (6, 6)).save("photos/clear.png")
    words = ["upscale", "photos/clear.png", "photos/a.jpg", "-o", "out", "--json"]
    assert main([*words, "--name", "{stem}.jpg"]) == 0
    clear, other, _ = lines(capsys.readouterr().out)
    assert "JPEG holds no transparency" in str(clear["warnings"]) and "warnings" not in other


def test_compare_writes_a_page_beside_each_result(photos: Path) -> None:
    assert main(["upscale", "photos/a.jpg", "-o", "out", "--compare", "-q"]) == 0
    page = Path("out/a.jpg.compare.html").read_text(encoding="utf-8")
    assert "compare-data" in page and "a.jpg" in page
    Path("out/a.jpg.compare.html").unlink()
    assert main(["upscale", "photos/a.jpg", "-o", "out", "--compare", "-q"]) == 0  # done before
    assert Path("out/a.jpg.compare.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("photos/a.jpg --compare --preview 0,0,4,4", "compare: lays the whole input under"),
        ("photos/a.jpg --compare --size 90x90 --fit cover", "compare: lays the whole input under"),
        ("photos/a.jpg -o out --name {{stem}}.png --format jpg", "name: a.png and --format jpg"),
        ("photos/a.jpg -o b.png --format jpg", "format: b.png says it already"),
        ("photos/* -o -", "output: - takes one picture and"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    photos: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upscale", *words.format().split()]) == 2
    assert message in capsys.readouterr().err


def test_what_goes_to_standard_output_says_what_is_wrong_with_a_file(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upscale", "none.png", "-o", "-"]) == 1
    assert "none.png: no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_a_picture_goes_through_pipes(photos: Path) -> None:
    data = Path("photos/a.jpg").read_bytes()
    environment = {**os.environ, "PYTHONPATH": str(Path(addsr.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "addsr", "upscale", "-", "-o", "-"],
        input=data, capture_output=True, timeout=120, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert (image.format, image.size) == ("JPEG", (96, 64))


def test_streams_are_read_and_written(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    class Photo:
        buffer = io.BytesIO(Path("photos/my trip/ü b.png").read_bytes())

    monkeypatch.setattr(sys, "stdin", Photo)
    assert main(["upscale", "-", "-o", "-", "--scale", "2"]) == 0
    told = capsysbinary.readouterr()
    with Image.open(io.BytesIO(told.out)) as image:
        assert (image.format, image.size) == ("PNG", (48, 32))
    assert told.err == b"" and not Path("-").exists()


def test_what_is_no_picture_in_a_pipe_is_told(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    photo = Path("photos/a.jpg").read_bytes()
    for content, more, message in (
        (b"words", [], b"error: standard input: is no picture"),
        (b"", [], b"error: standard input: "),
        (photo[:-90], [], b"error: standard input: "),
        (photo, ["--size", "9000x"], b"error: standard input: 24x16 to 9000x"),
        (photo, ["--format", "bmp", "--bit-depth", "16"], b"error: standard output.bmp: "),
    ):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        assert main(["upscale", "-", "-o", "-", *more]) in (1, 2)
        told = capsysbinary.readouterr()
        assert told.out == b"" and told.err.startswith(message), told.err
        assert tempfile.gettempdir().encode() not in told.err


def test_the_line_about_a_picture_in_a_pipe_names_no_file_of_ours(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = io.BytesIO(Path("photos/a.jpg").read_bytes())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=content))
    assert main(["upscale", "-", "-o", "b.png", "--json", "-q"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["event"], line["source"], line["output"]) == ("done", "-", "b.png")


def test_two_pages_can_be_compared_at_the_command_line(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upscale", "photos/a.jpg", "-o", "b.png", "-q"]) == 0
    words = ["compare", "photos/a.jpg", "b.png", "-o", "page.html"]
    assert main([*words, "--title", "before", "--title", "after"]) == 0
    assert "page.html (" in capsys.readouterr().out
    page = Path("page.html").read_text(encoding="utf-8")
    assert "<title>before / after - addsr compare</title>" in page
    assert main(["compare", "b.png"]) == 2
    assert "give 2 to 8" in capsys.readouterr().err


def test_the_bar_shows_pictures_steps_and_pace_and_makes_room_for_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with BatchBar("upscaling", delay=0.0) as bar:
        bar.show(Progress(1, 8, 2, 4, 3.0, 2.0))
        time.sleep(0.3)
        with bar.aside():
            print("a line")
            held = capsys.readouterr()
            time.sleep(0.2)
            assert capsys.readouterr().err == ""
        time.sleep(0.2)
        assert "1/8 pictures" in capsys.readouterr().err
    assert held.out == "a line\n"
    assert "1/8 pictures, 2/4 tile steps, 1.50 MP/s" in held.err
