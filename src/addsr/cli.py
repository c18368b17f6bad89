"""The command line: parse, call, print. Nothing here imports torch before a command runs."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from .errors import AddsrError, OptionError, OutputError

if TYPE_CHECKING:
    from types import TracebackType

    from .upscaler import Upscaler

log = logging.getLogger("addsr")

USAGE, FAILED, INTERRUPTED = 2, 1, 130
BAR_DELAY_SECONDS = 2.0
_WRITABLE = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


def _version() -> str:
    from . import __version__

    return __version__


app = App(
    name="addsr",
    help="Enlarge photos by few-step diffusion, and train the model that does it.",
    version=_version,
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)


@Parameter(name="*")
@dataclass(frozen=True)
class Talk:
    """How much to say."""

    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], negative="")] = False
    """Tell what is decided and done."""
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative="")] = False
    """Only errors; no progress bar."""

    def set_up(self, usual: int = logging.WARNING) -> None:
        """Points the package's log at standard error; `usual` without either flag."""
        level = logging.DEBUG if self.verbose else logging.ERROR if self.quiet else usual
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        log.handlers[:] = [handler]
        log.setLevel(level)


@app.command
def upscale(
    inputs: Annotated[list[Path], Parameter(name="IN", negative="")],
    /,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    model: str | None = None,
    scale: Annotated[float, Parameter(name=["--scale", "-s"])] = 4.0,
    steps: int | None = None,
    fidelity: float | None = None,
    color: Literal["wavelet", "adain", "none"] | None = None,
    seed: int = 0,
    device: str | None = None,
    dtype: Literal["auto", "fp32", "bf16", "fp16"] | None = None,
    tile: str = "auto",
    json_summary: Annotated[bool, Parameter(name="--json", negative="")] = False,
    talk: Talk = Talk(),
) -> int:
    """Enlarge pictures.

    Parameters
    ----------
    inputs
        Picture files (PNG, JPEG, WebP, TIFF, BMP, GIF).
    output
        A file for one picture, a folder for several; without it NAME_x4.SUFFIX beside each input.
    model
        "compact" or the path of a weights file. [env: ADDSR_MODEL]
    scale
        Factor from 1 to 8.
    steps
        Sampling steps; compact allows 1, 2 and 4.
    fidelity
        From 0 (invents more) to 1 (stays with the input).
    color
        How colours are kept to those of the input.
    seed
        Same seed, same file: same result.
    device
        auto, cpu, cuda, mps or xpu. [env: ADDSR_DEVICE]
    dtype
        Numbers to compute in; auto takes the fastest good one. [env: ADDSR_DTYPE]
    tile
        Side of a tile in input pixels, or auto.
    json_summary
        Print a summary as JSON on standard output.
    """
    talk.set_up()
    jobs = _jobs(inputs, output, scale)
    side: int | Literal["auto"] = "auto"
    if tile != "auto":
        if not tile.isdigit() or int(tile) == 0:
            raise OptionError(f"tile: {tile!r} is no size; give auto or a number of pixels")
        side = int(tile)

    from .upscaler import Upscaler

    done: list[dict[str, Any]] = []
    bar = Bar("upscaling", shown=not talk.quiet)
    with Upscaler(
        model, scale=scale, steps=steps, fidelity=fidelity, color=color, seed=seed,
        device=device, dtype=dtype, tile=side, progress=bar.update,
    ) as up:  # fmt: skip
        if output is not None and _is_folder(output, inputs):
            _make_folder(output)
        for source, target in jobs:
            with bar:
                done.append(_one(up, source, target))
            if not json_summary and not talk.quiet and "error" not in done[-1]:
                width, height = done[-1]["output_size"]
                print(f"{source} -> {target} ({width}x{height}, {done[-1]['seconds']:.1f} s)")
    failed = sum("error" in one for one in done)
    if json_summary:
        print(json.dumps({"files": done, "failed": failed}, indent=2))
    if failed and len(done) > 1:
        print(f"{failed} of {len(done)} pictures failed", file=sys.stderr)
    return FAILED if failed else 0


def _one(up: Upscaler, source: Path, target: Path) -> dict[str, Any]:
    """One picture; what is wrong with it is told and does not stop the others."""
    try:
        up(source, target)
    except AddsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return {"source": str(source), "error": str(error), "kind": type(error).__name__}
    assert up.report is not None
    return up.report.to_dict()


def _is_folder(output: Path, inputs: Sequence[Path]) -> bool:
    return len(inputs) > 1 or output.is_dir() or output.suffix.lower() not in _WRITABLE


