"""A network of pixels on overlapping tiles: passes, one noise field, blending, colour."""

from __future__ import annotations

import copy
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from addsr.engines.device import choose_device, choose_dtype, cpu_has_bf16
from addsr.engines.noise import NoiseField
from addsr.engines.run import Engine, TileTooLarge
from addsr.errors import MemoryLimitError, OptionError
from addsr.image.color import match_color_bands
from addsr.image.resize import resize_bands, resize_rows
from addsr.image.tiling import Grid, make_grid, merge_rows
from addsr.models.hub import Model, load_model
from addsr.models.registry import TiledInfo
from addsr.plan import Pass, Plan, least_tile, make_plan

from .base import Counter, RefineDecoder, Restorer, Room, Wish

log = logging.getLogger(__name__)

_BATCH_PIXELS = 512 * 512
"""Of the input in a batch: no more than one large tile has, which keeps a GPU busy on its own."""
_CPU_BATCH_PIXELS = 24_576
"""The same on a CPU with bf16 instructions, six tiles of 64 px: `TiledRestorer` says why."""
_MOST_TILES = 16
_BATCH_SHARE = 0.5
"""Of the free memory, what a batch may be planned with."""
_HELD_PIXELS = 16_000_000
"""Of a result that is held as floats, 12 bytes each, until its rows are finished elsewhere."""


@dataclass(frozen=True)
class _Job:
    """One tile, with all the network wants to know about it."""

    lr: Tensor
    noise: Tensor
    context: Tensor | None
    picture: int


def choose_tiled(
    model: str | Path | Model, device: torch.device | None, dtype: str
) -> tuple[TiledInfo, Callable[[], Restorer]]:
    """The facts about `model`, and what puts it on `device`."""
    where = choose_device() if device is None else device
    number = choose_dtype(dtype, where)
    # loaded in the type of its use: an fp32 engine on a CPU keeps the file's fp16 weights
    kept = None if where.type == "cpu" and number == torch.float32 else number
    loaded = model if isinstance(model, Model) else load_model(model, dtype=kept)

    def load() -> Restorer:
        # a model that was handed in may serve others too: its own network stays as it is
        net = copy.deepcopy(loaded.net) if isinstance(model, Model) else loaded.net
        restorer = TiledRestorer(Engine(net, where, number), loaded.info)
        restorer.weights = loaded.metadata.get("sha256")
        return restorer

    return loaded.info, load


