"""Entry of training: a recipe to a finished run. Also `python -m addsr.train`."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import torch

from addsr.errors import DependencyError, MemoryLimitError, OutputError

from .compiling import load_cache
from .config import Recipe, load_recipe
from .loop import Source, fit
from .sources import RotatingPool, make_pool
from .task import Batch, Task
from .validate import load_pairs

log = logging.getLogger(__name__)

PROMPTED = ("addsr", "seesr")
"""Tasks that are told their pictures' tags."""


def train(
    task: str,
    config: Path,
    *,
    init: Path | None = None,
    resume: str | None = None,
    output: Path | None = None,
    overrides: dict[str, dict[str, Any]] | None = None,
) -> dict[str, float]:
    """Runs `task` (a name in `config.TASKS`) by the recipe `config`; gives the last figures.

    Args:
        init: light weights to start from: a file, or a folder with one file per network.
        resume: `latest` or the path of a full checkpoint.
        output: replaces run.output.
        overrides: `{table: {field: value}}` over the recipe, with the same checks.

    Raises:
        ConfigError: a wrong recipe; TrainingError: a loss became NaN; OutputError: a checkpoint
            cannot be written; MemoryLimitError: the device's memory is too small.
    """
    recipe = load_recipe(task, config, overrides)
    if output is not None:
        recipe = dataclasses.replace(
            recipe, run=dataclasses.replace(recipe.run, output=str(output))
        )
    return train_recipe(recipe, init=init, resume=resume)


def train_recipe(
    recipe: Recipe, *, init: Path | None = None, resume: str | None = None
) -> dict[str, float]:
    """Runs a parsed recipe on what accelerate finds: one device, or those of a launcher."""
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise DependencyError("training needs accelerate: pip install 'addsr[train]'") from error
    run = recipe.run
    output = Path(run.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"run.output = {run.output!r} cannot be made ({error.strerror}); give another folder"
        ) from error
    log_with = "tensorboard" if run.tensorboard and _has_tensorboard() else None
    # accelerate joins a launcher's processes on CPUs only when told that they are meant
    on_cpus = "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
    # precision is ours (train/optim.py), so accelerate is asked for none
    accelerator = Accelerator(
        mixed_precision="no", log_with=log_with, project_dir=str(output), cpu=on_cpus
    )
    device = accelerator.device
    if device.type == "cpu":  # several processes have cpu:0, whose tensors torch cannot read back
        device = torch.device("cpu")
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = run.cudnn_benchmark
        torch.backends.cudnn.benchmark_limit = 4  # the later candidates are hardly ever taken
    torch.manual_seed(run.seed + accelerator.process_index)
    load_cache(run)
    if log_with:
        accelerator.init_trackers("log")
    source, pairs = make_source(recipe, run.seed + 1000 * accelerator.process_index, device)
    task = make_task(recipe, device, accelerator.process_index)
    is_main = accelerator.is_main_process
    try:
        with make_progress(is_main, recipe) as progress:
            return fit(
                task,
                source,
                recipe,
                pairs,
                resume=resume,
                init=init,
                tracker=accelerator if log_with else None,
                is_main=is_main,
                progress=progress,
            )
    except torch.OutOfMemoryError as error:
        reason = str(error).strip().splitlines()[0]
        raise MemoryLimitError(
            f"run.batch = {run.batch} pictures of {recipe.data.crop_px} pixels did not fit in the "
            f"memory of {device} ({reason}); give a smaller one and a larger run.accumulate"
        ) from error
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            close()
        if log_with:
            accelerator.end_training()


def make_task(recipe: Recipe, device: torch.device, rank: int = 0) -> Task:
    """The task that `recipe` names, with fresh networks (the same on every process)."""
    torch.manual_seed(recipe.run.seed)
    if recipe.task_name == "teacher":
        from .teacher import TeacherTask as chosen
    elif recipe.task_name == "student":
        from .student import StudentTask as chosen
    elif recipe.task_name == "stablesr":
        from .stablesr import StableSRTask as chosen
    elif recipe.task_name == "cfw":
        from .cfw import CfwTask as chosen
    elif recipe.task_name == "addsr":
        from .addsr import AddSRTask as chosen
    elif recipe.task_name == "seesr":
        from .seesr import SeeSRTask as chosen
    elif recipe.task_name == "dape":
        from .dape import DapeTask as chosen
    else:
        from .features import FeaturesTask as chosen
    task = chosen(recipe, device)
    task.compiled.check()
    task.generator.manual_seed(recipe.run.seed + 1 + rank)
    return task


def make_source(recipe: Recipe, seed: int, device: torch.device) -> tuple[Source, list[Batch]]:
    """Where batches come from, and the validation pairs.

    Raises:
        ConfigError: the recipe's data cannot be used.
    """
    if recipe.task_name == "cfw":
        from .samples import SampleSource

        samples = SampleSource.of(recipe, seed, device)
        return samples, samples.held_out(recipe.run.validate_limit)
    data = recipe.data
    pairs = load_pairs(data.val, recipe.run.validate_limit) if data.val else []
    pool = RotatingPool(data, seed, device) if data.held else make_pool(data, seed, device)
    if recipe.task_name in PROMPTED:
        from .prompts import with_prompts

        return with_prompts(pool, recipe, device), pairs
    return pool, pairs


def make_progress(is_main: bool, recipe: Recipe) -> Any:
    """A context manager giving a progress callback with ETA on a terminal, else None."""
    import contextlib
    import sys

    if not (is_main and sys.stderr.isatty()):
        return contextlib.nullcontext(None)
    try:
        from .progress import bar
    except ImportError:  # rich is absent: the log lines remain
        return contextlib.nullcontext(None)
    return bar(recipe.task_name, recipe.run.steps)


def _has_tensorboard() -> bool:
    import importlib.util

    return importlib.util.find_spec("tensorboard") is not None
