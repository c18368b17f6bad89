"""What a batch would do, told before it starts: sizes, passes, tiles, memory, time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from addsr.errors import AddsrError, OptionError
from addsr.image.reading import read_upright_size
from addsr.image.writing import result_bits
from addsr.models.registry import TiledInfo
from addsr.plan import Plan
from addsr.restorers import Counter, Wish
from addsr.restorers.base import Room
from addsr.target import DEFAULT_SCALE
from addsr.upscaler import Upscaler

from .jobs import Job
from .manifest import Manifest, hash_file

_PROBE_SIDE = 128
"""Of the picture whose restoration is timed, in input pixels."""
_PLENTY = 1 << 50


@dataclass(frozen=True)
class Forecast:
    """What is expected of one picture."""

    source: Path
    target: Path
    state: str
    """to do, done (skipped), or failed."""
    size: tuple[int, int] | None = None
    """Height and width of the picture."""
    result: tuple[int, int] | None = None
    plan: Plan | None = None
    tiles: int = 0
    seconds: float = 0.0
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a line of JSON; sizes are width and height."""
        values: dict[str, Any] = {
            "event": "plan",
            "source": str(self.source),
            "output": str(self.target),
            "state": self.state,
        }
        if self.error is not None:
            return values | {"error": self.error}
        if self.plan is None or self.size is None or self.result is None:
            return values
        return values | {
            "input_size": list(self.size[::-1]),
            "output_size": list(self.result[::-1]),
            "passes": len(self.plan.passes),
            "tile": self.plan.tile,
            "tiles": self.tiles,
            "expected_bytes": self.plan.host_bytes,
            "tile_bytes": self.plan.tile_bytes,
            "expected_seconds": round(self.seconds, 1),
        }


class Pace:
    """Seconds that a model takes for a pixel of its tiles, measured on a small picture.

    One run with the fewest steps and one with more tell what each step costs and what is paid once.
    """

    def __init__(self, up: Upscaler) -> None:
        self.up = up
        first, second = self._steps()
        one = self._time(first)
        self.step, self.once = one / first, 0.0
        if second is not None:
            self.step = max((self._time(second) - one) / (second - first), 0.0)
            self.once = max(one - self.step * first, 0.0)

    def _steps(self) -> tuple[int, int | None]:
        """Two small numbers of steps the model allows; only one where that will do."""
        allowed: list[int] = []
        for steps in (1, 2, 3, 4, self.up.steps):
            try:
                allowed.append(self.up.info.check_steps(steps))
            except OptionError:
                continue
        first = allowed[0]
        if first == self.up.steps:
            return first, None
        return first, next((n for n in allowed if n > first), None)

    def _time(self, steps: int) -> float:
        """Seconds for the probe in `steps`, for each pixel that goes through the networks."""
        up, size = self.up, (_PROBE_SIDE, _PROBE_SIDE)
        wish = Wish(DEFAULT_SCALE, steps, up.fidelity, up.color, up.seed, "auto")
        own = None if up.restorer.device.type in ("cpu", "mps") else _PLENTY
        plan = up.restorer.plan(size, wish, Room(_PLENTY, own, 4))
        rgb = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
        seconds: list[float] = []
        for _ in range(2):  # the first also pays for what is set up once
            started = time.monotonic()
            for _ in up.restorer.bands(rgb, plan, wish, Counter(None)):
                pass
            seconds.append(time.monotonic() - started)
        return min(seconds) / self._pixels(plan, up.restorer.count(plan, wish)[0])

    def _pixels(self, plan: Plan, tiles: int) -> float:
        """Pixels that go through the networks: of the input for a network of pixels, else of tiles
        of the result, which are whole ones however small the picture is."""
        if isinstance(self.up.info, TiledInfo):
            return float(sum(step.size_in[0] * step.size_in[1] for step in plan.passes))
        return float(tiles * plan.tile**2)

    def seconds(self, plan: Plan, tiles: int) -> float:
        """Expected for one picture."""
        return self._pixels(plan, tiles) * (self.once + self.step * self.up.steps)


def forecast(
    up: Upscaler,
    jobs: Sequence[Job],
    pace: Pace,
    *,
    manifest: Manifest | None = None,
    settings_sha256: str = "",
) -> Iterable[Forecast]:
    """What is expected of each job; nothing is decoded or written."""
    for job in jobs:
        try:
            if manifest is not None:
                digest = hash_file(job.source)
                if manifest.is_done(job.target, digest, settings_sha256):
                    yield Forecast(job.source, job.target, "done")
                    continue
            size = read_upright_size(job.source)
            frame = up.target.frame(size, str(job.source))
            # of grey, for what a picture's channels are is not known before it is decoded
            result_bits(job.target, 8, up.files, is_grey=True)
            plan = up.plan(size)
        except AddsrError as error:
            yield Forecast(job.source, job.target, "failed", error=str(error))
            continue
        tiles, _ = up.restorer.count(plan, up.wish(frame))
        yield Forecast(
            job.source,
            job.target,
            "to do",
            size,
            frame.size,
            plan,
            tiles,
            pace.seconds(plan, tiles),
        )


def clock(seconds: float) -> str:
    """A time as a person says it.

    >>> clock(42), clock(150), clock(7300)
    ('42 s', '2.5 min', '2.0 h')
    """
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
