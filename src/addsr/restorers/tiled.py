"""A network of pixels on overlapping tiles: passes, one noise field, blending, colour."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from addsr.engines.device import choose_device, choose_dtype
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
    """Restores tiles of the small picture one after the other."""

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
        return make_plan(
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

    def count(self, plan: Plan, wish: Wish) -> tuple[int, int]:
        """Tiles of all passes, and steps of all tiles."""
        tiles = sum(len(self._grid(step, plan.tile)) for step in plan.passes)
        return tiles, tiles * wish.steps

    def bands(self, rgb: Tensor, plan: Plan, wish: Wish, counter: Counter) -> Iterator[Tensor]:
        """Rows of the last pass; the results of those before it are held whole."""
        *first, last = plan.passes
        for stage, step in enumerate(first):
            bands = self._pass_bands(rgb, step, plan.tile, stage, wish, counter)
            rgb = torch.cat([band.clamp(0, 1) for band in bands], dim=-2)
        return self._pass_bands(rgb, last, plan.tile, len(first), wish, counter)

    def _grid(self, step: Pass, tile: int) -> Grid:
        info = self.info
        return make_grid(
            *step.size_in, tile, halo=info.halo, blend=info.blend, multiple=info.multiple
        )

    def _pass_bands(
        self, rgb: Tensor, step: Pass, tile: int, stage: int, wish: Wish, counter: Counter
    ) -> Iterator[Tensor]:
        """One pass over `rgb` `(1, 3, h, w)`: bands of the resized result, top to bottom."""
        scale = self.info.scale
        full = (step.size_in[0] * scale, step.size_in[1] * scale)
        grid = self._grid(step, tile)
        noise = NoiseField(wish.seed, stage)
        bands = merge_rows(grid, self._tiles(rgb, grid, noise, wish, counter), scale)
        bands = match_color_bands(
            bands, lambda a, b: resize_rows(rgb, full, a, b), full[0], wish.color
        )
        bands = (band.clamp(0, 1) for band in bands)  # Lanczos would ring from what is cut here
        if step.ratio is None:
            return bands
        return resize_bands(bands, full, step.size_out, ratio=step.ratio)

    def _tiles(
        self, rgb: Tensor, grid: Grid, noise: NoiseField, wish: Wish, counter: Counter
    ) -> Iterable[Tensor]:
        scale = self.info.scale
        context = self.engine.context(rgb)
        for tile in grid:
            lr = tile.cut(rgb)
            field = noise.read(
                tile.rows.start * scale,
                tile.columns.start * scale,
                lr.shape[-2] * scale,
                lr.shape[-1] * scale,
            )
            yield self._restore(lr, field, wish, counter, context)

    def _restore(
        self, lr: Tensor, noise: Tensor, wish: Wish, counter: Counter, context: Tensor | None
    ) -> Tensor:
        """One tile; where it does not fit it is cut into halves, and so are all later ones."""
        side = max(lr.shape[-2:])
        if self._tile_limit is None or side <= self._tile_limit:
            before = counter.done
            try:
                return self.engine.restore(
                    lr, noise, wish.steps, wish.fidelity, counter.step, context
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
        counter.total += (len(grid) - 1) * wish.steps
        scale = self.info.scale
        parts = (
            self._restore(tile.cut(lr), tile.cut(noise, scale), wish, counter, context)
            for tile in grid
        )
        return torch.cat(list(merge_rows(grid, parts, scale)), dim=-2)
