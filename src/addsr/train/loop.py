"""The training loop: devices, steps, checkpoints and logs. It knows no task."""

from __future__ import annotations

import logging
import math
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from addsr.data.draw import derive_seed
from addsr.errors import TrainingError

from . import checkpoint
from .compiling import save_cache
from .config import Recipe
from .optim import agree, process_count, process_rank
from .task import Batch, Task
from .validate import save_grid

log = logging.getLogger(__name__)

CONSENT_EVERY = 8
"""Steps between two looks at clocks and signals where several processes train together."""


class Source(Protocol):
    """Where batches come from."""

    def get(self, batch: int) -> tuple[Tensor, ...] | Batch: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Stop:
    """Turns SIGTERM and SIGINT into a wish to stop after the current step."""

    def __init__(self) -> None:
        self.wanted = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._on_signal)
            except ValueError:  # not the main thread: the caller handles signals
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:  # a second signal stops at once
            raise KeyboardInterrupt
        self.wanted = True


def fit(
    task: Task,
    source: Source,
    recipe: Recipe,
    pairs: list[Batch],
    *,
    resume: str | None = None,
    init: Path | None = None,
    tracker: Any = None,
    is_main: bool = True,
    progress: Any = None,
) -> dict[str, float]:
    """Trains `task` as `recipe.run` says; gives the last logged figures.

    Args:
        source: gives batches on the device, or the fields of `Batch` in their order.
        pairs: validation pairs; may be empty.
        resume: `latest` or the path of a full checkpoint.
        init: light weights to start from (ignored where a checkpoint is resumed).
        tracker: object with `log(dict, step=)`, such as an accelerate `Accelerator`; may be None.
        is_main: only this process writes files.
        progress: callable `(step, steps, figures, eta_seconds)`; may be None.

    Raises:
        ConfigError: validation pairs that the task cannot use.
        TrainingError: a loss became NaN or infinite; the last good checkpoint stays.
        OutputError: a checkpoint cannot be written.
    """
    run = recipe.run
    output = Path(run.output)
    checkpoints = output / "checkpoints"
    output.mkdir(parents=True, exist_ok=True)
    task.check_pairs(pairs)
    start, seconds_before = 0, 0.0
    found = checkpoint.find(resume, checkpoints) if resume else None
    if found is not None:
        meta = checkpoint.load(found, task, task.device)
        start, seconds_before = meta["step"], meta["seconds"]
        rank = process_rank()
        data = _apart(meta["data"], source.state_dict(), start) if rank else meta["data"]
        if rank:
            task.generator.manual_seed(derive_seed(run.seed, "resumed", start, rank))
        source.load_state_dict(data)
        log.info("resumed %s at step %d", found, start)
    elif init is not None:
        log.info("started from %s: %s", init, ", ".join(checkpoint.load_light(init, task)))

    began = time.monotonic()
    sums: dict[str, Tensor] = {}
    figures: dict[str, float] = {}
    validation: dict[str, float] = {}
    logged_step, logged_time = start, began
    step = written = validated = start

    def elapsed() -> float:
        return time.monotonic() - began

    def write_checkpoint() -> None:
        nonlocal written
        _check_finite({k: float(v) for k, v in sums.items()}, step, checkpoints)
        if is_main and step > written:
            written = step
            seconds = seconds_before + elapsed()
            checkpoint.save(
                checkpoints,
                task,
                step=step,
                seconds=seconds,
                data=source.state_dict(),
                limit=run.checkpoints_limit,
            )
            checkpoint.save_light(output / "weights", task, step=step, run=output.name)

    share = 0.0
    with Stop() as stop:
        while step < run.steps:
            # clocks and signals differ between processes, so they stop by common consent only:
            # one that stepped once more than another would wait for it forever
            if process_count() == 1 or (step - start) % CONSENT_EVERY == 0:
                share = step / run.steps
                if run.minutes:
                    share = max(share, elapsed() / (60 * run.minutes))
                share = agree(2.0 if stop.wanted else share, task.device)
                if share >= 1:
                    break
            task.set_progress(step - start, min(1.0, share))
            for _ in range(run.accumulate):
                task.compiled.begin_pass()
                given = source.get(task.fresh_samples(run.batch))
                fresh = given if isinstance(given, Batch) else Batch(*given)
                for key, value in task.step(fresh).items():
                    # cloned: with CUDA graphs the next step writes into the same memory
                    sums[key] = sums[key] + value if key in sums else value.detach().float().clone()
            step += 1
            if step - start == 2:  # every second step has a function more than the others
                save_cache(run)
            if step % run.log_every == 0 or step == run.steps or step - start == 1:
                count = (step - logged_step) * run.accumulate
                figures = {k: float(v) / count for k, v in sums.items()}  # synchronises
                sums = {}
                _check_finite(figures, step, checkpoints)
                now = time.monotonic()
                rate = count * run.batch / (now - logged_time)
                figures["crops_per_second"] = rate
                figures["tflops"] = rate * task.flops_per_sample() / 1e12
                if graphs := task.compiled.count_graphs(task.device):
                    figures["graphs"] = graphs
                logged_step, logged_time = step, now
                left = run.steps - step
                eta = left * (now - began) / max(1, step - start)
                if run.minutes:
                    eta = min(eta, 60 * run.minutes - elapsed())
                _report(task.name, step, figures, is_main, tracker)
                if progress is not None:
                    progress(step, run.steps, figures, eta)
            if step % run.checkpoint_every == 0:
                write_checkpoint()
            if step % run.validate_every == 0:
                _check_finite({k: float(v) for k, v in sums.items()}, step, checkpoints)
                validation = _validate(task, pairs, output, step, is_main, tracker)
                validated = step
                logged_time = time.monotonic()  # not counted as training time
                logged_step, sums = step, {}
        if stop.wanted:
            log.warning("asked to stop: writing a checkpoint at step %d", step)
    write_checkpoint()
    if not stop.wanted:
        if validated < step or step == start:
            validation = _validate(task, pairs, output, step, is_main, tracker)
        figures.update(validation)
    return figures


