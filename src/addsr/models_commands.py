"""`addsr models` as the command line calls it; no torch before something is converted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from cyclopts import App, Parameter

from .errors import DependencyError, ModelError, OptionError
from .models_importing import (
    ask,
    import_checkpoints,
    import_extractor,
    import_folder,
    need,
    pull_folder,
    show_licence,
    stages,
    tell_part,
)
from .terminal import FAILED, USUAL_TALK, Bar, Talk, printable, say

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
        return pull_folder(model, accept_licence, dtype, force, talk, json_summary)
    show_licence(model)
    if model.is_non_commercial and not accept_licence:
        ask("Accept this licence?", "--accept-licence")
    need("diffusers")
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
    return import_checkpoints(paths, wish, talk, json_summary, is_download=True)


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
        return import_folder(files, wish, talk, json_summary, is_download=False)
    if takes(files):
        return import_extractor(files, wish, talk, json_summary)
    if installing_tiny.takes_all(files):
        with stages(talk) as tell:
            model = installing_tiny.install_tiny(files, wish, tell)
        tell_part(
            model, "addsr upscale --model addsr --refine-decoder tiny IN.jpg", talk, json_summary
        )
        return 0
    need("diffusers")
    return import_checkpoints(list(files), wish, talk, json_summary, is_download=False)


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
        ask(f"Delete {model.folder} ({model.bytes / 1e9:.2f} GB)?", "--yes")
    left = placing.remove(name)
    if left:
        say(f"{name}: removed; files of others stay: {', '.join(left)}", sys.stderr)
    elif not talk.quiet:
        say(f"{name}: removed")
    return 0


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
        raise ModelError(
            f"{name}: no imported model is called that in {store_folder()}; see `addsr models list`"
        )
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
