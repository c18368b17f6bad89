"""Checkpoints of PyTorch read as data: tensors and plain containers, and nothing is ever run.

torch's own restricted reader (`weights_only`) does the reading. It refuses files that name classes
it does not know, as Lightning's checkpoints do; here each such name is given to it as an empty
class of ours that ignores all it is called with. Names are compared as text: nothing that a file
names is imported or looked up. The scan for names is therefore no safeguard that could be tricked:
a name that it overlooks ends in torch's refusal.
"""

from __future__ import annotations

import io
import threading
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import (
    add_safe_globals,
    clear_safe_globals,
    get_safe_globals,
    get_unsafe_globals_in_checkpoint,
)

from addsr.errors import ModelError

from .pickle_structure import MAX_STRUCTURE_BYTES, named_in
from .zip_structure import entries_of

MAX_FOREIGN_NAMES = 1000

# torch keeps one list of known classes for the whole process
_LOCK = threading.Lock()
# torch refuses files that name anything from these, stand-in or not
_BLOCKED = ("os.", "posix.", "nt.", "sys.")


class Placeholder:
    """Stands for an instance of a foreign class; it holds nothing and does nothing."""

    def __new__(cls, *_arguments: Any, **_named: Any) -> Placeholder:
        return super().__new__(cls)

    def __init__(self, *_arguments: Any, **_named: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


class ItemsPlaceholder:
    """Stands for a foreign kind of dict: torch puts items into plain ones alone."""

    def __new__(cls, *_arguments: Any, **_named: Any) -> Any:
        return OrderedDict()


def read_state(path: str | Path) -> Mapping[str, Tensor]:
    """The tensors of a published file, on the CPU; nothing in it is run.

    Takes safetensors and what `torch.save` writes, now and in its old form without zip; a dict of
    tensors, or one that has such a dict under `state_dict` or `model`. Large files are mapped, not
    read.

    Raises:
        ModelError: it is missing, damaged, hostile, or holds no tensors under names.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelError(
            f"{path}: is a folder without unet and controlnet; give one with both, or the files of "
            "a published checkpoint"
        )
    if not path.is_file():
        raise ModelError(f"{path}: no file there; give the path of a published checkpoint")
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        loaded = _load(path)
    except OSError as error:  # of the disk; torch and safetensors have errors of their own
        raise ModelError(
            f"{path}: cannot be read ({error}); check the disk and the rights"
        ) from error
    except Exception as error:  # a hostile file can make the readers raise anything
        raise ModelError(
            f"{path}: cannot be read as tensors alone ({_reason(error)}); fetch it again, or turn "
            "it into safetensors where you trust it"
        ) from error
    state = _state_dict(loaded)
    if state is None:
        raise ModelError(f"{path}: holds no state_dict; give the path of a published checkpoint")
    plain = {name: _plain(path, name, tensor) for name, tensor in state.items()}
    # a file may hold one tensor and name it a million times, each to be copied
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in plain.values())
    if claimed > 2 * path.stat().st_size:
        raise ModelError(
            f"{path}: its tensors claim {claimed / 1e9:.2f} GB, more than the file holds; fetch it "
            "again"
        )
    return plain


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # torch's own way to tell
    if is_zip:
        _check_zip(path)
    # what a program made known for files of its own does not count for files of strangers
    with _LOCK, _known(()):
        names = sorted(get_unsafe_globals_in_checkpoint(path)) if is_zip else _scan(path)
        if len(names) > MAX_FOREIGN_NAMES:
            raise ValueError(f"names {len(names)} foreign classes")
        blocked = [name for name in names if name.startswith(_BLOCKED)]
        if blocked:
            raise ValueError(f"names {', '.join(blocked)}, which only an attack has a use for")
        try:
            return _load_with(Placeholder, names, path, is_zip)
        except UnpicklingError as error:
            if "SETITEM" not in str(error):
                raise
            return _load_with(ItemsPlaceholder, names, path, is_zip)


def _load_with(stand_in: type[Any], names: Sequence[str], path: Path, mmap: bool) -> Any:
    classes = [(type(stand_in.__name__, (stand_in,), {"__doc__": n}), n) for n in names]
    with _known(classes), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on old protocols: what cannot be read is refused
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


@contextmanager
def _known(classes: Any) -> Generator[None]:
    """While it lasts torch knows `classes` alone, besides its own."""
    before = get_safe_globals()
    clear_safe_globals()
    add_safe_globals(list(classes))
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)


def _scan(path: Path) -> list[str]:
    """Names in a file of the old form; those that torch knows itself do no harm among them."""
    names: set[str] = set()
    with path.open("rb") as file:
        # magic number, protocol, facts about the system that wrote it, the objects, their keys
        for _ in range(5):
            for module, name in named_in(file):
                # Python 2 called some things otherwise, and torch translates
                if (module, name) in NAME_MAPPING:
                    module, name = NAME_MAPPING[module, name]
                names.add(f"{IMPORT_MAPPING.get(module, module)}.{name}")
    return sorted(names)


def _reason(error: Exception) -> str:
    text = str(error).strip()
    inside = text.partition("WeightsUnpickler error: ")[2] or text
    lines = [line.strip() for line in inside.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _check_zip(path: Path) -> None:
    """Refuses archives that torch did not write, and such as harm the program that reads them."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    # torch does not tell capitals from small letters here
    if not any(name.lower().endswith("/data.pkl") for name in names):
        few = ", ".join(names[:4])
        raise ValueError(f"is an archive of other files: {few}; unpack it and give what is inside")
    structures = [e for e in entries_of(path) if e.name.lower().endswith("/data.pkl")]
    if sum(e.bytes for e in structures) > MAX_STRUCTURE_BYTES:
        raise ValueError("has a structure of an extreme size")
    with path.open("rb") as file:
        for entry in structures:
            # not by ZipFile.read: torch.save can be told to leave out the checksum that it wants
            file.seek(entry.start)
            for _ in named_in(io.BytesIO(file.read(entry.bytes))):
                pass  # torch's own scan gives the names


def _state_dict(loaded: Any) -> dict[str, Any] | None:
    # a file can give an OrderedDict other methods under the same names; those of dict stay
    if not isinstance(loaded, dict):
        return None
    found = cast("dict[Any, Any]", loaded)
    # Lightning's name for it, and BLIP's and RAM's
    state = dict.get(found, "state_dict", dict.get(found, "model", found))
    if not isinstance(state, dict):
        return None
    named = dict(dict.items(cast("dict[Any, Any]", state)))
    if not named or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in named.items()):
        return None
    return named


def _plain(path: Path, name: str, tensor: Tensor) -> Tensor:
    """The numbers alone; refuses what is no plain tensor, or claims more than the file holds."""
    if type(tensor) in (Tensor, torch.nn.Parameter):
        # whatever a file hung on it, be it instead of a method, is not on this one
        tensor = Tensor.detach(tensor)
        if (
            tensor.layout == torch.strided
            and tensor.device.type == "cpu"
            and not tensor.is_quantized
            and not tensor.is_complex()
        ):
            if tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes():
                return tensor
            raise ModelError(
                f"{path}: {name} {tuple(tensor.shape)} claims more numbers than the file holds; "
                "fetch it again"
            )
    raise ModelError(f"{path}: {name} is no plain tensor; fetch the file again")
