"""An imported model's licence and sources go with it to another folder."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from addsr.errors import ModelError, OutputError
from addsr.models.pipeline_files import find_files, weights_name
from addsr.models.placing import measure
from addsr.models.store import FACTS, Installed, read_facts, write_facts

if TYPE_CHECKING:
    from .latent import LatentPipeline

log = logging.getLogger("addsr")

_WEIGHTS = weights_name(None).partition(".")[0]
_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


def read_origin(folder: Path) -> Installed | None:
    """The facts beside an imported model; None if there are none that can be read."""
    if not (folder / FACTS).is_file():
        return None
    try:
        return read_facts(folder)
    except ModelError as error:
        log.warning("%s (the pipeline does without them)", error)
        return None


@contextmanager
def keeping_origin(pipe: LatentPipeline[Any], folder: Path, variant: str | None) -> Generator[None]:
    """Saves `pipe` to `folder` within; writes the facts of the model that it was loaded from last.

    What other facts were there is gone: they were another model's.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        with suppress(NotADirectoryError):  # what is saved within tells
            (folder / FACTS).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder / FACTS}: cannot be replaced ({error}); give another folder"
        ) from error
    yield
    if pipe.origin is None:
        return
    folder = folder.absolute()
    name = weights_name(variant)
    # weights of other variants may lie there: they were not written now
    files = {
        *(path for path in find_files(folder) if not path.name.startswith(_WEIGHTS)),
        *folder.glob(f"*/{name}"),
    }
    dtype: torch.dtype = next(pipe.networks["unet"].parameters()).dtype
    model = replace(
        pipe.origin,
        name=folder.name,
        folder=folder,
        prediction=pipe.config.prediction,
        tile=pipe.config.tile,
        dtype=_NAMES.get(dtype, str(dtype).removeprefix("torch.")),
        files={p.relative_to(folder).as_posix(): measure(p) for p in sorted(files)},
    )
    write_facts(model)
