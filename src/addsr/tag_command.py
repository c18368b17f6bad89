"""`addsr tag` as the command line calls it; no torch before it runs."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from .errors import AddsrError, ModelError, OptionError
from .terminal import FAILED, USUAL_TALK, Bar, Talk, say

if TYPE_CHECKING:
    from .pipelines.tagger import Tagger

log = logging.getLogger("addsr")


def tag(
    photos: Annotated[list[Path], Parameter(name="PHOTO", negative="", show_default=False)],
    /,
    *,
    model: str | None = None,
    threshold: float | None = None,
    antialias: bool = True,
    device: str | None = None,
    dtype: Literal["auto", "fp32", "bf16", "fp16"] | None = None,
    json_summary: Annotated[bool, Parameter(name="--json", negative="")] = False,
    talk: Talk = USUAL_TALK,
) -> int:
    """Print the words that SeeSR and AddSR would be told about pictures, with their scores.

    Parameters
    ----------
    photos
        Picture files, or patterns such as "photos/*.jpg".
    model
        Name of an imported prompt extractor, or its folder. [default: dape, else ram]
    threshold
        Score from 0 to 1 that a word must exceed. [default: each word's own]
    antialias
        Smooth what is shrunk to the network's size; --no-antialias does as the published scripts.
    device
        auto, cpu, cuda, mps or xpu. [env: ADDSR_DEVICE]
    dtype
        Numbers to compute in; auto is fp32 on a CPU and fp16 elsewhere. [env: ADDSR_DTYPE]
    json_summary
        Print JSON.
    """
    talk.set_up()
    if threshold is not None and not 0 <= threshold <= 1:
        raise OptionError(f"threshold: {threshold} is no score; give a number from 0 to 1")
    from .image.expanding import expand

    pictures = expand(photos)
    tagger = _load(model, antialias, device, dtype)
    if threshold is not None:
        from dataclasses import replace

        count = len(tagger.tags.tags)
        tagger.tags = replace(tagger.tags, thresholds=(threshold,) * count)
    done: list[dict[str, Any]] = []
    try:
        with Bar("tagging", shown=not talk.quiet and len(pictures) > 1) as bar:
            for number, path in enumerate(pictures, 1):
                done.append(_one(tagger, path))
                if not json_summary and "error" not in done[-1]:
                    say(_line(done[-1]))
                bar.update(number, len(pictures))
    finally:  # also after Ctrl-C: what is done is done
        failed = sum("error" in one for one in done)
        if json_summary:
            say(json.dumps({"files": done, "failed": failed}, indent=2))
    if failed and len(done) > 1:
        say(f"{failed} of {len(done)} pictures failed", sys.stderr)
    return FAILED if failed else 0


def _one(tagger: Tagger, path: Path) -> dict[str, Any]:
    """One picture; what is wrong with it is told and does not stop the others."""
    from .image.kinds import accept

    try:
        found = tagger(accept(path).pictures[0].rgb).tags[0]
    except Exception as error:
        message = str(error)
        if not isinstance(error, AddsrError):
            message = f"{path}: unexpected error: {type(error).__name__}: {error}; please report it"
            log.debug("%s", path, exc_info=True)
        say(f"error: {message}", sys.stderr)
        return {"source": str(path), "error": message, "kind": type(error).__name__}
    return {
        "source": str(path),
        "tags": [{"name": one.name, "score": round(one.score, 4)} for one in found],
        "prompt": tagger.tags.join(found),
    }


def _line(one: dict[str, Any]) -> str:
    words = [f"{tag['name']} {tag['score']:.2f}" for tag in one["tags"]]
    return f"{one['source']}: {', '.join(words) or '(no tags)'}"


def _load(model: str | None, antialias: bool, device: str | None, dtype: str | None) -> Tagger:
    folder = _find(model)
    import torch

    from .engines.device import choose_device, choose_dtype
    from .pipelines.tagger import Tagger
    from .settings import read_settings

    settings = read_settings()
    where = choose_device(device or settings.device)
    wanted = dtype or settings.dtype
    if wanted == "auto":
        # a score is compared with a threshold, and bf16 has three digits
        numbers = torch.float32 if where.type == "cpu" else torch.float16
    else:
        numbers = choose_dtype(wanted, where)
    return Tagger.from_pretrained(folder, torch_dtype=numbers, antialias=antialias).to(where)


def _find(model: str | None) -> Path:
    """The folder of an extractor.

    Raises:
        ModelError: there is none; or what is called so is of another kind.
    """
    from .models.store import find_installed, find_tagger

    installed = find_tagger() if model is None else find_installed(model)
    if installed is not None:
        if installed.kind == "ram":
            return installed.folder
        if model is not None:
            raise ModelError(
                f"model: {model!r} is of kind {installed.kind!r} and tags no pictures; give an "
                "imported prompt extractor, or leave it out"
            )
    if model is not None and os.path.isdir(model):
        from .pipelines.tagger import WEIGHTS

        if not os.path.isfile(os.path.join(model, WEIGHTS)):
            raise ModelError(
                f"model: {model!r} is a folder without {WEIGHTS}; give one that `addsr models "
                "import` wrote"
            )
        return Path(model)
    what = "no prompt extractor is" if model is None else f"{model!r} is neither a folder nor"
    raise ModelError(
        f"model: {what} imported; import RAM and DAPE with `addsr models import "
        "ram_swin_large_14m.pth DAPE.pth`, ram_tag_list.txt and ram_tag_list_threshold.txt beside "
        "them"
    )