class TiledRestorer:
    """Restores tiles of the small picture, those of one size together where that is quicker.

    On a CPU that multiplies bf16 small ones do. `compact`'s time for tiles one by one, through that
    for as many at once, on one and on two cores with AMX: eight of 32 px 2.0 and 2.3, eight of
    64 px 1.12 and 1.47, two of 96 px 1.04 and 1.18, two of 160 px 0.98; the results are the same
    to the bit. In fp32 four of 64 px gain 4 and 9 %, and differ by rounding: not worth it.
    """

    def __init__(self, engine: Engine, info: TiledInfo) -> None:
        self.engine = engine
        self.info = info
        self.weights: str | None = None
        self._tile_limit: int | None = None  # after memory ran out once, for all that follows

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @property
    def dtype(self) -> torch.dtype:
        return self.engine.dtype

    @property
    def tags(self) -> None:
        """A network of pixels hears no words."""
        return None

    def check_tile(self, tile: int) -> None:
        """OptionError where a tile of `tile` input pixels is too small."""
        least = least_tile(self.info)
        if tile < least:
            raise OptionError(
                f"tile: {tile} px is too small for {self.info.name}; give {least} or more, or auto"
            )

    def check_decoder(self, refine_decoder: RefineDecoder) -> None:
        """OptionError for any but "full": there is nothing to decode."""
        self.info.check_decoder(refine_decoder)

    def plan(self, source: tuple[int, int], wish: Wish, room: Room) -> Plan:
        """Passes and tiles for a picture of `source` (height, width)."""
        plan = make_plan(
            source,
            wish.scale,
            self.info,
            tile=wish.tile if self._tile_limit is None else self._tile_limit,
            color=wish.color,
            bytes_per_number=torch.finfo(self.dtype).bits // 8,
            result_bytes_per_pixel=room.result_bytes_per_pixel,
            host_free=room.host,
            device_free=room.device,
        )
        batch = self._choose_batch(plan, wish, room)
        more = plan.tile_bytes * (min(batch, self.count(plan, wish)[0]) - 1)
        return replace(
            plan,
            tile_batch=batch,
            tile_bytes=plan.tile_bytes + more,
            host_bytes=plan.host_bytes + (more if room.device is None else 0),
        )

    def _choose_batch(self, plan: Plan, wish: Wish, room: Room) -> int:
        """Tiles of this plan that go together, from the memory that is free."""
        free = room.host - plan.host_bytes if room.device is None else room.device - plan.tile_bytes
        fitting = 1 + max(int(free * _BATCH_SHARE), 0) // plan.tile_bytes
        if wish.tile_batch != "auto":
            return min(wish.tile_batch, fitting)
        most = _BATCH_PIXELS
        if self.device.type == "cpu":
            most = _CPU_BATCH_PIXELS if self.dtype == torch.bfloat16 and cpu_has_bf16() else 0
        pixels = max(math.prod(self._grid(step, plan.tile).tile) for step in plan.passes)
        return max(min(_MOST_TILES, most // pixels, fitting), 1)

    def count(self, plan: Plan, wish: Wish) -> tuple[int, int]:
        """Tiles of all passes, and steps of all tiles."""
        tiles = sum(len(self._grid(step, plan.tile)) for step in plan.passes)
        return tiles, tiles * wish.steps

    def bands(self, rgb: Tensor, plan: Plan, wish: Wish, counter: Counter) -> Iterator[Tensor]:
        """Rows of the last pass; the results of those before it are held whole."""
        *first, last = plan.passes

        def run(rgb: Tensor, step: Pass, stage: int) -> Iterator[Tensor]:
            grid = self._grid(step, plan.tile)
            jobs = self._jobs([rgb], grid, NoiseField(wish.seed, stage))
            tiles = self._stream(jobs, plan.tile_batch, wish, counter)
            return self._finish(rgb, tiles, grid, step, wish)

        for stage, step in enumerate(first):
            rgb = _join(run(rgb, step, stage))
        return run(rgb, last, len(first))

    def most_together(self, plan: Plan, wish: Wish) -> int:
        """Pictures of this plan that may go through `together` at once.

        0: they are better restored one by one with `bands`, which holds less of them.
        """
        scale = self.info.scale**2
        held = max(scale * step.size_in[0] * step.size_in[1] for step in plan.passes)
        if held > _HELD_PIXELS or (self.device.type == "cpu" and plan.tile_batch == 1):
            return 0
        return max(plan.tile_batch // self.count(plan, wish)[0], 1)

    def together(
        self, pictures: Sequence[Tensor], plan: Plan, wish: Wish, counter: Counter
    ) -> list[Iterator[Tensor]]:
        """`bands` of pictures `(1, 3, H, W)` of one size, each as if it came alone.

        The network is done when this returns; any thread may take the bands. A warning about one
        of the pictures carries its index in the log record as `picture`.
        """
        *first, last = plan.passes

        def run(pictures: Sequence[Tensor], step: Pass, stage: int) -> list[Iterator[Tensor]]:
            grid = self._grid(step, plan.tile)
            jobs = list(self._jobs(pictures, grid, NoiseField(wish.seed, stage)))
            tiles = self._run(jobs, plan.tile_batch, wish, counter)
            return [
                self._finish(rgb, tiles[k :: len(pictures)], grid, step, wish)
                for k, rgb in enumerate(pictures)
            ]

        for stage, step in enumerate(first):
            pictures = [_join(bands) for bands in run(pictures, step, stage)]
        return run(pictures, last, len(first))

    def _grid(self, step: Pass, tile: int) -> Grid:
        info = self.info
        return make_grid(
            *step.size_in, tile, halo=info.halo, blend=info.blend, multiple=info.multiple
        )

    def _jobs(self, pictures: Sequence[Tensor], grid: Grid, noise: NoiseField) -> Iterator[_Job]:
        """The first tile of every picture, then the second of every picture, and so on."""
        scale = self.info.scale
        whole = pictures[0] if len(pictures) == 1 else torch.cat(list(pictures))
        context = self.engine.context(whole)
        for tile in grid:
            field: Tensor | None = None
            for k, rgb in enumerate(pictures):
                lr = tile.cut(rgb)
                if field is None:
                    rows, columns = tile.rows.start * scale, tile.columns.start * scale
                    field = noise.read(rows, columns, lr.shape[-2] * scale, lr.shape[-1] * scale)
                yield _Job(lr, field, None if context is None else context[k : k + 1], k)

    def _stream(
        self, jobs: Iterator[_Job], most: int, wish: Wish, counter: Counter
    ) -> Iterator[Tensor]:
        """Results in the order of `jobs`, no more than `most` of them ahead."""
        while ahead := list(itertools.islice(jobs, most)):
            yield from self._run(ahead, most, wish, counter)

    def _run(self, jobs: Sequence[_Job], most: int, wish: Wish, counter: Counter) -> list[Tensor]:
        """Results `(1, 3, 4h, 4w)` in the order of `jobs`; those of one size go together."""
        alike: dict[torch.Size, list[int]] = {}
        for k, job in enumerate(jobs):
            alike.setdefault(job.lr.shape, []).append(k)
        results: dict[int, Tensor] = {}
        for places in alike.values():
            for start in range(0, len(places), most):
                some = places[start : start + most]
                batch = [jobs[k] for k in some]
                contexts = [job.context for job in batch if job.context is not None]
                restored = self._restore(
                    torch.cat([job.lr for job in batch]),
                    torch.cat([job.noise for job in batch]),
                    wish, counter,
                    torch.cat(contexts) if contexts else None,
                    [job.picture for job in batch],
                )  # fmt: skip
                results.update(zip(some, restored.to("cpu").split(1), strict=True))
        return [results[k] for k in range(len(jobs))]

    def _finish(
        self, rgb: Tensor, tiles: Iterable[Tensor], grid: Grid, step: Pass, wish: Wish
    ) -> Iterator[Tensor]:
        """One pass over `rgb` `(1, 3, h, w)`: bands of the resized result, top to bottom."""
        scale = self.info.scale
        full = (step.size_in[0] * scale, step.size_in[1] * scale)
        bands = match_color_bands(
            merge_rows(grid, tiles, scale),
            lambda a, b: resize_rows(rgb, full, a, b),
            full[0],
            wish.color,
        )
        bands = (band.clamp(0, 1) for band in bands)  # Lanczos would ring from what is cut here
        if step.ratio is None:
            return bands
        return resize_bands(bands, full, step.size_out, ratio=step.ratio)

    def _restore(
        self,
        lr: Tensor,
        noise: Tensor,
        wish: Wish,
        counter: Counter,
        context: Tensor | None,
        pictures: Sequence[int],
    ) -> Tensor:
        """Tiles of one size; where one does not fit they are cut into halves, as all later ones."""
        side = max(lr.shape[-2:])
        if self._tile_limit is None or side <= self._tile_limit:
            before = counter.done
            try:
                return self.engine.restore(
                    lr, noise, wish.steps, wish.fidelity, counter.step, context, pictures
                )
            except TileTooLarge as error:
                counter.done = before
                half = side // 2 - (side // 2) % self.info.multiple
                if half < least_tile(self.info):
                    raise MemoryLimitError(
                        f"{error}, and smaller tiles do not work with {self.info.name}; "
                        "free memory or use --device cpu"
                    ) from error
                log.warning("%s; going on with %d px", error, half)
                self._tile_limit = half
        grid = make_grid(
            lr.shape[-2],
            lr.shape[-1],
            self._tile_limit,
            halo=self.info.halo,
            blend=self.info.blend,
            multiple=self.info.multiple,
        )
        counter.total += (len(grid) - 1) * wish.steps * len(lr)
        scale = self.info.scale
        parts = (
            self._restore(tile.cut(lr), tile.cut(noise, scale), wish, counter, context, pictures)
            for tile in grid
        )
        return torch.cat(list(merge_rows(grid, parts, scale)), dim=-2)


def _join(bands: Iterable[Tensor]) -> Tensor:
    """The picture that consists of these rows."""
    return torch.cat([band.clamp(0, 1) for band in bands], dim=-2)
