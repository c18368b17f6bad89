"""Figures of all results of a data set together: distances between two sets of pictures.

One picture is open at a time. Patches and feature vectors are drawn from each, fewer from each the
more pictures there are, so that memory and the cache stay bounded; in results and references they
are drawn at the same places, which takes the chance of the draw out of the comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from addsr.errors import InputError
from addsr.metrics.catalog import CATALOG
from addsr.metrics.distributions import (
    Moments,
    Reservoir,
    frechet_distance,
    kernel_distance,
    laplacian_patches,
    pyramid_levels,
    sliced_wasserstein,
)
from addsr.metrics.phi import SMALLEST_SIDE, phi_features

from .cache import Cache, key_of, measuring_version
from .pairs import Pair
from .pictures import read_picture
from .score import Scorer, foreign_error

LEVELS = 3
"""Of the pyramid: the two octaves that x4 has to invent, and what is left at the input's size."""
MOST_PATCHES, PROJECTIONS = 8192, 256
MOST_VECTORS = 65_536
"""Of phi', from all pictures together."""
KERNEL_ROWS, KERNEL_SUBSET = 4096, 1000


@dataclass(frozen=True)
class Member:
    """One picture of a set with its result."""

    number: int
    """Its place in the data set: the seed of what is drawn from it."""
    pair: Pair
    path: Path
    sr_hash: str
    hr_hash: str


@dataclass
class Drawn:
    """What was drawn from one picture."""

    patches: list[Tensor] | None = None
    vectors: Tensor | None = None


