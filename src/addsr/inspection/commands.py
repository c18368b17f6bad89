"""`addsr inspect` as the command line calls it; no torch before it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from addsr.errors import ModelError, OptionError, OutputError
from addsr.replacing import replacing
from addsr.terminal import USUAL_TALK, Bar, Talk, make_folder, say

if TYPE_CHECKING:
    from addsr.models.hub import PipelineFolder


def inspect(
    model: Annotated[str, Parameter(name="MODEL", negative="", show_default=False)],
    images: Annotated[list[Path], Parameter(name="IMAGE", negative="")],
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("inspection"),
    reference: Annotated[
        tuple[Path, ...],
        Parameter(name="--reference", negative="", consume_multiple=False, show_default=False),
    ] = (),
    way: Literal["noised", "sampled"] = "noised",
    timesteps: str = "25",
    seeds: str = "0",
    scale: Annotated[float, Parameter(name=["--scale", "-s"])] = 4.0,
    encoder_timestep: int | None = None,
    device: str | None = None,
    dtype: Literal["auto", "fp32", "bf16", "fp16"] | None = None,
    talk: Talk = USUAL_TALK,
) -> int:
    """Show how strongly a picture steers StableSR at each timestep (Figure 3 of its paper).

    Writes inspection.json and inspection.svg to the output folder: the cosine similarity of the
    U-Net's features before and after each modulation, the size of the modulation, and how the
    encoder's features change over the timesteps, beside the signal-to-noise ratio. Several pictures
    give one mean. Of a large picture the tile in its middle is looked at.

    Parameters
    ----------
    model
        Name of an imported model, such as stablesr, or a pipeline's folder.
    images
        Low-resolution pictures.
    output
        Folder for the figures and the chart.
    reference
        The true picture of each image, in the same order and at the size of the result; may be
        repeated. Without it the enlarged image itself is noised.
    way
        noised: the clean picture with noise, for each timestep; sampled: what sampling passes by.
    timesteps
        How many, evenly spread from 999 to 0, or a list such as 999,770,500,250,0.
    seeds
        Of the noise, with commas; more than one give a mean.
    scale
        Factor from 1 to 8 that the picture is enlarged by.
    encoder_timestep
        What the encoder is told at all timesteps: the control for its knowing the time.
    device
        auto, cpu, cuda, mps or xpu. [env: ADDSR_DEVICE]
    dtype
        Numbers to compute in; auto takes the fastest good one. [env: ADDSR_DTYPE]
    """
    talk.set_up()
    from addsr.engines.device import choose_device
    from addsr.image.kinds import accept
    from addsr.pipelines import StableSRPipeline
    from addsr.restorers.latent import choose_latent_dtype, load_pipeline
    from addsr.settings import read_settings

    from .chart import draw_chart
    from .guidance import Wish, inspect_guidance, parse_timesteps

    wish = Wish(parse_timesteps(timesteps), way, _seeds(seeds), scale, encoder_timestep)
    if reference and len(reference) != len(images):
        raise OptionError(
            f"reference: {len(reference)} given for {len(images)} images; give one each, or none"
        )
    settings = read_settings()
    where = choose_device(device or settings.device)
    numbers = choose_latent_dtype(dtype or settings.dtype, where)
    pictures = [accept(path).pictures[0].rgb for path in images]
    references = [accept(path).pictures[0].rgb for path in reference] or None
    found = _find(model)
    make_folder(output)
    pipe = load_pipeline(found, where, numbers).pipe
    assert isinstance(pipe, StableSRPipeline), "other kinds are refused before"
    with Bar("inspecting", shown=not talk.quiet) as bar:
        report = inspect_guidance(pipe, pictures, wish, references=references, progress=bar.update)
    named = {
        "model": model,
        "pictures": [path.name for path in images],
        "references": [path.name for path in reference],
        "dtype": str(pipe.dtype).removeprefix("torch."),
    }
    title = f"{found.info.name}: {images[0].name}"
    if len(images) > 1:
        title += f" and {len(images) - 1} more"
    # a file's name may hold what no SVG file may
    title = "".join(c if c.isprintable() else "?" for c in title)
    _write(output / "inspection.json", json.dumps(named | report, indent=1, allow_nan=False) + "\n")
    _write(output / "inspection.svg", draw_chart(report, title))
    if not talk.quiet:
        say(_summary(report))
        say(f"{output / 'inspection.svg'}")
    return 0


def _find(model: str) -> PipelineFolder:
    """The imported pipeline of that name, or the one in that folder.

    Raises:
        ModelError: there is neither; or it is not of StableSR's kind.
    """
    from addsr.models.hub import find_pipeline
    from addsr.models.store import list_installed

    found = find_pipeline(model)
    if found is None:
        known = ", ".join(one.name for one in list_installed() if one.kind.startswith("stablesr"))
        raise ModelError(
            f"model: {model!r} is neither an imported StableSR model "
            f"({known or 'none is, yet: see `addsr models`'}) nor a folder written by "
            "StableSRPipeline.save_pretrained"
        )
    if not found.info.kind.startswith("stablesr"):
        raise ModelError(
            f"model: {model!r} is of kind {found.info.kind!r}, which has no modulation layers of "
            "StableSR; give a model of that"
        )
    return found


def _seeds(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise OptionError(f"seeds: {text!r} is no list of whole numbers such as 0,1,2")
    return tuple(int(part) for part in parts)


def _summary(report: dict[str, Any]) -> str:
    lines = ["grid   strongest modulation at   SNR      cosine   (normalised: at   cosine)"]
    for grid in report["grids"]:
        plain, normalised = (grid["strongest"][k] for k in ("cosine", "cosine_normalised"))
        lines.append(
            f"1/{grid['downsampling']:<4} timestep {plain['timestep']:<15} {plain['snr']:<8.3g} "
            f"{plain['value']:<8.3f} (timestep {normalised['timestep']:<6} "
            f"{normalised['value']:.3f})"
        )
    return "\n".join(lines)


def _write(path: Path, text: str) -> None:
    """Writes `path` by way of a temporary file beside it."""
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error
