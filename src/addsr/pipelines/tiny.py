"""The tiny decoder's file: in a pipeline's folder, or an imported model of its own."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from addsr.errors import ConfigError, ModelError, OutputError
from addsr.models.convert_tiny import check_name, convert_tiny, is_tiny
from addsr.models.files import load_weights, save_weights
from addsr.models.pickles import read_state
from addsr.models.pipeline_files import weights_name
from addsr.models.store import list_installed
from addsr.nets import tuples
from addsr.nets.tiny_decoder import TinyDecoder, TinyDecoderConfig

log = logging.getLogger("addsr")

KIND = "tiny-decoder"
PART = "tiny_decoder"
"""Its folder in that of a pipeline."""
_MOST_BYTES = 256 << 20
"""A file with an encoder too has 10 MB; what is larger is not looked into."""


def read_published_tiny(path: str | Path, *, dtype: torch.dtype | None = None) -> TinyDecoder:
    """The decoder of a published file, taesd_decoder or an `AutoencoderTiny`, on the CPU.

    Args:
        path: safetensors, or a pickle of tensors.
        dtype: of its numbers; that of the file if None.

    Raises:
        ModelError: the file is missing, damaged or of another kind.
        DependencyError: diffusers is not installed.
    """
    path = Path(path)
    check_name(path)
    try:
        found = convert_tiny(read_state(path))
    except ModelError as error:
        text = str(error)
        raise ModelError(text if text.startswith(str(path)) else f"{path}: {text}") from error
    return _filled(found.config, found.state, dtype, path)


def takes(path: Path) -> bool:
    """Whether `path` is a tiny decoder's; what cannot be read is none."""
    try:
        return path.stat().st_size <= _MOST_BYTES and is_tiny(read_state(path))
    except (OSError, ModelError):
        return False


def save_tiny(net: TinyDecoder, folder: Path, variant: str | None = None) -> None:
    """Writes weights and shape into `folder`.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error}); give another folder") from error
    about = {"kind": KIND, "config": asdict(net.config)}
    save_weights(folder / weights_name(variant), net.state_dict(), about)


def load_tiny(
    folder: Path, *, dtype: torch.dtype | None = None, variant: str | None = None
) -> TinyDecoder:
    """The decoder that `save_tiny` or an import wrote, on the CPU.

    Raises:
        ModelError: the file is missing, damaged or of another kind.
        DependencyError: diffusers is not installed.
    """
    path = folder / weights_name(variant)
    state, metadata = load_weights(path)
    if metadata.get("kind") != KIND:
        raise ModelError(
            f"{path}: is of kind {metadata.get('kind')!r}, not {KIND!r}; give a tiny decoder's"
        )
    try:
        config = TinyDecoderConfig(**tuples(metadata["config"]))
    except (TypeError, ValueError, KeyError, AttributeError, ConfigError) as error:
        raise ModelError(f"{path}: unknown shape ({error}); update addsr") from error
    return _filled(config, state, dtype, path)


def find_tiny(dtype: torch.dtype | None = None) -> TinyDecoder | None:
    """The imported tiny decoder, the first by name; None if there is none.

    Raises:
        ModelError: its files are missing or damaged.
        DependencyError: diffusers is not installed.
    """
    there = [model for model in list_installed() if model.kind == KIND]
    if not there:
        return None
    if len(there) > 1:
        log.info("tiny decoder: %s of %s", there[0].name, ", ".join(m.name for m in there))
    return load_tiny(there[0].folder, dtype=dtype)


def misfits(folder: Path) -> list[str]:
    """What is wrong with a decoder's folder, one line for each; empty if nothing is.

    Raises:
        DependencyError: diffusers is not installed.
    """
    try:
        load_tiny(folder)
    except ModelError as error:
        return [str(error)]
    return []


def _filled(
    config: TinyDecoderConfig, state: dict[str, Any], dtype: torch.dtype | None, path: Path
) -> TinyDecoder:
    with torch.device("meta"):
        net = TinyDecoder(config)
    own = {k: v.to(dtype, copy=True).contiguous() for k, v in state.items()}
    try:
        net.load_state_dict(own, assign=True)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise ModelError(f"{path}: does not fit its shape ({first}); import it again") from error
    return net.eval().requires_grad_(False)
