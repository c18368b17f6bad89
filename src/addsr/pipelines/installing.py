"""Published files into the store of imported models: recognised, converted, written at once."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from addsr.diffusion.ddpm import Prediction
from addsr.errors import DependencyError, ModelError, OptionError
from addsr.models.convert_stablesr import IGNORED
from addsr.models.download import find_base, has_parts
from addsr.models.pickles import read_state
from addsr.models.placing import (
    check_free,
    check_space,
    measure,
    measure_all,
    place,
    unfinished,
)
from addsr.models.published import (
    PUBLISHED,
    Base,
    Published,
    by_file_name,
    file_by_name,
    find_published,
)
from addsr.models.published_folders import find_every
from addsr.models.renaming import layout_of
from addsr.models.store import (
    Installed,
    Part,
    Source,
    read_facts,
    record,
    recorded,
    write_facts,
)

from .importing import Heads, UnetFrom, assemble, check_prediction, lacking, read_parts
from .stablesr import PipelineConfig, StableSRPipeline

log = logging.getLogger("addsr")

Stage = Callable[[str, int, int], None]
"""Called with what is being done, how much is done and how much there is."""
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Wish:
    """The options of an import; None: as the published model has it."""

    variant: str | None = None
    name: str | None = None
    base: str | None = None
    prediction: Prediction | None = None
    tile: int | None = None
    unet: UnetFrom | None = None
    dtype: Literal["fp16", "fp32"] = "fp16"
    force: bool = False

    def __post_init__(self) -> None:
        if self.variant is not None:
            find_every(self.variant)
        if self.dtype not in DTYPES:
            raise OptionError(f"dtype: {self.dtype!r} is unknown; use {' or '.join(DTYPES)}")
        if self.tile is not None and (self.tile < 64 or self.tile % 64):
            raise OptionError(f"tile: {self.tile} is no side of a tile; use a multiple of 64")


@dataclass(frozen=True)
class Found:
    """A file that was given, recognised by its tensors' names."""

    path: Path
    part: Part
    has_adapter: bool
    has_cfw: bool
    counts: tuple[tuple[str, int], ...]
    """How many tensors it has of each part."""
    models: tuple[Published, ...]
    """Published models that have this file, by its sha256 on record or its name."""


@dataclass(frozen=True)
class Plan:
    """One import."""

    name: str
    model: Published
    checkpoint: Found
    cfw: Found | None
    unet: UnetFrom


def plan_imports(files: Sequence[Path], wish: Wish, on_stage: Stage | None = None) -> list[Plan]:
    """What `files` are, and which of them belong together.

    Raises:
        ModelError: a file cannot be used, or it cannot be told what belongs together.
        OptionError: an option that does not fit so many files.
    """
    if not files:
        raise OptionError("FILE: none is given; name stablesr_*.ckpt, and vqgan_cfw_*.ckpt with it")
    if wish.variant is not None or wish.name is not None:
        name = wish.name or wish.variant or ""
        check_free(name, wish.force)  # before files of gigabytes are read
    found = [_recognise(path, wish.force, on_stage) for path in dict.fromkeys(files)]
    checkpoints = [one for one in found if one.has_adapter]
    wrappings = [one for one in found if one.has_cfw and not one.has_adapter]
    if not checkpoints:
        raise ModelError(
            f"{wrappings[0].path}: is the feature wrapping alone; give the checkpoint it belongs "
            "to (stablesr_*.ckpt) in the same command"
        )
    if len(checkpoints) > 1 and (wish.name or wish.variant):
        raise OptionError(
            f"--name and --as are for one model, and {len(checkpoints)} checkpoints are given; "
            "import them one by one"
        )
    plans = [_plan(one, wrappings, len(checkpoints), wish) for one in checkpoints]
    names = [plan.name for plan in plans]
    for plan in plans:
        if names.count(plan.name) > 1:
            both = " and ".join(str(p.checkpoint.path) for p in plans if p.name == plan.name)
            raise ModelError(f"{both}: would both be {plan.name!r}; import one with another --name")
        check_free(plan.name, wish.force)
    used = [plan.cfw for plan in plans]
    for one in wrappings:
        if one not in used:
            raise ModelError(
                f"{one.path}: belongs to none of {', '.join(names)}; leave it out, or import it "
                "with its own checkpoint"
            )
    return plans


