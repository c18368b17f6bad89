"""Compiled pipelines: the same results, no compiling beyond the first run, ways back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from addsr.errors import DependencyError, OptionError
from addsr.nets.tiny_decoder import TinyDecoder, TinyDecoderConfig
from addsr.pipelines import SeeSRPipeline, compiled
from addsr.pipelines.compiled import Compiled
from addsr.pipelines.stages import _in_two_shapes

pytest.importorskip("diffusers", reason="the diffusion extra is not installed")


@pytest.fixture()
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """torch.compile without its code generator, which takes minutes; gives how many graphs."""
    from torch._dynamo.utils import counters

    make = torch.compile

    def trace(function: Any, *, dynamic: bool | None, fullgraph: bool, **_: Any) -> Any:
        return make(function, backend="eager", dynamic=dynamic, fullgraph=fullgraph)

    monkeypatch.setattr(compiled.torch, "compile", trace)
    torch.compiler.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    assert not counters["graph_break"]
    torch.compiler.reset()


def run(pipe: Any, height: int = 8, width: int = 8, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(3))
    options = {"output_type": "pt", "generator": generator, **options}
    return pipe(image, **options).images


def test_compiled_functions_see_the_same_shapes_in_all_steps_and_tiles(
    make_addsr: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[Any]] = {}

    def watch(function: Any, **_: Any) -> Any:
        def run(*args: Any) -> Any:
            told = [tuple(x.shape) if isinstance(x, Tensor) else x for x in args]
            seen.setdefault(function.__name__, set()).add(tuple(told))
            return function(*args)

        return run

    monkeypatch.setattr(compiled.torch, "compile", watch)
    pipe, seesr = make_addsr(), make_addsr(SeeSRPipeline)
    for one in (pipe, seesr):
        one.compile()
    run(pipe, num_inference_steps=4)
    assert {name: len(calls) for name, calls in seen.items()} == {
        "_moments": 1, "encode": 1, "forward": 1, "_picture": 1
    }  # fmt: skip
    for size in ((16, 16), (8, 12), (16, 20)):  # 9, 2 and 12 tiles
        wanted = run(make_addsr(), *size, num_inference_steps=2)
        got = run(pipe, *size, num_inference_steps=2)
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
    assert len(seen["forward"]) == 2
    negative = torch.randn(1, 5, 24)
    for steps in (2, 3):
        run(seesr, num_inference_steps=steps, negative_prompt_embeds=negative)
    assert len(seen["forward"]) == 3


@pytest.mark.slow
def test_nothing_is_compiled_again_for_other_steps(
    make_addsr: Callable[..., Any], traced: Callable[[], int]
) -> None:
    pipe = make_addsr()
    wanted = [run(pipe, num_inference_steps=n) for n in (2, 4)]
    pipe.compile()
    for steps, one in zip((2, 4), wanted, strict=True):
        got = run(pipe, num_inference_steps=steps)
        torch.testing.assert_close(got, one, rtol=1e-3, atol=1e-4)
    run(pipe, num_inference_steps=3, psr_weight=0.3)
    assert traced() == 4  # the network, the picture's map, encoding, decoding


def test_what_runs_on_whole_pictures_is_compiled_twice(
    make_addsr: Callable[..., Any], traced: Callable[[], int]
) -> None:
    stages = make_addsr()._stages
    stages.compile("default")
    options: Any = SimpleNamespace(strip_pixels=None)
    counts: list[int] = []
    with torch.no_grad():
        # on a CPU torch chooses other convolutions for smaller ones, in one more compilation
        for height, width in ((256, 256), (320, 320), (288, 288), (224, 256), (320, 240)):
            stages._encode_condition(torch.rand(1, 3, height, width), options)
            counts.append(traced())
    assert counts == [1, 2, 2, 2, 2]


@pytest.mark.slow
def test_stablesr_compiles_as_well(store: Path, traced: Callable[[], int]) -> None:
    from addsr.pipelines import StableSRPipeline

    pipe = StableSRPipeline.from_pretrained(next(store.rglob("model_index.json")).parent)
    wanted = run(pipe, num_inference_steps=2)
    pipe.compile()
    torch.testing.assert_close(run(pipe, num_inference_steps=2), wanted, rtol=1e-3, atol=1e-4)
    run(pipe, num_inference_steps=3)
    assert traced() == 3


def test_what_is_compiled_is_undone(
    make_addsr: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(compiled.torch, "compile", lambda f, **_: (asked.append(f.__name__), f)[1])
    pipe = make_addsr()
    pipe.compile("default")
    run(pipe, num_inference_steps=1)
    assert len(asked) == 4
    pipe.compile(None)
    run(pipe, num_inference_steps=1)
    assert len(asked) == 4


def test_tagger_and_text_encoder_are_compiled_with_it(
    make_addsr: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked:
        modes: list[Any]

        def __init__(self) -> None:
            self.modes = []

        def compile(self, mode: Any) -> None:
            self.modes.append(mode)

    tagger, text = Asked(), Asked()
    pipe = make_addsr(tagger=tagger, text_encoder=text)
    pipe.compile("reduce-overhead")
    pipe.compile(None)
    assert tagger.modes == text.modes == ["reduce-overhead", None]
    make_addsr(text_encoder=lambda words: torch.zeros(1, 5, 24)).compile()  # cannot be


def test_modes_that_cannot_be_are_refused(make_addsr: Callable[..., Any]) -> None:
    pipe = make_addsr()
    with pytest.raises(OptionError, match="mode: 'fast' is unknown; use one of default"):
        pipe.compile("fast")
    pipe.compile("reduce-overhead")
    with pytest.raises(OptionError, match="'reduce-overhead' records CUDA graphs"):
        pipe.enable_model_cpu_offload("cpu")
    pipe.compile("default")
    pipe.enable_model_cpu_offload("cpu")
    with pytest.raises(OptionError, match="mode: 'max-autotune' records CUDA graphs"):
        pipe.compile("max-autotune")


def test_code_for_any_size_runs_without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    ran: list[str] = []

    def make(_: Any, **more: Any) -> Any:
        asked.append(more)
        return lambda *_: "plain"

    class Told:
        def __init__(self, *_: Any) -> None: ...

        def __call__(self, *_: Any) -> str:
            return "graphs"

    monkeypatch.setattr(compiled.torch, "compile", make)
    monkeypatch.setattr(compiled, "Recorded", Told)
    call = Compiled("reduce-overhead")
    call("net", lambda x: x, has_one_shape=True)
    decode = call("decode", lambda x, taps: x)
    for side, fidelity in ((8, 0.5), (8, 0.5), (9, 0.5), (8, 0.5), (8, 0.6), (7, 1.0)):
        ran.append(decode(torch.zeros(side), [torch.zeros(2, side)], fidelity))
    assert ran == ["graphs", "graphs", "plain", "graphs", "plain", "plain"]
    # both are made once, the second one when it is needed; torch's own graphs are asked for never
    assert [(one["dynamic"], one["mode"]) for one in asked] == [
        (False, "default"), (False, "default"), (True, "default")
    ]  # fmt: skip


def test_too_many_shapes_go_on_uncompiled(
    traced: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    call = Compiled("default")("net", lambda x: x * 2, has_one_shape=True)
    with torch._dynamo.config.patch(recompile_limit=2), caplog.at_level(logging.WARNING):
        for side in (2, 3, 4, 5):
            assert call(torch.ones(side)).tolist() == [2.0] * side
    assert [r.message for r in caplog.records if "compiles no more shapes" in r.message]
    assert traced() == 2


def test_a_compiler_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def broken(*_: Any) -> None:
        raise TorchDynamoException("no compiler\nand more")

    monkeypatch.setattr(compiled.torch, "compile", lambda f, **_: broken)
    with pytest.raises(DependencyError, match=r"no compiler\); it needs a C\+\+ compiler"):
        Compiled("default")("net", lambda x: x)(1)


def test_left_over_tiles_go_one_by_one() -> None:
    sizes: list[int] = []

    def model(tiles: Tensor, t: Tensor, seen: Tensor) -> Tensor:
        assert len(tiles) == len(t) == len(seen)
        sizes.append(len(tiles))
        return tiles + seen + t[:, None]

    call = _in_two_shapes(model, 1, 4)
    for count in (4, 3, 1):
        tiles = torch.randn(count, 2)
        got = call(tiles, torch.arange(count), tiles * 2)
        assert torch.equal(got, tiles * 3 + torch.arange(count)[:, None])
    assert sizes == [4, 1, 1, 1, 1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the code generator's own imports
def test_generated_code_gives_the_same_results(make_addsr: Callable[..., Any]) -> None:
    # of the smallest network: the whole takes the code generator more than a minute
    tiny = TinyDecoder(TinyDecoderConfig(8, (1, 1, 1))).eval().requires_grad_(False)
    stages = make_addsr(tiny_decoder=tiny)._stages
    latent = torch.randn(1, 4, 8, 8)
    options: Any = SimpleNamespace(strip_pixels=None)
    wanted = stages.decode_tiny(latent, options)
    stages.compile("reduce-overhead")  # without a GPU it is the same as "default"
    with torch.no_grad():
        got = stages.decode_tiny(latent, options)
    torch.compiler.reset()
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
