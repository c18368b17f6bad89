"""Models of this project as they are evaluated: compact, weights files, pipelines of StableSR.

What a model is and which bytes it consists of is found out without loading it: a run whose results
are all in the cache never does.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources import as_file
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from addsr.engines.device import choose_device, choose_dtype, choose_latent_dtype
from addsr.errors import ModelError
from addsr.models.files import FORMAT
from addsr.models.hub import PipelineFolder, embedded, find_pipeline, load_model
from addsr.models.pipeline_files import INDEX, find_files
from addsr.models.published import by_file_name
from addsr.models.published_folders import EVERY
from addsr.models.registry import MODELS, PIPELINE_KINDS, ModelInfo, TiledInfo, info_for_file
from addsr.models.store import find_installed, find_tagger

from .cache import hash_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelOptions:
    """How models are run; None: as each does by default."""

    steps: tuple[int, ...] | None = None
    fidelity: float | None = None
    color: str | None = None
    seed: int = 0
    tile: int | Literal["auto"] = "auto"
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Ours:
    """A model that was found and not loaded."""

    model: str
    """As `Upscaler` takes it."""
    name: str
    info: ModelInfo
    sha256: str
    """Of the weights file; of the names and sha256 of all files that a pipeline is loaded from."""


@dataclass(frozen=True)
class OurModel:
    """A model of this project, run as `addsr upscale` runs it."""

    model: str = field(repr=False)
    scale: int
    steps: int
    fidelity: float
    color: str
    seed: int
    tile: int | Literal["auto"]
    device_name: str
    dtype: str
    has_fidelity: bool = field(default=True, repr=False)
    """Whether `fidelity` changes anything; where it does not, the model must not be asked."""

    @classmethod
    def make(cls, own: Ours, scale: int, steps: int | None, options: ModelOptions) -> OurModel:
        """The model as `options` want it run.

        Raises:
            OptionError: the model does not allow one of them.
        """
        info = own.info
        device = choose_device(options.device)
        choose = choose_latent_dtype if info.kind in PIPELINE_KINDS else choose_dtype
        names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        return cls(
            model=own.model,
            scale=scale,
            steps=info.check_steps(steps),
            fidelity=info.check_fidelity(options.fidelity),
            color=options.color or info.default_color,
            seed=options.seed,
            tile=options.tile,
            device_name=str(device),
            dtype=names[choose(options.dtype, device)],
            has_fidelity=info.fidelity_drives is not None,
        )

    @property
    def device(self) -> torch.device:
        return torch.device(self.device_name)

    def details(self) -> dict[str, Any]:
        """What a report says of it."""
        numbers = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
        return {
            "fidelity": self.fidelity,
            "color": self.color,
            "seed": self.seed,
            "tile": self.tile,
            "device": self.device_name,
            "dtype": numbers[self.dtype],
        }

    @contextmanager
    def open(self) -> Generator[Callable[[Tensor], Tensor]]:
        """Gives the upscaler, kept in memory as long as the context lasts."""
        from addsr.upscaler import Upscaler

        with Upscaler(
            self.model,
            scale=self.scale,
            steps=self.steps,
            fidelity=self.fidelity if self.has_fidelity else None,
            color=self.color,
            seed=self.seed,
            device=self.device_name,
            dtype=self.dtype,
            tile=self.tile,
        ) as up:
            yield up


def find_ours(what: str) -> Ours | None:
    """The model of this project that a word means, if it means one.

    A name goes before a folder of that name. A folder is a model where it has a pipeline's index;
    any other may hold results.

    Raises:
        ModelError: it is not installed, not imported yet, or one of its files is damaged.
    """
    if what in MODELS:
        resource = embedded(what)
        if not resource.is_file():
            load_model(what)  # raises what there is to say
        with as_file(resource) as path:
            info = _facts(path, _header(path), what)
            return Ours(what, what, replace(info, licence=MODELS[what].licence), hash_file(path))
    path = Path(what)
    if os.path.isfile(path):  # Path.is_file raises for names that are too long
        return _find_file(path)
    found = _find_pipeline(what)
    if found is None:
        return None
    return Ours(what, found.info.name, found.info, _hash_pipeline(found))


def _find_file(path: Path) -> Ours | None:
    """A weights file of ours; None for one of others."""
    if path.suffix.lower() == ".safetensors":
        header = _header(path)
        if header.get("format") == FORMAT:
            return Ours(str(path), path.stem, _facts(path, header, path.name), hash_file(path))
    if by_file_name(path.name):
        raise ModelError(
            f"METHOD: {path} is a checkpoint as it was published; import it once with "
            f"`addsr models import {path}`, then give the model's name"
        )
    return None


def _find_pipeline(what: str) -> PipelineFolder | None:
    is_folder = os.path.isdir(what)
    if is_folder and not os.path.isfile(os.path.join(what, INDEX)) and find_installed(what) is None:
        if what in EVERY:
            raise ModelError(
                f"METHOD: the model {what} is not installed; write {os.path.join('.', what)} if "
                "the folder of that name is meant"
            )
        return None
    return find_pipeline(what)


def _hash_pipeline(found: PipelineFolder) -> str:
    """sha256 over the names and sha256 of all files that are loaded, and the kind.

    They are read anew, for what an import noted about them says nothing about a file that was
    replaced since; to load them takes as long.
    """
    log.info("%s: reading %.0f MB to tell the weights", found.info.name, found.info.size_mb)
    total = hashlib.sha256(found.info.kind.encode())
    for path in find_files(found.folder):
        try:
            content = hash_file(path)
        except OSError as error:
            raise ModelError(
                f"{path}: cannot be read ({error.strerror}); check its permissions"
            ) from error
        total.update(f"\n{path.relative_to(found.folder).as_posix()} {content}".encode())
    tagger = find_tagger() if found.info.kind in ("seesr", "addsr") else None
    for name, part in {} if tagger is None else tagger.files.items():
        total.update(f"\ntagger/{name} {part.sha256}".encode())
    return total.hexdigest()


def _header(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return cast("dict[str, str]", file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: not a readable safetensors file ({error}); fetch it again"
        ) from error


def _facts(path: Path, header: dict[str, str], name: str) -> TiledInfo:
    """What a weights file says of itself."""
    metadata: dict[str, Any] = dict(header)
    if "config" in metadata:
        try:
            metadata["config"] = json.loads(metadata["config"])
        except ValueError as error:
            raise ModelError(f"{path}: its config is no JSON ({error}); fetch it again") from error
    return info_for_file(name, metadata, path.stat().st_size / 1e6)
