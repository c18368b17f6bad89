"""The command line: parse, call, print. Nothing here imports torch before a command runs."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from .errors import AddsrError, OptionError
from .terminal import (
    FAILED,
    INTERRUPTED,
    STREAM,
    TERMINATED,
    USAGE,
    USUAL_TALK,
    Bar,
    Talk,
    printable,
    say,
    silence,
)

if TYPE_CHECKING:
    from types import FrameType

log = logging.getLogger("addsr")


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


@app.command
def degrade(
    hr_folder: Path,
    output: Path,
    /,
    *,
    preset: Literal["mild", "strong", "near-clean", "mixture"] = "mild",
    seed: int = 0,
    device: str = "cpu",
    talk: Talk = USUAL_TALK,
) -> int:
    """Make pairs of low- and high-resolution pictures from good photos.

    Parameters
    ----------
    hr_folder
        Photos to spoil; folders below are searched too.
    output
        Folder for the pairs, hr/NAME.png and lr/NAME.png; one preset and seed per folder.
    preset
        How much to spoil.
    seed
        Same seed, same pairs.
    device
        Where the work is done.
    """
    talk.set_up()
    from .data.pairs import make_pairs
    from .engines.device import choose_device, free_memory
    from .settings import read_settings

    where = choose_device(device)
    limit = free_memory(where)
    if where.type in ("cpu", "mps"):  # ADDSR_MEMORY is about main memory
        limit = min(limit, read_settings().memory_bytes or limit)
    with Bar("degrading", shown=not talk.quiet) as bar:
        made = make_pairs(
            hr_folder, output, preset, seed, device=where, memory_bytes=limit,
            on_file=lambda done, total, _name: bar.update(done, total),
        )  # fmt: skip
    if not talk.quiet:
        print(f"{len(made.written)} pairs in {output}")
    if made.skipped:
        print(f"{len(made.skipped)} pictures were left out", file=sys.stderr)
    return FAILED if made.skipped else 0


@app.command
def train(
    task: Literal["features", "teacher", "student", "stablesr", "cfw", "addsr", "seesr", "dape"],
    *,
    config: Path,
    init: Path | None = None,
    resume: str | None = None,
    output: Path | None = None,
    changes: Annotated[
        tuple[str, ...], Parameter(name="--set", negative="", consume_multiple=False)
    ] = (),
    talk: Talk = USUAL_TALK,
) -> int:
    """Train one of the networks.

    Parameters
    ----------
    task
        What to train: parts of the compact model (features, teacher, student), or adapters of
        Stable Diffusion (stablesr, then cfw), SeeSR's prompt extractor (dape), SeeSR itself
        (seesr), or SeeSR to few steps (addsr).
    config
        Recipe, a TOML file such as recipes/teacher.toml.
    init
        Weights to start from.
    resume
        "latest" or the path of a checkpoint to go on from.
    output
        Folder for checkpoints and logs; the recipe names one otherwise.
    changes
        One field of the recipe as TABLE.FIELD=VALUE; may be repeated.
    """
    talk.set_up(logging.INFO)
    from .train.config import parse_overrides
    from .train.run import train as run

    overrides = parse_overrides(changes)
    run(task, config, init=init, resume=resume, output=output, overrides=overrides)
    return 0


@app.command
def doctor(
    *,
    json_summary: Annotated[bool, Parameter(name="--json", negative="")] = False,
    talk: Talk = USUAL_TALK,
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


# by import path, so that no command pays for what only these need
app.command(
    "addsr.upscale_command:upscale",
    name="upscale",
    help="Enlarge pictures.",
    usage="Usage: addsr upscale [OPTIONS] IN...",
)
app.command(
    "addsr.evaluate.compare_command:compare",
    name="compare",
    help="Put pictures of the same scene under one slider, as a page of one file.",
    usage="Usage: addsr compare [OPTIONS] IMAGE IMAGE...",
)
app.command(
    "addsr.evaluate.commands:evaluate",
    name="evaluate",
    help="Score models and finished results on pictures, and write a report.",
    usage="Usage: addsr evaluate [OPTIONS] METHOD...",
)
app.command(
    "addsr.evaluate.commands:ab",
    name="ab",
    help="Compare two folders of results blindly.",
    usage="Usage: addsr ab [OPTIONS] FOLDER FOLDER",
)
app.command(
    "addsr.models_commands:models", name="models", help="Get, list, check and remove models."
)
app.command(
    "addsr.tag_command:tag",
    name="tag",
    help="Print the words SeeSR and AddSR would be told about pictures.",
    usage="Usage: addsr tag [OPTIONS] PHOTO...",
)
app.command(
    "addsr.inspection.commands:inspect",
    name="inspect",
    help="Show how strongly a picture steers StableSR at each timestep.",
    usage="Usage: addsr inspect [OPTIONS] MODEL IMAGE...",
)


@contextlib.contextmanager
def _clean_end() -> Generator[None]:
    """While it lasts SIGTERM is an exception, so that half-written files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python sets handlers in the main thread only
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def main(tokens: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit status.

    0: done. 1: something failed, maybe one picture of many. 2: a command or option is wrong, as
    told before any work. 130: interrupted by Ctrl-C. 143: ended by SIGTERM, as SystemExit.
    """
    started = time.monotonic()
    words = list(sys.argv[1:] if tokens is None else tokens)
    if words[:1] == ["upscale"]:
        # "-" alone stands for a stream; cyclopts would take it for the start of an option
        words = [STREAM if word == "-" else word for word in words]
    try:
        # training has its own way to end on a signal: it saves a checkpoint
        with contextlib.nullcontext() if words[:1] == ["train"] else _clean_end():
            status = app(
                words, exit_on_error=False, print_error=False, result_action="return_value"
            )
    except CycloptsError as error:
        print(f"error: {error}\nTry: addsr --help", file=sys.stderr)
        return USAGE
    except AddsrError as error:
        say(printable(f"error: {error}"), sys.stderr)
        return USAGE if isinstance(error, OptionError) else FAILED
    except KeyboardInterrupt:
        print("interrupted; nothing half-written was left", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        silence(sys.stdout)  # the reader went away, as in `addsr doctor | head`
        return 0
    log.debug("took %.1f s", time.monotonic() - started)
    return status if isinstance(status, int) else 0
