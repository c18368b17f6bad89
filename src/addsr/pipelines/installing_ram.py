"""RAM and DAPE as published into the store of imported models, as a prompt extractor."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from addsr.errors import ModelError, OptionError
from addsr.models.convert_ram import ConvertedRam, convert_ram, has_updates, has_weights
from addsr.models.pickles import read_state
from addsr.models.placing import check_free, check_space, measure, measure_all, place, unfinished
from addsr.models.published import by_file_name
from addsr.models.store import (
    Installed,
    Part,
    Source,
    check_record,
    read_facts,
    record,
    write_facts,
)
from addsr.models.tags import TAGS, THRESHOLDS, read_tags
from addsr.nets.ram import Ram

from .tagger import KIND, Tagger, empty, fill

if TYPE_CHECKING:
    from .installing import Wish

LICENCE = "Apache-2.0"
"""Of RAM and of SeeSR's DAPE, as their repositories state."""
RAM_FILE, DAPE_FILE = "ram_swin_large_14m.pth", "DAPE.pth"
_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
_LISTS = (TAGS, THRESHOLDS)


@dataclass(frozen=True)
class RamPlan:
    """One import: which file is what."""

    name: str
    weights: Path
    updates: Path | None
    lists: Path
    """The folder of the tag list."""


def takes(files: Sequence[Path]) -> bool:
    """Whether one of `files` is of a prompt extractor; what cannot be read is none."""
    for path in files:
        if path.name in _LISTS:
            return True
        if by_file_name(path.name):  # gigabytes of something else
            continue
        try:
            names = read_state(path)
        except ModelError:
            continue
        if has_weights(names) or has_updates(names):
            return True
    return False


def plan_ram(files: Sequence[Path], wish: Wish) -> RamPlan:
    """What `files` are; none of them is read but for its tensors' names.

    Raises:
        ModelError: a file is of another kind, is missing, or the tag list is.
        OptionError: an option that is about other models.
    """
    for option in ("variant", "base", "prediction", "tile", "unet"):
        value = getattr(wish, option)
        if value is not None:
            flag = "as" if option == "variant" else option
            raise OptionError(f"--{flag}: {value!r} is not for prompt extractors; leave it out")
    weights: list[Path] = []
    updates: list[Path] = []
    folders: list[Path] = []
    for path in dict.fromkeys(files):
        if path.name in _LISTS:
            folders.append(path.parent)
            continue
        names = read_state(path)
        if has_weights(names):
            weights.append(path)
        elif has_updates(names):
            updates.append(path)
        else:
            raise ModelError(
                f"{path}: is no part of a prompt extractor; import it in a command of its own"
            )
    if not weights:
        what = f"{files[0]}: is a list of tags"
        if updates:
            what = f"{updates[0]}: holds low-rank updates alone"
        raise ModelError(f"{what}; give {RAM_FILE}, which has the weights, in the same command")
    for found in (weights, updates):
        if len(found) > 1:
            raise ModelError(
                f"{' and '.join(map(str, found))}: are the same part of a prompt extractor; give "
                "one of them"
            )
    if len(set(folders)) > 1:
        raise ModelError(
            f"{' and '.join(map(str, dict.fromkeys(folders)))}: {TAGS} and {THRESHOLDS} lie in "
            "different folders; put them into one"
        )
    name = wish.name or ("dape" if updates else "ram")
    check_free(name, wish.force)
    lists = folders[0] if folders else weights[0].parent
    return RamPlan(name, weights[0], updates[0] if updates else None, lists)


def install_ram(
    plan: RamPlan, wish: Wish, on_stage: Callable[[str, int, int], None] | None = None
) -> Installed:
    """Converts the files of `plan` and puts the extractor into the store, whole or not at all.

    Raises:
        ModelError: a tensor is missing or unknown, or the tag list does not fit.
        OutputError: the disk has no room, or cannot be written.
    """
    tell = on_stage or (lambda _what, _done, _total: None)
    measured: dict[Path, Part] = {}
    for path in (plan.weights, plan.updates):
        if path is not None:
            measured[path] = measure(
                path,
                lambda done, total, name=path.name: tell(
                    f"reading {name} (MB)", done >> 20, total >> 20
                ),
            )
            check_record(path, path.name, measured[path], wish.force)
    tell("converting", 0, 1)
    ram = read_state(plan.weights)
    dape = None if plan.updates is None else read_state(plan.updates)
    try:
        converted = convert_ram(ram, dape, leaves_out_unknown=wish.force)
    except ModelError as error:
        both = " and ".join(str(path) for path in measured)
        raise ModelError(f"{both}: {error}") from error
    tags = read_tags(plan.lists, converted.config.tags)
    tagger = Tagger(_filled(converted, plan.weights, _DTYPES[wish.dtype]), tags)
    tell("writing", 0, 1)
    check_space(sum(t.numel() * t.element_size() for t in tagger.net.state_dict().values()))
    with unfinished(plan.name) as folder:
        tagger.save_pretrained(folder)
        write_facts(
            Installed(
                name=plan.name,
                folder=folder,
                kind=KIND,
                licence=LICENCE,
                sources=tuple(
                    Source(path.name, part.bytes, part.sha256, what)
                    for (path, part), what in zip(
                        measured.items(), _accounts(ram, dape, converted), strict=True
                    )
                ),
                base="the checkpoint",
                imported=datetime.date.today().isoformat(),
                variant="ram" if not converted.merged else "dape",
                prediction="",
                tile=converted.config.swin.side,
                dtype=wish.dtype,
                files=measure_all(folder),
            )
        )
        target = place(folder, plan.name, wish.force)
    for path, part in measured.items():
        if path.name in (RAM_FILE, DAPE_FILE):
            record(path.name, part)
    tell("writing", 1, 1)
    return read_facts(target)


def _filled(converted: ConvertedRam, path: Path, dtype: torch.dtype) -> Ram:
    state = {k: v.to(dtype, copy=True).contiguous() for k, v in converted.state.items()}
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"{path}: {name} holds numbers that are none, or too large for "
                f"{str(dtype).removeprefix('torch.')}; use --dtype fp32, or fetch the file again"
            )
    net = empty(converted.config)
    fill(net, state, path)
    return net


def _accounts(
    ram: Mapping[str, Tensor], dape: Mapping[str, Tensor] | None, converted: ConvertedRam
) -> list[str]:
    """What became of each file's tensors; conversion refuses what would not be listed here."""
    left = set(converted.ignored)
    told = [
        f"encoder and tag head ({len(ram) - len(left & ram.keys())} tensors), "
        f"text modules and tables ({len(left & ram.keys())} tensors left out)"
    ]
    if dape is not None:
        told.append(
            f"low-rank updates ({converted.merged} merged), "
            f"those of text modules ({len(left & dape.keys())} tensors left out)"
        )
    return told