def _apart(state: dict[str, Any], own: dict[str, Any], step: int) -> dict[str, Any]:
    """The main process's `state` of a source, made that of another one.

    Checkpoints hold the main process's random numbers alone. Were they everybody's, all would
    train on the same pairs and noise from the resume on; so the others keep their own seeds and
    go on at the same count. A run of several processes is therefore not repeated bit by bit.
    """
    apart = {**state, "seed": own["seed"]}
    if "choices" in state:
        seed = derive_seed(own["seed"], "resumed", step)
        apart["choices"] = torch.Generator().manual_seed(seed).get_state()
    return apart


def _check_finite(figures: dict[str, float], step: int, checkpoints: Path) -> None:
    bad = [k for k, v in figures.items() if not math.isfinite(v)]
    if bad:
        raise TrainingError(
            f"{', '.join(bad)} became NaN or infinite before step {step}; the last good checkpoint "
            f"in {checkpoints} is kept: resume from it with a lower optim.learning_rate"
        )


def _report(name: str, step: int, figures: dict[str, float], is_main: bool, tracker: Any) -> None:
    if not is_main:
        return
    text = " ".join(f"{k}={v:.4g}" for k, v in figures.items())
    log.info("%s %d %s", name, step, text)
    if tracker is not None:
        tracker.log({f"train/{k}": v for k, v in figures.items()}, step=step)


def _validate(
    task: Task, pairs: list[Batch], output: Path, step: int, is_main: bool, tracker: Any
) -> dict[str, float]:
    if not (pairs and is_main):
        return {}
    figures, grid = task.validate(pairs)
    log.info("%s %d val %s", task.name, step, " ".join(f"{k}={v:.4f}" for k, v in figures.items()))
    if grid is not None:
        save_grid(grid, output / "pictures" / f"{task.name}-{step:08d}.webp")
    if tracker is not None:
        tracker.log({f"val/{k}": v for k, v in figures.items()}, step=step)
    return {f"val/{k}": v for k, v in figures.items()}
