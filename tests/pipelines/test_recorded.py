"""Recorded functions: the same results as without, and a way on where nothing can be recorded."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from addsr.pipelines import recorded
from addsr.pipelines.recorded import CudaRecorder, Recorded


class Places:
    """Does what CUDA graphs do, slowly: the same places in memory are read and written again.

    Weights are read where they are now, so that only the count of recordings tells of stale ones.
    """

    def __init__(self) -> None:
        self.records = 0
        self.replays = 0

    def works_on(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def record(
        self, run: Callable[[], Any], device: torch.device
    ) -> tuple[Callable[[], None], Any]:
        self.records += 1
        results = run()

        def replay() -> None:
            self.replays += 1
            for place, x in zip(_tensors(results), _tensors(run()), strict=True):
                place.copy_(x)

        return replay, results


def _tensors(results: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(results)
    return [x for x in leaves if isinstance(x, Tensor)]


def double(x: Tensor, more: list[Tensor], factor: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    y = 2 * factor * x
    return y, [y + one for one in more]


def test_results_are_those_of_the_function_and_stay() -> None:
    places = Places()
    call = Recorded(double, recorder=places)
    kept: list[tuple[Any, Any]] = []
    for k in range(4):
        x, more = torch.full((2,), float(k)), [torch.ones(2), torch.full((2,), 5.0 + k)]
        kept.append((call(x, more, 1.0), double(x, more)))
    for got, wanted in kept:
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    assert (places.records, places.replays) == (1, 4)


@pytest.mark.parametrize(
    ("args", "what"),
    [
        ((torch.ones(3), [torch.ones(3)]), "shape"),
        ((torch.ones(2, dtype=torch.float64), [torch.ones(2)]), "type"),
        ((torch.ones(4)[::2], [torch.ones(2)]), "stride"),
        ((torch.ones(2), [torch.ones(2), torch.ones(2)]), "number of tensors"),
        ((torch.ones(2), [torch.ones(2)], 3.0), "number"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_other_arguments_are_recorded_anew(args: Any, what: str) -> None:
    places = Places()
    call = Recorded(double, recorder=places)
    call(torch.ones(2), [torch.ones(2)])
    for _ in range(2):
        torch.testing.assert_close(call(*args), double(*args), rtol=0, atol=0)
    assert places.records == 2, what


def test_the_least_used_recording_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "_MOST", 2)
    places = Places()
    call = Recorded(lambda x: x + 1, recorder=places)
    for side, count in ((1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (2, 4)):
        assert len(call(torch.zeros(side))) == side
        assert places.records == count


@pytest.mark.parametrize(
    "move",
    [
        lambda net: net.to(torch.float64).to(torch.float32),
        lambda net: net.to(memory_format=torch.channels_last),
        lambda net: net.register_buffer("shift", torch.tensor(7.0)),
        lambda net: setattr(net[0], "weight", nn.Parameter(torch.rand(3, 2, 3, 3))),
        lambda net: net[0].load_state_dict(
            {"weight": torch.rand(3, 2, 3, 3), "bias": torch.rand(3)}, assign=True
        ),
    ],
    ids=["type", "layout", "buffer", "parameter", "assigned"],
)
def test_weights_that_moved_are_recorded_anew(move: Callable[[nn.Module], Any]) -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3)).requires_grad_(False)
    net.register_buffer("shift", torch.tensor(1.0))
    places = Places()
    call = Recorded(lambda x: net(x) + net.shift, [net], places)
    x = torch.rand(1, 2, 4, 4)
    call(x)
    call(x)
    assert places.records == 1
    kept = [p.data for p in net.parameters()]  # whose memory nothing else may take meanwhile
    move(net)
    torch.testing.assert_close(call(x), net(x) + net.shift, rtol=0, atol=0)
    assert places.records == 2 and kept


def test_weights_that_go_come_or_change_their_kind_are_recorded_anew() -> None:
    net = nn.Linear(2, 2).requires_grad_(False)
    places = Places()
    call = Recorded(lambda x: net(x), [net], places)
    x, bias = torch.rand(1, 2), net.bias
    call(x)
    for count, change in enumerate((None, bias), start=2):
        net.bias = change
        torch.testing.assert_close(call(x), net(x), rtol=0, atol=0)
        assert places.records == count
    del net.bias
    net.register_buffer("bias", None)
    call(x)
    assert places.records == 4


def test_what_is_recorded_under_autocast_is_for_autocast() -> None:
    net = nn.Linear(2, 2).requires_grad_(False)
    call = Recorded(net.forward, [net], Places())
    x = torch.rand(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert call(x).dtype == torch.bfloat16
    assert call(x).dtype == torch.float32


def test_a_network_that_left_keeps_no_recordings() -> None:
    class Elsewhere(Places):
        is_here = True

        def works_on(self, device: torch.device) -> bool:
            return self.is_here

    places = Elsewhere()
    call = Recorded(double, recorder=places)
    call(torch.ones(2), [])
    places.is_here = False
    assert call(torch.ones(2), [])[0].tolist() == [2, 2] and not call._kept


def test_weights_that_change_in_place_are_seen_as_they_are() -> None:
    net = nn.Linear(2, 2).requires_grad_(False)
    places = Places()
    call = Recorded(net.forward, [net], places)
    x = torch.rand(1, 2)
    call(x)
    net.load_state_dict({"weight": torch.ones(2, 2), "bias": torch.zeros(2)})
    torch.testing.assert_close(call(x), net(x))
    assert places.records == 1


def test_what_cannot_be_recorded_goes_on_without(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(Places):
        def record(self, run: Any, device: torch.device) -> Any:
            super().record(run, device)
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    places = Refusing()
    call = Recorded(double, recorder=places)
    with caplog.at_level(logging.WARNING):
        for k in range(3):
            x = torch.full((2,), float(k))
            torch.testing.assert_close(call(x, [x]), double(x, [x]))
    assert places.records == 1
    assert [r.message for r in caplog.records] == [
        "compile: a CUDA graph cannot be recorded (operation not permitted when stream is "
        "capturing); going on without"
    ]


def test_threads_record_one_after_another() -> None:
    most: list[int] = []
    now: list[int] = []

    class Slow(Places):
        def record(self, run: Any, device: torch.device) -> Any:
            now.append(1)
            most.append(len(now))
            time.sleep(0.05)  # in which another one would begin
            now.pop()
            return super().record(run, device)

    def work(k: int) -> None:
        x = torch.full((2,), float(k))
        torch.testing.assert_close(Recorded(double, recorder=Slow())(x, [x]), double(x, [x]))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert most == [1, 1, 1, 1]


def test_a_recording_within_a_recording_does_not_wait_for_itself() -> None:
    places, runs = Places(), [0]
    inner = Recorded(lambda x: x + 1, recorder=places)

    def outer(x: Tensor) -> Tensor:
        runs[0] += 1  # another shape each time, so that the inner one records anew
        return inner(torch.cat([x] * runs[0]))[:2]

    torch.testing.assert_close(
        Recorded(outer, recorder=places)(torch.ones(2)), torch.full((2,), 2.0)
    )


def test_memory_that_runs_out_is_the_callers_matter() -> None:
    class Full(Places):
        def record(self, run: Any, device: torch.device) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    class Hiding(Places):
        def record(self, run: Any, device: torch.device) -> Any:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory")
            finally:  # as torch does, whose recording ends by this
                raise RuntimeError("operation failed due to a previous error during capture")

    for places in (Full(), Hiding()):
        call = Recorded(double, recorder=places)
        for _ in range(2):  # fewer tiles at once are recorded later
            with pytest.raises(torch.OutOfMemoryError):
                call(torch.ones(2), [])


def test_pictures_of_inference_mode_are_taken_and_given_in_any_order() -> None:
    call = Recorded(double, recorder=Places())
    with torch.inference_mode():
        first = call(torch.ones(2), [])[0]
    assert call(torch.full((2,), 3.0), [])[0].tolist() == [6, 6]
    with torch.inference_mode():
        assert call(torch.full((2,), 4.0), [])[0].tolist() == [8, 8]
    assert first.tolist() == [2, 2]


def test_a_cpu_records_nothing() -> None:
    assert not CudaRecorder().works_on(torch.device("cpu"))
    ran: list[int] = []
    call = Recorded(lambda x: (ran.append(1), x)[1])
    x = torch.ones(2)
    assert call(x) is x and ran == [1]


def test_pipelines_name_the_networks_whose_weights_are_read(
    make_addsr: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every weight that a call reads belongs to some recorded function's networks."""
    places = Places()
    monkeypatch.setattr("addsr.pipelines.compiled.torch.compile", lambda f, **_: f)
    monkeypatch.setattr("addsr.pipelines.compiled.CudaRecorder", lambda: places)
    pipe, plain = make_addsr(), make_addsr()
    pipe.compile("reduce-overhead")

    def run(one: Any) -> Tensor:
        picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
        generator = torch.Generator().manual_seed(0)
        return one(picture, num_inference_steps=2, output_type="pt", generator=generator).images

    torch.testing.assert_close(run(pipe), run(plain), rtol=1e-4, atol=1e-5)
    count = places.records
    assert count == 4
    run(pipe)
    assert places.records == count
    readers = {"unet": 1, "controlnet": 2, "vae": 2}  # functions that read each
    assert set(readers) == set(pipe.networks)
    for name, net in pipe.networks.items():
        old = dict(net.state_dict())  # keeps its places taken
        new = {k: v * 0.9 for k, v in old.items()}
        net.load_state_dict(new, assign=True)
        plain.networks[name].load_state_dict(new)
        torch.testing.assert_close(run(pipe), run(plain), rtol=1e-4, atol=1e-5)
        count += readers[name]
        assert places.records == count, name


