"""What models there are: embedded, imported, and published ones that can be had.

No torch here: looking takes no time.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import Any

from addsr.errors import ModelError

from .published import Published
from .published_folders import EVERY, STEP_NAMES, PublishedFolder
from .registry import MODELS, ModelInfo
from .store import find_installed, folders, read_facts, recorded


def embedded_models() -> dict[str, ModelInfo]:
    """Models that are part of the package; the registry may know facts on others too."""
    return {name: info for name, info in MODELS.items() if name not in EVERY}


def list_models() -> list[dict[str, Any]]:
    """A row for each model: name, state, bytes, licence, description.

    The state is embedded, missing, imported, damaged or available.
    """
    return [*_embedded(), *_installed(), *_available()]


def describe(name: str) -> dict[str, Any]:
    """All that is known about one model, as plain values.

    Raises:
        ModelError: no model is called that, or the facts of an imported one are damaged.
    """
    for row in _embedded():
        if row["name"] == name:
            return {**row, "steps": list(MODELS[name].steps)}
    name = STEP_NAMES.get(name, (name, 0))[0]
    model = find_installed(name)
    published = EVERY.get(model.variant if model else name)
    facts: dict[str, Any] = {"name": name}
    if model is not None:
        facts |= {"state": "imported", **model.to_dict(), "files": len(model.files)}
    if published is not None:
        facts.setdefault("state", "available")
        facts |= {
            "description": published.description,
            "steps": published.steps,
            "licence": model.licence if model else published.full_licence,
            "licence_url": published.licence_url,
            "note": published.note,
            "downloads": _downloads(published),
            "bases": list(published.base.mirrors),
        }  # fmt: skip
    if len(facts) == 1:
        raise ModelError(
            f"{name}: neither embedded, imported nor published; see `addsr models list`"
        )
    return facts


def _downloads(published: Published | PublishedFolder) -> list[dict[str, Any]]:
    """Each file, or the folder, and where it is to be had."""
    if isinstance(published, PublishedFolder):
        hub = [f"https://huggingface.co/{mirror}" for mirror in published.mirrors]
        return [{"name": published.name, "urls": [*hub, published.page]}]
    known = recorded()
    return [
        {
            "name": file.name,
            "urls": list(file.urls),
            "sha256": file.sha256
            or (known[file.name].sha256 if file.name in known else "recorded at the first import"),
        }
        for file in published.files
    ]


def _embedded() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "state": "embedded" if (size := _embedded_bytes(name)) else "missing",
            "bytes": size,
            "licence": model.licence,
            "description": model.description,
        }
        for name, model in embedded_models().items()
    ]


def _embedded_bytes(name: str) -> int:
    """Of the weights in the package; 0 where they are missing. Does not load torch."""
    resource = files("addsr.models") / "embedded" / f"{name}.safetensors"
    if not resource.is_file():
        return 0
    with as_file(resource) as path:
        return path.stat().st_size


def _installed() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for folder in folders():
        try:
            model = read_facts(folder)
        except ModelError as error:
            rows.append(
                {"name": folder.name, "state": "damaged", "bytes": 0, "licence": "?",
                 "description": str(error)}
            )  # fmt: skip
            continue
        published = EVERY.get(model.variant)
        rows.append(
            {
                "name": model.name,
                "state": "imported",
                "bytes": model.bytes,
                "licence": model.licence,
                "description": published.description if published else model.kind,
            }
        )
    return rows


def _available() -> list[dict[str, Any]]:
    there = {folder.name for folder in folders()}
    return [
        {
            "name": model.name,
            "state": "available",
            "bytes": int(model.download_gb * 1e9),
            "licence": model.full_licence,
            "description": model.description,
        }
        for model in EVERY.values()
        if model.name not in there
    ]
