"""Pictures in, larger pictures out: plan, tiles, network, blending, colour, alpha, file."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .engines.device import choose_device, choose_dtype, free_host_memory, free_memory
from .engines.noise import NoiseField
from .engines.run import Engine, TileTooLarge
from .errors import InputError, MemoryLimitError, OptionError, OutputError
from .image.alpha import enlarge_alpha, fill_transparent
from .image.color import ColorFix, match_color_bands
from .image.io import check_output, read_size, write_image
from .image.kinds import Picture, Sink, Source, accept
from .image.resize import resize_bands, resize_rows
from .image.tiling import Grid, make_grid, merge_rows
from .models.hub import Model, load_model
from .plan import Pass, Plan, check_scale, least_tile, make_plan, target_size
from .settings import read_settings

if TYPE_CHECKING:
    from types import TracebackType

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (done, total) in steps of the network; total may grow when tiles are halved."""

_COLORS: tuple[ColorFix, ...] = ("wavelet", "adain", "none")


@dataclass(frozen=True)
class Report:
    """What the last call did."""

    source: str
    output: str | None
    input_size: tuple[int, int]
    """Width and height."""
    output_size: tuple[int, int]
    model: str
    steps: int
    fidelity: float
    color: str
    seed: int
    device: str
    dtype: str
    tile: int
    tiles: int
    """Of the first picture, all passes."""
    expected_bytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


