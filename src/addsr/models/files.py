"""Weights on disk: safetensors with what is needed to rebuild the network, written atomically."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from addsr.errors import ModelError, OutputError
from addsr.replacing import replacing

FORMAT = "addsr"
FORMAT_VERSION = 1


def digest(state: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of a state dict, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return total.hexdigest()


def save_weights(path: str | Path, state: dict[str, Tensor], metadata: dict[str, Any]) -> str:
    """Writes `state` to `path` through a temporary file beside it; gives the sha256 of the tensors.

    `metadata` holds at least `kind` and `config`; values that are not strings are stored as JSON.

    Raises:
        OutputError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    state = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    sha256 = digest(state)
    header = {**metadata, "format": FORMAT, "format_version": str(FORMAT_VERSION), "sha256": sha256}
    flat = {k: v if isinstance(v, str) else json.dumps(v) for k, v in header.items()}
    try:
        with replacing(path) as temporary:
            temporary.open("xb").close()
            save_file(state, temporary, metadata=flat)
            temporary.chmod(_mode())
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path}: weights cannot be written ({error})") from error
    return sha256


def _mode() -> int:
    """Permissions of a new file under the user's umask (safetensors makes private ones)."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`(state, metadata)` of a file written by `save_weights`, on the CPU, checksum verified.

    Raises:
        ModelError: the file is missing, damaged, of another format or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no weights file there; give the path of a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = cast("dict[str, str]", file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: not a readable safetensors file ({error}); fetch it again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ModelError(f"{path}: metadata format is {metadata.get('format')!r}, not {FORMAT!r}")
    version = metadata.get("format_version", "?")
    if not version.isdecimal() or int(version) > FORMAT_VERSION:
        raise ModelError(
            f"{path}: format_version {version} is newer than {FORMAT_VERSION}; update addsr"
        )
    if metadata.get("sha256") != digest(state):
        raise ModelError(f"{path}: the tensors do not match their sha256; fetch the file again")
    parsed: dict[str, Any] = dict(metadata)
    if "config" in parsed:
        parsed["config"] = json.loads(parsed["config"])
    return state, parsed
