"""Functions of a GPU as CUDA graphs: all that they launch, launched at once."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from addsr.engines.memory import is_out_of_memory

log = logging.getLogger(__name__)

_WARMING = 3
"""Runs before one is recorded: libraries choose kernels and take memory in the first ones."""
_MOST = 8
"""Recordings of a function that are kept, the last used ones; each holds memory of its own."""

_MODE = "thread_local"
"""What breaks a recording off: what its own thread does, and of what others do meanwhile only that
they wait for the whole device."""

_TURN = threading.RLock()
"""One recording at a time: torch waits for the device before each and while it compiles, which
breaks others off."""


class Recorder(Protocol):
    """What can record a run on a device and repeat it."""

    def works_on(self, device: torch.device) -> bool:
        """Whether it can record there."""
        ...

    def record(
        self, run: Callable[[], Any], device: torch.device
    ) -> tuple[Callable[[], None], Any]:
        """What repeats `run` on the same places in memory, and its results in theirs."""
        ...


class CudaRecorder:
    """CUDA graphs that share one pool of memory.

    They may, as long as results are copied before another one is replayed in the same stream.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def works_on(self, device: torch.device) -> bool:
        """Whether it is a CUDA device."""
        return device.type == "cuda"

    def record(
        self, run: Callable[[], Any], device: torch.device
    ) -> tuple[Callable[[], None], Any]:
        """See `Recorder`.

        Raises:
            RuntimeError: `run` does what cannot be recorded, such as waiting for the device.
        """
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # the stream by name, for a recording that fails does not leave its own
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
            try:
                with torch.cuda.graph(graph, pool=self._pool, capture_error_mode=_MODE):
                    results = run()
            except RuntimeError:
                self._recover()
                raise
        return graph.replay, results

    def _recover(self) -> None:
        """After a recording that failed torch takes its pool and its random numbers for recorded.

        Another pool, and a recording of nothing that ends as it should (seen with torch 2.11). The
        memory of the pool is not given back.
        """
        self._pool = None
        empty = torch.cuda.CUDAGraph()
        with (
            contextlib.suppress(RuntimeError),
            torch.cuda.graph(empty, capture_error_mode=_MODE),
        ):
            torch.zeros(1, device="cuda")


class _Recording(NamedTuple):
    replay: Callable[[], None]
    places: list[Tensor]
    """Where the arguments have to be."""
    results: Any


class Recorded:
    """A function of tensors, recorded for each shape on a CUDA device and replayed.

    torch.compile's own graphs look at each of two thousand weights in each run, which took a CPU
    longer than a GPU took for the network. Here their addresses are compared: what was recorded is
    dropped when they have moved. Layers put in place of others are not seen.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        of: Iterable[nn.Module] = (),
        recorder: Recorder | None = None,
    ) -> None:
        """
        Args:
            function: gives tensors, in lists or tuples too; what is no tensor among its arguments
                becomes part of a recording.
            of: the networks whose weights it reads.
            recorder: shared by functions that run one after another.
        """
        self._function = function
        self._recorder: Recorder = recorder or CudaRecorder()
        # where they are kept and not they themselves: a network that moves has new buffers; and
        # past Module's own look-up, which takes three times as long
        self._weights: list[tuple[dict[str, Any], str]] = [
            (own, name)
            for net in of
            for module in net.modules()
            for own in (vars(module)["_parameters"], vars(module)["_buffers"])
            for name in own
        ]
        # of others no layout but the usual one is asked for; looking at all costs twice the time
        self._laid_out = [
            (own, name)
            for own, name in self._weights
            if own[name] is not None and own[name].ndim >= 4
        ]
        self._at: Any = None
        self._kept: OrderedDict[Any, _Recording] = OrderedDict()
        self._is_over = False

    def __call__(self, *args: Any) -> Any:
        """The function's results, which no later run writes over."""
        leaves, spec = pytree.tree_flatten(args)
        given = [x for x in leaves if isinstance(x, Tensor)]
        if self._is_over or not all(self._recorder.works_on(x.device) for x in given):
            self._kept.clear()
            return self._function(*args)
        at = self._addresses()
        if at != self._at:
            self._kept.clear()
            self._at = at
        kind = given[0].device.type
        cast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
        key = (spec, cast, *(_told(x) for x in leaves))
        with torch.inference_mode(False), torch.no_grad():
            if key in self._kept:
                self._kept.move_to_end(key)
            else:
                recording = self._record(leaves, spec)
                if recording is None:
                    return self._function(*args)
                self._kept[key] = recording
                if len(self._kept) > _MOST:
                    self._kept.popitem(last=False)
            replay, places, results = self._kept[key]
            for place, x in zip(places, given, strict=True):
                place.copy_(x)
            replay()
            return pytree.tree_map_only(Tensor, torch.clone, results)

    def _addresses(self) -> Any:
        """Where the weights are and what they are; None for one that is gone."""
        found = [own.get(name) for own, name in self._weights]
        return (
            [None if x is None else x.data_ptr() for x in found],
            [None if (x := own.get(name)) is None else x.stride() for own, name in self._laid_out],
            {x.dtype for x in found[:1] if x is not None},
        )

    def _record(self, leaves: list[Any], spec: pytree.TreeSpec) -> _Recording | None:
        """One run on copies of the arguments; None where it cannot be recorded."""
        # in the layout that was given: it is what the code was compiled for
        own = [x.detach().clone() if isinstance(x, Tensor) else x for x in leaves]
        args = pytree.tree_unflatten(own, spec)
        places = [x for x in own if isinstance(x, Tensor)]
        with _TURN:  # from the first run on: compiling waits for the device too
            for _ in range(_WARMING):
                self._function(*args)
            return self._recording(args, places)

    def _recording(self, args: Any, places: list[Tensor]) -> _Recording | None:
        """What `_record` gives, of a function that has run before."""
        try:
            replay, results = self._recorder.record(lambda: self._function(*args), places[0].device)
        except RuntimeError as error:
            # torch's own complaint that the recording ended badly hides why it did
            cause = error.__context__ or error
            if is_out_of_memory(cause):
                raise cause from None
            self._is_over = True
            reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            log.warning("compile: a CUDA graph cannot be recorded (%s); going on without", reason)
            return None
        return _Recording(replay, places, results)


def _told(x: Any) -> Any:
    return (tuple(x.shape), x.stride(), x.dtype, x.device) if isinstance(x, Tensor) else x
