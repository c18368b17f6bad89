"""What `addsr models pull` and `addsr models import` do once it is known what is given.

Licences are shown and asked about, packages looked for before gigabytes move, and what came of it
is told. No torch before something is converted.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .errors import AddsrError, DependencyError, ModelError, OptionError
from .terminal import Bar, Talk, say

if TYPE_CHECKING:
    from .models.published import Published
    from .models.published_folders import PublishedFolder
    from .models.store import Installed
    from .pipelines.installing import Plan, Stage, Wish


def import_checkpoints(
    files: Sequence[Path], wish: Wish, talk: Talk, json_summary: bool, *, is_download: bool
) -> int:
    from .pipelines.installing import install, plan_imports

    done: list[Installed] = []
    with stages(talk) as tell:
        plans = plan_imports(files, wish, tell)
        for plan in plans:
            if is_download:
                _check_download(plan)
            else:
                show_licence(plan.model)
            done.append(install(plan, wish, on_stage=tell))
            if not json_summary and not talk.quiet:
                _tell_imported(done[-1], plan.model)
    if json_summary:
        say(json.dumps([model.to_dict() for model in done], indent=2))
    return 0


def pull_folder(
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

    show_licence(model)
    if model.is_non_commercial and not accept_licence:
        ask("Accept this licence?", "--accept-licence")
    for package in ("diffusers", "transformers"):
        need(package)
    check_space(int(model.stored_gb * 1e9 * (2 if dtype == "fp32" else 1)))
    if talk.quiet:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    elif model.mirrors:
        say(f"getting unet and controlnet from {model.mirrors[0]}", sys.stderr)
    folder = download_folder(model)
    wish = Wish(variant=model.name, dtype=dtype, force=force)
    return import_folder([folder], wish, talk, json_summary, is_download=True)


def import_folder(
    files: Sequence[Path], wish: Wish, talk: Talk, json_summary: bool, *, is_download: bool
) -> int:
    from .models.store import find_tagger
    from .pipelines.installing_seesr import install_seesr, plan_seesr

    for package in ("diffusers", "transformers"):
        need(package)
    with stages(talk) as tell:
        plan = plan_seesr(files, wish)
        if is_download:
            for path in plan.weights:
                _check_stated(path, tell)
        else:
            show_licence(plan.model)
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


def import_extractor(files: Sequence[Path], wish: Wish, talk: Talk, json_summary: bool) -> int:
    from .pipelines.installing_ram import install_ram, plan_ram

    with stages(talk) as tell:
        model = install_ram(plan_ram(files, wish), wish, tell)
    tell_part(model, f"addsr tag --model {model.name} PHOTO.jpg", talk, json_summary)
    return 0


def tell_part(model: Installed, use: str, talk: Talk, json_summary: bool) -> None:
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
def stages(talk: Talk) -> Generator[Stage]:
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


def show_licence(model: Published | PublishedFolder) -> None:
    """On standard error, so that JSON stays alone on the other one."""
    say(f"{model.name}: {model.full_licence}", sys.stderr)
    if model.is_non_commercial:
        say(f"  no commercial use of the model or its results: {model.licence_url}", sys.stderr)


def ask(question: str, flag: str) -> None:
    """Goes on after a yes.

    Raises:
        OptionError: nobody is there to answer.
        AddsrError: a no.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise OptionError(f"{question} Nobody is there to answer; give {flag} to say yes")
    say(f"{question} [y/N] ", sys.stderr)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise AddsrError(f"{question} The answer was no; nothing was done")


def need(package: str) -> None:
    """Before gigabytes are moved.

    Raises:
        DependencyError: it is not installed.
    """
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise DependencyError(
            f"models over Stable Diffusion need {package}: pip install 'addsr[diffusion]'"
        )
