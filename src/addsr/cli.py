"""The command line: parse, call, print. Nothing here imports torch before a command runs."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from cyclopts import App, CycloptsError, Parameter

from .errors import AddsrError, OptionError
from .models_commands import models
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
    unwritable,
)

if TYPE_CHECKING:
    from types import FrameType

    from cyclopts import ArgumentCollection

log = logging.getLogger("addsr")


def _version() -> str:
    from . import __version__

    return __version__


_FULL = (errno.ENOSPC, errno.EIO)
_MAY_BE_EMPTY = {"--prompt", "--negative-prompt", "--title", "--title-a", "--title-b"}


def _check_values(_app: App, _command: Any, arguments: ArgumentCollection) -> None:
    """Refuses what cyclopts would make something of that nobody meant.

    An empty path would be the current folder (a script's variable that is not set), and 1.5 steps
    would be 2.
    """
    for argument in arguments:
        field = argument.name.removeprefix("--").replace("-", "_")
        hint: Any = argument.hint
        kinds = (hint, *get_args(hint))
        for token in argument.tokens:
            if re.search(r"\d{1000}", token.value):
                raise OptionError(f"{field}: a number of 1000 digits is too long; give another")
            if not token.value and bool not in kinds and argument.name not in _MAY_BE_EMPTY:
                raise OptionError(f"{field}: '' is empty; give a value, or leave it out")
            if int in kinds and _is_broken(token.value):
                raise OptionError(f"{field}: {token.value} is no whole number; give one")


def _is_broken(text: str) -> bool:
    if re.fullmatch(r"[+-]?\d+", text):
        return False  # of any length, where a float would be infinite
    try:
        return not float(text).is_integer()
    except ValueError:
        return False  # the conversion tells what is wrong with it


app = App(
    name="addsr",
    help="Enlarge photos by few-step diffusion, and train the model that does it.",
    version=_version,
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
    config=_check_values,
    # a file may be called "[2024] a.jpg", and is no list in JSON then
    default_parameter=Parameter(json_list=False),
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
        say(f"{len(made.written)} pairs in {output}")
    if made.skipped:
        say(f"{len(made.skipped)} pictures were left out", sys.stderr)
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
        say(json.dumps(facts, indent=2))
    else:
        print_table(facts)
    return 0


app.command(models)
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


def _shown(name: Any) -> str:
    """A file's name as `OSError` holds it, cut where it would fill the terminal."""
    text = os.fsdecode(name) if isinstance(name, (str, bytes)) else str(name)
    return text if len(text) <= 300 else f"{text[:300]}..."


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
    if sys.stderr is None:  # closed by who started us: messages must not go anywhere else
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
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
        say(printable(f"error: {error}\nTry: addsr --help"), sys.stderr)
        return USAGE
    except AddsrError as error:
        say(printable(f"error: {error}"), sys.stderr)
        return USAGE if isinstance(error, OptionError) else FAILED
    except KeyboardInterrupt:
        say("interrupted; nothing half-written was left", sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        silence(sys.stdout)  # the reader went away, as in `addsr doctor | head`
        return 0
    except SystemExit as end:
        if end.code != FAILED:
            raise
        return 0  # the same, as rich tells it
    except OSError as error:
        log.debug("", exc_info=True)
        if error.filename is not None:  # a name that is too long, a folder that may not be entered
            what = f"{_shown(error.filename)}: cannot be used ({error.strerror}); give another"
        elif error.errno in _FULL:  # what rich and cyclopts print does not go through `say`
            silence(sys.stdout)
            what = str(unwritable(error))
        else:
            raise
        say(printable(f"error: {what}"), sys.stderr)
        return FAILED
    log.debug("took %.1f s", time.monotonic() - started)
    return status if isinstance(status, int) else 0
