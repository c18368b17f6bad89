"""NaN and infinity are found in time, and on a GPU without having it wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from addsr.pipelines import finite
from addsr.pipelines.finite import FiniteChecks, NotFiniteError

GOOD, BAD = torch.ones(2), torch.tensor([1.0, float("nan")])


@pytest.fixture()
def read(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A CPU that answers as late as a GPU; gives the answers that were waited for."""
    answers: list[bool] = []

    def later(flag: Tensor) -> Callable[[], bool]:
        return lambda: (answers.append(bool(flag)), bool(flag))[1]

    monkeypatch.setattr(finite, "_AHEAD", 2)
    monkeypatch.setattr(finite, "_LAGGING", ("cpu",))
    monkeypatch.setattr(finite, "_read_later", later)
    return answers


def test_a_cpu_tells_at_once() -> None:
    checks = FiniteChecks()
    checks.ask(GOOD, "vae: encoding in torch.float16")
    for worst in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(NotFiniteError, match=r"^vae: decoding in torch.float16 gave NaN"):
            checks.ask(torch.tensor([0.0, worst]), "vae: decoding in torch.float16")
    checks.settle()


def test_a_gpu_is_waited_for_some_stages_later(read: list[bool]) -> None:
    checks = FiniteChecks()
    checks.ask(GOOD, "first")
    assert read == []
    checks.ask(GOOD, "second")
    assert read == []
    checks.ask(GOOD, "third")
    checks.ask(GOOD, "fourth")
    assert read == [True, True]
    checks.settle()
    checks.settle()
    assert read == [True] * 4


def test_what_is_found_late_is_told_by_the_name_of_its_stage(read: list[bool]) -> None:
    checks = FiniteChecks()
    checks.ask(BAD, "first")
    checks.ask(GOOD, "second")
    with pytest.raises(NotFiniteError, match=r"^first gave"):
        checks.ask(BAD, "third")
    checks.settle()  # of the run that failed nothing is left
    checks.ask(BAD, "last")
    with pytest.raises(NotFiniteError, match=r"^last gave"):
        checks.settle()
    checks.ask(BAD, "of a run that was broken off")
    checks.forget()
    checks.settle()
    assert read == [False, False]


def test_an_answer_is_copied_and_awaited_in_the_stream_of_its_own_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []

    class Event:
        def record(self, stream: str) -> None:
            told.append(f"recorded in {stream}")

        def synchronize(self) -> None:
            told.append("waited")

    empty = torch.empty
    monkeypatch.setattr(
        finite.torch, "empty", lambda *a, pin_memory, **k: empty(*a, **k).fill_(pin_memory)
    )
    monkeypatch.setattr(finite.torch.cuda, "Event", Event)
    monkeypatch.setattr(finite.torch.cuda, "current_stream", lambda device: f"that of {device}")
    read = finite._read_later(torch.tensor(False))
    assert told == ["recorded in that of cpu"]
    assert read() is False and told[1:] == ["waited"]


@pytest.mark.parametrize("part", ["unet", "vae"])
@pytest.mark.parametrize("output", ["pt", "latent"])
def test_no_pipeline_hands_out_what_was_not_waited_for(
    make_addsr: Callable[..., Any], read: list[bool], part: str, output: str
) -> None:
    if (part, output) == ("vae", "latent"):
        pytest.skip("nothing is decoded")
    pipe = make_addsr()
    net = pipe.networks[part]
    (net.conv_out if part == "unet" else net.decoder.conv_out).bias.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="latents: sampling" if part == "unet" else "decoding"):
        pipe(torch.rand(1, 3, 8, 8), num_inference_steps=1, output_type=output)
    read.clear()
    make_addsr()(torch.rand(1, 3, 8, 8), num_inference_steps=1, output_type=output)
    assert read == [True] * (2 if output == "latent" else 3)
