"""Weights by name or path: found, checked and built into a network."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.overrides import TorchFunctionMode

from addsr.errors import ModelError
from addsr.nets import build

from .files import FORMAT, load_weights
from .pipeline_files import INDEX, find_weights, read_object
from .published_folders import EVERY, STEP_NAMES, PublishedFolder
from .registry import (
    MODELS,
    ModelInfo,
    TiledInfo,
    info_for_file,
    info_for_pipeline,
    with_steps,
)
from .store import FACTS, find_installed, list_installed, read_facts

_PIPELINES = ("StableSRPipeline", "SeeSRPipeline", "AddSRPipeline")
_TABLES = 1 << 20
_CHECKPOINTS = (".ckpt", ".pt", ".pth", ".bin")
_ADAPTER_SIGNS = (".spade.", "structcond_stage_model.", ".fusion_layer_")


@dataclass(frozen=True)
class Model:
    """A network with its weights, and the facts about it."""

    net: nn.Module
    info: TiledInfo
    metadata: dict[str, Any]


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline that was found and not yet loaded, and the facts about it."""

    folder: Path
    info: ModelInfo
    index: dict[str, Any]
    """`model_index.json`."""


def embedded(name: str) -> Any:
    """Where the package keeps the weights of a model known by name (a resource, maybe zipped)."""
    return files("addsr.models") / "embedded" / f"{name}.safetensors"


def find_models() -> dict[str, float | None]:
    """For each model known by name the size of its weights in MB, None where they are missing."""
    found: dict[str, float | None] = {}
    for name in MODELS:
        resource = embedded(name)
        if resource.is_file():
            with as_file(resource) as path:
                found[name] = path.stat().st_size / 1e6
        else:
            found[name] = None
    return found


def find_pipeline(name_or_path: str | Path) -> PipelineFolder | None:
    """The imported pipeline of that name, or the one in that folder; None if it is none.

    Nothing but two small text files is read. None leaves the word to `load_model`: it is an
    embedded model, a weights file, or nothing at all.

    Raises:
        ModelError: the model was never imported, or the folder is damaged or of another kind.
    """
    name = str(name_or_path)
    if name in MODELS:
        return None
    installed = find_installed(name)
    if installed is None and name in STEP_NAMES:
        whole, steps = STEP_NAMES[name]
        found = find_pipeline(whole)
        if found is not None:
            return replace(found, info=with_steps(found.info, steps, name))
    if installed is not None and installed.kind == "tiny-decoder":
        raise ModelError(
            f"model: {name!r} is a tiny decoder and enlarges nothing alone; it serves AddSR's "
            "pipelines"
        )
    if installed is not None and installed.kind == "ram":
        raise ModelError(
            f"model: {name!r} names what is in pictures and enlarges none; it is for `addsr tag`"
        )
    if installed is not None:
        return _read_pipeline(name, installed.folder)
    if name in EVERY:
        raise ModelError(f"model: {name!r} is not installed; {_how_to_get(name)}")
    folder = Path(name_or_path)
    # os.path, because Path.is_dir raises for names that are too long
    if not os.path.isdir(folder):
        return None
    if _find_trained(folder) is not None and not (folder / INDEX).is_file():
        return None
    return _read_pipeline(folder.resolve().name, folder)


def _read_pipeline(name: str, folder: Path) -> PipelineFolder:
    path = folder / INDEX
    if not path.is_file():
        raise ModelError(
            f"model: {str(folder)!r} is a folder without {INDEX}; give one that `addsr models "
            "import` or save_pretrained wrote"
        )
    index = read_object(path, "import the model again")
    kind = index.get("_class_name")
    if kind not in _PIPELINES:
        raise ModelError(
            f"{path}: holds a pipeline of class {kind!r}, not {' or '.join(_PIPELINES)}; a Stable "
            "Diffusion serves as --base of `addsr models import`"
        )
    facts = read_facts(folder) if (folder / FACTS).is_file() else None
    size_mb = sum(part.stat().st_size for part in find_weights(folder)) / 1e6
    info = info_for_pipeline(
        name,
        index,
        None if facts is None else facts.kind,
        "not stated" if facts is None else facts.licence,
        size_mb,
    )
    return PipelineFolder(folder, info, index)


def _how_to_get(name: str) -> str:
    published = EVERY[name]
    if isinstance(published, PublishedFolder):
        own = f"`addsr models import FOLDER --as {name}` where its unet and controlnet are at hand"
        if not published.mirrors:
            return f"fetch it from {published.page}, then {own}"
    else:
        own = "`addsr models import FILE` where its checkpoint is at hand"
    return f"get it with `addsr models pull {name}`, or with {own}"


