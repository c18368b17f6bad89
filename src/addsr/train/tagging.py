"""The prompt extractor that trainings use: RAM's and DAPE's files, or an imported folder."""

from __future__ import annotations

from pathlib import Path

import torch

from addsr.errors import ConfigError, ModelError
from addsr.models.convert_ram import ConvertedRam, convert_ram
from addsr.models.pickles import read_state
from addsr.models.tags import TagList, read_tags
from addsr.nets.ram import Ram
from addsr.pipelines.tagger import WEIGHTS, Tagger


def load_ram(tagger: str, dape: str = "") -> Ram:
    """The network of `tagger`, frozen, in float32 on the CPU.

    Args:
        tagger: file of RAM, or a folder that `Tagger.save_pretrained` or an import wrote.
        dape: file of SeeSR's update of it; goes with a file.

    Raises:
        ConfigError: both a folder, whose update is in its weights, and `dape`.
        ModelError: a file is missing, damaged or of another kind.
    """
    if Path(tagger).is_dir():
        if dape:
            raise ConfigError(
                f"task.dape = {dape!r} is not allowed with the folder task.tagger = {tagger!r}, "
                "whose weights are whole; leave it out, or give RAM's file"
            )
        return Tagger.from_pretrained(tagger, torch_dtype=torch.float32).net
    return ram_of(convert_ram(read_state(tagger), read_state(dape) if dape else None))


def ram_of(converted: ConvertedRam) -> Ram:
    """The network of converted files, frozen, in float32 on the CPU."""
    ram = Ram(converted.config)
    ram.load_state_dict(converted.state)
    return ram.float().eval().requires_grad_(False)


def load_tags(tagger: str, count: int) -> TagList:
    """The words of `tagger`: the lists in its folder, or beside its file.

    Raises:
        ModelError: there is no list, or it has not `count` words.
    """
    path = Path(tagger)
    return read_tags(path if path.is_dir() else path.parent, count)


def stamp(tagger: str) -> str:
    """What tells one extractor's weights from another's without reading gigabytes."""
    path = Path(tagger)
    path = path / WEIGHTS if path.is_dir() else path
    try:
        facts = path.stat()
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror}); give RAM's file or an imported folder"
        ) from error
    return f"{path.name} {facts.st_size} {facts.st_mtime_ns}"
