"""Which device and number type to run on, and how much memory is free there."""

from __future__ import annotations

import logging
import os
import platform
import re
import sys
from pathlib import Path

import torch

from addsr.errors import OptionError

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEVICES = ("cpu", "cuda", "mps", "xpu")
_MOST_PINNED = 64 << 20
"""Bytes of a tensor that may be pinned on its way to a GPU."""


def choose_device(device: str = "auto") -> torch.device:
    """The device called `device`; `auto` takes cuda, xpu or mps where there is one, else the CPU.

    Raises:
        OptionError: an unknown name, or a device this machine does not have.
    """
    if device == "auto":
        found = [name for name in ("cuda", "xpu", "mps") if is_present(name)]
        return torch.device(found[0] if found else "cpu")
    kind, _, index = device.partition(":")
    # torch itself fails at longer numbers, and at digits of other scripts
    if kind not in DEVICES or (index and not re.fullmatch("[0-9]{1,2}", index)):
        raise OptionError(f"device: {device!r} is unknown; use auto, {', '.join(DEVICES)}")
    too_many = kind == "cuda" and index and int(index) >= torch.cuda.device_count()
    if not is_present(kind) or too_many:
        raise OptionError(
            f"device: {device!r} is not available to this build of torch ({torch.__version__}); "
            "use --device auto, or install the torch build for it (see `addsr doctor`)"
        )
    return torch.device(device)


def is_present(kind: str) -> bool:
    """Whether torch can use a device of this kind here."""
    if kind == "cuda":
        return torch.cuda.is_available()
    if kind == "mps":
        return torch.backends.mps.is_available()
    if kind == "xpu":
        return hasattr(torch, "xpu") and torch.xpu.is_available()
    return kind == "cpu"


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The type to compute in; `auto` is bf16 where the device has instructions for it.

    Elsewhere `auto` is fp16 on a GPU and fp32 on a CPU, where emulated bf16 would be slower.

    Raises:
        OptionError: an unknown name.
    """
    if dtype != "auto":
        if dtype not in DTYPES:
            raise OptionError(f"dtype: {dtype!r} is unknown; use auto, {', '.join(DTYPES)}")
        chosen = DTYPES[dtype]
        if chosen == torch.float16 and device.type == "cpu":
            log.warning("dtype: fp16 is slow on a CPU; auto is faster")
        elif chosen == torch.bfloat16 and not has_bf16(device):
            log.warning("dtype: %s has no bf16 instructions; auto is several times faster", device)
        return chosen
    if has_bf16(device):
        return torch.bfloat16
    return torch.float32 if device.type == "cpu" else torch.float16


def choose_latent_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`choose_dtype` for diffusion in a latent space: `auto` is fp16 on cuda and mps.

    Latents want fp16's finer steps; where it overflows, `addsr.restorers.latent` goes on in bf16.

    Raises:
        OptionError: an unknown name.
    """
    if dtype == "auto" and device.type in ("cuda", "mps"):
        return torch.float16
    return choose_dtype(dtype, device)


def has_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 numbers in hardware."""
    if device.type == "cpu":
        return cpu_has_bf16()
    if device.type == "cuda":
        # torch.cuda.is_bf16_supported() also says yes where it is emulated
        return torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "xpu"


def cpu_has_bf16() -> bool:
    """Whether this CPU has AVX512-BF16, AMX-BF16 or Arm's bf16 instructions, as far as is known."""
    if sys.platform == "darwin":
        return False  # torch has no bf16 convolutions that use Apple's instructions
    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is not None:
        known = ask()
        flags = [known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16")]
        if any(flags):
            return True
        if known.get("architecture") in ("x86_64", "AMD64"):
            return False
    words = _cpu_flags()
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return set(lines[0].partition(":")[2].split()) if lines else set()


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`x` on `device`, from main memory without waiting for what a GPU has still to do.

    What is large is copied in the usual way: beside its work the waiting does not count, and torch
    would keep as much main memory pinned.
    """
    if device.type == "cuda" and x.device.type == "cpu" and x.nbytes <= _MOST_PINNED:
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def free_memory(device: torch.device) -> int:
    """Bytes that a run may still take on `device`."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    if device.type == "xpu" and hasattr(torch.xpu, "mem_get_info"):
        return int(torch.xpu.mem_get_info(device)[0])
    return free_host_memory()


def free_host_memory() -> int:
    """Bytes of main memory that can be taken now, the limit of a container included."""
    free = [_available(), *_container_room()]
    return min(free)


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    # elsewhere only the size is known without a further package; half of it is a careful guess
    return total_host_memory() // 2


def total_host_memory() -> int:
    """Bytes of main memory of this machine; 8 GiB where the system does not say."""
    if platform.system() == "Windows":
        return _windows_memory()
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 8 << 30


def _windows_memory() -> int:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((f"value{i}", ctypes.c_ulonglong) for i in range(7)),
        )

    status = Status(length=ctypes.sizeof(Status))
    ok = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return int(status.value0) if ok else 8 << 30


def _container_room() -> list[int]:
    """What control groups still allow; caches of files count as free, the kernel drops them."""
    pairs = (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    )
    root = Path("/sys/fs/cgroup")
    room: list[int] = []
    for limit, usage, stat, cache in pairs:
        try:
            allowed = int((root / limit).read_text())
            used = int((root / usage).read_text())
            lines = (root / stat).read_text().splitlines()
        except (OSError, ValueError):
            continue  # no such group, or "max"
        cached = sum(int(line.split()[1]) for line in lines if line.split()[0] == cache)
        room.append(max(allowed - used + cached, 0))
    return room
