"""torch.compile as a recipe asks for it: which functions, with which mode, from which cache."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from addsr.errors import ConfigError, OutputError
from addsr.replacing import replacing

from .config import GRAPH_MODES, RunConfig
from .optim import process_rank

log = logging.getLogger(__name__)

_WITHOUT_GRAPHS = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}


class Compiler:
    """Compiles the functions of a task by name."""

    def __init__(self, run: RunConfig) -> None:
        self.run = run
        self.names: list[str] = []
        self._graphs = 0

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` through torch.compile (static shapes) where the recipe asks for it.

        Recipes call a method `_forward` of the task `forward`.
        """
        run, name = self.run, function.__name__.strip("_")
        self.names.append(name)
        if not run.compile or (run.compile_only and name not in run.compile_only):
            return function
        return torch.compile(function, dynamic=False, mode=self.mode(name))

    def mode(self, name: str) -> str:
        """Mode of torch.compile for the function `name`."""
        run = self.run
        if run.compile_graphs and name not in run.compile_graphs:
            return _WITHOUT_GRAPHS[run.compile_mode]
        return run.compile_mode

    def check(self) -> None:
        """Once all functions are known: ConfigError where the recipe names one that is not."""
        for field in ("compile_only", "compile_graphs"):
            for name in getattr(self.run, field):
                if name not in self.names:
                    known = ", ".join(self.names) or "none: this task compiles nothing"
                    raise ConfigError(f"run.{field}: {name!r} is unknown; functions are {known}")

    def begin_pass(self) -> None:
        """To be called before each pass: what the last one's graphs gave is not needed any more."""
        if self.run.compile and self.run.compile_mode in GRAPH_MODES:
            torch.compiler.cudagraph_mark_step_begin()

    def count_graphs(self, device: torch.device) -> int:
        """How many CUDA graphs have been recorded; warns where it is more than at the last call.

        Recording takes many times as long as running. It ends after a few steps, unless every step
        finds other tensors alive or at other places than when it was recorded.
        """
        if device.type != "cuda" or not (self.run.compile and self.run.compile_mode in GRAPH_MODES):
            return 0
        count, before = _recorded_graphs(device), self._graphs
        self._graphs = count
        if before and count > before:
            log.warning(
                "%d CUDA graphs have been recorded since the last report (%d in all), which is "
                "slow; TORCH_LOGS=+cudagraphs tells why. Try run.compile_graphs, or "
                "run.compile_mode = default",
                count - before,
                count,
            )
        return count


def _recorded_graphs(device: torch.device) -> int:
    from torch._inductor import cudagraph_trees

    # "cuda" alone has no index, whatever the types say
    index = torch.cuda.current_device() if device == torch.device("cuda") else device.index
    manager = cudagraph_trees.get_manager(index, create_if_none_exists=False)
    if manager is None:
        return 0
    return sum(1 + node.num_descendants() for roots in manager.roots.values() for node in roots)


def load_cache(run: RunConfig) -> None:
    """Gives torch what `run.compile_cache` holds; code made by other versions is left unused."""
    path = _cache_path(run)
    if path is None or not path.is_file():
        return
    try:
        found = torch.compiler.load_cache_artifacts(path.read_bytes())
    except (OSError, RuntimeError, ValueError) as error:
        log.warning("run.compile_cache: %s cannot be read (%s); compiling anew", path, error)
        return
    if found is None:
        log.warning("run.compile_cache: %s holds nothing that can be used; compiling anew", path)


def save_cache(run: RunConfig) -> None:
    """Writes all that has been compiled or loaded so far to `run.compile_cache`.

    Raises:
        OutputError: the file cannot be written.
    """
    path = _cache_path(run)
    made = torch.compiler.save_cache_artifacts() if path is not None else None
    if path is None or made is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(made[0])
    except OSError as error:
        raise OutputError(
            f"run.compile_cache = {run.compile_cache!r} cannot be written ({error}); give another"
        ) from error
    log.info("run.compile_cache: %s, %.0f MB", path, len(made[0]) / 1e6)


def _cache_path(run: RunConfig) -> Path | None:
    """None where there is nothing to keep. What is compiled names its device: one file for each."""
    if not (run.compile and run.compile_cache):
        return None
    rank = process_rank()
    return Path(f"{run.compile_cache}.{rank}" if rank else run.compile_cache)
