from __future__ import annotations

import math
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from addsr.errors import OutputError
from addsr.evaluate import cache as module
from addsr.evaluate.cache import Cache, hash_file, key_of, making_version, measuring_version

WANTED = {"psnr-y": ("k", "1"), "niqe": ("k", "1")}


def test_what_was_stored_is_there_in_the_next_run(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache") as cache:
        assert cache.scores(WANTED) == {} and cache.run("r") is None and cache.peak("m") is None
        cache.store_scores(WANTED, {"psnr-y": (math.inf, ""), "niqe": (math.nan, "too small")})
        cache.store_features("k", "1", 2, b"abcd")
        cache.store_run("r", "m", 1.5, 64, warm=True)
        cache.store_peak("m", 1 << 40, "resident")
        path = cache.store_result("f00d", Image.new("RGB", (3, 2), "red"))
    with Cache(tmp_path / "cache") as cache:
        found = cache.scores(WANTED)
        assert found["psnr-y"] == (math.inf, "")
        assert math.isnan(found["niqe"][0]) and found["niqe"][1] == "too small"
        assert cache.scores({"niqe": ("k", "2")}) == {}
        assert cache.features("k", "1") == (2, b"abcd") and cache.features("k", "2") is None
        assert cache.run("r") == (1.5, 64, True) and cache.peak("m") == (1 << 40, "resident")
        assert cache.result_path("f00d") == path and path.is_file()


def test_keys_depend_on_every_part_and_its_place(tmp_path: Path) -> None:
    assert (
        len({key_of("a", "bc"), key_of("ab", "c"), key_of("bc", "a"), key_of("a", "bc", "")}) == 4
    )
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert hash_file(path).startswith("ba7816bf")


def test_versions_depend_on_the_code_that_makes_and_measures_and_on_no_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, set[str]] = {}
    usual = module._sources
    for function in (making_version, measuring_version):
        read: set[str] = set()

        def listing(entry: Any, path: str, read: set[str] = read) -> list[tuple[str, bytes]]:
            found = list(usual(entry, path))
            read.update(name for name, _ in found)
            return found

        function.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(module, "_sources", listing)
            assert len(function()) == 16
        seen[function.__name__] = read
    assert {"nets/compact.py", "upscaler.py", "image/color.py"} <= seen["making_version"]
    assert {"restorers/tiled.py", "restorers/latent.py", "pipelines/stages.py"} <= (
        seen["making_version"]
    )
    assert "metrics/pixel.py" not in seen["making_version"]
    assert {"metrics/niqe.py", "evaluate/score.py"} <= seen["measuring_version"]
    assert "metrics/catalog.py" not in seen["measuring_version"]


def test_a_damaged_database_is_put_aside_and_results_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Cache(tmp_path) as cache:
        path = cache.store_result("beef", Image.new("RGB", (3, 2)))
    (tmp_path / "scores.sqlite").write_bytes(b"no database at all" * 100)
    with Cache(tmp_path) as cache:
        assert cache.scores(WANTED) == {} and path.is_file()
        cache.store_scores(WANTED, {"niqe": (1.0, "")})
    assert "is damaged" in caplog.text and list(tmp_path.glob("scores.damaged-*.sqlite"))
    with Cache(tmp_path) as cache:
        assert cache.scores(WANTED)["niqe"] == (1.0, "")


def test_a_cache_that_is_not_kept_takes_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "c" / "results" / "be").mkdir(parents=True)
    (tmp_path / "c" / "results" / "be" / "beef.png").touch()
    with Cache(tmp_path / "c", keep=False) as cache:
        assert not cache.result_path("beef").exists()
        cache.store_result("beef", Image.new("RGB", (3, 2)))
    assert list(tmp_path.iterdir()) == []


def test_old_halves_of_killed_runs_are_swept_and_new_ones_are_left(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "ab"
    folder.mkdir(parents=True)
    old, new = folder / ".x.part", folder / ".y.part"
    old.touch()
    new.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    with Cache(tmp_path):
        assert not old.exists() and new.exists()


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another output folder"):
        Cache(tmp_path / "file" / "cache")


def test_a_database_that_another_run_holds_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **k: usual(path, **{**k, "timeout": 0.01}))
    with Cache(tmp_path) as cache:
        other = usual(tmp_path / "scores.sqlite")
        try:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(OutputError, match="end other runs"):
                cache.store_scores(WANTED, {"niqe": (1.0, "")})
        finally:
            other.close()


def test_a_database_that_is_held_at_the_start_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **k: usual(path, **{**k, "timeout": 0.01}))
    with Cache(tmp_path) as cache:
        cache.store_scores(WANTED, {"niqe": (1.0, "")})
    other = usual(tmp_path / "scores.sqlite")
    try:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OutputError, match="end other runs"):
            Cache(tmp_path)
    finally:
        other.close()
    with Cache(tmp_path) as cache:
        assert cache.scores(WANTED)["niqe"] == (1.0, "")


def test_whatever_the_database_says_is_told_as_ours(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.close()
    with pytest.raises(OutputError, match="figures cannot be kept"):
        cache.flush()
    with pytest.raises(OutputError, match="figures cannot be kept"):
        cache.scores(WANTED)
