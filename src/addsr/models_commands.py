"""`addsr models` as the command line calls it; no torch before something is converted."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from cyclopts import App, Parameter

from .errors import AddsrError, DependencyError, ModelError, OptionError
from .terminal import FAILED, USUAL_TALK, Bar, Talk, printable, say

if TYPE_CHECKING:
    from .models.published import Published
    from .models.published_folders import PublishedFolder
    from .models.store import Installed
    from .pipelines.installing import Plan, Stage, Wish

Json = Annotated[bool, Parameter(name="--json", negative="")]
Flag = Annotated[bool, Parameter(negative="")]

models = App(name="models", help="Get, list, check and remove models.")


@models.command(name="list")
def list_models(*, json_summary: Json = False, talk: Talk = USUAL_TALK) -> int:
    """Show the embedded model, those imported and those that can be had.

    Parameters
    ----------
    json_summary
        Print JSON instead of a table.
    """
    talk.set_up()
    from .models.inventory import list_models as take_stock

    rows = take_stock()
    if json_summary:
        say(json.dumps(rows, indent=2))
        return 0
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "state", "size", "licence", "what it is"):
        table.add_column(column, no_wrap=column in ("model", "state", "size"), overflow="fold")
    for row in rows:
        size = f"{row['bytes'] / 1e9:.2f} GB" if row["bytes"] else "-"
        if row["state"] == "available":
            size = f"~{size}"
        cells = (row["name"], row["state"], size, row["licence"], row["description"])
        table.add_row(*(printable(cell) for cell in cells))
    _print(table)
    return 0


@models.command(usage="Usage: addsr models pull [OPTIONS] NAME")
def pull(
    name: str,
    /,
    *,
    accept_licence: Flag = False,
    dtype: Literal["fp16", "fp32"] = "fp16",
    prediction: Literal["eps", "v"] | None = None,
    force: Flag = False,
    json_summary: Json = False,
    talk: Talk = USUAL_TALK,
) -> int:
    """Download a published model and import it.

    The files stay in the hub's cache; HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE are obeyed.

    Parameters
    ----------
    name
        stablesr, stablesr-768, stablesr-turbo, stablesr-face, seesr or seesr-turbo.
    accept_licence
        Accept the licence that is shown; without it you are asked.
    dtype
        Numbers to store; fp16 halves the size.
    prediction
        What the U-Net says. [default: as published]
    force
        Replace an imported model; take files that differ from those on record.
    json_summary
        Print the facts of the model as JSON.
    """
    talk.set_up()
    from .models.placing import check_free, check_space
    from .models.published_folders import PublishedFolder, find_every

    model = find_every(name)
    check_free(name, force)
    if isinstance(model, PublishedFolder):
        if prediction is not None:
            raise OptionError(f"--prediction: {prediction!r} is not for {name}; leave it out")
        return _pull_folder(model, accept_licence, dtype, force, talk, json_summary)
    _show_licence(model)
    if model.is_non_commercial and not accept_licence:
        _ask("Accept this licence?", "--accept-licence")
    _need("diffusers")
    check_space(int(model.stored_gb * 1e9 * (2 if dtype == "fp32" else 1)))
    if talk.quiet:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    from .models.download import check_room, download

    check_room(model)
    paths: list[Path] = []
    for file in model.files:
        if not talk.quiet:
            say(f"getting {file.name} from {file.mirrors[0]}", sys.stderr)
        paths.append(download(file))
    from .pipelines.installing import Wish

    wish = Wish(variant=name, prediction=prediction, dtype=dtype, force=force)
    return _import(paths, wish, talk, json_summary, is_download=True)


@models.command(name="import", usage="Usage: addsr models import [OPTIONS] FILE...")
def import_files(
    *files: Annotated[Path, Parameter(name="FILE", negative="", show_default=False)],
    variant: Annotated[str | None, Parameter(name="--as")] = None,
    name: str | None = None,
    base: str | None = None,
    unet: Literal["checkpoint", "base"] | None = None,
    prediction: Literal["eps", "v"] | None = None,
    tile: int | None = None,
    dtype: Literal["fp16", "fp32"] = "fp16",
    force: Flag = False,
    json_summary: Json = False,
    talk: Talk = USUAL_TALK,
) -> int:
    """Import published checkpoints that lie on this machine.

    A folder with unet and controlnet is SeeSR's or AddSR's, which takes the rest from a Stable
    Diffusion 2. Files are recognised by their tensors, in any order: stablesr_*.ckpt (or the
    adapter's tensors alone), and vqgan_cfw_*.ckpt with it, without which fidelity is 0; or
    ram_swin_large_14m.pth and DAPE.pth, the lists of tags beside them; or taesd_decoder, AddSR's
    tiny decoder. Nothing in them is run.

    Parameters
    ----------
    files
        Files as published, or the same tensors as safetensors; or one folder.
    variant
        Which model it is, where neither name nor content of the file tells: stablesr,
        stablesr-768, stablesr-turbo or stablesr-face; seesr, addsr, or seesr-turbo, which is seesr
        over the base SD-Turbo.
    name
        How --model will call it. [default: the published name]
    base
        Folder in diffusers' layout, or repository on the hub, for what the files lack.
        [default: the published one's]
    unet
        Take the U-Net from the checkpoint or from the base. [default: checkpoint, if it has one]
    prediction
        What the U-Net says: eps or v. [default: as published]
    tile
        Side of its tiles in pixels. [default: as published]
    dtype
        Numbers to store; fp16 halves the size.
    force
        Replace an imported model of that name; take files that differ from those on record.
    json_summary
        Print the facts of the models as JSON.
    """
    talk.set_up()
    from .models import published_folders
    from .pipelines import installing_tiny
    from .pipelines.installing import Wish
    from .pipelines.installing_ram import takes

    wish = Wish(variant, name, base, prediction, tile, unet, dtype, force)
    if published_folders.takes(files):
        return _import_folder(files, wish, talk, json_summary, is_download=False)
    if takes(files):
        return _import_ram(files, wish, talk, json_summary)
    if installing_tiny.takes_all(files):
        with _stages(talk) as tell:
            model = installing_tiny.install_tiny(files, wish, tell)
        _tell_part(
            model, "addsr upscale --model addsr --refine-decoder tiny IN.jpg", talk, json_summary
        )
        return 0
    _need("diffusers")
    return _import(list(files), wish, talk, json_summary, is_download=False)


@models.command
def info(name: str, /, *, json_summary: Json = False, talk: Talk = USUAL_TALK) -> int:
    """Show what is known about one model.

    Parameters
    ----------
    name
        An embedded, imported or published model.
    json_summary
        Print JSON instead of a table.
    """
    talk.set_up()
    from .models.inventory import describe

    facts = describe(name)
    if json_summary:
        say(json.dumps(facts, indent=2))
        return 0
    for key, value in facts.items():
        for k, line in enumerate(_lines(value)):
            say(printable(f"{key if k == 0 else '':<12}  {line}"))
    return 0


@models.command
def verify(
    *names: Annotated[str, Parameter(name="NAME", negative="", show_default=False)],
    json_summary: Json = False,
    talk: Talk = USUAL_TALK,
) -> int:
    """Check that models are as they were written; exit status 1 if one is not.

    Parameters
    ----------
    names
        Models to check. [default: all]
    json_summary
        Print what is wrong with each as JSON.
    """
    talk.set_up()
    from .models.inventory import embedded_models
    from .models.store import folders

    wanted = names or (*embedded_models(), *(folder.name for folder in folders()))
    wrong: dict[str, list[str]] = {}
    with Bar("checking (MB)", shown=not talk.quiet) as bar:
        for name in dict.fromkeys(wanted):
            wrong[name] = _damages(name, bar)
            for line in wrong[name]:
                say(printable(f"error: {name}: {line}"), sys.stderr)
            if not wrong[name] and not json_summary and not talk.quiet:
                say(f"{name}: whole")
    if json_summary:
        say(json.dumps(wrong, indent=2))
    return FAILED if any(wrong.values()) else 0


@models.command
def remove(
    name: str,
    /,
    *,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], negative="")] = False,
    talk: Talk = USUAL_TALK,
) -> int:
    """Delete an imported model.

    Parameters
    ----------
    name
        As --model calls it.
    yes
        Do not ask.
    """
    talk.set_up()
    from .models import placing
    from .models.inventory import embedded_models
    from .models.store import find_installed

    if not yes and name not in embedded_models() and (model := find_installed(name)):
        _ask(f"Delete {model.folder} ({model.bytes / 1e9:.2f} GB)?", "--yes")
    left = placing.remove(name)
    if left:
        say(f"{name}: removed; files of others stay: {', '.join(left)}", sys.stderr)
    elif not talk.quiet:
        say(f"{name}: removed")
    return 0


def _import(
    files: Sequence[Path], wish: Wish, talk: Talk, json_summary: bool, *, is_download: bool
) -> int:
    from .pipelines.installing import install, plan_imports

    done: list[Installed] = []
    with _stages(talk) as tell:
        plans = plan_imports(files, wish, tell)
        for plan in plans:
            if is_download:
                _check_download(plan)
            else:
                _show_licence(plan.model)
            done.append(install(plan, wish, on_stage=tell))
            if not json_summary and not talk.quiet:
                _tell_imported(done[-1], plan.model)
    if json_summary:
        say(json.dumps([model.to_dict() for model in done], indent=2))
    return 0


def _pull_folder(
    model: PublishedFolder,
    accept_licence: bool,
    dtype: Literal["fp16", "fp32"],
    force: bool,
    talk: Talk,
    json_summary: bool,
) -> int:
    from .models.download import download_folder
    from .models.placing import check_space
    from .pipelines.installing import Wish

    _show_licence(model)
    if model.is_non_commercial and not accept_licence:
        _ask("Accept this licence?", "--accept-licence")
    for package in ("diffusers", "transformers"):
        _need(package)
    check_space(int(model.stored_gb * 1e9 * (2 if dtype == "fp32" else 1)))
    if talk.quiet:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    elif model.mirrors:
        say(f"getting unet and controlnet from {model.mirrors[0]}", sys.stderr)
    folder = download_folder(model)
    wish = Wish(variant=model.name, dtype=dtype, force=force)
    return _import_folder([folder], wish, talk, json_summary, is_download=True)


def _import_folder(
    files: Sequence[Path], wish: Wish, talk: Talk, json_summary: bool, *, is_download: bool
) -> int:
    from .models.store import find_tagger
    from .pipelines.installing_seesr import install_seesr, plan_seesr

    for package in ("diffusers", "transformers"):
        _need(package)
    with _stages(talk) as tell:
        plan = plan_seesr(files, wish)
        if is_download:
            for path in plan.weights:
                _check_stated(path, tell)
        else:
            _show_licence(plan.model)
        model = install_seesr(plan, wish, tell)
    if json_summary:
        say(json.dumps([model.to_dict()], indent=2))
    elif not talk.quiet:
        _tell_imported(model, plan.model)
        if find_tagger() is None:
            say(
                "no prompt extractor is imported, so it will see no tags: get RAM and DAPE and "
                "`addsr models import ram_swin_large_14m.pth DAPE.pth`"
            )
    return 0


def _import_ram(files: Sequence[Path], wish: Wish, talk: Talk, json_summary: bool) -> int:
    from .pipelines.installing_ram import install_ram, plan_ram

    with _stages(talk) as tell:
        model = install_ram(plan_ram(files, wish), wish, tell)
    _tell_part(model, f"addsr tag --model {model.name} PHOTO.jpg", talk, json_summary)
    return 0


def _tell_part(model: Installed, use: str, talk: Talk, json_summary: bool) -> None:
    """What was imported and is no upscaler of its own, and what it is for."""
    if json_summary:
        say(json.dumps([model.to_dict()], indent=2))
    elif not talk.quiet:
        say(f"{model.name}: {model.licence}", sys.stderr)
        say(f"{model.name}: imported to {model.folder} ({_size(model.bytes)})")
        for source in model.sources:
            say(f"  {source.name}: {source.what}")
        say(f"use it: {use}")


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


@contextlib.contextmanager
def _stages(talk: Talk) -> Generator[Stage]:
    """A bar for each thing that is done in turn."""
    with contextlib.ExitStack() as stack:
        bars: list[Bar] = []

        def tell(what: str, done: int, total: int) -> None:
            if not bars or bars[-1].title != what:
                stack.close()
                bars.append(stack.enter_context(Bar(what, shown=not talk.quiet)))
            bars[-1].update(done, total)

        yield tell


def _check_download(plan: Plan) -> None:
    """Refuses what differs from the sha256 that the hub stated for it."""
    from .models.download import stated_sha256

    for found in (plan.checkpoint, plan.cfw):
        stated = found and stated_sha256(found.path)
        if found and stated and stated != found.part.sha256:
            raise ModelError(
                f"{found.path}: is damaged (sha256 {found.part.sha256}, the hub states {stated}); "
                "delete it and pull again"
            )


def _check_stated(path: Path, tell: Stage) -> None:
    """Refuses a download that differs from the sha256 that the hub stated for it."""
    from .models.download import stated_sha256
    from .models.placing import measure

    stated = stated_sha256(path)
    if stated is None:
        return
    found = measure(
        path, lambda done, total: tell(f"checking {path.name} (MB)", done >> 20, total >> 20)
    )
    if found.sha256 != stated:
        raise ModelError(
            f"{path}: is damaged (sha256 {found.sha256}, the hub states {stated}); delete it and "
            "pull again"
        )


def _tell_imported(model: Installed, published: Published | PublishedFolder) -> None:
    say(f"{model.name}: imported to {model.folder} ({model.bytes / 1e9:.2f} GB)")
    for source in model.sources:
        say(f"  {source.name}: {source.what}")
    if model.base != "the checkpoint":
        say(f"  base: {model.base}")
    if published.note:
        say(f"  note: {published.note}")
    say(f"use it: addsr upscale --model {model.name} IN.jpg")


def _show_licence(model: Published | PublishedFolder) -> None:
    """On standard error, so that JSON stays alone on the other one."""
    say(f"{model.name}: {model.full_licence}", sys.stderr)
    if model.is_non_commercial:
        say(f"  no commercial use of the model or its results: {model.licence_url}", sys.stderr)


def _ask(question: str, flag: str) -> None:
    """Goes on after a yes.

    Raises:
        OptionError: nobody is there to answer.
        AddsrError: a no.
    """
    if not sys.stdin.isatty():
        raise OptionError(f"{question} Nobody is there to answer; give {flag} to say yes")
    say(f"{question} [y/N] ", sys.stderr)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise AddsrError(f"{question} The answer was no; nothing was done")


def _need(package: str) -> None:
    """Before gigabytes are moved.

    Raises:
        DependencyError: it is not installed.
    """
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise DependencyError(
            f"models over Stable Diffusion need {package}: pip install 'addsr[diffusion]'"
        )


def _damages(name: str, bar: Bar) -> list[str]:
    from .models.inventory import embedded_models
    from .models.placing import damages
    from .models.store import find_installed, store_folder

    if name in embedded_models():
        from .models.hub import load_model

        try:
            load_model(name)
        except ModelError as error:
            return [str(error)]
        return []
    try:
        model = find_installed(name)
    except ModelError as error:
        return [str(error)]
    if model is None:
        raise ModelError(f"{name}: no imported model is called that in {store_folder()}")
    found = damages(model, lambda done, total: bar.update(done >> 20, total >> 20))
    if found:
        return found
    if model.kind == "ram":
        from .pipelines.tagger import misfits as misfits_of_tagger

        return misfits_of_tagger(model.folder)
    if model.kind == "tiny-decoder":
        from .pipelines.tiny import misfits
    else:
        from .pipelines.checking import misfits

    try:
        return misfits(model.folder)
    except DependencyError as error:
        say(f"{name}: files are whole; shapes were not checked: {error}", sys.stderr)
        return []


def _lines(value: Any) -> list[str]:
    """A fact as text; not cut at the edge of the terminal, for addresses are to be copied."""
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value).items()
        return [f"{k}: {line}" for k, one in pairs for line in _lines(one)]
    if isinstance(value, (list, tuple)):
        return [line for one in cast("list[Any]", value) for line in _lines(one)]
    return [] if value == "" else [str(value)]


def _print(table: Any) -> None:
    from rich.console import Console

    # facts are text: brackets in a path or a licence are no markup
    console = Console(soft_wrap=False, markup=False, emoji=False, highlight=False)
    with console.capture() as shown:  # `say` prints what the terminal has no letters for
        console.print(table)
    say(shown.get().rstrip("\n"))
