"""Pictures laid beside a report, so that it can be shown and carried elsewhere."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from addsr.errors import AddsrError, OutputError

from .methods import make_id
from .pairs import Pair
from .pictures import copy_beside
from .run import Evaluation

log = logging.getLogger(__name__)

MARK = ".addsr-pictures"
"""An empty file that tells our folder of pictures from one of the user's own."""
MOST_IMAGES = 60
"""Images of a data set whose pictures are laid there; of more, the telling ones."""


def add_pictures(report: dict[str, Any], done: Evaluation, folder: Path) -> None:
    """Lays pictures beside the report in `folder/pictures` and names them in it.

    Those of an earlier report there are replaced once the new ones are complete.

    Raises:
        OutputError: they cannot be written, or would replace what is not ours (`check_place`).
    """
    check_place(folder)
    fresh = folder / f".pictures.{secrets.token_hex(4)}.part"
    try:
        fresh.mkdir()
        (fresh / MARK).touch()
        places = _place_names(done.pairs)
        for dataset, pairs in done.pairs.items():
            chosen = _telling(report, dataset, pairs)
            named: dict[str, dict[str, str]] = {}
            for pair in pairs:
                if pair.name in chosen:
                    named[pair.name] = _lay(done, dataset, pair, fresh, places[dataset])
            report["pictures"][dataset] = named
        _swap(fresh, folder / "pictures")
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"{folder}: pictures cannot be written ({error.strerror}); use --no-pictures"
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def check_place(folder: Path) -> None:
    """Finds out before any work whether `folder/pictures` may be replaced.

    Raises:
        OutputError: it holds files that no report laid there.
    """
    place = folder / "pictures"
    try:
        is_ours = not os.path.lexists(place) or (place / MARK).is_file() or not any(place.iterdir())
    except OSError:  # a file, or a folder that may not be read
        is_ours = False
    if not is_ours:
        raise OutputError(
            f"{place}: was not made by addsr evaluate and is not replaced; choose another output "
            "folder, move it away, or use --no-pictures"
        )


def _place_names(datasets: Iterable[str]) -> dict[str, str]:
    """Data set -> name of its folder; different ones for names that differ in other letters."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for dataset in datasets:
        name = plain = make_id(dataset)
        number = 1
        while name.lower() in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name.lower())
        names[dataset] = name
    return names


def _lay(done: Evaluation, dataset: str, pair: Pair, fresh: Path, place: str) -> dict[str, str]:
    sources: dict[str, Path] = {}
    if pair.hr is not None:
        sources["hr"] = pair.hr
    if pair.lr is not None:
        sources["lr"] = pair.lr
    for method, files in done.results.get(dataset, {}).items():
        if pair.name in files:
            sources[method] = files[pair.name]
    made = {method.id for method in done.methods if method.maker is not None}
    laid: dict[str, str] = {}
    for key, source in sources.items():
        target = fresh / place / pair.name / key
        try:
            path = copy_beside(source, pair, target, is_input=key == "lr", link=key in made)
        except OutputError:
            raise
        except AddsrError as error:  # it was there when it was scored
            log.warning("%s; it is not shown", error)
            continue
        laid[key] = (Path("pictures") / path.relative_to(fresh)).as_posix()
    return laid


def _telling(report: dict[str, Any], dataset: str, pairs: Sequence[Pair]) -> set[str]:
    """Names of the pictures to show: all, or the best and worst of every method, and some more."""
    names = [pair.name for pair in pairs]
    if len(names) <= MOST_IMAGES:
        return set(names)
    queues: list[list[str]] = []
    for metrics in report["scores"][dataset].values():
        for figures in metrics.values():
            values = {k: float(v) for k, v in figures["images"].items() if v is not None}
            ranked = sorted(values, key=lambda name, of=values: (of[name], name))
            queues += [ranked, ranked[::-1]]
    queues.append(names[:: max(1, len(names) // MOST_IMAGES)])
    chosen: set[str] = set()
    for place in range(MOST_IMAGES):
        for queue in queues:
            if place < len(queue) and len(chosen) < MOST_IMAGES:
                chosen.add(queue[place])
    return chosen


def _swap(fresh: Path, place: Path) -> None:
    old = place.with_name(f".{place.name}.{secrets.token_hex(4)}.old")
    if place.exists():
        os.replace(place, old)
    os.replace(fresh, place)
    shutil.rmtree(old, ignore_errors=True)
