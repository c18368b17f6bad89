"""A pipeline's folder, laid out as diffusers does: an index, a folder per part, safetensors.

The U-Net, the VAE and the scheduler are diffusers' own and can be loaded by it; ours carry their
shape and a checksum.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from addsr.errors import AddsrError, ModelError, OptionError, OutputError
from addsr.models.files import load_weights, save_weights
from addsr.models.pipeline_files import INDEX, read_object, weights_name
from addsr.nets.limits import check_limits
from addsr.nets.stablesr import (
    CfwConfig,
    EncoderConfig,
    FeatureWrapping,
    SftConfig,
    SftLayers,
    TimeAwareEncoder,
)
from addsr.nets.stablesr.backbones import rebuild
from addsr.replacing import replacing

from .config import PipelineConfig

if TYPE_CHECKING:
    from .stablesr import StableSRPipeline

CLASS = "StableSRPipeline"
BACKBONES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
"""Networks of diffusers by the name of their folder."""
OURS: dict[str, tuple[Any, Any]] = {
    "encoder": (TimeAwareEncoder, EncoderConfig),
    "sft": (SftLayers, SftConfig),
    "cfw": (FeatureWrapping, CfwConfig),
}
"""Networks of ours by the name of their folder, and what describes their shape."""
_PROMPT = "empty_prompt"
_WRITTEN = "give a folder written by save_pretrained"


def save_parts(pipe: StableSRPipeline, folder: Path, variant: str | None) -> None:
    """Writes everything; the index comes last, so that a folder that has one is whole."""
    _remove(_make(folder) / INDEX)
    index: dict[str, Any] = {"_class_name": CLASS, **asdict(pipe.config)}
    for name, kind in BACKBONES.items():
        net: Any = pipe.components[name]
        part = _make(folder / name)
        _write_text(part / "config.json", net.to_json_string())
        save_weights(part / weights_name(variant), net.state_dict(), {"kind": kind, "config": {}})
        index[name] = ["diffusers", kind]
    for name, (kind, _) in OURS.items():
        net = pipe.components[name]
        if net is None:
            continue
        part = _make(folder / name)
        shape = asdict(net.config)
        _write_text(
            part / "config.json", json.dumps({"_class_name": kind.__name__, **shape}, indent=2)
        )
        save_weights(
            part / weights_name(variant), net.state_dict(), {"kind": name, "config": shape}
        )
        index[name] = ["addsr", kind.__name__]
    state = {"prompt_embeds": pipe.prompt_embeds}
    save_weights(
        _make(folder / _PROMPT) / weights_name(variant), state, {"kind": _PROMPT, "config": {}}
    )
    index[_PROMPT] = ["addsr", "Tensor"]
    if isinstance(pipe.scheduler, str):
        index["scheduler"] = ["addsr", pipe.scheduler]
    else:
        part = _make(folder / "scheduler")
        _write_text(part / "scheduler_config.json", pipe.scheduler.to_json_string())
        index["scheduler"] = ["diffusers", type(pipe.scheduler).__name__]
    _write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def load_parts(
    folder: Path,
    dtype: torch.dtype | None,
    variant: str | None,
    scheduler: Any,
) -> dict[str, Any]:
    """The arguments of the pipeline that was saved in `folder`."""
    index = read_object(folder / INDEX, _WRITTEN)
    if index.get("_class_name") != CLASS:
        raise ModelError(
            f"{folder / INDEX}: _class_name is {index.get('_class_name')!r}, not {CLASS!r}; give a "
            "folder written by StableSRPipeline.save_pretrained"
        )
    missing = [k for k in (*BACKBONES, "encoder", "sft", _PROMPT, "scheduler") if k not in index]
    if missing:
        raise ModelError(f"{folder / INDEX}: has no {', '.join(missing)}; fetch the model again")
    known = {field.name for field in fields(PipelineConfig)}
    try:
        shape = PipelineConfig(**{k: v for k, v in index.items() if k in known})
    except OptionError as error:
        raise ModelError(f"{folder / INDEX}: {error}") from error
    parts: dict[str, Any] = {"config": shape}
    for name, kind in BACKBONES.items():
        config = read_object(folder / name / "config.json")
        net = _meta(lambda kind=kind, config=config: rebuild(kind, config), folder / name)
        state = _read_tensors(folder / name / weights_name(variant))
        parts[name] = _filled(net, state, dtype, folder / name)
    for name, (kind, shape) in OURS.items():
        if name not in index:
            continue
        state, metadata = load_weights(folder / name / weights_name(variant))
        try:
            check_limits(metadata["config"])
            config = shape(**{k: _tuples(v) for k, v in metadata["config"].items()})
        except (TypeError, ValueError, KeyError, AttributeError, ModelError) as error:
            raise ModelError(f"{folder / name}: unknown shape ({error}); update addsr") from error
        net = _meta(lambda kind=kind, config=config: kind(config), folder / name)
        parts[name] = _filled(net, state, dtype, folder / name)
    state, _ = load_weights(folder / _PROMPT / weights_name(variant))
    if "prompt_embeds" not in state:
        raise ModelError(f"{folder / _PROMPT}: holds no prompt_embeds; fetch the model again")
    parts["prompt_embeds"] = state["prompt_embeds"]
    parts["scheduler"] = _read_scheduler(folder, index) if scheduler is None else scheduler
    return parts


def _read_scheduler(folder: Path, index: dict[str, Any]) -> Any:
    """The name of one of ours, or a scheduler of diffusers."""
    entry = index["scheduler"]
    if not isinstance(entry, list) or [type(one) for one in cast("list[Any]", entry)] != [str, str]:
        raise ModelError(
            f"{folder / INDEX}: scheduler = {entry!r} is no pair of texts; fetch the model again"
        )
    library, name = cast("list[str]", entry)
    if library == "addsr":
        return name
    config = read_object(folder / "scheduler" / "scheduler_config.json")
    return _built(lambda: rebuild(name, config), folder / "scheduler")


def find_folder(
    path_or_id: str | Path,
    revision: str | None,
    local_files_only: bool,
    variant: str | None = None,
    parts: Sequence[str] = ("*",),
) -> Path:
    """The local folder for a path or the name of a repository, downloaded if need be.

    Args:
        variant: whose weights are needed; those of others stay where they are.
        parts: names of the folders inside that are needed; all if not given.

    Raises:
        ModelError: there is neither.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    name = str(path_or_id)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(
            f"path_or_id: {name!r} is no folder; give one written by save_pretrained, or the "
            "owner/name of a repository"
        )
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            name,
            revision=revision,
            local_files_only=local_files_only,
            allow_patterns=_needed(variant, parts),
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"path_or_id: {name!r} is no folder, and no repository of that name could be fetched "
            f"({reason})"
        ) from error
    return Path(found)


