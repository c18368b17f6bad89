"""Checkpoints of strangers are read as data: whatever they name, nothing runs."""

from __future__ import annotations

import collections
import os
import pathlib
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from addsr.errors import ModelError
from addsr.models import pickle_structure, pickles
from addsr.models.pickles import read_state

WEIGHTS = {"a.weight": torch.arange(12.0).view(3, 4), "a.bias": torch.ones(3, dtype=torch.half)}


class Calls:
    """Pickled, it asks for a call when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced: tuple[Any, ...] = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


class Foreign:
    ran = False

    def __init__(self) -> None:
        self.value = torch.zeros(2)

    def __setstate__(self, state: Any) -> None:
        Foreign.ran = True


class ForeignDict(dict[str, Any]):
    pass


def checkpoint(path: Path, extra: Any, *, is_zip: bool = True) -> Path:
    content = {"epoch": 117, "state_dict": WEIGHTS, "extra": extra}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    return path


def same(state: Any) -> bool:
    return list(state) == list(WEIGHTS) and all(torch.equal(state[k], WEIGHTS[k]) for k in state)


def replace_pickle(path: Path, content: bytes) -> Path:
    """The checkpoint with another structure, its tensors kept."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, content if name.endswith("/data.pkl") else data)
    return path


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old-form"])
@pytest.mark.parametrize(
    "extra",
    [
        {Foreign: {"best": torch.ones(1)}, "callback": Foreign()},
        np.float64(0.5),
        pathlib.PurePosixPath("/runs"),
        ForeignDict(lr=1e-4),
        collections.defaultdict(list, {1: [2]}),
        collections.Counter("abc"),
        torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]),
        10**400,
    ],
    ids=["classes", "numpy", "path", "dict", "defaultdict", "counter", "optimizer", "integer"],
)
def test_what_training_programs_leave_in_a_checkpoint_is_passed_over(
    tmp_path: Path, extra: Any, is_zip: bool
) -> None:
    assert same(read_state(checkpoint(tmp_path / "a.ckpt", extra, is_zip=is_zip)))
    assert not Foreign.ran


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old-form"])
@pytest.mark.parametrize("name", ["eval", "exec", "getattr", "__import__"])
def test_functions_of_python_are_never_called(tmp_path: Path, name: str, is_zip: bool) -> None:
    trace = tmp_path / "ran"
    code = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    call = Calls(getattr(__builtins__, name, None) or __builtins__[name], code)
    assert same(read_state(checkpoint(tmp_path / "a.ckpt", call, is_zip=is_zip)))
    assert not trace.exists()


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old-form"])
def test_modules_that_a_file_names_are_not_imported(tmp_path: Path, is_zip: bool) -> None:
    folder = tmp_path / "lib"
    folder.mkdir()
    (folder / "left_trace.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nclass A: pass\n"
    )
    module = types.ModuleType("left_trace")
    module.A = type("A", (), {"__module__": "left_trace"})  # type: ignore[attr-defined]
    sys.modules["left_trace"] = module
    path = checkpoint(tmp_path / "a.ckpt", module.A(), is_zip=is_zip)
    del sys.modules["left_trace"]
    sys.path.insert(0, str(folder))
    try:
        assert same(read_state(path))
    finally:
        sys.path.remove(str(folder))
    assert "left_trace" not in sys.modules and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old-form"])
def test_a_call_of_the_system_is_refused_by_name(tmp_path: Path, is_zip: bool) -> None:
    trace = tmp_path / "ran"
    path = checkpoint(tmp_path / "a.ckpt", Calls(os.system, f"touch {trace}"), is_zip=is_zip)
    with pytest.raises(ModelError, match=r"a\.ckpt: .*names (posix|nt)\.system, which only an"):
        read_state(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "module_and_name",
    ["os\nsystem", "posix\nsystem", "__builtin__\neval", "os\nsystem\u00e9", "sys\nexit"],
)
def test_a_structure_that_is_a_call_alone_gives_nothing(
    tmp_path: Path, module_and_name: str
) -> None:
    trace = tmp_path / "ran"
    code = f"touch {trace}".encode()
    content = b"\x80\x02c" + module_and_name.encode() + b"\nX" + struct.pack("<I", len(code)) + code
    path = replace_pickle(checkpoint(tmp_path / "a.ckpt", None), content + b"\x85R.")
    with pytest.raises(ModelError, match=r"tensors alone|holds no state_dict"):
        read_state(path)
    assert not trace.exists()