def _jobs(inputs: Sequence[Path], output: Path | None, scale: float) -> list[tuple[Path, Path]]:
    """Each input with the file it becomes; OptionError where two would become the same."""
    if output is not None and not _is_folder(output, inputs):
        return [(inputs[0], output)]
    if output is not None and output.suffix.lower() in _WRITABLE and not output.is_dir():
        raise OptionError(
            f"output: {output} is one file, but there are {len(inputs)} inputs; give a folder"
        )
    jobs: list[tuple[Path, Path]] = []
    seen: dict[Path, Path] = {}
    for path in inputs:
        suffix = path.suffix if path.suffix.lower() in _WRITABLE else ".png"
        if output is None:
            target = path.with_name(f"{path.stem}_x{scale:g}{suffix}")
        else:
            target = output / f"{path.stem}{suffix}"
        if target in seen:
            raise OptionError(
                f"output: {seen[target]} and {path} would both become {target}; "
                "rename one or run them apart"
            )
        seen[target] = path
        jobs.append((path, target))
    return jobs


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: folder cannot be made ({error.strerror})") from error


@app.command
def degrade(
    hr_folder: Path,
    output: Path,
    /,
    *,
    preset: str = "mild",
    seed: int = 0,
    device: str = "cpu",
    talk: Talk = Talk(),
) -> int:
    """Make pairs of low- and high-resolution pictures from good photos.

    Parameters
    ----------
    hr_folder
        Photos to spoil; folders below are searched too.
    output
        Folder for the pairs: hr/NAME.png and lr/NAME.png.
    preset
        mild, strong, near-clean or mixture.
    seed
        Same seed, same pairs.
    device
        Where the work is done.
    """
    talk.set_up()
    from .data.pairs import make_pairs
    from .engines.device import choose_device

    where = choose_device(device)
    with Bar("degrading", shown=not talk.quiet) as bar:
        made = make_pairs(
            hr_folder, output, preset, seed, device=where,
            on_file=lambda done, total, _name: bar.update(done, total),
        )  # fmt: skip
    if not talk.quiet:
        print(f"{len(made.written)} pairs in {output}")
    if made.skipped:
        print(f"{len(made.skipped)} pictures were left out", file=sys.stderr)
    return FAILED if made.skipped else 0


@app.command
def train(
    task: Literal["features", "teacher", "student"],
    *,
    config: Path,
    init: Path | None = None,
    resume: str | None = None,
    output: Path | None = None,
    talk: Talk = Talk(),
) -> int:
    """Train one of the networks.

    Parameters
    ----------
    task
        What to train.
    config
        Recipe, a TOML file such as recipes/teacher.toml.
    init
        Weights to start from.
    resume
        "latest" or the path of a checkpoint to go on from.
    output
        Folder for checkpoints and logs; the recipe names one otherwise.
    """
    talk.set_up(logging.INFO)
    from .train.run import train as run

    run(task, config, init=init, resume=resume, output=output)
    return 0


@app.command
def doctor(
    *,
    json_summary: Annotated[bool, Parameter(name="--json", negative="")] = False,
    talk: Talk = Talk(),
) -> int:
    """Show versions, devices, memory and models, for yourself and for bug reports.

    Parameters
    ----------
    json_summary
        Print JSON instead of a table.
    """
    talk.set_up()
    from .doctor import examine, print_table

    facts = examine()
    if json_summary:
        print(json.dumps(facts, indent=2))
    else:
        print_table(facts)
    return 0


class Bar:
    """Give `update` to whatever counts, and hold the bar open with `with` while it works.

    Nothing appears before two seconds have passed, nor when standard error is no terminal.
    """

    def __init__(self, title: str, *, shown: bool = True, delay: float = BAR_DELAY_SECONDS) -> None:
        self.title, self.delay = title, delay
        self.shown = shown and sys.stderr.isatty()
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Bar:
        if not self.shown:
            return self
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(self.title, total=None)
        # a timer and not a look at the clock in `update`: the first tile alone may take longer
        self._timer = threading.Timer(self.delay, self._progress.start)
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
            self._progress.stop()
            self._timer = None

    def update(self, done: int, total: int) -> None:
        """Shows `done` of `total`."""
        if self._timer is not None:
            self._progress.update(self._task, completed=done, total=total)


def main(tokens: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit status: 0, 1 (failed), 2 (usage) or 130 (interrupted)."""
    started = time.monotonic()
    try:
        status = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        print(f"error: {error}\nTry: addsr --help", file=sys.stderr)
        return USAGE
    except AddsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted; nothing half-written was left", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of a pipe went away (`addsr doctor | head`); keep Python's exit quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    log.debug("took %.1f s", time.monotonic() - started)
    return status if isinstance(status, int) else 0
