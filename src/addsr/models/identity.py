"""Which weights a name or path stands for right now, as a hash that other weights do not have."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import as_file
from pathlib import Path
from typing import Any

from .hub import embedded, find_pipeline
from .pipeline_files import find_files
from .registry import MODELS
from .store import find_tagger


def identify(model: str | Path) -> str:
    """A SHA-256 that changes with the weights: of one file's content, or of a pipeline's files.

    A pipeline has gigabytes; what stands for it are its files' names, sizes and times. A path that
    cannot be read has a hash as well: loading it is where that is told.

    Raises:
        ModelError: a name of a model that is not installed.
    """
    found = find_pipeline(model)
    total = hashlib.sha256()
    if found is not None:
        if found.info.takes_prompt and (tagger := find_tagger()) is not None:
            # its words reach the model
            total.update(json.dumps([tagger.folder.name, tagger.imported]).encode())
            total.update(json.dumps([part.sha256 for part in tagger.files.values()]).encode())
        for path in find_files(found.folder):
            facts = path.stat()
            name = path.relative_to(found.folder).as_posix()
            total.update(json.dumps([name, facts.st_size, facts.st_mtime_ns]).encode())
    elif str(model) in MODELS:
        resource = embedded(str(model))
        if resource.is_file():
            with as_file(resource) as path:
                _add(total, path)
    else:
        folder = Path(model)
        for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]:
            if path.is_file():
                _add(total, path)
    return total.hexdigest()


def _add(total: Any, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
