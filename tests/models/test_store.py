"""Imported models on this machine: names, facts, places, removal."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from addsr.errors import ConfigError, ModelError, OptionError, OutputError
from addsr.models import placing, store
from addsr.models.placing import (
    check_free,
    check_space,
    damages,
    measure,
    measure_all,
    place,
    remove,
    unfinished,
)
from addsr.models.store import (
    FACTS,
    Installed,
    Part,
    Source,
    check_name,
    find_installed,
    folders,
    list_installed,
    record,
    recorded,
    store_folder,
    write_facts,
)

SHA = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADDSR_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def make(name: str = "mine", **changes: Any) -> Installed:
    """A model of two files in the store."""
    folder = store_folder() / name
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet" / "weights.safetensors").write_bytes(b"12345")
    facts: dict[str, Any] = {
        "name": name, "folder": folder, "kind": "stablesr", "licence": "S-Lab", "base": "a/b",
        "sources": (Source("stablesr_000117.ckpt", 7, SHA, "adapter (376 tensors)"),),
        "imported": "2026-02-03", "variant": "stablesr", "prediction": "v", "tile": 768,
        "dtype": "fp16", "files": measure_all(folder), **changes,
    }  # fmt: skip
    model = Installed(**facts)
    write_facts(model)
    return model


@pytest.mark.parametrize(
    ("platform", "variables", "place"),
    [
        ("linux", {}, ".cache/addsr/models"),
        ("linux", {"XDG_CACHE_HOME": "/x/cache"}, "/x/cache/addsr/models"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, ".cache/addsr/models"),
        ("darwin", {}, "Library/Caches/addsr/models"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "/x/addsr/models"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/addsr/models"),
        ("win32", {}, "AppData/Local/addsr/models"),
        ("linux", {"ADDSR_MODELS": "/big/disk", "XDG_CACHE_HOME": "/x"}, "/big/disk"),
        ("linux", {"ADDSR_MODELS": "~/m"}, "m"),
    ],
)
def test_the_store_lies_where_the_platform_wants_it(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], place: str
) -> None:
    for name in ("ADDSR_MODELS", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("HOME", "/home/ada")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert store_folder() == Path("/home/ada") / place


def test_facts_come_back_as_they_were_written() -> None:
    model = make()
    assert find_installed("mine") == model
    assert list_installed() == [model]
    assert model.bytes == 7 and sorted(model.files) == [
        "model_index.json",
        "unet/weights.safetensors",
    ]
    assert json.loads(json.dumps(model.to_dict()))["sources"][0]["sha256"] == SHA
    assert str(store_folder()) not in (model.folder / FACTS).read_text()  # it can be moved


def test_there_is_nothing_where_nothing_was_imported(home: Path) -> None:
    assert find_installed("stablesr") is None and list_installed() == [] == folders()
    home.mkdir()
    (home / "other").mkdir()  # without facts: none of ours
    (home / ".mine.0a.part").mkdir()
    assert find_installed("other") is None and list_installed() == []
    for name in ("../mine", "", ".", "..", "a/b", "/etc", ".mine.0a.part"):
        assert find_installed(name) is None


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "a\\b", ".a", "Über", "A", "a b", "nul", "con.x", "a" * 65, "a."],
)
def test_names_that_could_not_be_folders_everywhere_are_refused(name: str) -> None:
    with pytest.raises(OptionError, match="cannot be a model's name"):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "stablesr-768", "my_model.v2", "0", "a" * 64, "connect"])
def test_other_names_are_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "newer than 1; update addsr"),
        ({"format": "1"}, "format = '1' is no int"),
        ({"kind": None}, "kind = None is no str"),
        ({"tile": True}, "tile = True is no int"),
        ({"sources": [1]}, "no table of facts"),
        ({"sources": [{"name": "a", "bytes": -1, "sha256": SHA, "what": ""}]}, "no size"),
        ({"files": {"a": {"bytes": 1, "sha256": "x"}}}, "sha256 = 'x' is none"),
        ({"files": {"../../a": {"bytes": 1, "sha256": SHA}}}, "not in the folder"),
        ({"files": {"/etc/passwd": {"bytes": 1, "sha256": SHA}}}, "not in the folder"),
        ({"files": {"c:\\a": {"bytes": 1, "sha256": SHA}}}, "not in the folder"),
        ({"files": {"a\0b": {"bytes": 1, "sha256": SHA}}}, "not in the folder"),
        ({"files": {"a\ud800": {"bytes": 1, "sha256": SHA}}}, "not in the folder"),
        ({"files": []}, "files = .* is no dict"),
    ],
)
def test_damaged_facts_are_told_and_do_not_hide_other_models(
    change: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = make().folder / FACTS
    whole = make("other")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelError, match=message):
        find_installed("mine")
    with caplog.at_level(logging.WARNING, "addsr"):
        assert list_installed() == [whole]
    assert "mine" in caplog.text


@pytest.mark.parametrize("content", [b"", b"\xff", b"[1]", b"[" * 100_000])
def test_facts_that_are_no_json_are_told(content: bytes) -> None:
    path = make().folder / FACTS
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"addsr\.json: .*import the model again with --force"):
        find_installed("mine")


def test_sizes_and_sums_are_kept_from_the_first_time(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert recorded() == {}
    record("b.ckpt", Part(3, SHA))
    record("a.ckpt", Part(4, SHA))
    record("a.ckpt", Part(5, SHA))
    assert recorded() == {"a.ckpt": Part(5, SHA), "b.ckpt": Part(3, SHA)}
    assert list_installed() == []
    for damaged in ("{", "[1]", '{"a": 1}'):
        (home / ".sources.json").write_text(damaged)
        with caplog.at_level(logging.WARNING, "addsr"):
            assert recorded() == {}
        assert "are recorded anew" in caplog.text


def test_a_taken_name_needs_force_and_the_embedded_one_stays() -> None:
    make()
    check_free("new", force=False)
    check_free("mine", force=True)
    with pytest.raises(ModelError, match=r"mine: is imported already .*--force"):
        check_free("mine", force=False)
    with pytest.raises(OptionError, match="'compact' is the embedded model"):
        check_free("compact", force=True)


def test_folders_that_no_import_made_are_never_replaced(home: Path, tmp_path: Path) -> None:
    (home / "photos").mkdir(parents=True)
    (home / "link").symlink_to(make().folder)
    for name in ("photos", "link"):
        with pytest.raises(ModelError, match="is there already and no imported model"):
            check_free(name, force=True)


def test_too_little_room_is_told_with_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    check_space(1)
    monkeypatch.setattr(placing.shutil, "disk_usage", lambda _: type("U", (), {"free": 10**9})())
    with pytest.raises(OutputError, match=r"takes 2\.80 GB and 1\.00 GB are free.*ADDSR_MODELS"):
        check_space(2_800_000_000)


def test_a_store_that_cannot_be_made_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ADDSR_MODELS", str(tmp_path / "file" / "models"))
    with pytest.raises(OutputError, match=r"cannot be made .*ADDSR_MODELS"):
        check_space(1)
    with pytest.raises(OutputError, match=r"cannot be written .*ADDSR_MODELS"), unfinished("a"):
        pass
    with pytest.raises(OutputError, match="cannot be written"):
        record("a", Part(1, SHA))
    assert recorded() == {} and folders() == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, ValueError])
def test_whatever_breaks_an_import_off_leaves_nothing(
    home: Path, kind: type[BaseException]
) -> None:
    with pytest.raises(kind), unfinished("mine") as folder:
        (folder / "unet").mkdir()
        (folder / "unet" / "a").write_text("half")
        raise kind
    assert list(home.iterdir()) == []


def test_leftovers_of_killed_imports_go_after_a_day(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".mine.old.part").mkdir(parents=True)
    (home / ".mine.old.part" / "a").write_text("x")
    with unfinished("other"):
        assert (home / ".mine.old.part").exists()  # may belong to a running import
    now = time.time()
    monkeypatch.setattr(placing.time, "time", lambda: now + 25 * 3600)
    with unfinished("other"):
        pass
    assert list(home.iterdir()) == []


def test_a_model_makes_way_for_its_successor(home: Path) -> None:
    old = make()
    with unfinished("mine") as folder:
        (folder / "new").write_text("1")
        assert place(folder, "mine", force=True) == old.folder
    assert [f.name for f in old.folder.iterdir()] == ["new"]
    assert [f.name for f in home.iterdir()] == ["mine"]


def test_files_of_others_move_to_the_successor(home: Path) -> None:
    old = make()
    (old.folder / "unet" / "notes.txt").write_text("keep me")
    (old.folder / "new").write_text("mine")
    with unfinished("mine") as folder:
        (folder / "new").write_text("1")
        place(folder, "mine", force=True)
    assert (old.folder / "unet" / "notes.txt").read_text() == "keep me"
    assert (old.folder / "new").read_text() == "1"
    assert (old.folder / "new.before").read_text() == "mine"
    assert [f.name for f in home.iterdir()] == ["mine"]


def test_a_model_with_damaged_facts_makes_way_and_notes_stay(home: Path) -> None:
    old = make()
    (old.folder / FACTS).write_text("{")
    (old.folder / "notes.txt").write_text("keep me")
    with unfinished("mine") as folder:
        new = make("other")
        new.folder.rename(folder / "x")
        for file in (folder / "x").iterdir():
            file.rename(folder / file.name)
        (folder / "x").rmdir()
        place(folder, "mine", force=True)
    assert sorted(f.name for f in old.folder.iterdir()) == sorted(
        [FACTS, "model_index.json", "notes.txt", "unet"]
    )


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interruption_between_two_models_brings_the_old_one_back(
    home: Path, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make()
    rename = Path.rename

    def break_off(path: Path, target: Path) -> Path:
        if path.name.endswith(".part"):
            raise kind
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", break_off)
    with pytest.raises(kind), unfinished("mine") as folder:
        place(folder, "mine", force=True)
    assert find_installed("mine") == old and [f.name for f in home.iterdir()] == ["mine"]


def test_a_process_killed_between_two_models_loses_none(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make()
    now = time.time()
    old.folder.rename(home / ".mine.0a1b2c3d.before")
    monkeypatch.setattr(placing.time, "time", lambda: now + 25 * 3600)
    with unfinished("other"):
        pass
    assert (home / ".mine.0a1b2c3d.before").is_dir()  # however old it is
    with pytest.raises(ModelError, match="is imported already"):
        check_free("mine", force=False)
    assert find_installed("mine") == old


def test_a_process_killed_before_the_old_model_was_gone_is_made_up_for(home: Path) -> None:
    make("gone").folder.rename(home / ".mine.0a1b2c3d.before")
    (home / ".mine.0a1b2c3d.before" / "notes.txt").write_text("keep me")
    new = make()
    check_free("other", force=False)
    assert [f.name for f in home.iterdir()] == ["mine"]
    assert (new.folder / "notes.txt").exists() and find_installed("mine") == new


def test_imports_that_end_at_the_same_time_do_not_disturb_each_other(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".mine.old.part").mkdir(parents=True)

    is_dir = Path.is_dir

    def last_seen(path: Path) -> bool:
        there = is_dir(path)
        if path.name == ".mine.old.part":
            path.rmdir()
        return there

    monkeypatch.setattr(Path, "is_dir", last_seen)
    with unfinished("other") as folder:
        assert folder.exists()


def test_a_store_that_may_not_be_read_is_told_and_not_taken_for_empty(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make()

    def refuse(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ModelError, match=r"models: cannot be read .*ADDSR_MODELS"):
        list_installed()
    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(ModelError, match=r"models: cannot be read .*ADDSR_MODELS"):
        find_installed("mine")


@pytest.mark.parametrize("chosen", ["", "~nobody-of-that-name/models"])
def test_without_a_home_the_variable_is_asked_for(
    chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADDSR_MODELS", chosen)

    def homeless(*_: Any) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(ConfigError, match="set it to the whole path"):
        store_folder()


def test_the_slower_of_two_imports_does_not_replace_the_other() -> None:
    with unfinished("mine") as folder:
        quicker = make()
        with pytest.raises(ModelError, match="is imported already"):
            place(folder, "mine", force=False)
    assert find_installed("mine") == quicker


def test_a_model_stays_if_its_successor_cannot_be_placed(home: Path) -> None:
    old = make()
    with pytest.raises(OutputError, match="cannot be put in place"):
        place(home / "not-there", "mine", force=True)
    assert find_installed("mine") == old and [f.name for f in home.iterdir()] == ["mine"]


def test_only_what_was_imported_is_removed(home: Path) -> None:
    model = make()
    other = make("other")
    assert remove("mine") == []
    assert not model.folder.exists() and list_installed() == [other]
    (other.folder / "unet" / "notes.txt").write_text("keep me")
    assert remove("other") == [str(other.folder / "unet" / "notes.txt")]
    assert [f.name for f in other.folder.rglob("*") if f.is_file()] == ["notes.txt"]
    assert list_installed() == []


def test_files_that_are_gone_do_not_keep_a_model_from_removal() -> None:
    model = make()
    (model.folder / "model_index.json").unlink()
    assert remove("mine") == [] and not model.folder.exists()


def test_what_is_not_ours_cannot_be_removed(home: Path, tmp_path: Path) -> None:
    (home / "photos").mkdir(parents=True)
    for name in ("photos", "gone", "../store", "/etc"):
        with pytest.raises(ModelError, match="no imported model is called that"):
            remove(name)
    with pytest.raises(OptionError, match="embedded in addsr"):
        remove("compact")
    model = make()
    (home / "link").symlink_to(model.folder)
    with pytest.raises(ModelError, match="is a link"):
        remove("link")
    assert find_installed("mine") == model and (home / "photos").is_dir()


def test_a_folder_above_that_is_a_link_is_not_followed_by_removal(tmp_path: Path) -> None:
    model = make()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "weights.safetensors").write_text("precious")
    (model.folder / "unet" / "weights.safetensors").unlink()
    (model.folder / "unet").rmdir()
    (model.folder / "unet").symlink_to(outside)
    with pytest.raises(ModelError, match=r"unet.*leads out of the folder"):
        remove("mine")
    assert (outside / "weights.safetensors").exists()


def test_damage_is_found_and_the_file_named() -> None:
    model = make()
    seen: list[tuple[int, int]] = []
    assert damages(model, lambda done, total: seen.append((done, total))) == []
    assert seen[-1] == (7, 7)
    weights = model.folder / "unet" / "weights.safetensors"
    weights.write_bytes(b"1234x")
    assert [d.split(": ")[0] for d in damages(model)] == [str(weights)]
    assert "has changed" in damages(model)[0]
    weights.write_bytes(b"123")
    assert "has 3 bytes, not 5" in damages(model)[0]
    weights.unlink()
    (model.folder / "model_index.json").unlink()
    assert len(damages(model)) == 2 and "is missing" in damages(model)[1]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        measure(tmp_path)


def test_the_store_does_not_need_torch() -> None:
    assert "torch" not in vars(store)
