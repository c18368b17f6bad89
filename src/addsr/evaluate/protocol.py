"""What is measured on which pictures: a protocol, read from a TOML file or from options."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from addsr.errors import ConfigError, DependencyError, InputError, OptionError
from addsr.metrics.catalog import choose_metrics

LUMAS = ("bt601", "yiq")
DEFAULT_BORDER = 4


@dataclass(frozen=True)
class Dataset:
    """Folders of pictures that belong together, matched by their names without suffix."""

    name: str
    hr: Path | None
    """References; None for real photos without any."""
    lr: Path | None
    """Inputs; None where only finished results are compared with references."""
    images: tuple[str, ...] | None = None
    """Names of the pictures to use; None for all."""
    crop: int | None = None
    """Side of the centred square, in pixels of the result, that larger pictures are cut to."""
    count: int | None = None
    """How many pictures the papers use."""
    results: Mapping[str, str] = field(default_factory=dict[str, str])
    """Method -> folder of its finished results on this dataset."""
    scores: Mapping[str, str] = field(default_factory=dict[str, str])
    """Method -> `FILE.json#path/inside` of figures per picture made elsewhere."""


@dataclass(frozen=True)
class Protocol:
    """Datasets, and how figures are measured on all of them."""

    name: str
    title: str
    datasets: tuple[Dataset, ...]
    source: str = ""
    """Where the settings come from and what differs between papers."""
    scale: int = 4
    border: int = DEFAULT_BORDER
    """Pixels left out on every side for figures that compare with a reference."""
    luma: str = "bt601"
    """bt601: Y in 16..235; yiq: the same weights over 0..255, PSNR 1.32 dB lower."""
    metrics: tuple[str, ...] = ("default",)

    def __post_init__(self) -> None:
        if self.luma not in LUMAS:
            raise ConfigError(f"luma: {self.luma!r} is unknown; use {' or '.join(LUMAS)}")
        if not 0 <= self.border <= 256:
            raise ConfigError(f"border: {self.border} is outside of 0 to 256; 4 is usual for x4")
        if not 1 <= self.scale <= 8:
            raise ConfigError(f"scale: {self.scale} is outside of 1 to 8; give one within")
        if not self.datasets:
            raise ConfigError("dataset: there is none; add a [[dataset]] with lr or hr")
        names = [dataset.name for dataset in self.datasets]
        for dataset in self.datasets:
            if names.count(dataset.name) > 1:
                raise ConfigError(f"dataset.name: two are called {dataset.name!r}; rename one")
            if dataset.hr is None and dataset.lr is None:
                raise ConfigError(f"dataset {dataset.name!r}: has neither hr nor lr; give a folder")
            crop = dataset.crop
            if crop is not None and (crop < self.scale or crop % self.scale):
                raise ConfigError(
                    f"dataset {dataset.name!r}: crop = {crop} is no multiple of {self.scale}"
                )


def protocol_of_folders(
    hr: Path | None, lr: Path | None, *, border: int = DEFAULT_BORDER, luma: str = "bt601"
) -> Protocol:
    """The protocol for one pair of folders, or for inputs or references alone.

    Raises:
        OptionError: neither folder; InputError: a folder is not there.
    """
    if hr is None and lr is None:
        raise OptionError("lr: give --lr and --hr folders, --lr alone, or a --protocol")
    for name, folder in (("hr", hr), ("lr", lr)):
        # Path.is_dir raises where it may not look
        if folder is not None and not os.path.isdir(folder):
            raise InputError(f"{name}: {folder} is no folder; give a folder of pictures")
    named = lr if lr is not None else hr
    assert named is not None
    # folders are mostly called lr, so the one above says more
    name = named.resolve().name
    if name.lower() in {"lr", "hr", "lq", "gt", "test_lr", "test_hr"}:
        name = named.resolve().parent.name or name
    title = "pairs" if lr is not None else "results against references"
    if hr is None:
        title = "photos without a reference"
    return Protocol(
        name="folders",
        title=f"{name}: {title}",
        source="folders given on the command line",
        border=border,
        luma=luma,
        datasets=(Dataset(name, hr, lr),),
    )


def packaged_protocols() -> list[str]:
    """Names of the protocols that come with the package."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in (files("addsr.evaluate") / "protocols").iterdir()
        if entry.name.endswith(".toml")
    )


