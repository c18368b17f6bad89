"""How much memory a method takes, as well as the machine can tell."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """The most memory taken between `start` and `stop`, with words for what is counted.

    On CUDA what torch allocated there. Elsewhere the resident size of the whole process, Python
    and torch included; where the system keeps only the peak since the process began (it can be
    reset on Linux alone), a method that ran before may have set it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._was_reset = False

    def start(self) -> None:
        """From here on the peak counts."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            _CLEAR.write_text("5")  # resets the peak, `man 5 proc`
            self._was_reset = _resident_peak() is not None
        except OSError:
            self._was_reset = False

    def stop(self) -> tuple[int, str]:
        """Bytes, and what they are."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device), "allocated on the GPU by torch"
        peak = _resident_peak() if self._was_reset else None
        if peak is not None:
            return peak, "resident size of the whole process while the method ran"
        return _process_peak(), "resident size of the whole process since its start"


def _resident_peak() -> int | None:
    """Linux's VmHWM in bytes."""
    try:
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def _process_peak() -> int:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
