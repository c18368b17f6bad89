"""Published folders of SeeSR and AddSR into the store, with the parts of their base."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from addsr.errors import DependencyError, ModelError, OptionError
from addsr.models.convert_seesr import MARK, find_weights
from addsr.models.placing import (
    check_free,
    check_space,
    measure,
    measure_all,
    place,
    unfinished,
)
from addsr.models.published_folders import (
    FOLDERS,
    PARTS,
    PublishedFolder,
    by_folder_name,
    find_every,
    takes,
)
from addsr.models.store import (
    Installed,
    Part,
    Source,
    check_record,
    read_facts,
    record,
    write_facts,
)

from .addsr import AddSRPipeline
from .config import PipelineConfig
from .installing import DTYPES, Wish, base_folder
from .seesr import SeeSRPipeline
from .seesr_folder import assemble

__all__ = ["SeeSRPlan", "install_seesr", "plan_seesr", "takes"]

_CLASSES: dict[str, type[SeeSRPipeline]] = {"seesr": SeeSRPipeline, "addsr": AddSRPipeline}


@dataclass(frozen=True)
class SeeSRPlan:
    """One import: what the folder is."""

    name: str
    model: PublishedFolder
    folder: Path
    weights: tuple[Path, ...]
    """Of `PARTS`."""


def plan_seesr(files: Sequence[Path], wish: Wish) -> SeeSRPlan:
    """What the folder in `files` is; no weights are read.

    Raises:
        ModelError: it lacks a file, or it cannot be told which model it is.
        OptionError: an option that is about other models, or several models at once.
    """
    for option in ("prediction", "unet"):
        value = getattr(wish, option)
        if value is not None:
            raise OptionError(f"--{option}: {value!r} is not for SeeSR and AddSR; leave it out")
    if len(files) > 1:
        raise OptionError(
            f"FILE: {len(files)} are given with a folder of SeeSR or AddSR; import it alone, and "
            "the prompt extractor (RAM, DAPE) in a command of its own"
        )
    folder = files[0]
    model = by_folder_name(folder) if wish.variant is None else find_every(wish.variant)
    if model is None:
        raise ModelError(
            f"{folder}: the tensors of SeeSR and AddSR have the same names, and the folder is "
            f"called neither; say which it is: {' or '.join(f'--as {name}' for name in FOLDERS)}"
        )
    if not isinstance(model, PublishedFolder):
        raise OptionError(
            f"--as: {model.name} is published as files and not as a folder; use one of "
            f"{', '.join(FOLDERS)}"
        )
    name = wish.name or model.name
    check_free(name, wish.force)
    weights = tuple(find_weights(folder / part) for part in PARTS)
    return SeeSRPlan(name, model, folder, weights)


def install_seesr(
    plan: SeeSRPlan, wish: Wish, on_stage: Callable[[str, int, int], None] | None = None
) -> Installed:
    """Puts the networks of `plan` and the parts of their base into the store, or nothing.

    Raises:
        ModelError: a tensor is missing or unknown, or the base cannot be had.
        OutputError: the disk has no room, or cannot be written.
        DependencyError: diffusers or transformers is missing.
    """
    tell = on_stage or (lambda _what, _done, _total: None)
    if find_spec("transformers") is None:
        raise DependencyError(  # before a base is downloaded
            f"{plan.name} needs transformers for its prompts: pip install 'addsr[diffusion]'"
        )
    model = plan.model
    measured: list[tuple[str, Part, str]] = []
    for part, path in zip(PARTS, plan.weights, strict=True):
        known_as = f"{model.name}/{part}/{path.name}"
        size = measure(
            path,
            lambda done, total, part=part: tell(f"reading {part} (MB)", done >> 20, total >> 20),
        )
        check_record(path, known_as, size, wish.force)
        measured.append((known_as, size, part))
    needed = ["vae", "text_encoder", "tokenizer", *(["unet"] if model.takes_base_unet else [])]
    home, base = base_folder(model.base, wish.base, needed)
    assert home is not None, "there are parts that are needed"
    tell("converting", 0, 1)
    dtype = DTYPES[wish.dtype]
    parts = assemble(
        plan.folder, home, home, dtype, None, True, takes_base_unet=model.takes_base_unet
    )
    parts["text_encoder"].to(dtype)
    for part in (*PARTS, "vae"):
        _check_finite(parts[part], part, wish.dtype)
    config = PipelineConfig(
        tile=wish.tile or 512, steps=model.steps, fidelity=0.0, guidance=model.guidance
    )
    pipe = _CLASSES[model.kind](**parts, config=config)
    tell("writing", 0, 1)
    check_space(_bytes([*pipe.networks.values(), parts["text_encoder"].encoder]))
    licence = model.full_licence
    if wish.base is not None and base not in model.base.mirrors:
        licence += f"; {base}: as stated there"
    with unfinished(plan.name) as folder:
        pipe.save_pretrained(folder)
        installed = Installed(
            name=plan.name,
            folder=folder,
            kind=model.kind,
            licence=licence,
            sources=tuple(
                Source(name, size.bytes, size.sha256, _account(parts[part], part, model))
                for name, size, part in measured
            ),
            base=base,
            imported=datetime.date.today().isoformat(),
            variant=model.name,
            prediction=config.prediction,
            tile=config.tile,
            dtype=wish.dtype,
        )
        write_facts(replace(installed, files=measure_all(folder)))
        target = place(folder, plan.name, wish.force)
    for name, size, _part in measured:
        record(name, size)
    tell("writing", 1, 1)
    return read_facts(target)


def _account(net: nn.Module, part: str, model: PublishedFolder) -> str:
    """What became of a file's tensors; loading refuses one that would not be listed here."""
    names = list(net.state_dict())
    added = sum(MARK in name for name in names)
    rest = len(names) - added
    if part == "unet" and model.takes_base_unet:
        return f"image attention ({added} tensors), U-Net ({rest} tensors left out, the base's)"
    what = "U-Net" if part == "unet" else "ControlNet"
    return f"image attention ({added} tensors), {what} ({rest} tensors)"


def _check_finite(net: nn.Module, part: str, dtype: str) -> None:
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(
                f"{part}: {name} holds NaN, infinity or numbers too large for {dtype}; use "
                "--dtype fp32, or fetch the file again"
            )


def _bytes(nets: Sequence[Any]) -> int:
    return sum(t.numel() * t.element_size() for net in nets for t in net.state_dict().values())
