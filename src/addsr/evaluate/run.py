"""An evaluation from beginning to end: results, figures, intervals, report."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from addsr.errors import AddsrError, InputError, OptionError, OutputError
from addsr.metrics.catalog import Metric, choose_metrics

from .cache import Cache
from .elsewhere import read_scores
from .methods import Method
from .pairs import Pair, Problem, find_pairs, list_names, match_results
from .protocol import Dataset, Protocol
from .results import Ledger, Place, Speed, find_results, make_results
from .score import Resources, Scored, Scorer, UnreadableError
from .sets import Member, SetScorer
from .statistics import CONFIDENCE, RESAMPLES, SEED, Table

log = logging.getLogger(__name__)

T = TypeVar("T")
U = TypeVar("U")
Progress = Callable[[int, int], None]

MOST_THREADS = 256
"""With very many, torch ends the process in place of an error."""


@dataclass(frozen=True)
class Options:
    """How an evaluation is done."""

    metrics: tuple[str, ...] | None = None
    """Names, `default` or `all`; None: those of the protocol."""
    resources: Resources = field(default_factory=Resources)
    threads: int | None = None
    """Processor threads to use; None: as many as torch does."""
    resamples: int = RESAMPLES
    confidence: float = CONFIDENCE
    seed: int = SEED
    """Of the bootstrap."""
    limit: int | None = None
    """The first so many pictures of each data set."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"limit: {self.limit} is not possible; give 1 or more")
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise OptionError(
                f"threads: {self.threads} is outside of 1 to {MOST_THREADS}; give as many as the "
                "processor has cores"
            )
        if self.resamples < 1:
            raise OptionError(f"bootstrap: {self.resamples} is not possible; give 1 or more")


@dataclass
class Evaluation:
    """Everything that was found out; per picture it holds numbers only."""

    protocol: Protocol
    methods: Sequence[Method]
    metrics: Sequence[Metric]
    missing: dict[str, str]
    """Metric -> how to get what it needs."""
    options: Options
    threads: int
    pairs: dict[str, list[Pair]] = field(default_factory=dict[str, "list[Pair]"])
    speeds: dict[str, Speed] = field(default_factory=dict[str, Speed])
    tables: dict[str, dict[str, Table]] = field(default_factory=dict[str, "dict[str, Table]"])
    """Data set -> method -> figures `(pictures, metrics)`, NaN where there is none."""
    set_scores: dict[str, dict[str, dict[str, float]]] = field(
        default_factory=dict[str, "dict[str, dict[str, float]]"]
    )
    results: dict[str, dict[str, dict[str, Path]]] = field(
        default_factory=dict[str, "dict[str, dict[str, Path]]"]
    )
    """Data set -> method -> picture -> file."""
    gaps: dict[tuple[str, str, str], tuple[int, str]] = field(
        default_factory=dict[tuple[str, str, str], "tuple[int, str]"]
    )
    """(Data set, method, metric) -> how many pictures it is undefined for, and why."""
    problems: list[Problem] = field(default_factory=list[Problem])


