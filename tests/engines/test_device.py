"""Choice of device and type, and what memory is reported."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch

from addsr.engines import device as module
from addsr.engines.device import (
    choose_device,
    choose_dtype,
    cpu_has_bf16,
    free_host_memory,
    send,
    total_host_memory,
)
from addsr.errors import OptionError

CPU = torch.device("cpu")


def test_auto_takes_an_accelerator_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for present, expected in (({"cuda", "mps"}, "cuda"), ({"mps"}, "mps"), (set(), "cpu")):
        monkeypatch.setattr(module, "is_present", lambda kind, p=present: kind in p)
        assert choose_device("auto").type == expected


def test_a_missing_device_and_an_unknown_one_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "is_present", lambda kind: kind == "cpu")
    with pytest.raises(OptionError, match=r"device: 'cuda' is not available.*addsr doctor"):
        choose_device("cuda")
    with pytest.raises(OptionError, match=r"device: 'gpu' is unknown; use auto, cpu, cuda"):
        choose_device("gpu")


def test_auto_computes_in_bf16_only_where_the_hardware_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for has, where, expected in (
        (True, CPU, torch.bfloat16),
        (False, CPU, torch.float32),
        (False, torch.device("cuda"), torch.float16),
        (True, torch.device("cuda"), torch.bfloat16),
    ):
        monkeypatch.setattr(module, "has_bf16", lambda _where, has=has: has)
        assert choose_dtype("auto", where) == expected
    assert choose_dtype("fp32", CPU) == torch.float32
    with pytest.raises(OptionError, match=r"dtype: 'int8' is unknown; use auto, fp32, bf16, fp16"):
        choose_dtype("int8", CPU)


def test_bf16_detection_agrees_with_the_kernel() -> None:
    if not Path("/proc/cpuinfo").exists():
        pytest.skip("no /proc/cpuinfo")
    words = set(Path("/proc/cpuinfo").read_text().split())
    assert cpu_has_bf16() == bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def test_without_torchs_help_the_flags_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    monkeypatch.setattr(module.sys, "platform", "linux")
    for flags, expected in (({"avx2", "avx512_bf16"}, True), ({"avx2"}, False), (set(), False)):
        monkeypatch.setattr(module, "_cpu_flags", lambda flags=flags: flags)
        assert cpu_has_bf16() == expected


def test_free_memory_is_positive_and_below_the_total() -> None:
    assert 0 < free_host_memory() <= total_host_memory()


def test_a_container_limit_binds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_container_room", lambda: [12345])
    assert free_host_memory() == 12345


def test_a_type_that_this_cpu_only_emulates_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "cpu_has_bf16", lambda: False)
    assert choose_dtype("bf16", CPU) == torch.bfloat16
    assert "no bf16 instructions" in caplog.text
    caplog.clear()
    choose_dtype("fp16", CPU)
    assert "fp16 is slow on a CPU" in caplog.text
    caplog.clear()
    monkeypatch.setattr(module, "cpu_has_bf16", lambda: True)
    choose_dtype("bf16", CPU)
    choose_dtype("fp32", CPU)
    assert not caplog.text


@pytest.mark.parametrize(
    ("kind", "here", "size", "told"),
    [
        ("cuda", "cpu", 64 << 20, ["pin", "copy without waiting"]),
        ("cuda", "cpu", (64 << 20) + 1, ["copy"]),  # torch would keep as much memory pinned
        ("cuda", "cuda", 99, ["copy"]),
        ("mps", "cpu", 99, ["copy"]),
    ],
)
def test_what_is_small_goes_to_a_gpu_without_waiting(
    kind: str, here: str, size: int, told: list[str]
) -> None:
    done: list[str] = []

    class Fake:
        device, nbytes = torch.device(here), size

        def pin_memory(self) -> Fake:
            done.append("pin")
            return self

        def to(self, device: torch.device, non_blocking: bool = False) -> Fake:
            assert device.type == kind
            done.append("copy without waiting" if non_blocking else "copy")
            return self

    send(cast("torch.Tensor", Fake()), torch.device(kind))
    assert done == told
