"""`addsr upscale` as the command line calls it; no torch before it runs."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from .errors import AddsrError, OptionError
from .image.options import USUAL_FILES, FileOptions
from .settings import read_settings
from .target import Target
from .terminal import STREAM, USUAL_TALK, BatchBar, Talk, make_folder, say
from .upscale_stream import check_streams, run_stream
from .upscale_telling import Teller, tell_plans

if TYPE_CHECKING:
    from .batch.events import Outcome
    from .batch.jobs import Job
    from .batch.manifest import Manifest
    from .upscaler import Upscaler

log = logging.getLogger("addsr")

USUAL_TARGET = Target()
_PREVIEW = "{stem}_preview-{preview}_{target}{suffix}"


@Parameter(name="*")
@dataclass(frozen=True)
class BatchOptions:
    """Which pictures, where they go, and what happens on the way."""

    output: Annotated[str | None, Parameter(name=["--output", "-o"])] = None
    """A file for one picture, a folder for several, - for standard output; without it
    NAME_x4.SUFFIX beside each input. In a folder what is done is kept in addsr-batch.sqlite, and
    the same command again goes on where the last one stopped."""
    recursive: Annotated[bool, Parameter(name=["--recursive", "-r"], negative="")] = False
    """Search the folders below a folder too; results keep their places."""
    format_name: Annotated[str | None, Parameter(name="--format")] = None
    """png, jpg, webp, avif, heic, tif, bmp or gif, for names that -o does not give. [default: the
    input's, png for GIF]"""
    name: str | None = None
    """Name of each result, such as {stem}_x{scale}{suffix}; also {target}, {model}, {seed} and
    {preview}."""
    again: Annotated[bool, Parameter(negative="")] = False
    """Do everything again, also what is done already."""
    fail_fast: Annotated[bool, Parameter(negative="")] = False
    """Stop at the first picture that fails; without it all others are done."""
    dry_run: Annotated[bool, Parameter(negative="")] = False
    """Show sizes, tiles, memory and time that are to be expected, and do nothing."""
    compare: Annotated[bool, Parameter(negative="")] = False
    """Write NAME.compare.html beside each result: input and result under one slider."""
    json_lines: Annotated[bool, Parameter(name="--json", negative="")] = False
    """Print one line of JSON for every event, the summary last."""


USUAL_BATCH = BatchOptions()


def upscale(
    inputs: Annotated[list[Path], Parameter(name="IN", negative="")],
    /,
    *,
    target: Target = USUAL_TARGET,
    model: str | None = None,
    steps: int | None = None,
    fidelity: float | None = None,
    color: Literal["wavelet", "adain", "none"] | None = None,
    seed: int = 0,
    device: str | None = None,
    dtype: Literal["auto", "fp32", "bf16", "fp16"] | None = None,
    tile: str = "auto",
    tile_batch: str = "auto",
    prompt: str = "",
    negative_prompt: str | None = None,
    refine_decoder: Literal["full", "tiny"] = "full",
    files: Annotated[FileOptions, Parameter(name="*")] = USUAL_FILES,
    batch: BatchOptions = USUAL_BATCH,
    talk: Talk = USUAL_TALK,
) -> int:
    """Enlarge pictures.

    Parameters
    ----------
    inputs
        Picture files (PNG, JPEG, WebP, AVIF, HEIC, TIFF, BMP, GIF), folders, patterns such as
        "photos/*.jpg", or - for standard input.
    model
        compact, the name of an imported model such as addsr, seesr, stablesr or stablesr-turbo, or
        the path of a weights file or of a pipeline's folder; addsr-1 and addsr-2 are addsr in so
        many steps. [env: ADDSR_MODEL]
    steps
        Sampling steps: 1, 2 or 4 for compact, 1 to 4 for addsr, any number up to 1000 for seesr and
        stablesr, 1 or 4 for stablesr-turbo. [default: the model's own]
    fidelity
        From 0 (invents more) to 1 (stays with the input). [default: the model's own]
    color
        How colours are kept to those of the input. [default: the model's own]
    seed
        Same seed, same file: same result.
    device
        auto, cpu, cuda, mps or xpu. [env: ADDSR_DEVICE]
    dtype
        Numbers to compute in; auto takes the fastest good one. [env: ADDSR_DTYPE]
    tile
        Side of a tile, or auto: in input pixels for compact; for stablesr in pixels of the result,
        a multiple of 64, and auto is the size it was trained with. ADDSR_MEMORY, such as 3G, limits
        the main memory that a picture may take; else it is what is free.
    tile_batch
        Tiles, and small pictures of one size, that go through the networks together, or auto: as
        many as are quicker than one by one.
    prompt
        Words about the picture, beside those that a prompt extractor finds: for addsr and seesr.
    negative_prompt
        Words to be led away from: for seesr. [default: the model's own]
    refine_decoder
        What shows addsr its predictions between steps: tiny is an imported tiny decoder, quicker
        than the full one, and changes the result.
    """
    talk.set_up()
    options: dict[str, Any] = {
        "model": model, "steps": steps, "fidelity": fidelity, "color": color, "seed": seed,
        "device": device, "dtype": dtype, "tile": _side(tile),
        "tile_batch": _count(tile_batch), "prompt": prompt,
        "negative_prompt": negative_prompt, "refine_decoder": refine_decoder, **asdict(files),
    }  # fmt: skip
    if batch.compare and (target.preview is not None or target.fit == "cover"):
        raise OptionError(
            "compare: lays the whole input under the result; leave out --compare, or --preview and "
            "--fit cover"
        )
    if batch.name is not None:
        from .batch.jobs import check_template

        check_template(batch.name)
    if Path("-") in inputs or batch.output == STREAM:
        return _stream(inputs, target, options, batch, talk)
    return _work(inputs, target, options, batch, talk)


def _side(tile: str) -> int | Literal["auto"]:
    if tile == "auto":
        return "auto"
    if not tile.isdecimal() or int(tile) == 0:
        raise OptionError(f"tile: {tile!r} is no size; give auto or a number of pixels")
    return int(tile)


def _count(tile_batch: str) -> int | Literal["auto"]:
    if tile_batch == "auto":
        return "auto"
    if not tile_batch.isdecimal() or int(tile_batch) == 0:
        raise OptionError(f"tile_batch: {tile_batch!r} is no number; give auto or one from 1")
    return int(tile_batch)


def _work(
    inputs: list[Path], target: Target, options: dict[str, Any], batch: BatchOptions, talk: Talk
) -> int:
    with contextlib.ExitStack() as stack:
        folder, manifest, jobs = _prepare(inputs, target, options, batch, stack)
        if options["quality"] is not None:
            _tell_of_quality(jobs)
        from .batch.manifest import Manifest, remove_leftovers
        from .upscaler import Upscaler

        up = stack.enter_context(Upscaler(target=target, **options))
        if batch.dry_run:
            from .batch.planning import Pace, forecast

            settings = "" if manifest is None else _settings_hash(up, options)
            found = forecast(up, jobs, Pace(up), manifest=manifest, settings_sha256=settings)
            return tell_plans(found, json_lines=batch.json_lines, is_one=len(jobs) == 1)
        if folder is None:
            return _run(up, jobs, None, "", batch, talk)
        for place in {folder, *(job.target.parent for job in jobs)}:
            make_folder(place)
        if manifest is None:
            manifest = stack.enter_context(Manifest(folder))
        remove_leftovers(job.target for job in jobs)
        return _run(up, jobs, manifest, _settings_hash(up, options), batch, talk)


def _prepare(
    inputs: list[Path],
    target: Target,
    options: dict[str, Any],
    batch: BatchOptions,
    stack: contextlib.ExitStack,
) -> tuple[Path | None, Manifest | None, list[Job]]:
    """The folder of the results, its manifest if it has one (locked), and all jobs.

    Whatever clashes is refused, and nothing is made yet.
    """
    from .batch.discovery import discover
    from .batch.jobs import choose_folder, make_jobs
    from .batch.manifest import NAME, Manifest
    from .image.expanding import expand

    inputs = expand(inputs)
    folder = choose_folder(batch.output, inputs)
    if batch.name is not None and batch.output is not None and folder is None:
        raise OptionError(
            f"name: {batch.output} is the name already; give -o a folder, or no --name"
        )
    known: Manifest | None = None
    if folder is not None and (folder / NAME).is_file():
        known = stack.enter_context(Manifest(folder))
    place = None if folder is None else os.path.realpath(folder)

    def is_left_out(path: Path) -> bool:
        # results are no inputs, whether their folder lies below the inputs or is the very same
        return os.path.realpath(path) == place or (known is not None and known.made_here(path))

    found = discover(inputs, recursive=batch.recursive, is_left_out=is_left_out)
    values = {
        "scale": target.label if target.is_sized else f"{target.factor:g}",
        "model": Path(options["model"] or read_settings().model).name,
        "seed": options["seed"],
        "preview": (target.preview or "whole").replace(",", "-"),
    }
    template = batch.name
    if template is None and target.preview is not None:
        template = _PREVIEW  # or it would take the place of the whole result
    suffix = _wanted_suffix(batch, folder)
    jobs = make_jobs(
        found, batch.output, target.label, template=template, values=values, suffix=suffix
    )
    return folder, known, jobs


def _wanted_suffix(batch: BatchOptions, folder: Path | None) -> str | None:
    """Of the results' names, where --format says it."""
    from .image.formats import FORMATS

    if batch.format_name is None:
        return None
    suffix = f".{batch.format_name.lower().removeprefix('.')}"
    if suffix not in FORMATS:
        known = ", ".join(one.removeprefix(".") for one in FORMATS)
        raise OptionError(f"format: {batch.format_name!r} cannot be written; use one of {known}")
    if batch.output not in (None, STREAM) and folder is None:
        raise OptionError(
            f"format: {batch.output} says it already; give -o a folder, or no --format"
        )
    return suffix


def _tell_of_quality(jobs: list[Job]) -> None:
    """Warns where --quality counts for none of the results."""
    from .image.formats import BY_NAME, FORMATS

    names = {FORMATS.get(job.target.suffix.lower(), "") for job in jobs}
    if all(name not in BY_NAME or BY_NAME[name].quality is None for name in names):
        log.warning(
            "quality: no result is of a format that has it; write a .jpg, .webp, .avif or .heic, "
            "or leave it out"
        )


def _settings_hash(up: Upscaler, options: dict[str, Any]) -> str:
    """Of everything that decides what a result looks like."""
    from . import __version__
    from .batch.manifest import hash_settings
    from .models.identity import identify

    resolved = {
        "model",
        "device",
        "dtype",
        "tile",
        "tile_batch",
        "steps",
        "fidelity",
        "color",
        "seed",
    }
    return hash_settings(
        {
            **{name: value for name, value in options.items() if name not in resolved},
            "version": __version__,
            "weights": identify(options["model"] or read_settings().model),
            "target": asdict(up.target),
            "steps": up.steps,
            "fidelity": up.fidelity,
            "color": up.color,
            "seed": up.seed,
            "dtype": str(up.restorer.dtype),
            "tile": up.tile,
        }
    )


def _run(
    up: Upscaler,
    jobs: list[Job],
    manifest: Manifest | None,
    settings: str,
    batch: BatchOptions,
    talk: Talk,
) -> int:
    from .batch.events import Listener
    from .batch.manifest import remove_leftovers
    from .batch.run import Batch

    bar = BatchBar("upscaling", shown=not talk.quiet)
    teller = Teller(json_lines=batch.json_lines, quiet=talk.quiet)

    def tell(outcome: Outcome) -> None:
        if batch.compare and outcome.state in ("done", "skipped"):
            _compare(outcome)
        with bar.aside():
            teller.tell(outcome)

    work = Batch(
        up, jobs, manifest=manifest, settings_sha256=settings, fail_fast=batch.fail_fast,
        again=batch.again, listener=Listener(tell, bar.show),
    )  # fmt: skip
    try:
        with bar:
            work.run()
    except (KeyboardInterrupt, SystemExit):
        # of what could not be written in time
        remove_leftovers(job.target for job in jobs)
        teller.tell_rest(work.summary, jobs, is_kept=manifest is not None)
        raise
    finally:  # also after Ctrl-C: what is done is done
        teller.tell_summary(work.summary)
    return teller.conclude(work.summary)


def _compare(outcome: Outcome) -> None:
    """The page beside a result; what is wrong with it spoils no picture."""
    from .evaluate.compare import write_compare_page

    page = outcome.target.with_name(f"{outcome.target.name}.compare.html")
    if outcome.state == "skipped" and page.exists():
        return
    try:
        write_compare_page([outcome.source, outcome.target], page)
    except AddsrError as error:
        say(f"error: {error}", sys.stderr)
    except Exception as error:
        log.debug("%s", page, exc_info=True)
        what = f"unexpected error: {type(error).__name__}: {error}; please report it"
        say(f"error: {page}: {what}", sys.stderr)


def _stream(
    inputs: list[Path], target: Target, options: dict[str, Any], batch: BatchOptions, talk: Talk
) -> int:
    if batch.dry_run or batch.compare or batch.name is not None or batch.recursive:
        raise OptionError(
            "input: - goes with none of --dry-run, --compare, --name and --recursive; give files"
        )
    check_streams(inputs, batch.output)
    assert batch.output is not None, "check_streams refuses it"
    suffix = _wanted_suffix(batch, None)
    if inputs != [Path("-")]:
        from .image.expanding import expand

        inputs = expand(inputs)
        if len(inputs) > 1:
            raise OptionError(f"output: - takes one picture and {len(inputs)} are given; give one")
    from .upscaler import Upscaler

    return run_stream(
        inputs[0], batch.output, suffix, lambda: Upscaler(target=target, **options),
        json_lines=batch.json_lines, talk=talk,
    )  # fmt: skip