def evaluate(
    methods: Sequence[Method],
    protocol: Protocol,
    cache: Cache,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Runs what has to be run, scores every picture, and gives the figures.

    A picture that cannot be used is named in `problems`, and the others are scored.

    Raises:
        InputError: nothing at all could be scored; OptionError: unknown metrics.
    """
    options = options or Options()
    threads = options.threads or torch.get_num_threads()
    metrics = choose_metrics(options.metrics or protocol.metrics)
    scorer = Scorer(metrics, protocol, options.resources)
    done = Evaluation(protocol, methods, metrics, scorer.missing, options, threads)
    ledger = Ledger(done.problems)
    datasets = _find_pairs(done, ledger)
    ticker = _Ticker(progress)
    models = [method for method in methods if method.maker is not None]
    pictures = sum(len(pairs) for pairs in done.pairs.values())
    ticker.total = pictures * (len(models) + len(methods))

    made: dict[str, dict[Place, Path]] = {}
    with _threads(threads):
        for method in models:
            made[method.id], done.speeds[method.id] = make_results(
                method, done.pairs, cache, ledger, ticker.tick
            )
    with _threads(1), _Pool(threads) as pool:
        for dataset in datasets:
            for method in methods:
                _score(done, dataset, method, made, scorer, cache, pool, ledger, ticker)
    if all(np.isnan(table).all() for by in done.tables.values() for table in by.values()) and not (
        any(by for sets in done.set_scores.values() for by in sets.values())
    ):
        told = "; ".join(
            f"{one.image or one.dataset or one.method}: {one.problem}" for one in done.problems[:3]
        )
        raise InputError(f"nothing could be scored ({told or 'no metric fits'}); see --metrics")
    return done


def _find_pairs(done: Evaluation, ledger: Ledger) -> list[Dataset]:
    """The data sets with usable pictures."""
    usable: list[Dataset] = []
    errors: list[InputError] = []
    for dataset in done.protocol.datasets:
        try:
            pairs, problems = find_pairs(dataset, done.protocol, done.options.limit)
        except InputError as error:
            errors.append(error)
            ledger.add_error(dataset.name, "", None, error)
            continue
        for one in problems:
            ledger.add(one.dataset, one.image, one.method, one.problem, one.remedy)
        done.pairs[dataset.name] = pairs
        usable.append(dataset)
    if not usable:
        raise errors[0]
    return usable


def _score(
    done: Evaluation,
    dataset: Dataset,
    method: Method,
    made: dict[str, dict[Place, Path]],
    scorer: Scorer,
    cache: Cache,
    pool: _Pool,
    ledger: Ledger,
    ticker: _Ticker,
) -> None:
    """The figures of one method on one data set."""
    pairs = done.pairs[dataset.name]
    table = np.full((len(pairs), len(done.metrics)), math.nan)
    done.tables.setdefault(dataset.name, {})[method.id] = table
    column = {metric.name: number for number, metric in enumerate(done.metrics)}
    if method.kind == "scores":
        _read_scores(dataset, method, pairs, table, column, ledger)
        for _ in pairs:
            ticker.tick()
        return
    if method.maker is not None:
        files = {name: path for (name_of, name), path in made[method.id].items()
                 if name_of == dataset.name}  # fmt: skip
    else:
        files = find_results(method, dataset, pairs, ledger)
    done.results.setdefault(dataset.name, {})[method.id] = files
    has_hr, has_lr = dataset.hr is not None, dataset.lr is not None
    names = scorer.image_metrics(has_hr, has_lr)

    def work(pair: Pair) -> tuple[Scored, str, str] | Exception | None:
        if pair.name not in files or (dataset.name, pair.name) in ledger.bad:
            return None
        try:
            return scorer.score_file(files[pair.name], pair, cache, names)
        except Exception as error:
            return error

    members: list[Member] = []
    for number, (pair, found) in enumerate(zip(pairs, pool.in_order(work, pairs), strict=True)):
        ticker.tick()
        if isinstance(found, OutputError):  # the cache cannot be written: so will all others
            raise found
        if isinstance(found, Exception):
            whose = None if isinstance(found, UnreadableError) else method.id
            ledger.add_error(dataset.name, pair.name, whose, found)
            files.pop(pair.name)
        elif found is not None:
            scored, sr_hash, hr_hash = found
            for name, value in scored.values.items():
                table[number, column[name]] = value
            for name, reason in scored.gaps.items():
                count, first = done.gaps.get((dataset.name, method.id, name), (0, reason))
                done.gaps[dataset.name, method.id, name] = (count + 1, first)
            members.append(Member(number, pair, files[pair.name], sr_hash, hr_hash))
    if members and scorer.set_metrics(has_hr):
        try:
            values, gaps = SetScorer(scorer, cache).score(
                members, scorer.set_metrics(has_hr), pool.in_order
            )
        except OutputError:
            raise
        except Exception as error:  # the figures of single pictures are there all the same
            ledger.add_error(dataset.name, "", method.id, error)
            values, gaps = {}, {}
        done.set_scores.setdefault(dataset.name, {})[method.id] = values
        for name, reason in gaps.items():
            done.gaps[dataset.name, method.id, name] = (len(members), reason)
    cache.flush()


def _read_scores(
    dataset: Dataset,
    method: Method,
    pairs: Sequence[Pair],
    table: Table,
    column: dict[str, int],
    ledger: Ledger,
) -> None:
    """Figures made elsewhere into `table`."""
    place = method.score_place(dataset.name)
    if place is None:
        ledger.add(dataset.name, "", method.id, "has no figures on this data set", "name a file")
        return
    try:
        rows, unknown = read_scores(place)
    except AddsrError as error:
        ledger.add_error(dataset.name, "", method.id, error)
        return
    if unknown:
        log.info("%s: figures of unknown names are left out: %s", place, ", ".join(unknown))
    found, missing = match_results(
        [pair.name for pair in pairs], list(rows), "row of figures", list_names(dataset)
    )
    if not found:
        ledger.add(
            dataset.name, "", method.id, f"{place} has figures of none of its pictures",
            "name the pictures as the inputs are named",
        )  # fmt: skip
        return
    for number, pair in enumerate(pairs):
        if pair.name in missing:
            ledger.add(dataset.name, pair.name, method.id, *missing[pair.name])
            continue
        for name, value in rows[found[pair.name]].items():
            if name in column:
                table[number, column[name]] = value


class _Ticker:
    """Pictures done and to do, told to whoever asked."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.done, self.total = progress, 0, 0

    def tick(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)


@contextmanager
def _threads(count: int) -> Generator[None]:
    """Torch works with so many threads, in this thread and those it starts, while it lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Pool:
    """Work on several items at once, a few at a time, with results in the order of the items."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._executor: ThreadPoolExecutor | None = None

    def __enter__(self) -> _Pool:
        if self.threads > 1:
            self._executor = ThreadPoolExecutor(self.threads, "addsr-score")
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def in_order(self, function: Callable[[T], U], items: Sequence[T]) -> Iterator[U]:
        """`function` of each item; only as many are begun ahead as keep all threads busy."""
        if self._executor is None:
            yield from map(function, items)
            return
        ahead: deque[Future[U]] = deque()
        for item in items:
            ahead.append(self._executor.submit(function, item))
            if len(ahead) > 2 * self.threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
