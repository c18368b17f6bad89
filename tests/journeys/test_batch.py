"""Batches at the command line: folders, names, plans, streams."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from addsr import upscaler
from addsr.batch import planning
from addsr.batch.events import Progress, Summary
from addsr.batch.jobs import Job
from addsr.batch.manifest import NAME, Manifest
from addsr.cli import main
from addsr.image.reading import read_image
from addsr.terminal import BatchBar
from addsr.upscale_telling import Teller


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


def test_a_surprise_with_a_page_costs_no_picture(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def surprising(*_: object) -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr("addsr.evaluate.compare.write_compare_page", surprising)
    Image.new("RGB", (4, 4)).save("photos/b.png")
    assert main(["upscale", "photos", "-o", "out", "--compare", "-q"]) == 0
    told = capsys.readouterr().err
    assert told.count("unexpected error: ZeroDivisionError: by nought; please report it") == 2
    assert pictures("out") == ["a.jpg", "b.png"]


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


def interrupt_at(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = upscaler.Upscaler.restore

    def interrupted(self: upscaler.Upscaler, opened: upscaler.Opened, dst: Path) -> object:
        if opened.path is not None and opened.path.name == name:
            raise KeyboardInterrupt
        return usual(self, opened, dst)

    monkeypatch.setattr(upscaler.Upscaler, "restore", interrupted)


def test_after_ctrl_c_without_a_folder_it_is_told_what_is_left_and_what_helps(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for k, name in enumerate("abcd"):  # equal ones would go through the network together
        Image.new("RGB", (4, 4 + k)).save(f"{name}.png")
    with monkeypatch.context() as patch:
        interrupt_at("c.png", patch)
        assert main(["upscale", *(f"{name}.png" for name in "abcd"), "-q"]) == 130
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("2 of 4 pictures are left; the same command would do all of them")
    assert "give those left alone, or -o FOLDER, where the next run goes on" in told[0]
    assert [line.strip() for line in told[1:3]] == ["c.png", "d.png"]
    assert told[3] == "interrupted; nothing half-written was left"
    made = Path("a_x4.png").stat().st_mtime_ns
    # what is told is so: the same names do all again, a pattern refuses, those left alone go on
    assert main(["upscale", "*.png", "-q"]) == 2
    assert main(["upscale", "c.png", "d.png", "-q"]) == 0
    assert Path("a_x4.png").stat().st_mtime_ns == made
    assert main(["upscale", *(f"{name}.png" for name in "abcd"), "-q"]) == 0
    assert Path("a_x4.png").stat().st_mtime_ns > made


def test_after_ctrl_c_of_one_picture_it_is_named(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_at("a.jpg", monkeypatch)
    for words in ([], ["-o", "b.png"]):
        assert main(["upscale", "photos/a.jpg", *words]) == 130
        first, second = capsys.readouterr().err.splitlines()
        assert first == f"{Path('photos/a.jpg')} is not done; run the same command again"
        assert second.startswith("interrupted")
    assert main(["upscale", "photos/a.jpg", "-o", "-", "--json"]) == 130
    told = capsys.readouterr()
    summary, last = told.err.splitlines()
    assert json.loads(summary)["left"] == 1 and last.startswith("interrupted") and not told.out


def test_of_many_pictures_that_are_left_some_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [Job(Path(f"{k}.png"), Path(f"{k}_x4.png")) for k in range(30)]
    teller = Teller(json_lines=False, quiet=False)
    teller.tell_rest(Summary((), 30, 0.0, 0.0), jobs, is_kept=False)
    *_, before, last = capsys.readouterr().err.splitlines()
    assert (before, last) == ("  19.png", "  and 10 more")


@pytest.mark.parametrize("where", [["-o", "b.png"], ["-o", "out"], ["-o", "-"], []])
@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{stem!q}", "name: '{stem!q}' is no template (what follows stem in its braces"),
        ("{stem:{seed}}", "is no template (what follows stem in its braces cannot be used)"),
        ("{stem:>999999999999}", "is no template (what follows stem in its braces"),
        ("{stem:d}", "is no template (Unknown format code 'd' for object of type 'str')"),
        ("{stem", "is no template (expected '}' before end of string); write fields such as"),
        ("{}", "name: {} is unknown; use {stem}, {suffix}"),
        ("{stem.upper}", "name: {stem.upper} is unknown; use {stem}"),
        ("same", "name: 'same' gives all results one name; put {stem} into it"),
        ("a/{stem}", "name: 'a/{stem}' holds a folder; give folders with --output"),
    ],
)
def test_a_broken_template_is_refused_wherever_results_go(
    photos: Path, where: list[str], template: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = pictures(".")
    assert main(["upscale", "photos/a.jpg", "--name", template, *where]) == 2
    told = capsys.readouterr()
    assert message in told.err and told.err.count("\n") == 1 and told.out == ""
    assert pictures(".") == before


def test_a_template_is_refused_where_the_name_is_given(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upscale", "photos/a.jpg", "-o", "b.png", "--name", "{stem}_{seed}"]) == 2
    assert capsys.readouterr().err == (
        "error: name: b.png is the name already; give -o a folder, or no --name\n"
    )


def test_numbers_in_a_template_can_be_filled_up(photos: Path) -> None:
    words = ["upscale", "photos/a.jpg", "-o", "out", "-q", "--seed", "7"]
    assert main([*words, "--name", "{seed:03}_{stem:_>4}{{}}{suffix}"]) == 0
    assert pictures("out") == ["007____a{}.jpg"]


@pytest.mark.parametrize("place", ["gone/x.png", "photos/a.jpg/x.png"])
def test_an_input_that_is_not_there_is_told_as_such(
    photos: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upscale", place]) == 1
    assert capsys.readouterr().err == (
        f"error: {Path(place)}: no such file; check the spelling and the folder\n"
    )


def test_a_file_may_be_called_like_a_list(photos: Path) -> None:
    name = '["a"] b.png'
    Image.new("RGB", (4, 4)).save(name)
    assert main(["upscale", name, "-q"]) == 0
    assert Path('["a"] b_x4.png').is_file()
