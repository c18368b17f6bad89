"""Memory that runs out: telling it from other errors, and giving back what is merely cached."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is any device's way to say that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    signs = ("out of memory", "not enough memory", "can't allocate memory", "could not allocate")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def release_memory(device: torch.device) -> None:
    """Gives cached blocks of a GPU back."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif device.type == "xpu":
        torch.xpu.empty_cache()
