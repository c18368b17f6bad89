"""Imported models on this machine: where they lie, and the facts stored beside each.

No torch here: `addsr models list` and the look-up of a name stay quick.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, cast

from addsr.errors import ConfigError, ModelError, OptionError, OutputError
from addsr.replacing import replacing

log = logging.getLogger("addsr")

FACTS = "addsr.json"
"""Beside the pipeline's files; written last, so that a folder that has it is whole."""
FORMAT = 1
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Windows opens devices under these names, whatever stands behind a dot
_DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10))}


@dataclass(frozen=True)
class Source:
    """A file that a model was imported from."""

    name: str
    bytes: int
    sha256: str
    what: str
    """Such as "adapter and U-Net" or "feature wrapping"."""


@dataclass(frozen=True)
class Part:
    """A file of an installed model as it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Installed:
    """An imported model."""

    name: str
    """How `--model` calls it."""
    folder: Path
    """What `save_pretrained` of its pipeline, or of `Tagger`, wrote."""
    kind: str
    """One of `registry.PIPELINE_KINDS`, "ram" for a prompt extractor, or "tiny-decoder"."""
    licence: str
    sources: tuple[Source, ...]
    base: str
    """Where the parts that the sources lack come from; "the checkpoint" if nowhere else."""
    imported: str
    """ISO date."""
    variant: str = ""
    """The published model it is."""
    prediction: str = "eps"
    tile: int = 512
    dtype: str = "fp32"
    files: Mapping[str, Part] = field(default_factory=dict[str, Part])
    """What the import wrote, by path below the folder."""

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.files.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the folder."""
        return {**asdict(self), "folder": str(self.folder), "bytes": self.bytes}


def store_folder() -> Path:
    """`$ADDSR_MODELS`, or `addsr/models` in the platform's folder for caches.

    Raises:
        ConfigError: there is no home folder, as for a container's user without a name.
    """
    chosen = os.environ.get("ADDSR_MODELS")
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
        home = Path.home()
    except RuntimeError as error:
        raise ConfigError(
            f"ADDSR_MODELS: {chosen or 'not set'!r}, and no home folder is known for it; set it to "
            "the whole path of a folder for models"
        ) from error
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # the standard says: others are to be ignored
        cache = Path(xdg)
    elif sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        cache = home / "Library" / "Caches"
    else:
        cache = home / ".cache"
    return cache / "addsr" / "models"


def check_name(name: str) -> str:
    """`name`, if a model may be called that.

    Raises:
        OptionError: it may not.
    """
    if not _NAME.fullmatch(name) or name.split(".")[0] in _DEVICES:
        raise OptionError(
            f"name: {name!r} cannot be a model's name; use up to 64 of a-z, 0-9, dot, dash and "
            "underscore, a letter or digit first and last"
        )
    return name


def find_installed(name: str) -> Installed | None:
    """The model imported under `name`; None if there is none.

    Raises:
        ModelError: there is one, and the facts beside it are damaged; or the store cannot be read.
    """
    try:
        if not _NAME.fullmatch(name) or not (store_folder() / name / FACTS).is_file():
            return None
    except OSError as error:
        raise _unreadable(error) from error
    return read_facts(store_folder() / name)


TAGGERS = ("dape", "ram")
"""Names of imported extractors that are looked for, the one made for spoilt pictures first."""


def find_tagger() -> Installed | None:
    """The imported prompt extractor that is used where none is named; None if there is none.

    Raises:
        ModelError: the facts beside one are damaged.
    """
    found = (find_installed(name) for name in TAGGERS)
    return next((one for one in found if one is not None and one.kind == "ram"), None)


def list_installed() -> list[Installed]:
    """All imported models by name; what is damaged is left out with a warning."""
    found: list[Installed] = []
    for folder in folders():
        try:
            found.append(read_facts(folder))
        except ModelError as error:
            log.warning("%s", error)
    return found


