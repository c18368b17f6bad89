"""Speed and memory of StableSR's two trainings at full width, with random weights, on a GPU.

    python benchmarks/latent_training.py [--batch 6] [--passes 8] [--folder /tmp/base]

Prints a line for each setting: seconds of a pass, crops per second, peak of allocated memory and
the counted work. Losses mean nothing here.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from addsr.models.files import save_weights
from addsr.nets.stablesr import build_unet, build_vae
from addsr.train.config import DataConfig, OptimConfig, Recipe, RunConfig
from addsr.train.latent_config import CfwTaskConfig, StableSRConfig
from addsr.train.run import make_task
from addsr.train.task import Batch

SIDE = 512


def write_base(folder: Path) -> None:
    """A base with the shapes of Stable Diffusion 2.1 and random weights, 3.8 GB."""
    torch.manual_seed(0)
    for name, build in (("unet", build_unet), ("vae", build_vae)):
        if not (folder / name).is_dir():
            net: Any = build()
            net.save_pretrained(folder / name)
    prompt = folder / "empty_prompt" / "diffusion_pytorch_model.safetensors"
    prompt.parent.mkdir(exist_ok=True)
    save_weights(prompt, {"prompt_embeds": torch.randn(1, 77, 1024)}, {"kind": "empty_prompt"})


def recipe(name: str, precision: str, batch: int, task: Any) -> Recipe:
    return Recipe(
        name,
        RunConfig(batch=batch, precision=precision, compile=False),
        DataConfig(train=("none",), crop_px=SIDE),
        OptimConfig(learning_rate=5e-5, clip=float("inf"), warmup_steps=1),
        task,
    )


def measure(label: str, recipe: Recipe, device: torch.device, passes: int) -> None:
    """Prints a line about `passes` passes, after a third as many to warm up."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        task = make_task(recipe, device)
        batch, start = recipe.run.batch, 0.0
        warm = max(2, passes // 3)
        for k in range(warm + passes):
            if k == warm:
                torch.cuda.synchronize()
                start = time.perf_counter()
            n = task.fresh_samples(batch)
            hr = torch.rand(n, 3, SIDE, SIDE, device=device)
            lr = torch.rand(n, 3, SIDE // 4, SIDE // 4, device=device)
            latent = torch.randn(n, 4, SIDE // 8, SIDE // 8, device=device)
            task.step(Batch(hr, lr, latent))
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        print(f"{label:44} out of memory", flush=True)
        return
    seconds = (time.perf_counter() - start) / passes
    print(
        f"{label:44} {seconds:7.3f} s/pass {batch / seconds:7.2f} crops/s "
        f"{torch.cuda.max_memory_allocated() / 2**30:6.1f} GiB "
        f"{task.flops_per_sample() * batch / seconds / 1e12:6.0f} TFLOP/s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=6, help="of the first stage")
    parser.add_argument("--passes", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/addsr-random-base"))
    options = parser.parse_args()
    device = torch.device("cuda")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    write_base(options.folder)
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    base, n = str(options.folder), options.passes
    for precision in ("fp32", "bf16"):
        for checkpointing in (True, False):
            task: Any = StableSRConfig(base=base, checkpointing=checkpointing)
            label = f"stablesr {precision}, checkpointing {checkpointing}, batch {options.batch}"
            measure(label, recipe("stablesr", precision, options.batch, task), device, n)
    reused = StableSRConfig(base=base, latent_reuse=options.batch, latent_pool=options.batch)
    label = f"stablesr bf16, latents used {options.batch} times"
    measure(label, recipe("stablesr", "bf16", options.batch, reused), device, n)
    for precision in ("fp32", "bf16"):
        for checkpointing in (False, True):
            task = CfwTaskConfig(model=base, checkpointing=checkpointing, adversarial_start=0)
            label = f"cfw {precision}, checkpointing {checkpointing}, batch 1"
            measure(label, recipe("cfw", precision, 1, task), device, n)


if __name__ == "__main__":
    main()