def install(
    plan: Plan, wish: Wish, *, heads: Heads | None = None, on_stage: Stage | None = None
) -> Installed:
    """Converts the files of `plan` and puts the model into the store, whole or not at all.

    Raises:
        ModelError: a tensor is missing or unknown, or a base is needed and cannot be had.
        OutputError: the disk has no room, or cannot be written.
        DependencyError: diffusers, or transformers where the base gives the prompt, is missing.
    """
    tell = on_stage or (lambda _what, _done, _total: None)
    heads = heads or Heads()
    tell("converting", 0, 1)
    pipe, base, accounts = _convert(plan, wish, heads)
    tell("writing", 0, 1)
    check_space(_bytes(pipe))
    licence = plan.model.full_licence
    if wish.base is not None and base not in ("the checkpoint", *plan.model.base.mirrors):
        licence += f"; {base}: as stated there"
    with unfinished(plan.name) as folder:
        pipe.save_pretrained(folder)
        model = Installed(
            name=plan.name,
            folder=folder,
            kind=plan.model.kind,
            licence=licence,
            sources=tuple(
                Source(one.path.name, one.part.bytes, one.part.sha256, what)
                for one, what in accounts
            ),
            base=base,
            imported=datetime.date.today().isoformat(),
            variant=plan.model.name,
            prediction=pipe.config.prediction,
            tile=pipe.config.tile,
            dtype=wish.dtype,
            files=measure_all(folder),
        )
        write_facts(model)
        target = place(folder, plan.name, wish.force)
    for one in (plan.checkpoint, plan.cfw):
        if one is not None and file_by_name(one.path.name) is not None:
            record(one.path.name, one.part)
    tell("writing", 1, 1)
    return read_facts(target)


def _recognise(path: Path, force: bool, on_stage: Stage | None) -> Found:
    names = read_state(path)
    encoder = any(name.startswith("structcond_stage_model.") for name in names)
    spade = any(".spade." in name for name in names)
    has_cfw = any("decoder.fusion_layer_" in name for name in names)
    if encoder != spade:
        has, lacks = ("encoder", "modulation") if encoder else ("modulation", "encoder")
        raise ModelError(f"{path}: has the adapter's {has} layers and none of its {lacks} layers")
    if not spade and not has_cfw:
        raise ModelError(
            f"{path}: holds neither a StableSR adapter (structcond_stage_model.*, *.spade.*) nor a "
            f"feature wrapping (decoder.fusion_layer_*); {layout_of(names)}"
        )
    tell = on_stage or (lambda _what, _done, _total: None)
    part = measure(
        path, lambda done, total: tell(f"reading {path.name} (MB)", done >> 20, total >> 20)
    )
    _check_record(path, part, force)
    return Found(path, part, spade, has_cfw, _count(names), _models_of(path.name, part))


def _count(names: Iterable[str]) -> tuple[tuple[str, int], ...]:
    counts: dict[str, int] = {}
    for name in names:
        if ".spade." in name or name.startswith("structcond_stage_model."):
            part = "adapter"
        elif "decoder.fusion_layer_" in name:
            part = _CFW
        else:
            part = next((of for start, of in _PARTS.items() if name.startswith(start)), "VAE")
        counts[part] = counts.get(part, 0) + 1
    return tuple(sorted(counts.items()))


_CFW = "feature wrapping"
_PARTS = {
    "model.diffusion_model.": "U-Net",
    "cond_stage_model.": "text tower",
    **dict.fromkeys(IGNORED, "tables and losses"),
}


def _check_record(path: Path, part: Part, force: bool) -> None:
    """Refuses a published file that is not what it was, or not what its publisher states."""
    file = file_by_name(path.name)
    if file is None:
        return
    known = recorded().get(path.name)
    stated = file.sha256 or (known.sha256 if known else None)
    if stated is not None and stated != part.sha256:
        what = f"{path}: is not the {path.name} on record (sha256 {part.sha256}, not {stated})"
        if not force:
            raise ModelError(
                f"{what}: damaged, or changed by its publisher; fetch it again, or take it with "
                "--force"
            )
        log.warning("%s; taken all the same, and on record from now on", what)


def _models_of(name: str, part: Part) -> tuple[Published, ...]:
    """By content if that is known, for a file may have been renamed; else by name."""
    known = {n for n, p in recorded().items() if p.sha256 == part.sha256}
    for model in PUBLISHED.values():
        known |= {file.name for file in model.files if file.sha256 == part.sha256}
    for one in sorted(known):
        if models := by_file_name(one):
            return models
    return by_file_name(name)


def _plan(checkpoint: Found, wrappings: Sequence[Found], checkpoints: int, wish: Wish) -> Plan:
    if wish.variant is not None:
        model = find_published(wish.variant)
    elif len(checkpoint.models) == 1:
        model = checkpoint.models[0]
    else:
        raise ModelError(
            f"{checkpoint.path}: the tensors of all StableSR models have the same names, and "
            "neither its file name nor its sha256 is on record; say which it is: "
            + " or ".join(f"--as {name}" for name in PUBLISHED)
        )
    if checkpoint.models and model not in checkpoint.models:
        known = " or ".join(one.name for one in checkpoint.models)
        log.warning("%s: is %s; taken as %s", checkpoint.path, known, model.name)
    unet = wish.unet
    if unet is None:
        # the adapter of another model, wanted as this one: that is what Turbo is
        is_other = bool(checkpoint.models) and model not in checkpoint.models
        unet = "base" if is_other and model.base not in {m.base for m in checkpoint.models} else (
            "checkpoint"
        )  # fmt: skip
    return Plan(
        wish.name or model.name, model, checkpoint, _cfw_of(model, wrappings, checkpoints), unet
    )


