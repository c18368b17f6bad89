"""Makes what feature wrapping is trained on: latents sampled by the model of the first stage.

    python -m addsr.train.cfw_samples --config recipes/cfw.toml [--part 1/8]

Pictures are cropped and degraded as [data] says; [task] names the model, the steps, the number of
samples and the folder. A file is written whole or not at all, and depends on the recipe, its number
and the kind of device alone, so a run that was interrupted goes on where it stopped, and several
processes may make a part each.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from addsr.data.draw import derive_seed
from addsr.data.pool import PairPool
from addsr.diffusion.ddpm import Schedule, fresh_noises, sample_latent, start_latent
from addsr.errors import AddsrError, ConfigError, MemoryLimitError, ModelError, OutputError
from addsr.models.files import digest, save_weights
from addsr.models.pipeline_files import find_variant
from addsr.pipelines import StableSRPipeline
from addsr.replacing import replacing

from .config import DataConfig, Recipe, load_recipe, parse_overrides
from .latent_config import CfwTaskConfig
from .samples import KIND, NOTE, read_note, shard_name
from .sources import RotatingPool, make_pool
from .stablesr import enlarge
from .task import Batch

log = logging.getLogger(__name__)


def make_samples(recipe: Recipe, device: torch.device, *, part: tuple[int, int] = (1, 1)) -> int:
    """Writes the missing files of samples of `recipe`, of the task cfw; gives how many it wrote.

    Args:
        part: `(i, n)`: the i-th of n parts of the files.

    Raises:
        ConfigError: a folder or picture that the recipe names cannot be used.
        OutputError: the folder holds samples made otherwise, or cannot be written.
        ModelError: the model is damaged, or sampled numbers that are none.
        MemoryLimitError: the device's memory is too small.
    """
    config = cast("CfwTaskConfig", recipe.task)
    for name in ("model", "samples"):
        if not getattr(config, name):
            raise ConfigError(f"task.{name} = '' is not allowed; give a folder")
    dtype = torch.bfloat16 if recipe.run.precision == "bf16" else torch.float32
    pipe = StableSRPipeline.from_pretrained(
        config.model,
        torch_dtype=dtype,
        variant=find_variant(Path(config.model)),
        local_files_only=True,
    )
    pipe.to(device)
    folder = Path(config.samples)
    _claim(folder, facts(recipe, pipe))
    count = -(-config.sample_count // config.shard)
    due = [n for n in range(part[0] - 1, count, part[1]) if not (folder / shard_name(n)).is_file()]
    if not due:
        return 0
    data = dataclasses.replace(recipe.data, pool=max(2, config.shard))
    pool_of = _pools(data, recipe.run.seed, device, config.shard)
    for done, number in enumerate(due, start=1):
        try:
            state = sample_shard(pipe, pool_of(number), number, recipe)
        except torch.OutOfMemoryError as error:
            raise MemoryLimitError(
                f"task.sample_batch = {config.sample_batch} pictures of {data.crop_px} pixels did "
                f"not fit in the memory of {device}; give a smaller one, or run.precision=bf16"
            ) from error
        save_weights(folder / shard_name(number), state, {"kind": KIND})
        log.info("%s, %d of %d in this part", shard_name(number), done, len(due))
    return len(due)


def _pools(
    data: DataConfig, seed: int, device: torch.device, shard: int
) -> Callable[[int], PairPool]:
    """What gives the pool that the pictures of a file come from, by the file's number."""
    if not data.held:
        pool = make_pool(data, seed, device, chunk=shard)
        return lambda _number: pool
    source = RotatingPool(data, seed, device, chunk=shard)
    files = max(1, data.held_pairs // shard)
    return lambda number: source.at(number // files)


@torch.no_grad()
def sample_shard(
    pipe: StableSRPipeline, pool: PairPool, number: int, recipe: Recipe
) -> dict[str, Tensor]:
    """The tensors of file `number`: `hr` and `lr` as uint8, `latent` as float16.

    Latents start at the noised input and are sampled with DDPM, as published.
    """
    config = cast("CfwTaskConfig", recipe.task)
    vae: Any = pipe.vae
    device, dtype = pipe.device, pipe.dtype
    scaling = float(vae.config["scaling_factor"])
    context = pipe.prompt_embeds.to(device, dtype)
    seed = derive_seed(recipe.run.seed, "latents", number)
    generator = torch.Generator(device).manual_seed(seed)
    hr, lr = pool.make_chunk(number)
    found: list[Tensor] = []
    for start in range(0, len(hr), config.sample_batch):
        few = slice(start, start + config.sample_batch)
        pair = Batch(hr[few].float() / 255, lr[few].float() / 255)
        moments = vae.encode((enlarge(pair) * 2 - 1).to(dtype)).latent_dist.parameters.float()
        mean, log_variance = moments.chunk(2, dim=1)
        noises = fresh_noises(mean, generator)
        z_lr = scaling * (mean + (0.5 * log_variance.clamp(-30, 20)).exp() * next(noises))

        def model(z_t: Tensor, t: Tensor, z_lr: Tensor = z_lr) -> Tensor:
            return pipe.guided(z_t.to(dtype), t, z_lr.to(dtype), context)

        found.append(
            sample_latent(
                model,
                start_latent(z_lr, next(noises)),
                Schedule.respaced(config.sample_steps),
                noises,
                prediction=pipe.config.prediction,
            )
        )
    latent = torch.cat(found)
    if not bool(latent.isfinite().all()):
        raise ModelError(
            f"{config.model}: sampling in {dtype} gave NaN or infinity; use run.precision=fp32"
        )
    return {"hr": hr, "lr": lr, "latent": latent.half()}


def facts(recipe: Recipe, pipe: StableSRPipeline) -> dict[str, Any]:
    """What the samples of `recipe` depend on, in the types of JSON."""
    config, data = cast("CfwTaskConfig", recipe.task), recipe.data
    adapter = {**pipe.encoder.state_dict(), **pipe.sft.state_dict()}
    # one adapter fits several bases; of those, the ends tell which it is
    unet: Any = pipe.unet
    base = {**unet.conv_in.state_dict(prefix="in."), **unet.conv_out.state_dict(prefix="out.")}
    return {
        "adapter_sha256": digest(adapter),
        "base_sha256": digest(base),
        "prediction": pipe.config.prediction,
        "precision": recipe.run.precision,
        "seed": recipe.run.seed,
        "steps": config.sample_steps,
        "shard": config.shard,
        "sample_batch": config.sample_batch,
        "train": list(data.train),
        "held": data.held,
        "held_pairs": data.held_pairs,
        "crop_px": data.crop_px,
        "mixture": data.mixture,
        "sharpen": data.sharpen,
        "rescaled": data.rescaled,
        "textured": data.textured,
    }


def _claim(folder: Path, made: dict[str, Any]) -> None:
    """Notes in `folder` how its samples are made; OutputError where they are made otherwise."""
    known = read_note(folder)
    if known is not None and known != made:
        odd = [name for name in made if known.get(name) != made[name]]
        raise OutputError(
            f"task.samples = {str(folder)!r} holds samples that differ in {', '.join(odd)}; give "
            "another folder, or delete it"
        )
    if known is None and any(folder.glob("samples-*.safetensors")):
        raise OutputError(
            f"task.samples = {str(folder)!r} holds samples and no {NOTE} that says how they were "
            "made; give another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / NOTE) as temporary:
            temporary.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"task.samples = {str(folder)!r} cannot be written ({error}); give another folder"
        ) from error


def parse_part(text: str) -> tuple[int, int]:
    """`(i, n)` of a text like 2/8.

    Raises:
        ConfigError: another form, or i is not 1 to n.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    part = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part[0] <= part[1]:
        raise ConfigError(f"--part {text!r} is not allowed; give I/N with I from 1 to N")
    return part


def main(arguments: list[str] | None = None) -> int:
    """Exit status of the command: 0, or 1 with the error's message on stderr."""
    parser = argparse.ArgumentParser(prog="addsr.train.cfw_samples", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="recipe of the task cfw")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="make every N-th file only")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; else what this machine has")
    parser.add_argument(
        "--set", action="append", default=[], metavar="TABLE.FIELD=VALUE", help="one recipe field"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        recipe = load_recipe("cfw", options.config, parse_overrides(options.set))
        here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = torch.device(options.device or here or "cpu")
        written = make_samples(recipe, device, part=parse_part(options.part))
    except AddsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{written} files written to {recipe.task.samples}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
