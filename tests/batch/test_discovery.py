"""What a folder, a pattern or a name means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from addsr.batch.discovery import discover
from addsr.errors import InputError


@pytest.fixture()
def tree(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", "in/c.webp", "in/deep/d d.tif",
                 "in/.thumbs/e.png", "-dash.png", "ü.gif"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def names(root: Path, *inputs: Path, **options: bool) -> list[str]:
    found = discover(list(inputs), **options)  # type: ignore[arg-type]
    return [str(one.path.relative_to(root)) for one in found]


def test_a_folder_means_the_pictures_in_it_in_order(tree: Path) -> None:
    assert names(tree, tree) == ["-dash.png", "a.JPG", "b.png", "ü.gif"]


def test_recursive_goes_below_but_not_into_hidden_folders(tree: Path) -> None:
    assert names(tree, tree, recursive=True) == [
        "-dash.png", "a.JPG", "b.png", "ü.gif", "in/c.webp", "in/deep/d d.tif"
    ]  # fmt: skip
    inside = [str(one.inside) for one in discover([tree], recursive=True)]
    assert inside == [".", ".", ".", ".", "in", "in/deep"]


def test_what_is_named_is_taken_as_it_is(tree: Path) -> None:
    assert names(tree, tree / "notes.txt", tree / "gone.png") == ["notes.txt", "gone.png"]
    assert [one.inside for one in discover([tree / "b.png"])] == [None]


def test_a_folder_without_pictures_is_told_with_the_way_out(tree: Path) -> None:
    (tree / "outer" / "inner").mkdir(parents=True)
    with pytest.raises(InputError, match=r"outer: no pictures .* or --recursive"):
        discover([tree / "outer"])
    with pytest.raises(InputError, match=r"inner: no pictures in this folder; give another$"):
        discover([tree / "outer" / "inner"])


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_loops_of_links_are_not_walked(tree: Path) -> None:
    (tree / "in" / "loop").symlink_to(tree)
    (tree / "in" / "self.png").symlink_to("self.png")
    (tree / "in" / "link.png").symlink_to(tree / "b.png")
    found = names(tree, tree / "in", recursive=True)
    assert found == ["in/c.webp", "in/link.png", "in/self.png", "in/deep/d d.tif"]


@pytest.mark.skipif(os.name == "nt", reason="no pipes with names on Windows")
def test_a_pipe_in_a_folder_is_not_waited_for(tree: Path) -> None:
    os.mkfifo(tree / "in" / "pipe.png")
    assert names(tree, tree / "in") == ["in/c.webp"]


def test_results_in_the_folder_can_be_left_out(tree: Path) -> None:
    found = discover([tree], recursive=True, is_left_out=lambda p: p.name in ("in", "b.png"))
    assert [one.path.name for one in found] == ["-dash.png", "a.JPG", "ü.gif"]
