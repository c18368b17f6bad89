"""AlexNet and VGG16 without their classifiers, and reading of published weights for them.

LPIPS and DISTS compare activations of these two networks. The layers carry torchvision's numbers,
so that a state dict of `features.N.weight` and `features.N.bias` fits as it was published.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast
from zipfile import is_zipfile

import torch
from torch import Tensor, nn

from addsr.errors import InputError, ModelError

from .pixel import check_picture


class Backbone(nn.Module):
    """A chain of layers, tapped after some of them.

    `taps` are the numbers of the tapped layers, `channels` their widths and `smallest_side` the
    shortest picture side for which every tapped map has a pixel.
    """

    def __init__(
        self,
        layers: list[nn.Module],
        taps: tuple[int, ...],
        channels: tuple[int, ...],
        smallest_side: int,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.taps, self.channels, self.smallest_side = taps, channels, smallest_side

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """The tapped maps of a normalised picture `(B, 3, H, W)`, finest first, one at a time."""
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                yield x


def alexnet() -> Backbone:
    """AlexNet ("one weird trick" widths) up to its fifth ReLU, tapped after each of the five.

    Krizhevsky, "One weird trick for parallelizing convolutional neural networks" (2014).
    """
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(inplace=True),
    ]
    return Backbone(layers, (1, 4, 7, 9, 11), (64, 192, 384, 256, 256), smallest_side=31)


def vgg16(pools: list[nn.Module] | None = None) -> Backbone:
    """VGG16 up to relu5_3, tapped before each pool and at the end; `pools` replace its max pools.

    Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition"
    (2015), configuration D.
    """
    pools = pools or [nn.MaxPool2d(2, stride=2) for _ in range(4)]
    stages = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
    layers: list[nn.Module] = []
    taps: list[int] = []
    previous = 3
    for i, widths in enumerate(stages):
        if i:
            layers.append(pools[i - 1])
        for width in widths:
            layers += [nn.Conv2d(previous, width, 3, padding=1), nn.ReLU(inplace=True)]
            previous = width
        taps.append(len(layers) - 1)
    return Backbone(layers, tuple(taps), tuple(s[-1] for s in stages), smallest_side=16)


def read_joined(first: str | Path, second: str | Path | None) -> tuple[dict[str, Tensor], str]:
    """The tensors of one or two files as `read_tensors` gives them, and what errors call them."""
    if second is None:
        return read_tensors(first), str(first)
    return read_tensors(first) | read_tensors(second), f"{first} and {second}"


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of one written by `torch.save`, on the CPU.

    No code in the file is run. Where the name ends in eight digits of a sha256, as torchvision's
    and IQA-PyTorch's do, the file has to begin with them.

    Raises:
        ModelError: no such file, unreadable, damaged, or something else than named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no weights file there; give the path of a published file")
    try:
        stated = re.search(r"-([0-9a-f]{8})\.\w+$", path.name)
        if stated and not (found := _sha256(path)).startswith(stated[1]):
            raise ModelError(
                f"{path}: its sha256 begins with {found[:8]} and not with {stated[1]} as its name "
                "says; fetch the file again"
            )
        content = _content(path)
    except ModelError:
        raise
    except Exception as error:  # torch and safetensors raise a dozen kinds for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{path}: cannot be read as tensors ({reason}); "
            "give a .safetensors file or one of plain tensors written by torch.save"
        ) from error
    # training scripts wrap the weights once
    if isinstance(content, dict) and len(content) == 1:
        (inner,) = cast("dict[str, Any]", content).values()
        content = inner if isinstance(inner, dict) else content
    if not isinstance(content, dict) or not content:
        raise ModelError(
            f"{path}: holds {type(content).__name__} {str(content)[:60]!r}; "
            "give a file of named tensors (a state dict)"
        )
    entries = cast("dict[object, Any]", content)
    wrong = [str(name) for name, value in entries.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ModelError(
            f"{path}: {_few(wrong)} in it are no tensors; give a file of named tensors"
        )
    return {str(name): value for name, value in entries.items()}


def pick(
    weights: Mapping[str, Tensor],
    wanted: Mapping[str, tuple[int, ...]],
    ignored: re.Pattern[str],
    source: str,
) -> dict[str, Tensor]:
    """The entries of `weights` named and shaped as `wanted`; names matching `ignored` may be there.

    Raises:
        ModelError: entries are missing, shaped otherwise, or of unknown names; all are named.
    """
    missing = [name for name in wanted if name not in weights]
    unexpected = [name for name in weights if name not in wanted and not ignored.fullmatch(name)]
    if missing or unexpected:
        parts = [f"lacks {_few(missing)}"] if missing else []
        parts += [f"holds unexpected {_few(unexpected)}"] if unexpected else []
        raise ModelError(f"{source}: {' and '.join(parts)}; give the published file")
    for name, shape in wanted.items():
        if tuple(weights[name].shape) != shape:
            raise ModelError(
                f"{source}: {name} is {tuple(weights[name].shape)} and not {shape}; "
                "give the file that belongs to this network"
            )
    return {name: weights[name].detach().float() for name in wanted}


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the parameters of a module."""
    return {name: tuple(value.shape) for name, value in module.named_parameters()}


def check_pair(a: Tensor, b: Tensor, smallest_side: int) -> None:
    """Raises InputError unless `a` and `b` are pictures of one size with sides long enough."""
    check_picture("a", a)
    check_picture("b", b)
    if a.shape != b.shape:
        raise InputError(f"b: {tuple(b.shape)} differs from a's {tuple(a.shape)}; give equal sizes")
    if min(a.shape[-2:]) < smallest_side:
        raise InputError(
            f"size: {a.shape[-1]}x{a.shape[-2]} is too small for this network; "
            f"give sides of {smallest_side} or more"
        )


def _content(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    # mapped, so that the 400 MB of VGG16's classifier are never read; old files cannot be
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
