"""torch.compile for the networks of a pipeline, with CUDA graphs where they are wanted.

What runs on tiles has the same shapes all along, over steps, timesteps and pictures; what runs on a
whole picture is compiled for the first size it meets and once more for all others.
diffusers' `compile_repeated_blocks` would compile less and leave the launches between the blocks,
which are what a GPU waits for here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from addsr.errors import DependencyError, OptionError

from .recorded import CudaRecorder, Recorded

log = logging.getLogger(__name__)

CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
GRAPH_MODES = ("reduce-overhead", "max-autotune")
"""Those that record CUDA graphs: no launches, at the price of fixed places in memory."""
_WITHOUT_GRAPHS: dict[str, CompileMode] = {
    "reduce-overhead": "default",
    "max-autotune": "max-autotune-no-cudagraphs",
}


class Compiled:
    """Functions of networks through torch.compile, each made when it is first asked for."""

    def __init__(self, mode: CompileMode | None = None) -> None:
        """`mode` is torch.compile's; None leaves functions as they are.

        Raises:
            OptionError: a mode that is unknown.
        """
        if mode is not None and mode not in MODES:
            raise OptionError(f"mode: {mode!r} is unknown; use one of {', '.join(MODES)}, or None")
        self.mode: CompileMode | None = mode
        self._made: dict[str, Callable[..., Any]] = {}
        self._recorder = CudaRecorder()

    @property
    def has_graphs(self) -> bool:
        """Whether weights have to stay where they are."""
        return self.mode in GRAPH_MODES

    def __call__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        of: Iterable[nn.Module] = (),
        has_one_shape: bool = False,
        has_breaks: bool = False,
    ) -> Callable[..., Any]:
        """`function`, or what torch.compile made of the first one of that `name`.

        Its results are its caller's own: no later run writes over them.

        Args:
            of: the networks it runs: their weights may move.
            has_one_shape: compile for each shape anew; otherwise the second one brings code for
                all others.
            has_breaks: of a library's network, parts of which may stay uncompiled.
        """
        if self.mode is None:
            return function
        if name not in self._made:
            # torch's own graphs are not used: see Recorded
            mode = _WITHOUT_GRAPHS.get(self.mode, self.mode)
            make = partial(torch.compile, function, mode=mode, fullgraph=not has_breaks)
            made = make(dynamic=False)
            if self.has_graphs:
                made = Recorded(made, of, self._recorder)
            if not has_one_shape:
                # without graphs: one would be recorded, and its memory kept, for each size
                made = _by_shape(made, cache(lambda: make(dynamic=True)))
            self._made[name] = _told(made, function)
        return self._made[name]


def _by_shape(
    first: Callable[..., Any], make_others: Callable[[], Callable[..., Any]]
) -> Callable[..., Any]:
    """`first` for the shapes and numbers of the first call, one other function for all that differ.

    With torch's own way from one to the other, `dynamic=None` and no graphs for dynamic shapes, a
    VAE's kernels were mostly launched one by one at its first size too (torch 2.11).
    """
    known: list[Any] = []

    def run(*args: Any) -> Any:
        leaves = pytree.tree_leaves(args)
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else x for x in leaves]
        if not known:
            known.append(shapes)
        return (first if shapes == known[0] else make_others())(*args)

    return run


def _told(made: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """`made`, whose compiler may be missing: on a CPU it is one for C++, on a GPU Triton."""
    is_over = False

    def run(*args: Any) -> Any:
        nonlocal is_over
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        if is_over:
            return plain(*args)
        try:
            return made(*args)
        except FailOnRecompileLimitHit:
            is_over = True
            log.warning("compile: torch compiles no more shapes or types; going on without it")
            return plain(*args)
        except TorchDynamoException as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DependencyError(
                f"compile: torch.compile failed ({type(error).__name__}: {reason}); it needs a C++ "
                "compiler on a CPU and Triton on a GPU; go on without it by compile(None)"
            ) from error

    return run