def _cfw_of(model: Published, wrappings: Sequence[Found], checkpoints: int) -> Found | None:
    if len(wrappings) == 1 and checkpoints == 1:
        return wrappings[0]
    fitting = [one for one in wrappings if model in one.models]
    if not fitting:
        fitting = [one for one in wrappings if not one.models]
    if len(fitting) > 1:
        raise ModelError(
            f"{' and '.join(str(one.path) for one in fitting)}: each could be the feature wrapping "
            f"of {model.name}; give one of them"
        )
    return fitting[0] if fitting else None


def _convert(
    plan: Plan, wish: Wish, heads: Heads
) -> tuple[StableSRPipeline, str, list[tuple[Found, str]]]:
    """The pipeline, where its base comes from, and what became of each file's tensors."""
    parts = read_parts(plan.checkpoint.path, heads)
    wrapped = parts if plan.cfw is None else read_parts(plan.cfw.path, heads)
    if wrapped.cfw is None:
        log.warning("%s: has no feature wrapping; only fidelity 0 will be possible", plan.name)
    needed = lacking(parts, wrapped, plan.unet)
    if "text_encoder" in needed and find_spec("transformers") is None:
        raise DependencyError(  # before a base is downloaded
            f"{plan.checkpoint.path}: has no text tower that is known, and that of a base needs "
            "transformers, once: pip install transformers"
        )
    folder, base = base_folder(plan.model.base, wish.base, needed)
    prediction = wish.prediction or plan.model.prediction
    if "unet" in needed and folder is not None and wish.prediction is None:
        check_prediction(folder, prediction)
    config = PipelineConfig(
        prediction=prediction,
        tile=wish.tile or plan.model.tile,
        steps=plan.model.steps,
        fidelity=plan.model.fidelity if wrapped.cfw is not None else 0.0,
        spacing=plan.model.spacing,
    )
    pipe = assemble(
        parts,
        wrapped,
        folder,
        config,
        unet_from=plan.unet,
        dtype=DTYPES[wish.dtype],
        text_head_channels=heads.text_channels,
        local_files_only=True,
    )
    used = {"adapter", "VAE"}
    if "unet" not in needed:
        used.add("U-Net")
    if "text_encoder" not in needed:
        used.add("text tower")
    if plan.cfw is None:
        return pipe, base, [(plan.checkpoint, _account(plan.checkpoint, used | {_CFW}))]
    used_too = {_CFW} if parts.vae else {_CFW, "VAE"}
    return (
        pipe,
        base,
        [
            (plan.checkpoint, _account(plan.checkpoint, used)),
            (plan.cfw, _account(plan.cfw, used_too)),
        ],
    )


def base_folder(known: Base, wanted: str | None, needed: Sequence[str]) -> tuple[Path | None, str]:
    """The folder that gives the needed parts of a base, and how it is called.

    Args:
        wanted: a folder or repository in place of the `known` one.

    Raises:
        ModelError: it lacks one of them, or cannot be had.
    """
    if not needed:
        return None, "the checkpoint"
    if wanted is None:
        folder = find_base(known, needed)
        # the cache's folders are called models--OWNER--NAME/snapshots/REVISION
        return folder, folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    folder = Path(os.path.expanduser(wanted))
    if folder.is_dir():
        if not has_parts(folder, needed):
            raise ModelError(
                f"base: {wanted!r} does not have all of {', '.join(needed)} as safetensors in "
                "diffusers' layout"
            )
        return folder, str(folder)
    if wanted.count("/") != 1 or wanted.startswith((".", "/", "~")):
        raise ModelError(
            f"base: {wanted!r} is no folder; give one in diffusers' layout, or the owner/name of "
            "a repository"
        )
    return find_base(Base(wanted, (wanted,), "as stated there"), needed), wanted


def _account(found: Found, used: set[str]) -> str:
    """Every tensor of a file: its part is `used`, or left out."""
    return ", ".join(
        f"{part} ({count} tensor{'s' * (count > 1)}{'' if part in used else ' left out'})"
        for part, count in found.counts
    )


def _bytes(pipe: StableSRPipeline) -> int:
    nets = [pipe.unet, pipe.vae, pipe.sft, pipe.encoder, pipe.cfw]
    tensors = [t for net in nets if net is not None for t in net.state_dict().values()]
    return sum(t.numel() * t.element_size() for t in [*tensors, pipe.prompt_embeds])
