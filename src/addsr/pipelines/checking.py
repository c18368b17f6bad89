"""Whether the weights in a pipeline's folder fit the networks their configuration names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from addsr.errors import AddsrError, ModelError
from addsr.models.convert_seesr import seesr_shape
from addsr.models.pipeline_files import INDEX, TEXT_ENCODER, read_object
from addsr.nets.limits import check_limits
from addsr.nets.stablesr.backbones import rebuild

from .folder import BACKBONES, OURS, weights_name
from .seesr_folder import CLASSES as SEESR_CLASSES
from .text import PromptEncoder


def misfits(folder: Path) -> list[str]:
    """One line for each part whose weights do not fit; names and shapes are read, numbers not.

    Raises:
        DependencyError: diffusers is not installed.
    """
    found: list[str] = []
    index = read_object(folder / INDEX)
    if index.get("_class_name") in SEESR_CLASSES:
        return _misfits_of_seesr(folder, index)
    for part in (*BACKBONES, *OURS):
        if part == "cfw" and not (folder / part).is_dir():
            continue
        found += _compare(folder / part / weights_name(None), lambda part=part: _net(folder, part))
    return found


def _compare(path: Path, build: Callable[[], nn.Module]) -> list[str]:
    """What does not fit between a weights file and its network, in a line at most."""
    try:
        wanted = {k: list(v.shape) for k, v in build().state_dict().items()}
        there = _shapes(path)
    except ModelError as error:
        return [str(error)]
    wrong = [k for k in sorted({*wanted, *there}) if wanted.get(k) != there.get(k)]
    if not wrong:
        return []
    k = wrong[0]
    return [
        f"{path}: {len(wrong)} tensors do not fit, such as {k} {there.get(k, 'missing')}, "
        f"not {wanted.get(k, 'known')}"
    ]


def _misfits_of_seesr(folder: Path, index: Mapping[str, Any]) -> list[str]:
    """The same for SeeSR and AddSR; their text encoder, which is small, is loaded."""
    found: list[str] = []
    for part in ("unet", "controlnet"):
        path = folder / part / weights_name(None)
        found += _compare(path, lambda part=part: seesr_shape(folder / part, part))
    vae = folder / "vae"
    found += _compare(vae / weights_name(None), lambda: _net(folder, "vae"))
    if TEXT_ENCODER in index:
        try:
            PromptEncoder.from_pretrained(folder, local_files_only=True)
        except ModelError as error:
            found.append(str(error))
    return found


def _net(folder: Path, part: str) -> nn.Module:
    """The part without numbers."""
    path = folder / part / "config.json"
    config = read_object(path)
    try:
        with torch.device("meta"):
            if part in BACKBONES:
                return rebuild(BACKBONES[part], config)
            check_limits(config)
            net, shape = OURS[part]
            own = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
            return net(shape(**{k: v for k, v in own.items() if k != "_class_name"}))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except AddsrError:
        raise
    except Exception as error:  # a wrong number in it can fail anywhere in a network
        raise ModelError(f"{path}: no network can be built from it ({error})") from error


def _shapes(path: Path) -> dict[str, list[int]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {k: list(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error})") from error
