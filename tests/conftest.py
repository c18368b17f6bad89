"""What every test may rely on: no network, no user files, fixed seeds, few threads."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# The variables below are read when libraries are first imported and are inherited by the
# processes that tests start, so they are set before any test module is.
_home = tempfile.mkdtemp(prefix="addsr-tests-")
atexit.register(shutil.rmtree, _home, ignore_errors=True)
os.environ |= {
    "HF_HOME": f"{_home}/huggingface",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "XDG_CACHE_HOME": f"{_home}/cache",
    "XDG_CONFIG_HOME": f"{_home}/config",
    "NO_COLOR": "1",
    "COLUMNS": "120",
}
# One thread: the tests' pictures are too small to gain from a second one, and beside other busy
# processes threads that spin while they wait made the suite ten times slower (622 s, not 50).
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
for name in ("ADDSR_MODEL", "ADDSR_MODELS", "ADDSR_DEVICE", "ADDSR_DTYPE", "ADDSR_MEMORY"):
    os.environ.pop(name, None)

# Without a deadline (shared machines stall) and the same examples in every run.
hypothesis.settings.register_profile("addsr", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("addsr")

_LOOPBACK = {"127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "", None, socket.gethostname()}


class NetworkBlockedError(RuntimeError):
    """A test reached for the network."""


def _refuse_remote(host: object) -> None:
    if isinstance(host, bytes):
        host = host.decode()
    if host not in _LOOPBACK:
        raise NetworkBlockedError(f"tests have no network, yet one asked for {host!r}")


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Let sockets reach this machine alone (torch.distributed's gloo needs that much)."""
    connect, connect_ex, look_up = (
        socket.socket.connect,
        socket.socket.connect_ex,
        socket.getaddrinfo,
    )

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family != getattr(socket, "AF_UNIX", None):
            _refuse_remote(address[0])
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        if self.family != getattr(socket, "AF_UNIX", None):
            _refuse_remote(address[0])
        return connect_ex(self, address)

    def guarded_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_remote(host)
        return look_up(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket, "getaddrinfo", guarded_look_up)
        yield


@pytest.fixture(autouse=True, scope="session")
def few_threads() -> None:
    """As many threads as the environment says, in this process as in those that tests start."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same global random state, whatever ran before it."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of stored reference results."""
    return Path(__file__).parent / "golden"