def folders() -> list[Path]:
    """The folders of imported models, damaged ones too.

    Raises:
        ModelError: the store is there and cannot be read.
    """
    store = store_folder()
    try:
        inside = sorted(store.iterdir())
        return [f for f in inside if _NAME.fullmatch(f.name) and (f / FACTS).is_file()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(error) from error


def read_facts(folder: Path) -> Installed:
    """The facts in a model's folder.

    Raises:
        ModelError: they are missing, damaged or of a newer format.
    """
    path = folder / FACTS
    remedy = f"import the model again with --force, or delete {str(folder)!r}"
    try:
        facts: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); {remedy}") from error
    try:
        version = _typed(facts, "format", int)
        if version > FORMAT:
            raise ModelError(f"{path}: format {version} is newer than {FORMAT}; update addsr")
        return Installed(
            name=folder.name,
            folder=folder,
            sources=tuple(
                Source(
                    _typed(one, "name", str),
                    _size(one),
                    _sha256(one),
                    _typed(one, "what", str),
                )
                for one in _typed(facts, "sources", list)
            ),
            tile=_typed(facts, "tile", int),
            files={
                _inside(name): Part(_size(one), _sha256(one))
                for name, one in _typed(facts, "files", dict).items()
            },
            **{name: _typed(facts, name, str) for name in _TEXTS},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: {error.args[0]}; {remedy}") from error


_TEXTS = ("kind", "licence", "base", "imported", "variant", "prediction", "dtype")


def write_facts(model: Installed) -> None:
    """Writes the facts into the model's folder; they hold no path, so that it can be moved.

    Raises:
        OutputError: the folder cannot be written.
    """
    facts = {k: v for k, v in asdict(model).items() if k not in ("name", "folder")}
    write_json(model.folder / FACTS, {"format": FORMAT, **facts})


def recorded_hash(folder: Path) -> str | None:
    """sha256 over names and sha256 of all parts of an imported model; None: it was not imported.

    Raises:
        ModelError: as `read_facts`.
    """
    if not (folder / FACTS).is_file():
        return None
    parts = sorted(read_facts(folder).files.items())
    lines = "".join(f"{part.sha256}  {name}\n" for name, part in parts)
    return hashlib.sha256(lines.encode()).hexdigest()


def recorded() -> dict[str, Part]:
    """Size and sha256 of published files at their first import, by name.

    Publishers of checkpoints state neither; from the second time on a changed or damaged file is
    noticed.
    """
    path = store_folder() / _RECORD
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        return {name: Part(_size(one), _sha256(one)) for name, one in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning("%s: cannot be read (%s); sizes and sha256 are recorded anew", path, error)
        return {}


def check_record(path: Path, known_as: str, part: Part, force: bool) -> None:
    """Refuses a published file that is not what it was, unless `force`.

    Raises:
        ModelError: another file is on record as `known_as`.
    """
    known = recorded().get(known_as)
    if known is not None and known.sha256 != part.sha256 and not force:
        raise ModelError(
            f"{path}: is not the {known_as} on record (sha256 {part.sha256}, not "
            f"{known.sha256}): damaged, or changed by its publisher; fetch it again, or take it "
            "with --force"
        )


def record(name: str, part: Part) -> None:
    """Notes `part` for the published file `name`, in place of what was noted before.

    Raises:
        OutputError: the store cannot be written.
    """
    known = recorded()
    if known.get(name) != part:
        noted = {**known, name: part}
        write_json(store_folder() / _RECORD, {k: asdict(noted[k]) for k in sorted(noted)})


_RECORD = ".sources.json"


def write_json(path: Path, value: Any) -> None:
    """Writes `value` through a temporary file.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error})") from error


def _unreadable(error: OSError) -> ModelError:
    return ModelError(
        f"{store_folder()}: cannot be read ({error}); mend its permissions, or point ADDSR_MODELS "
        "to another folder"
    )


def _typed(facts: Any, name: str, kind: type[Any]) -> Any:
    if not isinstance(facts, dict):
        raise TypeError("holds something that is no table of facts")
    value = cast("dict[str, Any]", facts).get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name} = {value!r} is no {kind.__name__}")
    return value


def _size(one: Any) -> int:
    size: int = _typed(one, "bytes", int)
    if size < 0:
        raise ValueError(f"bytes = {size} is no size")
    return size


def _sha256(one: Any) -> str:
    text: str = _typed(one, "sha256", str)
    if not _SHA256.fullmatch(text):
        raise ValueError(f"sha256 = {text!r} is none")
    return text


def _inside(name: str) -> str:
    """`name`, a path that stays in the folder: files named here are deleted by `remove`."""
    parts = PurePosixPath(name).parts
    is_below = bool(parts) and not name.startswith("/") and ".." not in parts
    # Windows has other separators and drives; no system opens a name with a zero byte
    if not is_below or "\\" in name or ":" in name or not name.isprintable():
        raise ValueError(f"files names {name!r}, which is not in the folder")
    return name