def test_a_recording_that_fails_is_cleaned_up_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's own graphs stood in for: what they do after a failure was seen on a GPU."""
    told: list[Any] = []
    streams = ["the caller's"]

    class Graph:
        def replay(self) -> None:
            told.append("replay")

    @contextlib.contextmanager
    def graph(_: Graph, pool: Any = None, *, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        told.append(pool)
        streams.append("its own")
        yield
        streams.pop()  # not reached by one that fails, as in torch

    @contextlib.contextmanager
    def back(stream: str) -> Iterator[None]:
        count = len(streams)
        try:
            yield
        finally:
            del streams[count:]

    pools = iter(range(1, 9))
    cuda = recorded.torch.cuda
    monkeypatch.setattr(cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(cuda, "graph", graph)
    monkeypatch.setattr(cuda, "graph_pool_handle", lambda: next(pools))
    monkeypatch.setattr(cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(cuda, "current_stream", lambda _: streams[-1])
    monkeypatch.setattr(cuda, "stream", back)
    monkeypatch.setattr(recorded.torch, "zeros", lambda *_, device: told.append(device))
    recorder, device = CudaRecorder(), torch.device("cuda")

    def fail() -> None:
        raise RuntimeError("not permitted")

    replay, results = recorder.record(lambda: "results", device)
    assert results == "results" and recorder.record(lambda: 1, device)[1] == 1
    assert told == [1, 1]  # one pool for all
    with pytest.raises(RuntimeError, match="not permitted"):
        recorder.record(fail, device)
    assert streams == ["the caller's"]
    # a recording in no pool of ours ends as it should, and the next one has another pool
    assert told == [1, 1, 1, None, "cuda"]
    recorder.record(lambda: 1, device)
    replay()
    assert told[5:] == [2, "replay"]
