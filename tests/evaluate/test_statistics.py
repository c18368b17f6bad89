from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from addsr.errors import OptionError
from addsr.evaluate.statistics import bootstrap, compare


def naive(values: list[float], resamples: int, confidence: float, seed: int) -> tuple[float, ...]:
    """The percentile bootstrap written out: draw pictures, take means, sort, read off the ends."""
    generator = np.random.default_rng(seed)
    n = len(values)
    means: list[float] = []
    for _ in range(resamples):
        counts = generator.multinomial(n, [1 / n] * n)
        drawn = [v for v, c in zip(values, counts, strict=True) for _ in range(c)]
        there = [v for v in drawn if not math.isnan(v)]
        if there:
            means.append(math.fsum(there) / len(there))
    means.sort()
    ends: list[float] = []
    for q in ((1 - confidence) / 2, (1 + confidence) / 2):
        place = q * (len(means) - 1)
        low = math.floor(place)
        high = min(low + 1, len(means) - 1)
        ends.append(means[low] + (place - low) * (means[high] - means[low]))
    there = [v for v in values if not math.isnan(v)]
    return (math.fsum(there) / len(there), *ends)


@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=12).flatmap(
        lambda values: st.tuples(st.just(values), st.integers(0, len(values) - 1))
    )
)
def test_intervals_are_those_of_the_bootstrap_written_out(case: tuple[list[float], int]) -> None:
    values, hole = case
    values = [math.nan if k == hole and len(values) > 1 else v for k, v in enumerate(values)]
    wanted = naive(values, 60, 0.9, seed=3)
    (found,) = bootstrap(np.array(values)[:, None], resamples=60, confidence=0.9, seed=3)
    assert found.count == sum(not math.isnan(v) for v in values)
    if found.count == 1:  # nothing is known of the spread
        wanted = (wanted[0], math.nan, math.nan)
    got = (found.mean, found.low, found.high)
    assert got == pytest.approx(wanted, abs=1e-9, nan_ok=True)


def test_intervals_hold_the_true_mean_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(5)
    held = 0
    # 400 columns that are 400 experiments of 40 pictures each
    table = generator.gamma(4.0, 2.0, size=(40, 400))
    for found in bootstrap(table, resamples=500):
        assert found.low <= found.mean <= found.high
        held += found.low <= 8.0 <= found.high
    assert 0.90 <= held / 400 <= 0.97


def test_the_same_seed_gives_the_same_ends_and_columns_share_their_draws() -> None:
    table = np.random.default_rng(0).normal(size=(30, 2))
    table[:, 1] = table[:, 0] + 7
    first, second = bootstrap(table, resamples=100, seed=1)
    again, _ = bootstrap(table, resamples=100, seed=1)
    other, _ = bootstrap(table, resamples=100, seed=2)
    assert first == again and first.low != other.low
    assert second.low == pytest.approx(first.low + 7) and second.high == pytest.approx(
        first.high + 7
    )


def test_large_tables_are_drawn_in_parts_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = np.random.default_rng(0).normal(size=(50, 3))
    whole = bootstrap(table, resamples=40)
    monkeypatch.setattr("addsr.evaluate.statistics._CHUNK_VALUES", 7 * 50)
    for found, wanted in zip(bootstrap(table, resamples=40), whole, strict=True):
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_infinite_figures_make_an_infinite_mean_and_no_nan() -> None:
    table = np.array([[np.inf, np.inf, -np.inf], [1.0, np.inf, 1.0], [2.0, np.inf, 2.0]])
    one, every, below = bootstrap(table, resamples=200)
    assert one.mean == one.high == math.inf and 1 <= one.low < 2.1
    assert every.mean == every.low == every.high == math.inf
    assert below.mean == below.low == -math.inf and math.isfinite(below.high)


def test_nothing_has_no_mean() -> None:
    for table in (np.full((3, 1), np.nan), np.zeros((0, 1))):
        (found,) = bootstrap(table, resamples=10)
        assert math.isnan(found.mean) and math.isnan(found.low) and found.count == 0


@pytest.mark.parametrize(("resamples", "confidence"), [(0, 0.95), (10, 1.0), (10, 0.0)])
def test_impossible_settings_are_refused(resamples: int, confidence: float) -> None:
    with pytest.raises(OptionError, match="bootstrap"):
        bootstrap(np.zeros((2, 1)), resamples=resamples, confidence=confidence)


def test_differences_are_taken_picture_by_picture() -> None:
    a = np.array([1.0, 5.0, 3.0, np.nan, np.inf])
    b = np.array([0.0, 6.0, 3.0, 1.0, np.inf])
    higher, lower, one, none = compare(
        [(a, b)] * 4, ["higher", "lower", "one", "none"], resamples=100
    )
    # the pictures that both have: +1, -1, 0, and two infinite ones that are equal
    assert higher.mean == 0.0 and higher.count == 4
    assert (higher.wins, lower.wins, none.wins) == (1, 1, None)
    assert one.wins == 2  # 1 is nearer to 1 than 0 is, and 5 than 6
    assert compare([], []) == []


def test_a_difference_that_is_always_there_is_seen_through_differing_pictures() -> None:
    generator = np.random.default_rng(1)
    b = generator.normal(25, 5, size=40)
    a = b + generator.normal(0.3, 0.1, size=40)
    (found,) = compare([(a, b)], ["higher"])
    assert found.low > 0.2 and found.high < 0.4
    first, second = bootstrap(np.stack([a, b], 1))
    assert first.low < second.high  # their own intervals overlap widely
