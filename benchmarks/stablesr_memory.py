"""How many numbers the pipelines' networks hold at once, per pixel: for the memory plan.

    python benchmarks/stablesr_memory.py [--cpu]

The full-size networks run on torch's meta device, which computes nothing and takes no memory, and
every tensor that comes into being is counted as long as it lives. Weights are left out, and so are
the workspaces of real kernels. With --cpu the peak of the process is measured as well, in fp32 with
random weights (needs 8 GB), for the share of such workspaces.
"""

from __future__ import annotations

import argparse
import gc
import resource
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from addsr.nets.seesr import ControlledUnet, build_controlnet
from addsr.nets.seesr import build_unet as build_controlled_unet
from addsr.nets.stablesr import (
    FeatureWrapping,
    GuidedUnet,
    SftLayers,
    TimeAwareEncoder,
    WrappedVae,
    build_unet,
    build_vae,
)
from addsr.nets.stablesr.strips import StripVae

UNET_WIDTH, VAE_WIDTH = 320, 128
SIDE = 2048


class Living(TorchDispatchMode):
    """Counts the bytes of tensors alive; those of `known` storages are somebody else's."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.alive = known, dict[int, int]()
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_flatten(out)[0]:
            if not isinstance(value, Tensor):
                continue
            storage = value.untyped_storage()
            key = storage._cdata
            if key in self.known or key in self.alive:
                continue
            self.alive[key] = storage.nbytes()
            self.now += self.alive[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)
        return out

    def _drop(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)


def nets(device: str) -> dict[str, Any]:
    """The full-size networks, with whatever numbers."""
    with torch.device(device):
        made: dict[str, Any] = {
            "unet": build_unet(),
            "encoder": TimeAwareEncoder(),
            "sft": SftLayers(),
            "vae": build_vae(),
            "cfw": FeatureWrapping(),
        }
    for net in made.values():
        net.eval().requires_grad_(False)
    return made


def count() -> None:
    """Prints numbers per pixel in units of the first width."""
    made = nets("meta")
    guided = GuidedUnet(made["unet"], made["encoder"], made["sft"])
    whole = WrappedVae(made["vae"], made["cfw"])
    tensors = (t for net in made.values() for t in (*net.parameters(), *net.buffers()))
    known = {t.untyped_storage()._cdata for t in tensors}
    # kernels that never hold the matrix of all pairs, as all devices have them
    F.scaled_dot_product_attention = lambda q, *_args, **_more: torch.empty_like(q)

    def peak(run: Callable[[], Any], pixels: int, width: int) -> float:
        with torch.no_grad(), Living(known) as living:
            run()
        return living.peak / (4 * pixels * width)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    for side, batch in ((64, 1), (64, 4), (96, 1)):
        z, t, context = empty(batch, 4, side, side), empty(batch), empty(1, 77, 1024)
        found = peak(
            lambda z=z, t=t, context=context: guided(z, t, z, context), batch * side**2, UNET_WIDTH
        )
        print(f"U-Net, {batch} tiles of {side}: {found:.2f} per latent pixel and width")
    count_controlled(peak, known)
    x, z = empty(1, 3, SIDE, SIDE), empty(1, 4, SIDE // 8, SIDE // 8)
    taps = (empty(1, 256, SIDE // 2, SIDE // 2), empty(1, 512, SIDE // 4, SIDE // 4))
    middle = made["vae"].decoder.mid_block
    deep = empty(1, 512, SIDE // 8, SIDE // 8)
    runs: dict[str, Callable[[], Any]] = {
        "VAE, encoder, whole": lambda: whole.encode(x),
        "VAE, decoder, whole, w 0": lambda: whole.decode(z, taps, 0.0),
        "VAE, decoder, whole, w 0.5": lambda: whole.decode(z, taps, 0.5),
        "VAE, middle": lambda: middle(deep),
    }
    for name, run in runs.items():
        print(f"{name}: {peak(run, SIDE**2, VAE_WIDTH):.2f} per pixel and width")
    for name, w in (("encoder", None), ("decoder, w 0", 0.0), ("decoder, w 0.5", 0.5)):
        found: list[float] = []
        for parts in (4, 16):
            vae = StripVae(made["vae"], made["cfw"], SIDE**2 // parts, torch.device("meta"))
            run = (
                (lambda v=vae: v.encode(x))
                if w is None
                else (lambda v=vae, w=w: v.decode(z, taps, w))
            )
            found.append(peak(run, SIDE**2, VAE_WIDTH))
        strip = (found[0] - found[1]) / (1 / 4 - 1 / 16)
        print(f"VAE in strips, {name}: {strip:.2f} of the strip, {found[0] - strip / 4:.2f} of all")


def count_controlled(peak: Callable[..., float], known: set[int]) -> None:
    """Prints the same for SeeSR's two networks, the map that the ControlNet sees included."""
    with torch.device("meta"):
        net = ControlledUnet(build_controlled_unet(), build_controlnet())
    known |= {t.untyped_storage()._cdata for t in net.parameters()}

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    side = 64
    for batch, negative in ((1, None), (4, None), (1, empty(1, 77, 1024))):
        z, seen = empty(batch, 4, side, side), empty(batch, UNET_WIDTH, side, side)
        found = peak(
            lambda b=batch, z=z, seen=seen, n=negative: net(
                z, empty(b), empty(1, 77, 1024), empty(1, 145, 512), seen, n, 5.5, 1.0
            ),
            batch * side**2,
            UNET_WIDTH,
        )
        told = "" if negative is None else ", guided"
        print(f"U-Net with ControlNet, {batch} tiles{told}: {found:.2f} per latent pixel and width")
    x = empty(1, 3, SIDE, SIDE)
    found = peak(lambda: net.encode(x), SIDE**2, UNET_WIDTH)
    print(f"ControlNet's map of a picture, whole: {found:.3f} per pixel and width of the U-Net")


def measure() -> None:
    """Prints resident memory beside what is counted, in fp32 on this CPU."""
    made = nets("cpu")
    whole = WrappedVae(made["vae"], made["cfw"])
    guided = GuidedUnet(made["unet"], made["encoder"], made["sft"])
    side = 512

    def decode() -> None:
        taps = (torch.rand(1, 256, side // 2, side // 2), torch.rand(1, 512, side // 4, side // 4))
        whole.decode(torch.rand(1, 4, side // 8, side // 8), taps, 0.5)

    def step() -> None:
        z = torch.rand(1, 4, 64, 64)
        guided(z, torch.tensor([500]), z, torch.rand(1, 77, 1024))

    # the smaller first: a process's peak never falls
    for name, run, counted in (
        ("U-Net, 1 tile of 64", step, 27.2 * 64**2 * UNET_WIDTH * 4),
        (f"VAE, decoder, {side}x{side}, w 0.5", decode, 6.0 * side**2 * VAE_WIDTH * 4),
    ):
        gc.collect()
        before = _resident()
        with torch.no_grad():
            run()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(f"{name}: {(peak - before) / 1e6:.0f} MB, counted {counted / 1e6:.0f} MB")


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="measure on this CPU too")
    if parser.parse_args().cpu:
        measure()
    count()