class SetScorer:
    """Figures of whole data sets with one scorer's resources."""

    def __init__(self, scorer: Scorer, cache: Cache) -> None:
        self.scorer, self.cache = scorer, cache

    def score(
        self,
        members: Sequence[Member],
        names: Sequence[str],
        in_order: Callable[[Callable[[Member], Any], Sequence[Member]], Iterator[Any]],
    ) -> tuple[dict[str, float], dict[str, str]]:
        """The figures called so, NaN where there is none, and why.

        `in_order` applies a function to members, in several threads maybe, results in order.
        """
        content = key_of("set", *(f"{m.sr_hash} {m.hr_hash} {m.pair.size}" for m in members))
        wanted = {name: (content, self.scorer.versions[name]) for name in names}
        known = self.cache.scores(wanted)
        values = {name: value for name, (value, _) in known.items()}
        gaps = {name: note for name, (_, note) in known.items() if note}
        absent = [name for name in names if name not in known]
        if absent:
            fresh, reasons, failed = self._measure(members, absent, in_order)
            self.cache.store_scores(
                wanted,
                {
                    name: (fresh[name], reasons.get(name, ""))
                    for name in absent
                    if name not in failed
                },
            )
            values |= fresh
            gaps |= reasons
        return values, gaps

    def _measure(
        self,
        members: Sequence[Member],
        names: Sequence[str],
        in_order: Callable[[Callable[[Member], Any], Sequence[Member]], Iterator[Any]],
    ) -> tuple[dict[str, float], dict[str, str], set[str]]:
        """Figures, why there are none, and those of another package that failed."""
        levels = 0
        if "swd" in names:
            levels = min(LEVELS, *(pyramid_levels(*member.pair.size) for member in members))
        uses_phi = "fd-phi" in names or "kid-phi" in names
        patches = max(1, min(128, MOST_PATCHES // len(members)))
        vectors = max(4, min(256, MOST_VECTORS // len(members)))

        def draw(member: Member) -> tuple[Drawn, Drawn]:
            return (
                self._draw(member, False, levels, patches, vectors if uses_phi else 0),
                self._draw(member, True, levels, patches, vectors if uses_phi else 0),
            )

        sides = (_Side(levels), _Side(levels))
        if levels or uses_phi:
            for pair in in_order(draw, members):
                for side, drawn in zip(sides, pair, strict=True):
                    side.add(drawn)
        values: dict[str, float] = {}
        gaps: dict[str, str] = {}
        failed: set[str] = set()
        for name in names:
            try:
                values[name] = self._figure(name, sides, levels, members)
            except InputError as error:
                values[name], gaps[name] = math.nan, str(error)
            except Exception as error:  # of another package; its figure alone is lost
                if CATALOG[name].verified:
                    raise
                values[name], gaps[name] = math.nan, str(foreign_error(name, error))
                failed.add(name)
        return values, gaps, failed

    def _figure(
        self, name: str, sides: tuple[_Side, _Side], levels: int, members: Sequence[Member]
    ) -> float:
        results, references = sides
        generator = torch.Generator().manual_seed(0)
        if name == "swd":
            if not levels:
                raise InputError("size: a picture has a side under 16; leave swd out")
            a, b = ([kept.rows for kept in side.patches] for side in sides)
            distances = sliced_wasserstein(a, b, projections=PROJECTIONS, generator=generator)
            return math.fsum(distances) / len(distances)
        if name == "fid":
            function = self.scorer.sets[name]
            return float(function(_pictures(members, False), _pictures(members, True)))
        if results.moments.count < 2:
            raise InputError(
                f"size: no picture has sides of {SMALLEST_SIDE} or more; leave {name} out"
            )
        if name == "fd-phi":
            return frechet_distance(results.moments, references.moments)
        a, b = results.vectors.rows, references.vectors.rows
        size = min(KERNEL_SUBSET, len(a), len(b))
        return kernel_distance(a, b, subsets=100, subset_size=size, generator=generator)[0]

    def _draw(
        self, member: Member, is_reference: bool, levels: int, patches: int, vectors: int
    ) -> Drawn:
        path = member.pair.hr if is_reference else member.path
        assert path is not None
        drawn = Drawn()
        if min(member.pair.size) < SMALLEST_SIDE:
            vectors = 0
        key = key_of(member.hr_hash if is_reference else member.sr_hash, member.pair.size)
        version = ""
        if vectors:
            version = key_of(self.scorer.phi_version, measuring_version(), vectors)[:16]
            stored = self.cache.features(key, version)
            if stored is not None:
                flat = np.frombuffer(stored[1], dtype=np.float16).reshape(stored[0], -1)
                drawn.vectors = torch.from_numpy(flat.astype(np.float32))
        if not levels and (drawn.vectors is not None or not vectors):
            return drawn
        picture = read_picture(path, member.pair)
        generator = torch.Generator()
        if levels:
            generator.manual_seed(member.number)
            drawn.patches = laplacian_patches(
                picture, levels=levels, count=patches, generator=generator
            )
        if vectors and drawn.vectors is None:
            generator.manual_seed(0)
            rows = phi_features(self.scorer.phi, picture.to(self.scorer.resources.device))
            rows = rows[torch.randperm(len(rows), generator=generator)[:vectors]]
            # half the bytes in the cache; the same numbers whether they come from there or not
            halves = rows.to(torch.float16)
            drawn.vectors = halves.float()
            self.cache.store_features(key, version, len(halves), halves.numpy().tobytes())
        return drawn


class _Side:
    """What was drawn from one of the two sets, as much of it as is kept."""

    def __init__(self, levels: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.moments = Moments()
        self.vectors = Reservoir(KERNEL_ROWS, generator)
        self.patches = [
            Reservoir(MOST_PATCHES, torch.Generator().manual_seed(2)) for _ in range(levels)
        ]

    def add(self, drawn: Drawn) -> None:
        for kept, rows in zip(self.patches, drawn.patches or (), strict=True):
            kept.add(rows)
        if drawn.vectors is not None:
            self.moments.add(drawn.vectors)
            self.vectors.add(drawn.vectors)


def _pictures(members: Sequence[Member], are_references: bool) -> Iterator[Tensor]:
    for member in members:
        path = member.pair.hr if are_references else member.path
        assert path is not None
        yield read_picture(path, member.pair)
