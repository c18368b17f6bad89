"""Weights files: what is written comes back, and damage is noticed."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from addsr.errors import ModelError, OutputError
from addsr.models.files import digest, load_weights, save_weights

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(2.0).half()}
META = {"kind": "compact", "config": {"widths": [1, 2, 3]}, "run": "r1"}


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    sha256 = save_weights(path, STATE, META)
    state, metadata = load_weights(path)
    assert metadata["sha256"] == sha256 == digest(state)
    assert metadata["config"] == {"widths": [1, 2, 3]}
    assert metadata["kind"] == "compact"
    for name, tensor in STATE.items():
        assert torch.equal(state[name], tensor)
        assert state[name].dtype == tensor.dtype
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of this kind are POSIX")
def test_others_may_read_the_file_where_the_umask_says_so(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    before = os.umask(0o022)
    try:
        save_weights(path, STATE, META)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_transposed_and_shared_tensors_are_stored_as_they_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    base = torch.rand(3, 4)
    save_weights(path, {"t": base.T, "same": base}, META)
    state, _ = load_weights(path)
    assert torch.equal(state["t"], base.T)
    assert torch.equal(state["same"], base)


def test_the_digest_sees_names_types_and_values() -> None:
    reference = digest(STATE)
    assert digest(dict(reversed(STATE.items()))) == reference
    assert digest({**STATE, "b": STATE["b"] + 1}) != reference
    assert digest({**STATE, "b": STATE["b"].float()}) != reference
    assert digest({"c": STATE["b"], "a.weight": STATE["a.weight"]}) != reference


def test_a_changed_tensor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, STATE, META)
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(ModelError, match="do not match their sha256"):
        load_weights(path)


@pytest.mark.parametrize("cut", [0, 4, 100])
def test_a_truncated_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, STATE, META)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_weights(path)


def test_other_formats_and_newer_versions_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(STATE, path)
    with pytest.raises(ModelError, match="metadata format is None"):
        load_weights(path)
    header = {"format": "addsr", "format_version": "99", "sha256": digest(STATE)}
    save_file(STATE, path, metadata={**header, "config": json.dumps({})})
    with pytest.raises(ModelError, match="newer than 1; update addsr"):
        load_weights(path)


def test_a_missing_file_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights file there"):
        load_weights(tmp_path / "none.safetensors")
    with pytest.raises(OutputError, match="cannot be written"):
        save_weights(tmp_path / "none" / "w.safetensors", STATE, META)
