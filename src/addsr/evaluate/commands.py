"""`addsr evaluate` and `addsr ab` as the command line calls them; no torch before they run."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from addsr.errors import OptionError
from addsr.terminal import FAILED, USUAL_TALK, Bar, Talk, make_folder, say


def evaluate(
    *methods: Annotated[str, Parameter(name="METHOD", negative="", show_default=False)],
    hr: Path | None = None,
    lr: Path | None = None,
    protocol: str | None = None,
    data: Path | None = None,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("report"),
    steps: str | None = None,
    scores: Annotated[
        tuple[str, ...],
        Parameter(name="--scores", negative="", consume_multiple=False, show_default=False),
    ] = (),
    metrics: str | None = None,
    border: int | None = None,
    luma: Literal["bt601", "yiq"] | None = None,
    niqe_params: Path | None = None,
    brisque_model: Path | None = None,
    metric_weights: Path | None = None,
    fidelity: float | None = None,
    color: Literal["wavelet", "adain", "none"] | None = None,
    seed: int = 0,
    tile: str = "auto",
    device: str | None = None,
    dtype: Literal["auto", "fp32", "bf16", "fp16"] | None = None,
    threads: int | None = None,
    bootstrap: int = 2000,
    limit: int | None = None,
    pictures: Annotated[bool, Parameter(negative="--no-pictures")] = True,
    cache: Annotated[bool, Parameter(negative="--no-cache")] = True,
    lenient: Annotated[bool, Parameter(negative="")] = False,
    talk: Talk = USUAL_TALK,
) -> int:
    """Score models and finished results on pictures, and write a report.

    Files of --hr, --lr and result folders belong together by name; results may have something
    behind it, as in NAME_x4.png. What was computed before is taken from OUTPUT/cache: a run that
    was interrupted goes on where it stopped. Pictures that cannot be used are named, the others
    scored; the exit status is then 1.

    Parameters
    ----------
    methods
        Any of: compact, an imported model such as stablesr, another weights file or pipeline's
        folder of addsr; bicubic; a folder of results, where {dataset} stands for the data set's
        name; a model file that spandrel knows (Real-ESRGAN, BSRGAN, SwinIR...); diffusers:ldm or
        diffusers:x4, with :FOLDER_OR_ID and @STEPS behind it for others than usual. NAME=METHOD
        gives a title.
    hr
        Folder of references.
    lr
        Folder of inputs; without --hr only metrics that need no reference.
    protocol
        Instead of --hr and --lr: div2k-val, realsr, drealsr, reallr200, or a TOML file.
    data
        Folder that the folders of the protocol are in.
    output
        Folder for report.json, .csv, .md and .html, pictures and the cache.
    steps
        Numbers of sampling steps such as 1,2,4: each makes a method. [default: the model's own]
    scores
        NAME=FILE.json#PATH: figures made elsewhere, a table of picture -> figure -> number at
        PATH/INSIDE the file; may be repeated.
    metrics
        Names with commas, default or all. [default: the protocol's]
    border
        Pixels left out on every side in comparisons with a reference. [default: the protocol's]
    luma
        bt601: 16..235 as in MATLAB; yiq: 0..255, PSNR 1.32 dB lower. [default: the protocol's]
    niqe_params
        niqe_pris_params.npz as BasicSR carries it, for niqe and niqe-yiq.
    brisque_model
        The published model file, for brisque.
    metric_weights
        Folder with published weights for LPIPS and DISTS, and with phi.safetensors for FD and KID.
    fidelity
        From 0 (invents more) to 1 (stays with the input). [default: the model's own]
    color
        How colours are kept to those of the input. [default: the model's own]
    seed
        Of the models.
    tile
        Side of a tile, or auto: in input pixels, for stablesr in pixels of the result.
    device
        auto, cpu, cuda, mps or xpu. [env: ADDSR_DEVICE]
    dtype
        Numbers to compute in; auto takes the fastest good one. [env: ADDSR_DTYPE]
    threads
        Processor threads for models and scoring. [default: as torch takes]
    bootstrap
        Resamples for the intervals.
    limit
        Only the first so many pictures of each data set.
    pictures
        Lay pictures beside the report and show them in it.
    cache
        Keep results and figures for the next run, and use those of the last one.
    lenient
        Exit status 0 in spite of problems with single pictures.
    """
    talk.set_up()
    from addsr.settings import read_settings

    from .cache import Cache
    from .exhibits import add_pictures, check_place
    from .methods import ModelOptions, make_methods
    from .protocol import load_protocol, protocol_of_folders
    from .report import build_report, write_report
    from .run import Options, Resources
    from .run import evaluate as run
    from .tables import print_report

    settings = read_settings()
    if protocol is not None and (hr is not None or lr is not None):
        raise OptionError("protocol: it names the folders itself; leave --hr and --lr out")
    if protocol is None and data is not None:
        raise OptionError("data: it belongs to a --protocol; leave it out, or name one")
    chosen = protocol_of_folders(hr, lr) if protocol is None else load_protocol(protocol, data)
    chosen = _changed(chosen, border, luma)
    device = device or settings.device
    options = ModelOptions(
        steps=_steps(steps),
        fidelity=fidelity,
        color=color,
        seed=seed,
        tile=_tile(tile),
        device=device,
        dtype=dtype or settings.dtype,
    )
    made = make_methods(methods, scores, chosen, options)
    from addsr.engines.device import choose_device
    from addsr.metrics.catalog import choose_metrics

    how = Options(
        metrics=None if metrics is None else tuple(metrics.split(",")),
        resources=Resources(niqe_params, brisque_model, metric_weights, str(choose_device(device))),
        threads=threads,
        resamples=bootstrap,
        limit=limit,
    )
    choose_metrics(how.metrics or chosen.metrics)  # refuses unknown names before any work
    make_folder(output)
    if pictures:
        check_place(output)
    with (
        Cache(output / ("cache" if cache else ".cache.part"), keep=cache) as kept,
        Bar("evaluating", shown=not talk.quiet) as bar,
    ):
        done = run(made, chosen, kept, how, bar.update)
        report = build_report(done, _command())
        if pictures:
            add_pictures(report, done, output)
        write_report(report, output, pictures=pictures)
    if not talk.quiet:
        from rich.console import Console

        console = Console()
        with console.capture() as shown:  # `say` prints what the terminal has no letters for
            print_report(report, console)
        say(shown.get().rstrip("\n"))
        say(f"report: {output / 'report.html'}")
    problems = len(report["problems"])
    if problems:
        noun = "problem" if problems == 1 else "problems"
        say(f"{problems} {noun}, listed in {output / 'report.md'}", sys.stderr)
    return FAILED if problems and not lenient else 0


def ab(
    *folders: Annotated[Path, Parameter(name="FOLDER", negative="", show_default=False)],
    lr: Path | None = None,
    hr: Path | None = None,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("ab.html"),
    seed: int = 0,
    count: int | None = None,
    title_a: str | None = None,
    title_b: str | None = None,
    tally: Annotated[bool, Parameter(negative="")] = False,
    talk: Talk = USUAL_TALK,
) -> int:
    """Compare two folders of results blindly: a page that hides which side is which.

    The page works from a file, is answered with keys, and saves a JSON file; `addsr ab --tally
    FILE...` adds such files up.

    Parameters
    ----------
    folders
        Two folders of results, pictures matched by name; with --tally the saved JSON files.
    lr
        Folder of inputs, shown on demand.
    hr
        Folder of references, shown on demand.
    output
        The page.
    seed
        Of the order and the sides.
    count
        Only so many pictures.
    title_a
        Name of the first folder's results, told at the end. [default: the folder's]
    title_b
        Name of the second's.
    tally
        Print wins, ties and losses of saved files, with a sign test.
    """
    talk.set_up()
    if tally:
        return _tally(folders)
    if len(folders) != 2:
        raise OptionError(f"FOLDER: {len(folders)} are given; name two folders of results")
    from .ab import write_ab_page

    page = write_ab_page(
        folders[0], folders[1], output, lr=lr, hr=hr, seed=seed, count=count,
        title_a=title_a, title_b=title_b,
    )  # fmt: skip
    for name, problem in page.left_out:
        say(f"{name}: {problem}", sys.stderr)
    if not talk.quiet:
        say(f"{output}: {page.pairs} pairs, {page.size_bytes / 1e6:.1f} MB, {page.packing}")
    return 0


def _tally(files: tuple[Path, ...]) -> int:
    from .ab import read_ab, tally

    if not files:
        raise OptionError("FILE: none is given; name the JSON files that the page saved")
    found = tally([read_ab(file) for file in files])
    decided = found.wins_a + found.wins_b
    say(f"{found.title_a}: better in {found.wins_a}")
    say(f"{found.title_b}: better in {found.wins_b}")
    say(f"no difference: {found.ties}; skipped: {found.skipped}; judges: {found.judges}")
    say(f"two-sided sign test over the {decided} with a preference: p = {found.p:.4g}")
    return 0


def _changed(protocol: Any, border: int | None, luma: str | None) -> Any:
    from dataclasses import replace

    from addsr.errors import ConfigError

    try:
        if border is not None:
            protocol = replace(protocol, border=border)
        return protocol if luma is None else replace(protocol, luma=luma)
    except ConfigError as error:
        raise OptionError(str(error)) from error


def _steps(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isascii() and part.isdecimal() for part in parts):
        raise OptionError(f"steps: {text!r} is no list of numbers; write for example 1,2,4")
    return tuple(int(part) for part in parts)


def _tile(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not (text.isascii() and text.isdecimal()) or int(text) == 0:
        raise OptionError(f"tile: {text!r} is no size; give auto or a number of pixels")
    return int(text)


def _command() -> str:
    """The command as it can be given again."""
    name = Path(sys.argv[0]).name
    return shlex.join(["addsr" if name in ("__main__.py", "-c", "") else name, *sys.argv[1:]])