def test_newer_ways_to_name_a_class_are_refused_and_not_followed(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    content = pickle.dumps(Calls(eval, f"open({str(trace)!r}, 'w')"), protocol=4)
    path = replace_pickle(checkpoint(tmp_path / "a.ckpt", None), content)
    with pytest.raises(ModelError, match="tensors alone"):
        read_state(path)
    assert not trace.exists()


def test_classes_a_program_made_known_are_stand_ins_too_and_stay_known(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt", Foreign())
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([Foreign]):
        assert same(read_state(path))
        assert not Foreign.ran
        assert set(torch.serialization.get_safe_globals()) == {Foreign, *before}
    assert set(torch.serialization.get_safe_globals()) == before


def test_nothing_more_is_known_after_a_failure(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    path = checkpoint(tmp_path / "a.ckpt", [1, Foreign()])
    replace_pickle(path, b"\x80\x02cstrange\nThing\n)\x81]b")
    with pytest.raises(ModelError):
        read_state(path)
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old-form"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.98])
def test_a_file_that_was_cut_off_is_told(tmp_path: Path, share: float, is_zip: bool) -> None:
    path = checkpoint(tmp_path / "a.ckpt", Foreign(), is_zip=is_zip)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=r"a\.ckpt: cannot be read as tensors alone .* again"):
        read_state(path)


def test_a_structure_of_thirty_thousand_levels_does_no_harm(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt", None)
    for content in (
        b"\x80\x02" + b"]" * 30_000 + b"a" * 29_999 + b".",
        b"\x80\x02)" + b"\x85" * 30_000 + b".",
    ):
        with pytest.raises(ModelError, match=r"tensors alone|holds no state_dict"):
            read_state(replace_pickle(path, content))


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old-form"])
@pytest.mark.parametrize(
    "key",
    [b")" + b"\x85" * 300_000, b")q\x00" + b"h\x00h\x00\x86q\x00" * 60],
    ids=["deep", "doubled"],
)
def test_keys_that_python_would_walk_through_for_ever_are_refused(
    tmp_path: Path, key: bytes, is_zip: bool
) -> None:
    content = b"\x80\x02}" + key + b"K\x01s."
    if is_zip:
        path = replace_pickle(checkpoint(tmp_path / "a.ckpt", None), content)
    else:  # in the list of keys at the end, where torch hashes them too
        path = checkpoint(tmp_path / "a.ckpt", None, is_zip=False)
        whole = path.read_bytes()
        start = whole.rindex(b"\x80\x02]q\x00")
        path.write_bytes(whole[:start] + content)
    with pytest.raises(ModelError, match="tuples in tuples of an extreme size"):
        read_state(path)


def test_what_has_no_name_is_not_called_and_not_printed(tmp_path: Path) -> None:
    doubled = b"]q\x00" + b"](h\x00h\x00eq\x00" * 60
    for call in (b")R.", b")\x81."):
        path = replace_pickle(checkpoint(tmp_path / "a.ckpt", None), b"\x80\x02" + doubled + call)
        with pytest.raises(ModelError, match="calls something that has no name"):
            read_state(path)


@pytest.mark.parametrize(
    "content", [b"\x80\x02R.", b"\x80\x02h\x07.", b"\x80\x02e.", b"\x80\x02s."]
)
def test_structures_that_take_what_is_not_there_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelError, match="has a malformed structure"):
        read_state(replace_pickle(checkpoint(tmp_path / "a.ckpt", None), content))


def test_capitals_do_not_hide_a_structure(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt", None)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:  # torch takes the folder of the first entry
        for name, data in entries.items():
            if name.endswith("/data.pkl"):
                name, data = (
                    name.replace("data.pkl", "DATA.PKL"),
                    b"\x80\x02)" + b"\x85" * 200 + b".",
                )
            archive.writestr(name, data)
        archive.writestr("other/data.pkl", b"\x80\x02}.")
    with pytest.raises(ModelError, match="tuples in tuples of an extreme size"):
        read_state(path)


def test_files_without_checksums_of_the_archive_are_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = checkpoint(tmp_path / "a.ckpt", None)
    finally:
        torch.serialization.set_crc32_options(before)
    assert same(read_state(path))


def test_methods_that_a_file_brings_along_are_not_those_that_are_called(tmp_path: Path) -> None:
    odd = torch.ones(3)
    odd.numel = odd.to = Foreign  # type: ignore[assignment]
    methods = {"items": Foreign, "keys": Foreign, "get": Foreign}
    state = Calls(collections.OrderedDict)
    state.reduced = collections.OrderedDict, (), methods, None, iter([("a.weight", odd)])
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    read = read_state(tmp_path / "a.ckpt")["a.weight"]
    assert read.numel() == 3 and torch.equal(read.to(torch.half), torch.ones(3).half())
    assert not vars(read)


def test_trained_parameters_come_without_their_gradients(tmp_path: Path) -> None:
    torch.save({"a": torch.nn.Parameter(torch.ones(2))}, tmp_path / "a.ckpt")
    assert not read_state(tmp_path / "a.ckpt")["a"].requires_grad


def test_one_tensor_under_a_thousand_names_is_refused(tmp_path: Path) -> None:
    one = torch.zeros(1000)
    torch.save({"a": one, "b": one}, tmp_path / "tied.ckpt")
    assert len(read_state(tmp_path / "tied.ckpt")) == 2
    torch.save({f"{k}.weight": one for k in range(1000)}, tmp_path / "a.ckpt")
    with pytest.raises(ModelError, match=r"claim 0\.00 GB, more than the file holds"):
        read_state(tmp_path / "a.ckpt")


def test_a_disk_that_cannot_be_read_is_not_taken_for_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint(tmp_path / "a.ckpt", None)

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pickles, "_load", refuse)
    with pytest.raises(ModelError, match=r"a\.ckpt: cannot be read \(.*denied.*rights"):
        read_state(path)


def test_archives_that_grow_when_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint(tmp_path / "a.ckpt", "x" * 3000)
    monkeypatch.setattr(pickles, "MAX_STRUCTURE_BYTES", 2000)
    with pytest.raises(ModelError, match="structure of an extreme size"):
        read_state(path)
    monkeypatch.undo()
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(ModelError, match=r"is compressed, which torch\.save never does"):
        read_state(path)


def test_an_old_file_with_an_extreme_structure_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint(tmp_path / "a.ckpt", "x" * 3000, is_zip=False)
    monkeypatch.setattr(pickle_structure, "MAX_STRUCTURE_BYTES", 2000)
    with pytest.raises(ModelError, match="structure of an extreme size"):
        read_state(path)


def test_too_many_foreign_names_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickles, "MAX_FOREIGN_NAMES", 1)
    with pytest.raises(ModelError, match="names 2 foreign classes"):
        read_state(checkpoint(tmp_path / "a.ckpt", [Foreign, ForeignDict]))


def test_an_archive_of_other_files_is_told_to_be_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "webui_512v_models.zip", "w") as archive:
        archive.writestr("models/stablesr.ckpt", "x")
    with pytest.raises(ModelError, match=r"archive of other files: models/stablesr\.ckpt; unpack"):
        read_state(tmp_path / "webui_512v_models.zip")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1).expand(10**9), "claims more numbers than the file holds"),
        (torch.eye(3).to_sparse(), "no plain tensor"),
        (torch.zeros(2, device="meta"), "no plain tensor"),
        (torch.zeros(2, dtype=torch.complex64), "no plain tensor"),
    ],
    ids=["expanded", "sparse", "meta", "complex"],
)
def test_tensors_that_are_not_plain_are_refused(
    tmp_path: Path, tensor: Tensor, message: str
) -> None:
    torch.save({"state_dict": {"odd.weight": tensor}}, tmp_path / "a.ckpt")
    with pytest.raises(ModelError, match=rf"odd\.weight .*{message}"):
        read_state(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    "content", [[1], {}, {"state_dict": {}}, {"a": 1}, {1: torch.ones(1)}, {"state_dict": 3}]
)
def test_files_without_named_tensors_are_told(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ModelError, match=r"a\.ckpt: holds no state_dict"):
        read_state(tmp_path / "a.ckpt")
