"""Where results go: no original and no other result is ever in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from addsr.batch.discovery import Found
from addsr.batch.jobs import check_template, choose_folder, make_jobs
from addsr.errors import InputError, OptionError, OutputError
from addsr.image.expanding import expand


@pytest.fixture()
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with photos in it."""
    for name in ("a.png", "a_x4.png", "b.jpg", "c.gif", "d1/A.png", "d1/a.png", "d2/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)  # so that no two are equal
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jobs(*inputs: str, output: str | None = None) -> dict[str, str]:
    made = make_jobs([Found(Path(name)) for name in inputs], output, "x4")
    return {str(job.source): str(job.target) for job in made}


def test_a_result_never_takes_the_place_of_another_input(here: Path) -> None:
    with pytest.raises(
        OptionError, match=r"a\.png would become a_x4\.png, which is an input too .* with -o"
    ):
        jobs("a.png", "a_x4.png")
    with pytest.raises(OptionError, match="an input too"):
        jobs("./a.png", f"{here}/a_x4.png")
    with pytest.raises(OptionError, match=r"d2/b\.jpg would become b\.jpg, .* an input too"):
        jobs("d2/b.jpg", "b.jpg", output="./")
    assert jobs("a.png", "a_x4.png", output="out") == {
        "a.png": "out/a.png", "a_x4.png": "out/a_x4.png"
    }  # fmt: skip


def test_a_link_to_an_input_is_no_place_for_a_result(here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "a.png").symlink_to(here / "b.jpg")
    with pytest.raises(OptionError, match=r"an input too .b\.jpg."):
        jobs("a.png", "b.jpg", output="out")


def test_the_folder_of_the_input_gets_a_result_beside_it(here: Path) -> None:
    for folder in (".", "./", str(here), "d1/.."):
        assert jobs("a.png", "c.gif", output=folder) == {"a.png": "a_x4.png", "c.gif": "c_x4.png"}
    assert jobs("d2/b.jpg", output="d1") == {"d2/b.jpg": "d1/b.jpg"}


def test_a_photo_that_is_named_twice_is_done_once(here: Path) -> None:
    again = f"{here}/d1/../a.png"
    assert jobs("a.png", "./a.png", again) == {"a.png": "a_x4.png"}
    assert jobs("a.png", again, output="out") == {"a.png": "out/a.png"}
    assert jobs("a.png", again, output="o.png") == {"a.png": "o.png"}
    (here / "link.png").symlink_to("a.png")  # another name: another result
    assert jobs("a.png", "link.png") == {"a.png": "a_x4.png", "link.png": "link_x4.png"}


@pytest.mark.parametrize("pair", [("d1/A.png", "d1/a.png"), ("b.jpg", "d2/b.jpg")])
def test_results_that_differ_in_case_only_are_refused(here: Path, pair: tuple[str, str]) -> None:
    if (here / "d1" / "A.PNG").exists():
        pytest.skip("this file system ignores case: the two are one file")
    with pytest.raises(OptionError, match=r"would both become out/\w\.\w+; rename one"):
        jobs(*pair, output="out")


@pytest.mark.parametrize("output", ["o.jp2", "o.jxl", "o.pgn", "out/o.PGN"])
def test_a_mistyped_suffix_makes_no_folder(here: Path, output: str) -> None:
    with pytest.raises(OutputError, match=r"cannot be written; use one of \.png, .*/ for a folder"):
        jobs("a.png", output=output)
    os.makedirs(output)
    assert jobs("a.png", output=output) == {"a.png": f"{output}/a.png"}


def test_a_slash_at_the_end_means_a_folder(here: Path) -> None:
    assert choose_folder("o.gif/", [Path("a.png")]) == Path("o.gif")
    assert choose_folder("o.png/", [Path("a.png")]) == Path("o.png")
    assert choose_folder("o.png", [Path("a.png")]) is None


def test_several_photos_do_not_fit_into_one_file(here: Path) -> None:
    with pytest.raises(OptionError, match=r"o\.png is one file, but there are 2 inputs"):
        jobs("a.png", "b.jpg", "./b.jpg", output="o.png")


def test_a_folder_is_no_input(here: Path) -> None:
    with pytest.raises(InputError, match="is a folder; give picture files"):
        jobs(".")


def test_patterns_that_the_shell_left_alone_are_filled_in(here: Path) -> None:
    def names(*inputs: str) -> list[str]:
        return [str(path) for path in expand([Path(name) for name in inputs])]

    assert names("*.png", "b.jpg") == ["a.png", "a_x4.png", "b.jpg"]
    assert names("d?/b.jpg", "gone.png") == ["d2/b.jpg", "gone.png"]
    (here / "b[1].jpg").touch()
    assert names("b[1].jpg") == ["b[1].jpg"]
    with pytest.raises(InputError, match=r"w/\*\.png: matches nothing; check the pattern"):
        names("w/*.png")


def test_a_tree_keeps_its_shape(here: Path) -> None:
    found = [Found(here / "d1" / "A.png", Path(".")), Found(here / "d2" / "b.jpg", Path("d2"))]
    made = [job.target for job in make_jobs(found, "out", "x4")]
    assert made == [Path("out/A.png"), Path("out/d2/b.jpg")]
    with pytest.raises(OptionError, match="results of a folder need a place"):
        make_jobs(found, None, "x4")


def test_names_follow_the_template(here: Path) -> None:
    values = {"scale": "4", "model": "compact", "seed": 3}
    made = make_jobs(
        [Found(Path("a.png")), Found(Path("c.gif"))], "out", "x4",
        template="{stem}-{target}-{model}-{seed}{suffix}", values=values,
    )  # fmt: skip
    names = [job.target.name for job in made]
    assert names == ["a-x4-compact-3.png", "c-x4-compact-3.png"]
    (job,) = make_jobs([Found(Path("b.jpg"))], None, "x4", template="big {stem}", values=values)
    assert job.target == Path("big b.jpg")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("large", r"gives all results one name; put \{stem\} into it"),
        ("{name}", r"\{name\} is unknown; use \{stem\}, \{suffix\}"),
        ("{stem.__class__}", "is unknown"),
        ("{stem", "is no template"),
        ("../{stem}{suffix}", "holds a folder"),
        ("{stem}\\\\x", "holds a folder"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        check_template(template)


@pytest.mark.parametrize("template", [".{stem}.png", "{model}.{stem}.png"])
def test_a_name_that_not_every_system_can_hold_is_refused(here: Path, template: str) -> None:
    with pytest.raises(OptionError, match="no name for a file everywhere"):
        make_jobs([Found(Path("a.png"))], "o", "x4", template=template, values={"model": "con"})


def test_names_that_other_systems_hold_for_one_clash(here: Path) -> None:
    for first, second in (("é.png", "e\u0301.png"), ("A.png", "a.png")):
        found = [Found(here / "d1" / first), Found(here / "d2" / second)]
        for one in found:
            one.path.write_text(str(one.path))
        with pytest.raises(OptionError, match="would both become"):
            make_jobs(found, "out", "x4")
