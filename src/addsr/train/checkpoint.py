"""Checkpoints: full ones to resume exactly, light ones to go on elsewhere or to ship."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from addsr.errors import ConfigError, ModelError, OutputError, TrainingError
from addsr.models.files import load_weights, save_weights

from .task import Task

PREFIX = "step-"

_KINDS = {
    "CompactNet": "compact",
    "Discriminator": "discriminator",
    "FeatureNet": "features",
    "TimeAwareEncoder": "encoder",
    "SftLayers": "sft",
    "FeatureWrapping": "cfw",
    "PatchGan": "patchgan",
    "TrainedLayers": "addsr",
    "ProjectedHeads": "projected",
    "SeeSRLayers": "seesr",
    "LoraUpdates": "dape",
}
"""What weights files call the networks."""

_PIPELINE_FILE = "diffusion_pytorch_model.safetensors"
"""Where a pipeline's folder keeps a part's weights."""


def save(
    folder: Path, task: Task, *, step: int, seconds: float, data: dict[str, Any], limit: int
) -> Path:
    """Writes a full checkpoint `folder/step-N` (atomic: built beside, then renamed).

    Keeps the newest `limit` checkpoints.

    Raises:
        OutputError: it cannot be written, say on a full disk; those that are there stay.
    """
    target = folder / f"{PREFIX}{step:08d}"
    building = folder / f".{target.name}.tmp"
    state = {
        "task": task.name,
        "step": step,
        "seconds": seconds,
        "data": data,
        "extra": task.extra_state(),
        "trained": {name: t.full_state() for name, t in task.trained.items()},
    }
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        torch.save(state, building / "state.pt")
        (building / "meta.json").write_text(json.dumps({"task": task.name, "step": step}))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(building, target)
    except (OSError, RuntimeError) as error:  # torch has no kind of its own for a full disk
        shutil.rmtree(building, ignore_errors=True)
        raise OutputError(
            f"{target}: checkpoint cannot be written ({error}); older ones are kept: make room, or "
            "give another run.output"
        ) from error
    for old in sorted(folder.glob(f"{PREFIX}*"))[:-limit]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def find(resume: str, folder: Path) -> Path | None:
    """The checkpoint that `resume` names: `latest` of `folder` (None if there is none), or a path.

    Raises:
        ConfigError: a path that is not a checkpoint.
    """
    if resume == "latest":
        found = sorted(folder.glob(f"{PREFIX}*"))
        return found[-1] if found else None
    path = Path(resume)
    if not (path / "state.pt").is_file():
        raise ConfigError(
            f"resume = {resume!r}: no state.pt there; give a step-* folder or 'latest'"
        )
    return path


def load(path: Path, task: Task, device: torch.device) -> dict[str, Any]:
    """Restores a full checkpoint into `task`; gives `{step, seconds, data}`.

    Raises:
        TrainingError: the file is damaged, or is of another task or network shape.
    """
    # what has no room on the device must not go through it
    where = torch.device("cpu") if task.recipe.optim.offload else device
    try:
        state = torch.load(path / "state.pt", map_location=where, weights_only=True)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            f"{path}: checkpoint cannot be read ({reason}); use an older one"
        ) from error
    made_by = cast("dict[str, Any]", state).get("task") if isinstance(state, dict) else None
    if made_by != task.name:
        raise TrainingError(f"{path}: a checkpoint of task {made_by!r}, not {task.name!r}")
    try:
        for name, trained in task.trained.items():
            trained.load_full_state(state["trained"][name])
    except (KeyError, RuntimeError, ValueError) as error:
        raise TrainingError(f"{path}: does not fit the recipe's networks ({error})") from error
    task.load_extra_state(state["extra"])
    return {"step": state["step"], "seconds": state["seconds"], "data": state["data"]}


def save_light(folder: Path, task: Task, *, step: int, run: str) -> None:
    """Writes fp16 weights and averages of every trained network: `NAME.safetensors`, `NAME-ema...`.

    This is what travels: a new run goes on from it (`--init FOLDER`) with a fresh, warmed-up
    optimiser, and the averaged file of the generator is what `addsr upscale --model` loads.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error}); give another run.output") from error
    for name, trained in task.trained.items():
        metadata = {
            **task.facts(),
            "kind": _KINDS[type(trained.net).__name__],
            "config": asdict(cast("Any", trained.net).config),
            "task": task.name,
            "step": str(step),
            "run": run,
            "licence": task.licence,
        }
        for suffix, which in (("", "masters"), ("-ema", "average")):
            half = {
                k: v.half() if v.is_floating_point() else v for k, v in trained.state(which).items()
            }
            save_weights(folder / f"{name}{suffix}.safetensors", half, metadata)


def load_light(path: Path, task: Task) -> list[str]:
    """Starts `task` from weights: a folder written by `save_light` or one of a pipeline, or one
    file for `net`.

    Networks that the folder lacks keep their fresh weights; gives the names that were loaded.

    Raises:
        ModelError: nothing usable there, or the tensors do not fit the network.
    """
    loaded: list[str] = []
    for name, trained in task.trained.items():
        if path.is_dir():
            file, average_file = path / f"{name}.safetensors", path / f"{name}-ema.safetensors"
            if not file.is_file() and average_file.is_file():
                file = average_file
            elif not file.is_file():
                file = path / name / _PIPELINE_FILE
        elif name == "net":
            file = average_file = path
        else:
            continue
        if not file.is_file():
            continue
        masters = _fitting(load_weights(file)[0], trained.names, file)
        has_average = average_file.is_file() and average_file != file
        average = (
            _fitting(load_weights(average_file)[0], trained.names, file) if has_average else None
        )
        try:
            trained.load(masters, average)
        except RuntimeError as error:
            raise ModelError(f"{file}: does not fit the recipe's [net] ({error})") from error
        loaded.append(name)
    if not loaded:
        raise ModelError(f"init = {str(path)!r}: no weights for {', '.join(task.trained)} there")
    return loaded


def _fitting(state: dict[str, Tensor], names: list[str], file: Path) -> dict[str, Tensor]:
    missing = [n for n in names if n not in state]
    if missing:
        raise ModelError(
            f"{file}: lacks {len(missing)} tensors, {missing[0]!r} first; wrong [net]?"
        )
    return {k: v.float() for k, v in state.items()}