def load_protocol(name_or_file: str, data: Path | None = None) -> Protocol:
    """A packaged protocol by name, or the one in a TOML file.

    Folders in it are relative to `data`, without which a file's own folder is taken.

    Raises:
        ConfigError: a field is unknown, missing or wrong; OptionError: an unknown name, or a
            packaged protocol without `data`; InputError: a folder it names is not there.
    """
    known = packaged_protocols()
    if name_or_file in known:
        if data is None:
            raise OptionError(f"data: give the folder of the pictures of {name_or_file} as --data")
        resource = files("addsr.evaluate") / "protocols" / f"{name_or_file}.toml"
        return _parse(name_or_file, resource.read_text(encoding="utf-8"), data, data)
    path = Path(name_or_file)
    if not path.is_file():
        raise OptionError(
            f"protocol: {name_or_file!r} is neither packaged ({', '.join(known)}) nor a TOML file"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a TOML file") from error
    return _parse(str(path), text, path.parent if data is None else data, path.parent)


def _parse(where: str, text: str, root: Path, beside: Path) -> Protocol:
    try:
        table = _toml(text)
    except ValueError as error:
        raise ConfigError(f"{where}: not a readable TOML file ({error})") from error
    allowed = {"name", "title", "source", "scale", "border", "luma", "metrics", "dataset"}
    _check_fields(where, table, allowed)
    stem = Path(where).name.removesuffix(".toml")
    entries = table.get("dataset", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{where}: dataset must be tables, each under [[dataset]]")
    metrics = _texts(where, "metrics", table.get("metrics", ["default"]))
    try:
        choose_metrics(metrics)
        return Protocol(
            name=_text(where, "name", table.get("name", stem)),
            title=_text(where, "title", table.get("title", stem)),
            source=_text(where, "source", table.get("source", "")),
            scale=_whole(where, "scale", table.get("scale", 4)),
            border=_whole(where, "border", table.get("border", DEFAULT_BORDER)),
            luma=_text(where, "luma", table.get("luma", "bt601")),
            metrics=metrics,
            datasets=tuple(
                _dataset(where, cast("dict[str, Any]", entry), root, beside)
                for entry in cast("list[Any]", entries)
            ),
        )
    except (ConfigError, OptionError) as error:
        message = str(error)
        raise ConfigError(message if where in message else f"{where}: {message}") from error


def _dataset(where: str, entry: dict[str, Any], root: Path, beside: Path) -> Dataset:
    allowed = {"name", "hr", "lr", "images", "crop", "count", "results", "scores"}
    _check_fields(f"{where}: dataset", entry, allowed)
    name = _text(where, "dataset.name", entry.get("name", ""))
    if not name:
        raise ConfigError(f"{where}: dataset.name is missing; give each [[dataset]] a name")
    images = entry.get("images")
    if isinstance(images, str):  # a file with one name a line
        listing = beside / images
        try:
            images = listing.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: images = {str(listing)!r} cannot be read") from error
        images = [line.strip() for line in images if line.strip()]
    crop, count = entry.get("crop"), entry.get("count")
    scores = _table(where, f"dataset {name}.scores", entry.get("scores", {}))
    return Dataset(
        name=name,
        hr=_folder(where, name, "hr", entry.get("hr"), root),
        lr=_folder(where, name, "lr", entry.get("lr"), root),
        images=None if images is None else _texts(where, f"dataset {name}.images", images),
        crop=None if crop is None else _whole(where, f"dataset {name}.crop", crop),
        count=None if count is None else _whole(where, f"dataset {name}.count", count),
        results={
            key: str(root / place)
            for key, place in _table(
                where, f"dataset {name}.results", entry.get("results", {})
            ).items()
        },
        scores={key: str(root / place) for key, place in scores.items()},
    )


def _folder(where: str, dataset: str, field_name: str, value: Any, root: Path) -> Path | None:
    """The first of the folders named that is there."""
    if value is None:
        return None
    places = _texts(
        where, f"dataset {dataset}.{field_name}", [value] if isinstance(value, str) else value
    )
    for place in places:
        if os.path.isdir(root / place):
            return root / place
    named = " nor ".join(str(root / place) for place in places)
    raise InputError(
        f"{field_name} of dataset {dataset}: there is no folder {named}; "
        "give the folder that holds them as --data"
    )


def _check_fields(where: str, table: Mapping[str, Any], allowed: set[str]) -> None:
    unknown = sorted(set(table) - allowed)
    if unknown:
        raise ConfigError(
            f"{where}: field {unknown[0]!r} is unknown; use {', '.join(sorted(allowed))}"
        )


def _text(where: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {name} = {value!r} must be a text")
    return value


def _whole(where: str, name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{where}: {name} = {value!r} must be a whole number")
    return value


def _texts(where: str, name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where}: {name} = {value!r} must be a list of texts, at least one")
    return tuple(_text(where, name, one) for one in cast("list[Any]", value))


def _table(where: str, name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {name} = {value!r} must be a table of METHOD = 'PLACE'")
    table = cast("dict[str, Any]", value)
    return {key: _text(where, f"{name}.{key}", place) for key, place in table.items()}


def _toml(text: str) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        try:
            import tomli as tomllib  # type: ignore[import-not-found,no-redef]
        except ModuleNotFoundError as error:
            raise DependencyError(
                "protocol: reading TOML with Python 3.10 needs tomli; `pip install tomli`"
            ) from error
    return tomllib.loads(text)
