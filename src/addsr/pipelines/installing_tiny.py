"""A published tiny decoder into the store of imported models, beside the pipelines that use it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from addsr.errors import ModelError, OptionError
from addsr.models.convert_tiny import check_name, convert_tiny
from addsr.models.pickles import read_state
from addsr.models.placing import check_free, check_space, measure, measure_all, place, unfinished
from addsr.models.store import Installed, Source, read_facts, write_facts

from .tiny import KIND, read_published_tiny, save_tiny, takes

if TYPE_CHECKING:
    from .installing import Wish

LICENCE = "MIT"
"""Of TAESD, as its repository states."""
NAME = "taesd"
_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def takes_all(files: Sequence[Path]) -> bool:
    """Whether `files` are meant as a tiny decoder: one of them is."""
    return any(takes(path) for path in files)


def install_tiny(
    files: Sequence[Path],
    wish: Wish,
    on_stage: Callable[[str, int, int], None] | None = None,
) -> Installed:
    """Converts the one file and puts the decoder into the store, whole or not at all.

    Raises:
        ModelError: the file is of another kind, or there are more.
        OptionError: an option that is about other models, or a name that cannot be.
        OutputError: the disk has no room, or cannot be written.
        DependencyError: diffusers is not installed.
    """
    for option in ("variant", "base", "prediction", "tile", "unet"):
        value = getattr(wish, option)
        if value is not None:
            flag = "as" if option == "variant" else option
            raise OptionError(f"--{flag}: {value!r} is not for tiny decoders; leave it out")
    others = [path for path in dict.fromkeys(files) if not takes(path)]
    if others or len(set(files)) > 1:
        raise ModelError(
            f"{(others or list(files))[-1]}: a tiny decoder is one file; import others in a "
            "command of their own"
        )
    path = files[0]
    name = wish.name or NAME
    check_name(path)
    check_free(name, wish.force)
    tell = on_stage or (lambda _what, _done, _total: None)
    part = measure(path)
    tell("converting", 0, 1)
    dtype = _DTYPES[wish.dtype]
    net = read_published_tiny(path, dtype=dtype)
    for tensor_name, tensor in net.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"{path}: {tensor_name} holds numbers that are none, or too large for "
                f"{wish.dtype}; use --dtype fp32, or fetch the file again"
            )
    state = read_state(path)
    left_out = len(convert_tiny(state).left_out)
    what = f"decoder ({len(state) - left_out} tensors)"
    if left_out:
        what += f", encoder ({left_out} tensors left out)"
    tell("writing", 0, 1)
    check_space(sum(t.numel() * t.element_size() for t in net.state_dict().values()))
    with unfinished(name) as folder:
        save_tiny(net, folder)
        write_facts(
            Installed(
                name=name,
                folder=folder,
                kind=KIND,
                licence=LICENCE,
                sources=(Source(path.name, part.bytes, part.sha256, what),),
                base="the checkpoint",
                imported=datetime.date.today().isoformat(),
                variant=NAME,
                prediction="",
                tile=0,
                dtype=wish.dtype,
                files=measure_all(folder),
            )
        )
        target = place(folder, name, wish.force)
    tell("writing", 1, 1)
    return read_facts(target)
