"""Where training pictures come from, as [data] says."""

from __future__ import annotations

import glob
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from addsr.data.draw import derive_seed
from addsr.data.filters import sharpen_usm
from addsr.data.pool import PairPool
from addsr.data.shards import load_pictures
from addsr.data.spec import PRESETS, DegradationSpec, Preset
from addsr.errors import ConfigError, InputError

from .config import REALESRGAN, STABLESR, DataConfig

log = logging.getLogger(__name__)


def stablesr_degradation() -> DegradationSpec:
    """StableSR's degradation as published (arXiv 2305.07015; Real-ESRGAN's at half strength).

    The preset `mild` departs from it: half as often a second round, fewer final sinc filters, and
    resizes with antialiasing.
    """
    return _as_published(PRESETS["mild"])


def realesrgan_degradation() -> DegradationSpec:
    """Real-ESRGAN's degradation (arXiv 2107.10833), which SeeSR and AddSR are trained with.

    The preset `strong` departs from it as `mild` does from StableSR's.
    """
    return _as_published(PRESETS["strong"])


def _as_published(preset: DegradationSpec) -> DegradationSpec:
    return replace(
        preset,
        resize1=replace(preset.resize1, antialias=0.0),
        second_order=1.0,
        resize2=replace(preset.resize2, antialias=0.0),
        final_sinc=0.8,
        final_antialias=0.0,
    )


def make_pool(
    data: DataConfig, seed: int, device: torch.device, *, chunk: int | None = None
) -> PairPool:
    """The pool of degraded pairs of all pictures of `data`.

    Raises:
        ConfigError: a pattern of data.train that matches nothing, or no picture that can be used.
    """
    return _pool(find_paths(data), data, seed, device, chunk)


def find_paths(data: DataConfig) -> list[Path]:
    """The folders, shards and pictures that data.train names.

    Raises:
        ConfigError: a pattern that matches nothing.
    """
    paths: list[Path] = []
    for pattern in data.train:
        found = sorted(glob.glob(pattern)) if any(c in pattern for c in "*?[") else [pattern]
        if not found:
            raise ConfigError(
                f"data.train = {pattern!r} matches nothing; give folders or tar shards"
            )
        paths += [Path(p) for p in found]
    return paths


def _pool(
    paths: Sequence[Path],
    data: DataConfig,
    seed: int,
    device: torch.device,
    chunk: int | None = None,
) -> PairPool:
    try:
        pictures = load_pictures(paths)
    except InputError as error:
        raise ConfigError(f"data.train: {error}") from error
    if data.sharpen:
        pictures = [sharpened(batch, data.sharpen, device) for batch in pictures]
    published = {STABLESR: stablesr_degradation, REALESRGAN: realesrgan_degradation}
    preset: Preset = data.mixture
    if data.mixture in published:
        preset = published[data.mixture]()
    if chunk is None and device.type == "cuda":
        # no more pixels at a time than the pool's own 256 crops have at 256 pixels a side
        chunk = min(256, max(8, 256 * 256**2 // data.crop_px**2))
    return PairPool(
        pictures,
        crop_px=data.crop_px,
        size=data.pool,
        reuse=data.reuse,
        preset=preset,
        seed=seed,
        device=device,
        chunk=chunk,
        rescaled=data.rescaled,
        textured=data.textured,
        turned=data.turned,
    )


class RotatingPool:
    """A pool for more pictures than fit in memory: a few shards at a time, then the next few.

    Every pass over the shards has another order, which depends on the seed: processes with
    different seeds hold different shards.
    """

    def __init__(
        self, data: DataConfig, seed: int, device: torch.device, *, chunk: int | None = None
    ) -> None:
        """
        Raises:
            ConfigError: a pattern of data.train that matches nothing, or no picture of the first
                shards can be used.
        """
        self.data, self.seed, self.device, self.chunk = data, seed, device, chunk
        self._paths = find_paths(data)
        self.windows = -(-len(self._paths) // data.held)
        self._window = self._asked = 0
        self._pool: PairPool | None = self._make()

    @property
    def pool(self) -> PairPool:
        """The pool of what is held now."""
        assert self._pool is not None
        return self._pool

    def get(self, batch: int) -> tuple[Tensor, Tensor]:
        """What `PairPool.get` gives."""
        return self.get_numbered(batch)[:2]

    def get_numbered(self, batch: int) -> tuple[Tensor, Tensor, list[int]]:
        """What `PairPool.get_numbered` gives; numbers are those of `pool`, as it is afterwards."""
        if self.pool.served >= self.data.held_pairs:
            self._move(self._window + 1)
        return self.pool.get_numbered(batch)

    def at(self, window: int) -> PairPool:
        """The pool of the `window`-th few shards, counted from the start over all passes."""
        if window != self._asked:
            self._move(window)
        return self.pool

    def paths(self) -> list[Path]:
        """What is held now."""
        held = self.data.held
        epoch, place = divmod(self._window, self.windows)
        dice = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        order = torch.randperm(len(self._paths), generator=dice).tolist()
        return [self._paths[k] for k in order[place * held : (place + 1) * held]]

    def state_dict(self) -> dict[str, Any]:
        return {**self.pool.state_dict(), "seed": self.seed, "window": self._window}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed = int(state["seed"])
        self._move(int(state["window"]))
        self.pool.load_state_dict({**state, "seed": self.pool.seed})

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def _move(self, window: int) -> None:
        """Holds other shards; those that cannot be used are passed over.

        A run may have come far before it meets such shards; only if no other can be used it ends.
        """
        # let go of first: there is not room for two
        self.close()
        self._pool, self._asked = None, window
        for tried in range(window, window + self.windows):
            self._window = tried
            try:
                self._pool = self._make()
                return
            except ConfigError as error:
                log.warning("%s (passed over)", error)
                if tried == window + self.windows - 1:
                    raise

    def _make(self) -> PairPool:
        seed = derive_seed(self.seed, "window", self._window)
        return _pool(self.paths(), self.data, seed, self.device, self.chunk)


@torch.no_grad()
def sharpened(pictures: Tensor, amount: float, device: torch.device) -> Tensor:
    """uint8 `pictures` `(N, 3, S, S)` with steeper edges, on the device they came from.

    Once for all crops: the mask is wide, and at a crop's border it would be cut short each time.
    """
    out = torch.empty_like(pictures)
    for start in range(0, len(pictures), 16):
        few = pictures[start : start + 16]
        x = sharpen_usm(few.to(device).float() / 255, weight=amount).clamp(0, 1)
        out[start : start + 16] = (x * 255).round().to(torch.uint8).to(pictures.device)
    return out