def _find_trained(folder: Path) -> Path | None:
    """The weights in a folder of training."""
    for trained in (folder / "weights" / "net-ema.safetensors", folder / "net-ema.safetensors"):
        if os.path.isfile(trained):
            return trained
    return None


def load_model(
    name_or_path: str | Path = "compact",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = torch.float32,
) -> Model:
    """The model called `name_or_path`, or the one in that safetensors file, ready to run.

    `dtype` None keeps the weights of an fp16 file in fp16; those of any other become fp32.

    Raises:
        ModelError: an unknown name, a missing or damaged file, weights that do not fit, a pipeline
            (`find_pipeline`).
    """
    name = str(name_or_path)
    if name in MODELS:
        resource = embedded(name)
        if not resource.is_file():
            raise ModelError(
                f"model: the weights of {name!r} (addsr/models/embedded/{name}.safetensors) are "
                "missing from this installation; reinstall with `pip install --force-reinstall "
                "addsr`, or give the path of a .safetensors file instead"
            )
        with as_file(resource) as path:
            return _load(path, MODELS[name], device, dtype)
    path = Path(name_or_path)
    trained = _find_trained(path)
    if trained is not None:
        raise ModelError(f"model: {name!r} is a folder of training; give {str(trained)!r}")
    if find_pipeline(name_or_path) is not None:
        raise ModelError(
            f"model: {name!r} is a pipeline and no single network; load it with addsr.load_model"
        )
    if not os.path.isfile(path):
        own = (model.name for model in list_installed())
        known = ", ".join(dict.fromkeys([*MODELS, *EVERY, *STEP_NAMES, *own]))
        raise ModelError(
            f"model: {name!r} is neither a known model ({known}) nor a file or folder; "
            "use one of these names or the path of a .safetensors file"
        )
    _refuse_unconverted(path)
    return _load(path, None, device, dtype)


def _refuse_unconverted(path: Path) -> None:
    """Tells files that have to be imported first, or are a part of something larger."""
    remedy = f"import it once with `addsr models import {path}`, then give the model's name"
    if path.suffix.lower() in _CHECKPOINTS:
        raise ModelError(f"model: {str(path)!r} is a checkpoint as it was published; {remedy}")
    try:
        with safe_open(path, framework="pt") as file:
            header = cast("dict[str, str]", file.metadata() or {})
            names = list(file.keys())
    except (SafetensorError, OSError):
        return  # `load_weights` tells
    if header.get("format") == FORMAT:
        if (path.parent.parent / INDEX).is_file():
            raise ModelError(
                f"model: {str(path)!r} is one part of a pipeline; give the folder "
                f"{str(path.parent.parent)!r}"
            )
    elif any(sign in name for name in names for sign in _ADAPTER_SIGNS):
        raise ModelError(f"model: {str(path)!r} is an adapter of StableSR, not converted; {remedy}")


def _load(
    path: Path, info: TiledInfo | None, device: str | torch.device, dtype: torch.dtype | None
) -> Model:
    state, metadata = load_weights(path)
    size_mb = path.stat().st_size / 1e6
    stated = info_for_file(info.name if info else path.name, metadata, size_mb)
    if info is not None:
        stated = replace(stated, licence=info.licence, description=info.description)
    halves = all(value.dtype == torch.float16 for value in state.values())
    # what is no parameter, such as tables, comes on top
    most = 2 * sum(value.numel() for value in state.values()) + _TABLES
    with _Born(dtype or (torch.float16 if halves else torch.float32), most):
        try:
            net = build(stated.kind, metadata.get("config", {}))
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise ModelError(f"{path}: the weights do not fit the network named ({first})") from error
    return Model(net.to(device=device).eval(), stated, metadata)


class _Born(TorchFunctionMode):
    """Lets a network come into being in `dtype`, so that no fp32 copy of it ever takes memory.

    It may have `most` numbers: a configuration that does not fit the file's weights could ask for
    more than there is memory. Local to the thread, as `torch.set_default_dtype` is not; the meta
    device would do the same but imports 75 MB and three seconds of torch.
    """

    def __init__(self, dtype: torch.dtype, most: int) -> None:
        super().__init__()
        self.dtype, self.most, self.made = dtype, most, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones):
            self._count(args, kwargs)
            if kwargs.get("dtype") is None:
                kwargs["dtype"] = self.dtype
        return func(*args, **kwargs)

    def _count(self, args: Any, kwargs: dict[str, Any]) -> None:
        size = kwargs.get("size", args)
        sides = size[0] if len(size) == 1 and isinstance(size[0], (tuple, list)) else size
        self.made += math.prod(cast("Sequence[int]", sides))
        if self.made > self.most:
            raise ModelError("the configuration is of a larger network than the weights")
