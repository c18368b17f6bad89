"""Pictures in, larger pictures out: kinds of input, plan, a model's rows, alpha, file, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .engines.device import choose_device, free_host_memory, free_memory
from .engines.memory import release_memory
from .errors import InputError, OptionError, OutputError
from .image.alpha import enlarge_alpha, fill_transparent
from .image.color import ColorFix
from .image.kinds import Picture, Source, accept
from .image.options import BitDepth, FileOptions, IccChoice, MetadataChoice
from .image.reading import read_size, read_upright_size
from .image.resize import resize_bands
from .image.sinks import Sink
from .image.writing import check_output, result_bits, result_icc, write_image
from .plan import Plan
from .report import Report
from .restorers import Counter, Progress, Restorer, TiledRestorer, Wish, Words, choose
from .restorers.base import RefineDecoder, Room
from .settings import read_settings
from .target import Frame, Target

if TYPE_CHECKING:
    from types import TracebackType

    from .models.hub import Model
    from .restorers.latent import PipelineModel

log = logging.getLogger(__name__)

_COLORS: tuple[ColorFix, ...] = ("wavelet", "adain", "none")
_ROWS = 256
"""Rows of the result that are finished at a time."""


@dataclass(frozen=True)
class Opened:
    """A picture that was read and fits, on its way to the networks."""

    name: str
    source: Source
    frame: Frame
    path: Path | None
    """Of the file it came from."""


Rest = Callable[[], tuple[Any, Report]]
"""What is left to do for a picture after the networks; gives its result and report."""


class Upscaler:
    """A model kept ready for many pictures.

    Options left at None take the model's defaults (`up.info`), device and dtype "auto" the best
    this machine has. Use it as a context manager to give the memory back at the end.

    Args:
        model: the name of an embedded or imported model (compact, addsr, seesr, stablesr), the
            path of a weights file or of a pipeline's folder, or what `addsr.load_model` gave.
        scale: 1 to 8; None: 4, or what `target` says.
        target: a size to reach, in place of a scale.
        steps: sampling steps the model allows.
        fidelity: 0 (invents more) to 1 (stays with the input). For AddSR it is the input's share in
            what the later steps look at.
        color: "wavelet", "adain" or "none".
        tile: side of a tile, or "auto"; in input pixels for compact, for StableSR in pixels of the
            result, a multiple of 64 ("auto": the size it was trained with).
        prompt: words about the picture, beside those that a prompt extractor finds; for SeeSR and
            AddSR.
        negative_prompt: words to be led away from, for SeeSR; None takes its own.
        tile_batch: tiles that go through the networks together, fewer where memory is short, or
            "auto": as many as are quicker than one by one. It changes the result by no more than
            rounding.
        refine_decoder: what shows AddSR its predictions between steps; "tiny" takes the imported
            tiny decoder, which is quicker and changes the result.
        quality: of JPEG, WebP, AVIF and HEIC, 1 to 100; None: 95, and 90 for AVIF and HEIC.
        bit_depth: per channel of files: "auto" (more than 8 where the source has and the format
            holds them), "8" or "16" (the most that the format holds).
        icc: "keep" the colour profile, convert to "srgb", or "strip" it.
        metadata: "keep" writes the source's EXIF, XMP and IPTC and what was done; or "strip".
        progress: called with (done, total) while a picture is worked on.

    Raises:
        OptionError: a value outside what it allows.
        ModelError: the weights are missing or damaged.
        MemoryLimitError: the weights alone are larger than the free memory.
        DependencyError: the model needs a package that is not installed.
    """

    def __init__(
        self,
        model: str | Path | Model | PipelineModel | None = None,
        *,
        scale: float | None = None,
        target: Target | None = None,
        steps: int | None = None,
        fidelity: float | None = None,
        color: str | None = None,
        seed: int = 0,
        device: str | None = None,
        dtype: str | None = None,
        tile: int | Literal["auto"] = "auto",
        tile_batch: int | Literal["auto"] = "auto",
        prompt: str = "",
        negative_prompt: str | None = None,
        refine_decoder: RefineDecoder = "full",
        quality: int | None = None,
        bit_depth: BitDepth = "auto",
        icc: IccChoice = "keep",
        metadata: MetadataChoice = "keep",
        progress: Progress | None = None,
    ) -> None:
        settings = read_settings()
        depth: Any = str(bit_depth)  # 8 and 16 are numbers to whoever calls from Python
        self.files = FileOptions(quality, depth, icc, metadata)
        given: Any = target  # a text is what people try first
        if given is not None and not isinstance(given, Target):
            raise OptionError(f"target: {target!r} is no Target; use addsr.Target(size={target!r})")
        if target is not None and scale is not None:
            raise OptionError("scale: contradicts the target; give it as Target(scale=...)")
        self.target = Target(scale=scale) if target is None else target
        self.seed = seed
        self.tile: int | Literal["auto"] = tile
        self.tile_batch: int | Literal["auto"] = _check_tile_batch(tile_batch)
        self.progress = progress
        self.memory_bytes = settings.memory_bytes
        self.report: Report | None = None
        if color is not None and color not in _COLORS:
            raise OptionError(f"color: {color!r} is unknown; use one of {', '.join(_COLORS)}")
        name = device or settings.device
        # on auto a model that is handed in stays where it is
        where = None if name == "auto" else choose_device(name)
        choice = choose(settings.model if model is None else model, where, dtype or settings.dtype)
        # before the networks are loaded: that may take long
        self.info = choice.info
        self.steps = self.info.check_steps(steps)
        self.fidelity = self.info.check_fidelity(fidelity)
        self.info.check_prompts(prompt, negative_prompt)
        self.words = Words(prompt, negative_prompt)
        self.info.check_decoder(refine_decoder)
        self.refine_decoder: RefineDecoder = refine_decoder
        if self.steps == 1 and fidelity is not None and self.info.kind == "addsr":
            log.warning("fidelity: has no effect in one step, where no prediction is looked at")
        self.color: ColorFix = color or self.info.default_color  # type: ignore[assignment]
        self._restorer: Restorer | None = choice.load()
        if tile != "auto":
            self._restorer.check_tile(tile)
        self._restorer.check_decoder(refine_decoder)
        if self.info.is_non_commercial:
            log.info("model %s: %s", self.info.name, self.info.licence)

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
        """Lets go of the networks; the upscaler cannot be used after it."""
        if self._restorer is not None:
            device, self._restorer = self._restorer.device, None
            release_memory(device)

    @property
    def restorer(self) -> Restorer:
        """The model on its device."""
        if self._restorer is None:
            raise OptionError("upscaler: is closed; make a new one")
        return self._restorer

    @property
    def scale(self) -> float | None:
        """The factor, where one was asked for or none of the sizes."""
        return None if self.target.is_sized else self.target.factor

    def wish(self, frame: Frame) -> Wish:
        """The options for a picture, as the model takes them."""
        return Wish(
            frame.scale, self.steps, self.fidelity, self.color, self.seed, self.tile, self.words,
            self.refine_decoder, self.tile_batch,
        )  # fmt: skip

    def plan(self, source: tuple[int, int], result_bytes_per_pixel: int = 4) -> Plan:
        """What will be done to a picture of `source` (height, width), with the expected peak.

        Raises:
            InputError: the target cannot be reached from it.
            MemoryLimitError: it would not fit; the message names the expected peak.
        """
        return self._plan(self.target.frame(source), result_bytes_per_pixel)

    def _plan(self, frame: Frame, result_bytes_per_pixel: int = 4) -> Plan:
        device = self.restorer.device
        host = free_host_memory()
        if self.memory_bytes is not None:
            host = min(host, self.memory_bytes)
        # mps shares main memory: counted there
        own = free_memory(device) if device.type in ("cuda", "xpu") else None
        room = Room(host, own, result_bytes_per_pixel)
        return self.restorer.plan(frame.source, self.wish(frame), room)

    def __call__(self, image: Any, dst: str | Path | None = None) -> Any:
        """The picture enlarged to the target, as the kind it came in; a path gives a PIL image.

        With `dst` the result is written there (format by suffix) and `dst` comes back as a `Path`.

        Raises:
            InputError, OutputError, MemoryLimitError: as their names say; nothing is written then.
        """
        started = time.monotonic()
        if dst is not None:
            check_output(dst)
        opened = self.open(image)
        if dst is not None:
            self.check_place(opened, dst)
        result = self.restore(opened, dst)
        assert self.report is not None
        if dst is not None:
            self.write(result, opened, dst, self.report)
            result = Path(dst)
        self.report = replace(
            self.report,
            output=None if dst is None else str(dst),
            seconds=round(time.monotonic() - started, 3),
        )
        return result

    # The three parts of a call are apart so that a batch can read the next picture and write the
    # last one while the networks work. They touch no state but `report`, which `restore` sets.

    def open(self, image: Any) -> Opened:
        """`image` read, and found to fit into memory; of any kind that a call takes.

        Raises:
            InputError: it cannot be used, or the target cannot be reached from it.
            MemoryLimitError: it would not fit.
        """
        path = Path(image) if isinstance(image, (str, Path)) else None
        name = type(image).__name__ if path is None else str(image)
        if path is not None:  # refuse before a huge picture is decoded
            read = read_size if self.scale is not None else read_upright_size
            if self.target.preview is None:  # what is cut out may be small
                self._plan(self.target.frame(read(path), name))
        source = accept(image)
        frame = self.target.frame(source.pictures[0].size, name)
        return Opened(name, source, frame, path)

    def check_place(self, opened: Opened, dst: str | Path) -> None:
        """Finds out before any work whether the result can go to `dst`.

        Raises:
            InputError: it is a batch; OutputError: `dst` is the input, or cannot be written.
        """
        dst = Path(dst)
        if len(opened.source.pictures) > 1:
            raise InputError(
                f"image: a batch of {len(opened.source.pictures)} cannot go into one file; "
                "upscale them singly"
            )
        if opened.path is not None and dst.exists() and dst.samefile(opened.path):
            raise OutputError(f"{dst}: is the input itself; give another name, originals are kept")
        height, width = opened.frame.size
        check_output(dst, width, height)
        self._bits(opened, dst, is_told=True)

    def _bits(self, opened: Opened, dst: str | Path, *, is_told: bool = False) -> int:
        """Bits per channel of the result for the file `dst`."""
        source, (height, width) = opened.source, opened.frame.size
        is_grey, size = source.pictures[0].layout == "L", (width, height)
        return result_bits(
            dst, source.bits, self.files, is_grey=is_grey, size=size, is_told=is_told
        )

    def _icc(self, opened: Opened, dst: str | Path | None) -> IccChoice:
        """What becomes of the profile."""
        if dst is None:
            return self.files.icc
        layout = opened.source.pictures[0].layout
        return result_icc(dst, self.files, layout, self._bits(opened, dst))

    def restore(self, opened: Opened, dst: str | Path | None = None) -> Any:
        """The result for a picture from `open`, as the kind it came in; sets `report`.

        Args:
            dst: the file that `write` will write, whose format decides the bits per channel.

        Raises:
            MemoryLimitError: it would not fit; ModelError: the networks give no numbers.
        """
        started = time.monotonic()
        source, frame = opened.source, opened.frame
        plan = self._plan(opened.frame, self._result_bytes(opened, dst))
        counter = self._begin([opened], plan)
        results: list[Any] = []
        for picture in source.pictures:
            rgb = _visible(_cut(picture, frame))
            bands = self.restorer.bands(rgb, plan, self.wish(frame), counter)
            results.append(self._finish(opened, picture, bands, plan, dst))
        counter.finish()
        self.report = self._report(opened, plan, time.monotonic() - started)
        return source.join(results)

    def most_together(self, opened: Opened, dst: str | Path | None = None) -> int:
        """Pictures like this one that `restore_together` may be given at once; 0: it is no gain.

        Raises:
            MemoryLimitError: it would not fit.
        """
        if not isinstance(self.restorer, TiledRestorer) or len(opened.source.pictures) > 1:
            return 0
        plan = self._plan(opened.frame, self._result_bytes(opened, dst))
        return self.restorer.most_together(plan, self.wish(opened.frame))

    def restore_together(self, pictures: Sequence[tuple[Opened, str | Path | None]]) -> list[Rest]:
        """`restore` for pictures of one frame, no more than `most_together` says.

        Each pair is what `restore` takes, and each comes out as it would alone, but for rounding.
        The networks are done when this returns. The rest of each picture's work is handed back:
        it gives result and report, and can be done in any thread. `report` is not set.

        Raises:
            MemoryLimitError, ModelError: as `restore`; which picture it is about is not said.
        """
        started = time.monotonic()
        restorer, frame = self.restorer, pictures[0][0].frame
        assert isinstance(restorer, TiledRestorer)
        plan = self._plan(frame, max(self._result_bytes(*pair) for pair in pictures))
        counter = self._begin([opened for opened, _ in pictures], plan)
        cuts = [_visible(_cut(opened.source.pictures[0], frame)) for opened, _ in pictures]
        bands = restorer.together(cuts, plan, self.wish(frame), counter)
        counter.finish()
        share = (time.monotonic() - started) / len(pictures)

        def rest(opened: Opened, dst: str | Path | None, bands: Iterator[Tensor]) -> Rest:
            def work() -> tuple[Any, Report]:
                started = time.monotonic()
                source = opened.source
                result = self._finish(opened, source.pictures[0], bands, plan, dst)
                seconds = share + time.monotonic() - started
                return source.join([result]), self._report(opened, plan, seconds)

            return work

        return [rest(*pair, own) for pair, own in zip(pictures, bands, strict=True)]

    def _result_bytes(self, opened: Opened, dst: str | Path | None) -> int:
        """Of a pixel of what the picture will become."""
        source = opened.source
        bits = None if dst is None else self._bits(opened, dst)
        per_pixel = 4 if bits is None or bits == 8 else 8
        if source.kind not in ("path", "pil"):
            layout = source.pictures[0].layout
            per_pixel = max(per_pixel, max(len(layout), 1) * source.bytes_per_value)
        return per_pixel * len(source.pictures)

    def _begin(self, pictures: Sequence[Opened], plan: Plan) -> Counter:
        """Says what is to be done."""
        for opened in pictures:
            _tell(opened.name, plan, self.restorer.device)
        _, steps = self.restorer.count(plan, self.wish(pictures[0].frame))
        counter = Counter(self.progress)
        counter.total = sum(len(opened.source.pictures) for opened in pictures) * steps
        counter.tell()
        return counter

    def _report(self, opened: Opened, plan: Plan, seconds: float) -> Report:
        frame = opened.frame
        height, width = opened.source.pictures[0].size
        return Report(
            source=opened.name,
            output=None,
            input_size=(width, height),
            output_size=(frame.size[1], frame.size[0]),
            model=self.info.name,
            licence=self.info.licence,
            steps=self.steps,
            fidelity=self.fidelity,
            color=self.color,
            seed=self.seed,
            device=str(self.restorer.device),
            dtype=str(self.restorer.dtype).removeprefix("torch."),
            tile=plan.tile,
            tiles=self.restorer.count(plan, self.wish(frame))[0],
            expected_bytes=plan.host_bytes,
            seconds=round(seconds, 3),
            scale=frame.scale,
            target=self.target.words,
            weights=self.restorer.weights,
            prompt=self.words.prompt,
            negative_prompt=self.words.negative_prompt,
            tags=self.restorer.tags,
            refine_decoder=self.refine_decoder,
        )

    def write(self, result: Any, opened: Opened, dst: str | Path, report: Report) -> None:
        """Writes what `restore` gave; the file appears whole or not at all.

        Args:
            report: what was done to get it, as `restore` left it.

        Raises:
            OutputError: an unwritable folder, a full disk.
        """
        source = opened.source
        image = _for_file(result, source, self._bits(opened, dst), self.seed)
        metadata = source.metadata.with_done(report.account())
        profile = source.encoding.for_result(self._icc(opened, dst)).profile
        write_image(image, dst, self.files, metadata, profile)

    def _finish(
        self,
        opened: Opened,
        picture: Picture,
        bands: Iterator[Tensor],
        plan: Plan,
        dst: str | Path | None,
    ) -> Any:
        """The result of one picture whose restored rows are `bands`."""
        bits = None if dst is None else self._bits(opened, dst)
        size = opened.frame.size
        sink = opened.source.sink(picture, *size, bits, self.seed, self._icc(opened, dst))
        self._fill(sink, _cut(picture, opened.frame).alpha, bands, plan, opened.frame)
        return sink.result()

    def _fill(
        self, sink: Sink, alpha: Tensor | None, bands: Iterator[Tensor], plan: Plan, frame: Frame
    ) -> None:
        """Writes the rows of the used part of a picture into `sink`."""
        bands = _trim(bands, plan.target)
        full, (first, left) = plan.target, frame.corner or (0, 0)
        if frame.is_resized:
            full = frame.size
            bands = resize_bands((band.clamp(0, 1) for band in bands), plan.target, full)
        last, right = first + frame.size[0], left + frame.size[1]
        top = 0
        for band in bands:
            for rows in band.split(_ROWS, dim=-2):
                bottom = top + rows.shape[-2]
                if alpha is not None:
                    rows = torch.cat([rows, enlarge_alpha(alpha, full, top, bottom)], dim=1)
                rows = rows[..., max(first - top, 0) : max(last - top, 0), left:right]
                if rows.shape[-2]:
                    sink.write(rows)
                top = bottom


def _check_tile_batch(count: Any) -> Any:
    is_whole = isinstance(count, int) and not isinstance(count, bool)
    if count != "auto" and not (is_whole and count >= 1):
        raise OptionError(f"tile_batch: {count!r} is no number of tiles; give one from 1, or auto")
    return count


def _trim(bands: Iterator[Tensor], size: tuple[int, int]) -> Iterator[Tensor]:
    """`bands` without the rows and columns beyond `size`."""
    top = 0
    for band in bands:
        rows = band[..., : max(size[0] - top, 0), : size[1]]
        top += band.shape[-2]
        if rows.shape[-2]:
            yield rows


def _cut(picture: Picture, frame: Frame) -> Picture:
    """The part of `picture` that is used."""
    left, top, width, height = frame.box
    if (height, width) == picture.size:
        return picture

    def part(x: Tensor) -> Tensor:
        return x[..., top : top + height, left : left + width]

    alpha = None if picture.alpha is None else part(picture.alpha)
    return replace(picture, rgb=part(picture.rgb), alpha=alpha)


def _visible(picture: Picture) -> Tensor:
    """What the networks see `(1, 3, H, W)`: colours spread into what is transparent."""
    if picture.alpha is None:
        return picture.rgb
    return fill_transparent(picture.rgb, picture.alpha)


def _tell(name: str, plan: Plan, device: torch.device) -> None:
    (height, width), (high, wide) = plan.source, plan.target
    own = "" if device.type == "cpu" else f", {plan.tile_bytes / 2**30:.2f} GiB of {device}"
    log.info(
        "%s: %dx%d -> %dx%d, tile %d, expected peak %.2f GiB%s",
        name, width, height, wide, high, plan.tile, plan.host_bytes / 2**30, own,
    )  # fmt: skip


def _for_file(result: Any, source: Source, bits: int | None, seed: int) -> Any:
    """A result as `write_image` takes it."""
    if source.kind in ("path", "pil"):
        return result
    # an array or tensor that is to be a file: through the same rows as everything else
    picture = accept(result).pictures[0]
    height, width = picture.size
    sink = Source([picture], "path", None, 1).sink(picture, height, width, bits, seed)
    rows = picture.rgb if picture.alpha is None else torch.cat([picture.rgb, picture.alpha], dim=1)
    sink.write(rows)
    return sink.result()


def upscale(image: Any, dst: str | Path | None = None, **options: Any) -> Any:
    """One picture enlarged; `options` are those of `Upscaler`, what comes back that of its call.

    For several pictures make one `Upscaler`: it keeps the network in memory.
    """
    with Upscaler(**options) as up:
        return up(image, dst)


__all__ = ["Opened", "Plan", "Progress", "Report", "Target", "Upscaler", "upscale"]
