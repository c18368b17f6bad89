"""Weights by name or path: found, checked and built into a network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from addsr.errors import ModelError
from addsr.nets import build

from .files import load_weights
from .registry import MODELS, ModelInfo, info_for_file


@dataclass(frozen=True)
class Model:
    """A network with its weights, and the facts about it."""

    net: nn.Module
    info: ModelInfo
    metadata: dict[str, Any]


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


def load_model(
    name_or_path: str | Path = "compact",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = torch.float32,
) -> Model:
    """The model called `name_or_path`, or the one in that safetensors file, ready to run.

    `dtype` None keeps the weights of an fp16 file in fp16; those of any other become fp32.

    Raises:
        ModelError: an unknown name, a missing or damaged file, weights that do not fit.
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
    for trained in (path / "weights" / "net-ema.safetensors", path / "net-ema.safetensors"):
        if trained.is_file():
            raise ModelError(f"model: {name!r} is a folder of training; give {str(trained)!r}")
    if not path.is_file():
        raise ModelError(
            f"model: {name!r} is neither a known model ({', '.join(MODELS)}) nor a file; "
            "use one of these names or the path of a .safetensors file"
        )
    return _load(path, None, device, dtype)


def _load(
    path: Path, info: ModelInfo | None, device: str | torch.device, dtype: torch.dtype | None
) -> Model:
    state, metadata = load_weights(path)
    size_mb = path.stat().st_size / 1e6
    stated = info_for_file(info.name if info else path.name, metadata, size_mb)
    if info is not None:
        stated = replace(stated, licence=info.licence, description=info.description)
    halves = all(value.dtype == torch.float16 for value in state.values())
    with _Born(dtype or (torch.float16 if halves else torch.float32)):
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

    Local to the thread, as `torch.set_default_dtype` is not; the meta device would do the same but
    imports 75 MB and three seconds of torch.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones) and kwargs.get("dtype") is None:
            kwargs["dtype"] = self.dtype
        return func(*args, **kwargs)
