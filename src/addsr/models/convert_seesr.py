"""Published SeeSR and AddSR networks: a folder with config.json and one weights file for each.

Their tensors have the names of our networks, so there is nothing to rename; what there is to do is
to account for each of them. diffusers' own loader drops the flag it does not know from the
configuration and then all image attentions with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from addsr.errors import ModelError
from addsr.nets.seesr import build_controlnet, build_unet
from addsr.nets.seesr.image_attention import FLAG, IMAGE_WIDTH, WIDTH

from .pickles import read_state
from .pipeline_files import read_object
from .renaming import few, layout_of

State = Mapping[str, Tensor]
Kind = Literal["unet", "controlnet"]

_BUILDERS: dict[Kind, Callable[[Mapping[str, Any]], nn.Module]] = {
    "unet": build_unet,
    "controlnet": build_controlnet,
}
MARK = ".image_attentions."
"""In the names of what SeeSR adds to a network."""
_STEM = "diffusion_pytorch_model"


def load_seesr(
    folder: str | Path,
    kind: Kind,
    *,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
) -> nn.Module:
    """The published network in `folder`, in evaluation mode, on the CPU.

    Args:
        folder: holds config.json and diffusion_pytorch_model.safetensors, or .bin.
        dtype: of its numbers; that of the file if None.
        variant: between name and ending of the file, such as fp16.

    Raises:
        ModelError: a file is missing, damaged, or of another layout than the published one.
        DependencyError: diffusers is not installed.
    """
    folder = Path(folder)
    config, path = read_config(folder), find_weights(folder, variant)
    try:
        return seesr_from(config, read_state(path), kind, dtype=dtype)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error


def seesr_shape(folder: Path, kind: Kind) -> nn.Module:
    """The network that config.json in `folder` describes, without numbers.

    Raises:
        ModelError: the file is missing, or no network can be built of it.
        DependencyError: diffusers is not installed.
    """
    with torch.device("meta"):
        return _BUILDERS[kind](read_config(folder))


def seesr_from(
    config: Mapping[str, Any], state: State, kind: Kind, *, dtype: torch.dtype | None = None
) -> nn.Module:
    """The network of a published config.json and its tensors, in evaluation mode.

    Raises:
        ModelError: they do not fit each other, or have no image attention.
        DependencyError: diffusers is not installed.
    """
    settings = complete_config(config, state)
    with torch.device("meta"):
        net = _BUILDERS[kind](settings)
    check_state(net, state, kind)
    # copied: a file's numbers are not aligned, which makes other kernels round otherwise
    own = {k: v.to(dtype if v.is_floating_point() else None, copy=True) for k, v in state.items()}
    net.load_state_dict(own, strict=True, assign=True)
    return net.eval()


def complete_config(config: Mapping[str, Any], state: State) -> dict[str, Any]:
    """`config` with the flag of image attention and its width, which the tensors tell.

    Raises:
        ModelError: there is no image attention, or the flag contradicts the tensors.
    """
    places = [name for name in state if MARK in name]
    told = config.get(FLAG)
    if told is not None and bool(told) != bool(places):
        raise ModelError(
            f"config.json: {FLAG} is {told} and the weights have {len(places)} such tensors; "
            "one of the two files is of another model"
        )
    if not places:
        raise ModelError(
            f"no image attention in the weights ({layout_of(state)}): a plain Stable Diffusion; "
            "give the U-Net and ControlNet of SeeSR or AddSR"
        )
    widths = {int(state[name].shape[-1]) for name in places if name.endswith(".attn2.to_k.weight")}
    if len(widths) != 1:
        raise ModelError(f"image attentions of widths {sorted(widths)}; there must be one width")
    width = widths.pop()
    more = {} if width == IMAGE_WIDTH else {WIDTH: width}
    return {**config, FLAG: True, **more}


def check_state(net: nn.Module, state: State, kind: str) -> None:
    """ModelError unless `state` has each tensor of `net`, in its shape, and no other."""
    wanted = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    there = {k: tuple(v.shape) for k, v in state.items()}
    missing, unknown = sorted(wanted.keys() - there), sorted(there.keys() - wanted)
    wrong = [
        f"{k} {there[k]}, not {wanted[k]}"
        for k in sorted(wanted.keys() & there)
        if wanted[k] != there[k]
    ]
    if missing or unknown or wrong:
        raise ModelError(
            f"{kind}: {len(missing)} tensors missing{few(missing)}, {len(unknown)} unknown"
            f"{few(unknown)}, {len(wrong)} of another shape{few(wrong)}; check that config.json "
            "and weights belong together"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json in `folder` says.

    Raises:
        ModelError: it is missing or holds no JSON object.
    """
    return read_object(folder / "config.json", "give a published unet or controlnet folder")


def find_weights(folder: Path, variant: str | None = None) -> Path:
    """The weights file in `folder`; safetensors if there are both kinds.

    Raises:
        ModelError: there is none.
    """
    stem = f"{_STEM}.{variant}" if variant else _STEM
    for ending in ("safetensors", "bin"):
        path = folder / f"{stem}.{ending}"
        if path.is_file():
            return path
    others = sorted(p.name for p in folder.glob(f"{_STEM}*"))
    seen = f"; there are {', '.join(others)}: check `variant`" if others else ""
    raise ModelError(f"{folder}: no {stem}.safetensors or .bin there{seen}")
