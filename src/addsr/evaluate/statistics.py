"""Means with intervals, and differences picture by picture.

An interval says how far a mean would move with other pictures of the same kind: pictures are drawn
anew with replacement, the mean is taken, and so on (Efron's percentile bootstrap, 1979). Methods
are compared on the same pictures, so the interval of their mean difference, from the same draws,
is far narrower than their own intervals suggest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from addsr.errors import OptionError
from addsr.metrics.catalog import Better

Table = NDArray[np.float64]

RESAMPLES, CONFIDENCE, SEED = 2000, 0.95, 0
_CHUNK_VALUES = 2_000_000


@dataclass(frozen=True)
class Mean:
    """A mean with the ends of its interval; NaN where there is nothing to take it of."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Difference:
    """Of one figure between two methods on the same pictures: first less second."""

    mean: float
    low: float
    high: float
    wins: int | None
    """Pictures on which the first is better; None for figures that judge nothing."""
    count: int


def bootstrap(
    table: Table,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> list[Mean]:
    """Mean and percentile interval of each column of `table` `(pictures, columns)`.

    NaN stands for a figure that a picture does not have: it is left out, in every draw. Of a single
    figure there is no interval (NaN). Infinite
    figures count, and make the mean infinite. All columns see the same draws, and the same table
    and seed give the same figures.

    Raises:
        OptionError: less than 1 resample, or a confidence not between 0 and 1.
    """
    if resamples < 1 or not 0 < confidence < 1:
        raise OptionError(
            f"bootstrap: {resamples} resamples at a confidence of {confidence:g} are not possible; "
            "give 1 or more, and a confidence between 0 and 1"
        )
    pictures, columns = table.shape
    there = (~np.isnan(table)).astype(np.float64)
    counts = there.sum(0)
    if not pictures or not columns:
        return [Mean(math.nan, math.nan, math.nan, 0)] * columns
    infinite = np.isinf(table)
    values = np.where((there > 0) & ~infinite, table, 0.0)
    signs = np.where(infinite, np.sign(table), 0.0)
    has_infinite, is_full = infinite.any(0), bool(there.all())

    def means_of(weights: Table) -> Table:
        """Means of the columns for weights `(n, pictures)`: `(n, columns)`."""
        total = pictures if is_full else weights @ there
        with np.errstate(invalid="ignore", divide="ignore"):
            found = (weights @ values) / total
        if has_infinite.any():
            up, down = weights @ (signs > 0), weights @ (signs < 0)
            found = np.where(up > 0, np.where(down > 0, np.nan, np.inf), found)
            found = np.where((down > 0) & (up == 0), -np.inf, found)
        return found

    means = means_of(np.ones((1, pictures)))[0]
    generator = np.random.default_rng(seed)
    drawn: list[Table] = []
    step = max(1, _CHUNK_VALUES // pictures)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        weights = generator.multinomial(pictures, np.full(pictures, 1 / pictures), size=size)
        drawn.append(means_of(weights.astype(np.float64)))
    samples = np.concatenate(drawn)  # (resamples, columns)
    ends = ((1 - confidence) / 2, (1 + confidence) / 2)
    # every draw from one picture is that picture: an interval of no width would claim certainty
    none = (math.nan, math.nan)
    return [
        Mean(
            float(means[k]),
            *(_ends(samples[:, k], ends) if counts[k] > 1 else none),
            int(counts[k]),
        )
        for k in range(columns)
    ]


def _ends(samples: Table, ends: tuple[float, float]) -> tuple[float, float]:
    """Quantiles of the samples that are numbers (a draw may hold only pictures without one)."""
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return math.nan, math.nan
    # between a number and infinity nothing can be interpolated
    method = "nearest" if np.isinf(samples).any() else "linear"
    low, high = np.quantile(samples, ends, method=method)
    return float(low), float(high)


def compare(
    pairs: Iterable[tuple[Table, Table]],
    better: Iterable[Better],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> list[Difference]:
    """The differences of columns `(pictures,)`, first less second, and how often the first wins.

    Pictures without one of the two figures are left out; two infinite figures are equal.
    """
    chosen, directions = list(pairs), list(better)
    if not chosen:
        return []
    columns: list[Table] = []
    for a, b in chosen:
        with np.errstate(invalid="ignore"):
            columns.append(np.where(np.isinf(a) & (a == b), 0.0, a - b))
    means = bootstrap(
        np.stack(columns, axis=1), resamples=resamples, confidence=confidence, seed=seed
    )
    return [
        Difference(mean.mean, mean.low, mean.high, _wins(a, b, direction), mean.count)
        for mean, (a, b), direction in zip(means, chosen, directions, strict=True)
    ]


def _wins(a: Table, b: Table, better: Better) -> int | None:
    if better == "none":
        return None
    if better == "one":
        a, b = np.abs(a - 1), np.abs(b - 1)
    return int((a > b).sum() if better == "higher" else (a < b).sum())
