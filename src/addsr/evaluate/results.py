"""Results of methods: found in folders, or made by running a model, once for each input."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from torch import Tensor

from addsr.errors import AddsrError, InputError, OutputError
from addsr.image.reading import read_size

from .cache import Cache, hash_file, key_of
from .methods import Method, Run
from .pairs import Pair, Problem, list_names, list_pictures, match_results
from .pictures import read_picture, to_image
from .protocol import Dataset
from .speed import PeakMemory

log = logging.getLogger(__name__)

Place = tuple[str, str]
"""Data set and picture."""


@dataclass
class Ledger:
    """What went wrong, each thing once, and which pictures are therefore left out."""

    problems: list[Problem] = field(default_factory=list[Problem])
    bad: set[Place] = field(default_factory=set[Place])
    """Pictures whose input or reference cannot be used, whatever the method."""
    _known: set[Problem] = field(default_factory=set[Problem])

    def add(self, dataset: str, image: str, method: str | None, problem: str, remedy: str) -> None:
        """Notes a problem; without a method, the picture is left out from here on."""
        one = Problem(dataset, image, method, problem, remedy)
        if one not in self._known:
            self._known.add(one)
            self.problems.append(one)
            log.info("%s %s %s: %s; %s", dataset, image, method or "", problem, remedy)
        if method is None and image:
            self.bad.add((dataset, image))

    def add_error(self, dataset: str, image: str, method: str | None, error: Exception) -> None:
        """Notes what an exception says; one that is none of ours is a surprise to report."""
        if isinstance(error, AddsrError):
            problem, _, remedy = str(error).rpartition("; ")
            self.add(dataset, image, method, problem or str(error), remedy if problem else "")
            return
        log.debug("%s %s %s", dataset, image, method, exc_info=error)
        reason = (str(error).splitlines() or [""])[0]
        self.add(
            dataset, image, method,
            f"unexpected error: {type(error).__name__}: {reason}", "please report it",
        )  # fmt: skip


@dataclass(frozen=True)
class Speed:
    """How fast a method ran, and in how much memory."""

    seconds: float | None = None
    """Per picture."""
    megapixels: float | None = None
    """Of results per second."""
    peak_bytes: int | None = None
    note: str | None = None
    peak_kind: str | None = None


def find_results(
    method: Method, dataset: Dataset, pairs: Iterable[Pair], ledger: Ledger
) -> dict[str, Path]:
    """Picture -> file of the results of a method that were made elsewhere."""
    folder = method.results_folder(dataset.name)
    if folder is None:
        ledger.add(dataset.name, "", method.id, "has no results on this data set", "name a folder")
        return {}
    inputs = {pair.name: pair.lr for pair in pairs}
    names = list(inputs)
    try:
        files, several = list_pictures(folder)
    except InputError as error:
        ledger.add_error(dataset.name, "", method.id, error)
        return {}
    for name, paths in several.items():
        if name in names:
            ledger.add(
                dataset.name, name, method.id,
                f"{' and '.join(path.name for path in paths)} have the same name", "keep one",
            )  # fmt: skip
    found, missing = match_results(names, list(files), others=list_names(dataset))
    # where references have names of their own, models name results as the inputs
    named = {lr.stem: name for name, lr in inputs.items() if name in missing and lr is not None}
    free = [stem for stem in files if stem not in found.values()]
    for stem, result in match_results(named, free)[0].items():
        found[named[stem]] = result
        del missing[named[stem]]
    if not found and names:
        ledger.add(
            dataset.name, "", method.id, f"{folder} holds none of its pictures",
            "name results as their inputs are named",
        )  # fmt: skip
        return {}
    for name, (problem, remedy) in missing.items():
        if name not in several:
            ledger.add(dataset.name, name, method.id, f"{problem} in {folder}", remedy)
    return {name: files[stem] for name, stem in found.items()}


def make_results(
    method: Method,
    work: Mapping[str, list[Pair]],
    cache: Cache,
    ledger: Ledger,
    tick: Callable[[], None],
) -> tuple[dict[Place, Path], Speed]:
    """Place -> file of the results of a model on all data sets, and how long they took.

    What lies in the cache is not made again; the model is loaded for the first that does not.

    Raises:
        OutputError: results cannot be written.
    """
    made: dict[Place, Path] = {}
    keys: list[str] = []
    with ExitStack() as stack:
        maker = _Maker(method, cache, stack)
        for dataset, pairs in work.items():
            for pair in pairs:
                tick()
                if pair.lr is None:
                    ledger.add(dataset, "", method.id, "there are no inputs", "give --lr")
                    continue
                if (dataset, pair.name) in ledger.bad:
                    continue
                try:
                    key = key_of("result", hash_file(pair.lr), pair.size, method.fingerprint)
                    path = cache.result_path(key)
                    lr = None
                    if not _is_whole(path, pair):
                        lr = read_picture(pair.lr, pair, is_input=True)
                except (OSError, AddsrError) as error:
                    ledger.add_error(dataset, pair.name, None, _as_ours(pair.lr, error))
                    continue
                try:
                    if lr is not None:
                        maker.make(lr, pair, key)
                except OutputError:
                    raise  # a full disk: so will all others
                except _UnusableError as error:
                    assert isinstance(error.__cause__, Exception)
                    ledger.add_error("", "", method.id, error.__cause__)
                    continue  # what is in the cache is there all the same
                except Exception as error:
                    ledger.add_error(dataset, pair.name, method.id, error)
                    continue
                made[dataset, pair.name] = path
                keys.append(key)
        maker.finish()
    if maker.failure is not None and not keys:
        return made, Speed(note="could not be run")
    return made, _speed(method, keys, maker.count, cache)


class _UnusableError(Exception):
    """The method cannot be run at all; its cause says why."""


class _Maker:
    """Runs a method, which is loaded when the first result is asked for."""

    def __init__(self, method: Method, cache: Cache, stack: ExitStack) -> None:
        assert method.maker is not None
        self.method, self.cache, self.stack = method, cache, stack
        self.source = method.maker
        self.memory = PeakMemory(method.maker.device)
        self.run: Run | None = None
        self.failure: Exception | None = None
        """Why the method cannot be loaded; that is tried once."""
        self.count = 0
        """Results made."""

    def make(self, lr: Tensor, pair: Pair, key: str) -> None:
        """Makes and keeps the result for an input, and how long it took."""
        if self.failure is not None:
            raise _UnusableError from self.failure
        if self.run is None:
            self.memory.start()
            try:
                self.run = cast(Run, self.stack.enter_context(self.source.open()))
            except Exception as error:
                self.failure = error
                raise _UnusableError from error
        started = time.perf_counter()
        result = self.run(lr).float().cpu()
        seconds = time.perf_counter() - started
        _check_size(result.shape, pair)
        self.cache.store_result(key, to_image(result))
        pixels = pair.size[0] * pair.size[1]
        self.cache.store_run(key, self.method.fingerprint, seconds, pixels, warm=self.count > 0)
        self.count += 1

    def finish(self) -> None:
        """Keeps the most memory that the method ever took."""
        if self.count:
            peak, kind = self.memory.stop()
            before = self.cache.peak(self.method.fingerprint)
            if peak and (before is None or before[0] < peak):
                self.cache.store_peak(self.method.fingerprint, peak, kind)
        self.cache.flush()


def _is_whole(path: Path, pair: Pair) -> bool:
    """Whether a result lies in the cache; a power cut can leave an empty file under its name."""
    try:
        return path.is_file() and read_size(path) == pair.size
    except InputError:
        return False


def _check_size(shape: tuple[int, ...], pair: Pair) -> None:
    if tuple(shape) != (1, 3, *pair.size):
        raise InputError(
            f"result: {tuple(shape)} is not (1, 3, {pair.size[0]}, {pair.size[1]}); "
            "use a model that enlarges as the protocol says"
        )


def _as_ours(path: Path, error: Exception) -> Exception:
    """An OSError as an InputError that names the file."""
    if isinstance(error, OSError) and not isinstance(error, AddsrError):
        return InputError(f"{path}: cannot be read ({error.strerror}); check its permissions")
    return error


def _speed(method: Method, keys: list[str], count: int, cache: Cache) -> Speed:
    runs = [one for one in map(cache.run, keys) if one is not None]
    warm = [one for one in runs if one[2]]
    chosen = warm or runs  # a single picture is its own warm-up: better than nothing, and told
    peak = cache.peak(method.fingerprint)
    if not chosen:
        return Speed(note="not measured: no result was made")
    seconds = sum(one[0] for one in chosen)
    pixels = sum(one[1] for one in chosen)
    if not count:
        note = "not measured in this run, as all results came from the cache: stored figures"
    else:
        note = f"mean of {len(chosen)} pictures"
        note += ", the first left out as warm-up" if warm else ", warm-up included"
        if count < len(keys):
            note += f"; {len(keys) - count} results came from the cache with their stored times"
    return Speed(
        seconds=seconds / len(chosen),
        megapixels=pixels / 1e6 / seconds if seconds > 0 else None,
        peak_bytes=None if peak is None else peak[0],
        peak_kind=None if peak is None else peak[1],
        note=note,
    )
