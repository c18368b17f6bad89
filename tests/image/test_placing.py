"""A file gets its name when it is whole and on the disk, and not before."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from addsr.errors import OutputError
from addsr.image import placing
from addsr.image.writing import write_image


def test_the_data_reach_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        place = os.readlink(f"/proc/self/fd/{handle}")
        order.append("folder" if os.path.isdir(place) else "data")
        sync(handle)

    def replaced(source: Any, target: Any) -> None:
        with Image.open(source) as image:
            image.load()  # whole by then
        order.append("name")
        replace(source, target)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc to tell what is synchronised")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_image(Image.new("RGB", (9, 9)), tmp_path / "a.png")
    assert order == ["data", "name", "folder"]


def test_a_name_that_a_viewer_holds_for_a_moment_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []
    replace = os.replace

    def locked(source: Any, target: Any) -> None:
        tries.append(1)
        if len(tries) < 4:
            raise PermissionError(13, "The process cannot access the file")
        replace(source, target)

    monkeypatch.setattr(placing, "_HOLDS", True)
    monkeypatch.setattr(placing, "PATIENCE", (0.0,) * 5)
    monkeypatch.setattr(os, "replace", locked)
    write_image(Image.new("RGB", (9, 9)), tmp_path / "a.png")
    assert len(tries) == 4 and (tmp_path / "a.png").exists()


def test_a_name_that_stays_held_is_told_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(_source: Any, _target: Any) -> None:
        raise PermissionError(13, "The process cannot access the file")

    (tmp_path / "a.png").write_text("old")
    monkeypatch.setattr(placing, "_HOLDS", True)
    monkeypatch.setattr(placing, "PATIENCE", (0.0,))
    monkeypatch.setattr(os, "replace", locked)
    with pytest.raises(OutputError, match=r"a\.png: is held open by another program; close it"):
        write_image(Image.new("RGB", (9, 9)), tmp_path / "a.png")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.png", "old")]


def test_a_folder_that_cannot_be_synchronised_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def refuse(folder: Any, *_: Any) -> int:
        asked.append(folder)
        raise PermissionError(13, "Windows opens no folders")

    (tmp_path / "part").write_text("new")
    monkeypatch.setattr(os, "open", refuse)
    placing.put(tmp_path / "part", tmp_path / "a.png")
    assert asked == [tmp_path]
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.png", "new")]