class Upscaler:
    """A model kept ready for many pictures.

    Options left at None take the model's defaults (`up.info`), device and dtype "auto" the best
    this machine has. Use it as a context manager to give the memory back at the end.

    Args:
        model: a name (`addsr.models.registry.MODELS`), the path of a weights file, or a `Model`.
        scale: 1 to 8.
        steps: sampling steps the model allows.
        fidelity: 0 (invents more) to 1 (stays with the input).
        color: "wavelet", "adain" or "none".
        tile: side of a tile in input pixels, or "auto".
        progress: called with (done, total) while a picture is worked on.

    Raises:
        OptionError: a value outside what it allows.
        ModelError: the weights are missing or damaged.
    """

    def __init__(
        self,
        model: str | Path | Model | None = None,
        *,
        scale: float = 4.0,
        steps: int | None = None,
        fidelity: float | None = None,
        color: str | None = None,
        seed: int = 0,
        device: str | None = None,
        dtype: str | None = None,
        tile: int | Literal["auto"] = "auto",
        progress: Progress | None = None,
    ) -> None:
        settings = read_settings()
        self.scale = check_scale(scale)
        self.seed = seed
        self.tile: int | Literal["auto"] = tile
        self.progress = progress
        self.memory_bytes = settings.memory_bytes
        self.report: Report | None = None
        if color is not None and color not in _COLORS:
            raise OptionError(f"color: {color!r} is unknown; use one of {', '.join(_COLORS)}")
        where = choose_device(device or settings.device)
        number = choose_dtype(dtype or settings.dtype, where)
        # loaded in the type of its use: an fp32 engine on a CPU keeps the file's fp16 weights
        kept = None if where.type == "cpu" and number == torch.float32 else number
        loaded = (
            model if isinstance(model, Model) else load_model(model or settings.model, dtype=kept)
        )
        self.info = loaded.info
        self.steps = self.info.check_steps(steps)
        self.fidelity = self.info.check_fidelity(fidelity)
        self.color: ColorFix = color or self.info.default_color  # type: ignore[assignment]
        if tile != "auto" and tile < least_tile(self.info):
            raise OptionError(
                f"tile: {tile} px is too small for {self.info.name}; "
                f"give {least_tile(self.info)} or more, or auto"
            )
        # a model that was handed in may serve others too: its own network stays as it is
        net = copy.deepcopy(loaded.net) if isinstance(model, Model) else loaded.net
        self._engine: Engine | None = Engine(net, where, number)
        self._tile_limit: int | None = None  # after memory ran out once, for all that follows

    def __enter__(self) -> Upscaler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the network; the upscaler cannot be used after it."""
        self._engine = None

    @property
    def engine(self) -> Engine:
        """The network on its device."""
        if self._engine is None:
            raise OptionError("upscaler: is closed; make a new one")
        return self._engine

    def plan(self, source: tuple[int, int], result_bytes_per_pixel: int = 4) -> Plan:
        """What will be done to a picture of `source` (height, width), with the expected peak.

        Raises:
            MemoryLimitError: it would not fit; the message names the expected peak.
        """
        device = self.engine.device
        host = free_host_memory()
        if self.memory_bytes is not None:
            host = min(host, self.memory_bytes)
        tile = self.tile if self._tile_limit is None else self._tile_limit
        return make_plan(
            source,
            self.scale,
            self.info,
            tile=tile,
            color=self.color,
            bytes_per_number=torch.finfo(self.engine.dtype).bits // 8,
            result_bytes_per_pixel=result_bytes_per_pixel,
            host_free=host,
            # mps shares main memory: counted there
            device_free=free_memory(device) if device.type in ("cuda", "xpu") else None,
        )

    def __call__(self, image: Any, dst: str | Path | None = None) -> Any:
        """The picture `scale` times larger, as the kind it came in; a path gives a PIL image.

        With `dst` the result is written there (format by suffix) and `dst` comes back as a `Path`.

        Raises:
            InputError, OutputError, MemoryLimitError: as their names say; nothing is written then.
        """
        started = time.monotonic()
        name = str(image) if isinstance(image, (str, Path)) else type(image).__name__
        if dst is not None:
            check_output(dst)
        if isinstance(image, (str, Path)):
            self.plan(read_size(image))  # refuse before a huge picture is decoded
        source = accept(image)
        height, width = source.pictures[0].size
        target = target_size((height, width), self.scale)
        if dst is not None:
            _check_place(image, Path(dst), source)
            check_output(dst, target[1], target[0])
        channels = max(len(source.pictures[0].layout), 1)
        per_pixel = 4 if source.kind in ("path", "pil") else channels * source.bytes_per_value
        plan = self.plan((height, width), per_pixel * len(source.pictures))
        log.info(
            "%s: %dx%d -> %dx%d, tile %d, expected peak %.2f GiB",
            name, width, height, target[1], target[0], plan.tile, plan.host_bytes / 2**30,
        )  # fmt: skip
        counter = _Counter(self.progress)
        grids = [self._grid(step, plan.tile) for step in plan.passes]
        counter.total = len(source.pictures) * self.steps * sum(len(grid) for grid in grids)
        counter.tell()
        results: list[Any] = []
        for picture in source.pictures:
            sink = source.sink(picture, *plan.target)
            self._fill(sink, picture, plan, counter)
            results.append(sink.result())
        counter.finish()
        result = source.join(results)
        if dst is not None:
            write_image(_as_pil(result, source), dst)
            result = Path(dst)
        self.report = Report(
            source=name,
            output=None if dst is None else str(dst),
            input_size=(width, height),
            output_size=(plan.target[1], plan.target[0]),
            model=self.info.name,
            steps=self.steps,
            fidelity=self.fidelity,
            color=self.color,
            seed=self.seed,
            device=str(self.engine.device),
            dtype=str(self.engine.dtype).removeprefix("torch."),
            tile=plan.tile,
            tiles=sum(len(grid) for grid in grids),
            expected_bytes=plan.host_bytes,
            seconds=round(time.monotonic() - started, 3),
        )
        return result

    def _grid(self, step: Pass, tile: int) -> Grid:
        info = self.info
        return make_grid(
            *step.size_in, tile, halo=info.halo, blend=info.blend, multiple=info.multiple
        )

    def _fill(self, sink: Sink, picture: Picture, plan: Plan, counter: _Counter) -> None:
        """Runs all passes of one picture and writes its rows into `sink`."""
        rgb, alpha = picture.rgb, picture.alpha
        if alpha is not None:
            rgb = fill_transparent(rgb, alpha)
        for stage, step in enumerate(plan.passes[:-1]):
            bands = self._pass_bands(rgb, step, plan.tile, stage, counter)
            rgb = torch.cat([band.clamp(0, 1) for band in bands], dim=-2)
        top = 0
        last = plan.passes[-1]
        for band in self._pass_bands(rgb, last, plan.tile, len(plan.passes) - 1, counter):
            for rows in band.split(256, dim=-2):
                bottom = min(top + rows.shape[-2], plan.target[0])
                rows = rows[..., : bottom - top, : plan.target[1]]
                if alpha is not None:
                    mask = enlarge_alpha(alpha, plan.target, top, bottom)
                    rows = torch.cat([rows, mask], dim=1)
                if bottom > top:
                    sink.write(rows)
                top = bottom

    def _pass_bands(
        self, rgb: Tensor, step: Pass, tile: int, stage: int, counter: _Counter
    ) -> Iterator[Tensor]:
        """One pass over `rgb` `(1, 3, h, w)`: bands of the resized result, top to bottom."""
        scale = self.info.scale
        full = (step.size_in[0] * scale, step.size_in[1] * scale)
        grid = self._grid(step, tile)
        noise = NoiseField(self.seed, stage)
        bands = merge_rows(grid, self._tiles(rgb, grid, noise, counter), scale)
        bands = match_color_bands(
            bands, lambda a, b: resize_rows(rgb, full, a, b), full[0], self.color
        )
        bands = (band.clamp(0, 1) for band in bands)  # Lanczos would ring from what is cut here
        if step.ratio is None:
            return bands
        return resize_bands(bands, full, step.size_out, ratio=step.ratio)

    def _tiles(
        self, rgb: Tensor, grid: Grid, noise: NoiseField, counter: _Counter
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
            yield self._restore(lr, field, counter, context)

    def _restore(
        self, lr: Tensor, noise: Tensor, counter: _Counter, context: Tensor | None
    ) -> Tensor:
        """One tile; where it does not fit it is cut into halves, and so are all later ones."""
        side = max(lr.shape[-2:])
        if self._tile_limit is None or side <= self._tile_limit:
            before = counter.done
            try:
                return self.engine.restore(
                    lr, noise, self.steps, self.fidelity, counter.step, context
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
        counter.total += (len(grid) - 1) * self.steps
        scale = self.info.scale
        parts = (
            self._restore(tile.cut(lr), tile.cut(noise, scale), counter, context) for tile in grid
        )
        return torch.cat(list(merge_rows(grid, parts, scale)), dim=-2)


class _Counter:
    """Steps done and to do, told to whoever asked."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.done, self.total = progress, 0, 0

    def step(self) -> None:
        self.done += 1
        self.tell()

    def tell(self) -> None:
        if self.progress is not None:
            self.progress(self.done, self.total)

    def finish(self) -> None:
        self.done = self.total
        self.tell()


def _check_place(image: Any, dst: Path, source: Source) -> None:
    if len(source.pictures) > 1:
        raise InputError(
            f"image: a batch of {len(source.pictures)} cannot go into one file; upscale them singly"
        )
    if isinstance(image, (str, Path)) and dst.exists() and dst.samefile(image):
        raise OutputError(f"{dst}: is the input itself; give another name, originals are kept")


def _as_pil(result: Any, source: Source) -> Any:
    if source.kind in ("path", "pil"):
        return result
    # an array or tensor that is to be a file: through the same rows as everything else
    picture = accept(result).pictures[0]
    height, width = picture.size
    sink = Source([picture], "path", None, 1).sink(picture, height, width)
    rows = picture.rgb if picture.alpha is None else torch.cat([picture.rgb, picture.alpha], dim=1)
    sink.write(rows)
    return sink.result()


def upscale(image: Any, dst: str | Path | None = None, **options: Any) -> Any:
    """One picture enlarged; `options` are those of `Upscaler`, what comes back that of its call.

    For several pictures make one `Upscaler`: it keeps the network in memory.
    """
    with Upscaler(**options) as up:
        return up(image, dst)


__all__ = ["Plan", "Progress", "Report", "Upscaler", "upscale"]