def _needed(variant: str | None, parts: Sequence[str]) -> list[str]:
    """Patterns of the files that are read of a repository."""
    files = (
        "*.json",
        weights_name(variant),
        "model.safetensors",
        "*.txt",
    )  # the last of tokenizers
    return [INDEX, *(f"{part}/{name}" for part in parts for name in files)]


def _meta(build: Callable[[], Any], place: Path) -> nn.Module:
    """A network without memory, for its numbers come from a file."""
    with torch.device("meta"):
        return _built(build, place)


def _built(build: Callable[[], Any], place: Path) -> Any:
    """What `build` makes of the configuration in `place`."""
    try:
        return build()
    except ModelError as error:
        raise ModelError(f"{place}: {error}") from error
    except AddsrError:
        raise
    except Exception as error:  # of every kind: constructors check little
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{place}: nothing can be built of its configuration ({reason}); fetch the model again"
        ) from error


def _filled(
    net: nn.Module, state: dict[str, Tensor], dtype: torch.dtype | None, place: Path
) -> nn.Module:
    # copied: in the file numbers are not aligned, which makes other kernels round otherwise
    state = {k: v.to(dtype if v.is_floating_point() else None, copy=True) for k, v in state.items()}
    try:
        net.load_state_dict(state, assign=True)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise ModelError(f"{place}: the weights do not fit their config ({first})") from error
    return net.eval()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a file that diffusers or we have written."""
    if not path.is_file():
        raise ModelError(
            f"{path}: no weights file there; check `variant`, or fetch the model again"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: not a readable safetensors file ({error}); fetch it again"
        ) from error


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _make(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error}); give another folder") from error
    return folder


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be replaced ({error}); give another folder") from error


def _write_text(path: Path, text: str) -> None:
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error})") from error
