"""The manifest: what it knows after a run, and what it says when it cannot be used."""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path

import pytest

from addsr.batch.manifest import (
    NAME,
    Entry,
    Manifest,
    hash_file,
    hash_settings,
    plain,
    remove_leftovers,
)
from addsr.errors import InputError, OutputError

DONE = Entry("/in/a.png", "s" * 64, "o" * 64, "done", output_bytes=3, seconds=1.5)


def test_what_was_recorded_is_known_to_the_next_run(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.png"
    target.parent.mkdir()
    target.write_bytes(b"abc")
    with Manifest(tmp_path) as manifest:
        assert manifest.find(target) is None and not manifest.made_here(target)
        manifest.record(target, DONE)
    with Manifest(tmp_path) as manifest:
        assert manifest.find(target) == DONE and manifest.made_here(target)
        assert manifest.made_here(tmp_path / NAME)
        assert manifest.is_done(target, "s" * 64, "o" * 64)
        assert not manifest.is_done(target, "t" * 64, "o" * 64), "another source"
        assert not manifest.is_done(target, "s" * 64, "p" * 64), "other settings"
        target.write_bytes(b"ab")
        assert not manifest.is_done(target, "s" * 64, "o" * 64), "cut short"
        target.unlink()
        assert not manifest.is_done(target, "s" * 64, "o" * 64), "gone"


def test_a_failure_is_kept_with_its_reason_and_tried_again(tmp_path: Path) -> None:
    with Manifest(tmp_path) as manifest:
        manifest.record(tmp_path / "a", Entry("/in/a", None, "o", "failed", error="is damaged"))
        found = manifest.find(tmp_path / "a")
        assert found is not None and found.error == "is damaged"
        assert not manifest.is_done(tmp_path / "a", "s", "o")


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with Manifest(tmp_path), pytest.raises(OutputError, match="another addsr works in this folder"):
        Manifest(tmp_path)
    with Manifest(tmp_path):
        pass


def test_a_damaged_or_newer_file_is_told_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"no database, but long enough to be looked at" * 100)
    with pytest.raises(OutputError, match=r"is damaged .* delete it, and all pictures are done"):
        Manifest(tmp_path)
    (tmp_path / NAME).unlink()
    with Manifest(tmp_path):
        pass
    with sqlite3.connect(tmp_path / NAME) as rows:
        rows.execute("PRAGMA user_version = 7")
    rows.close()
    with pytest.raises(OutputError, match="is of version 7, not 1; use the addsr it is from"):
        Manifest(tmp_path)


def test_a_manifest_that_cannot_be_written_costs_no_picture_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Full:
        def execute(self, *_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        def rollback(self) -> None:
            raise sqlite3.OperationalError("database or disk is full")

    with Manifest(tmp_path) as manifest:
        rows, manifest._rows = manifest._rows, Full()  # type: ignore[assignment]
        with caplog.at_level(logging.WARNING):
            for name in ("a", "b"):
                manifest.record(tmp_path / name, DONE)
        manifest._rows = rows
    assert caplog.text.count("disk is full") == 1
    assert "will be done again by the next run" in caplog.text


def test_damage_deep_in_the_file_is_told_where_it_is_met(tmp_path: Path) -> None:
    with Manifest(tmp_path) as manifest:
        for k in range(200):
            manifest.record(tmp_path / f"{k}.png", DONE)
    content = bytearray((tmp_path / NAME).read_bytes())
    assert len(content) > 5 * 4096
    content[2 * 4096 :] = b"\xff" * (len(content) - 2 * 4096)  # tables and first page stay whole
    (tmp_path / NAME).write_bytes(content)
    message = r"is damaged \(.*malformed.*\); delete it, and all pictures are done again"
    with pytest.raises(OutputError, match=message), Manifest(tmp_path) as manifest:
        for k in range(200):
            manifest.find(tmp_path / f"{k}.png")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            Manifest(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_name_in_another_encoding_is_kept(tmp_path: Path) -> None:
    target = tmp_path / os.fsdecode(b"caf\xe9.png")
    with Manifest(tmp_path) as manifest:
        manifest.record(target, DONE)
        assert manifest.find(target) == DONE
    assert plain("a\udce9") == "a\\udce9"


def test_a_source_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        hash_file(tmp_path / "gone")
    if os.name != "nt":
        with pytest.raises(InputError, match="is a folder"):
            hash_file(tmp_path)
        (tmp_path / "loop.png").symlink_to("loop.png")
        with pytest.raises(InputError, match=r"loop\.png: cannot be read \(.*symbolic links"):
            hash_file(tmp_path / "loop.png")


def test_settings_have_one_hash_in_any_order() -> None:
    assert hash_settings({"a": 1, "b": [2]}) == hash_settings({"b": [2], "a": 1})
    assert hash_settings({"a": 1}) != hash_settings({"a": 2})


def test_only_half_files_of_these_results_are_removed(tmp_path: Path) -> None:
    long = "x" * 60 + ".png"
    ours = [".a.png.0123abcd.part", f".{long[:40]}.0123abcd.part"]
    others = [".b.png.0123abcd.part", ".a.png.part", "a.png", ".a.png.0123abcg.part"]
    for name in ours + others:
        (tmp_path / name).write_text("")
    targets = [tmp_path / "a.png", tmp_path / long, tmp_path / "gone" / "c.png"]
    assert remove_leftovers(targets) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(others)
