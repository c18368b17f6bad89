"""Compact networks on the validation pictures: what every comparison of them needs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.errors import ModelError
from addsr.metrics import gradient, load_niqe_params, lr_psnr, niqe, psnr_y, ssim_y
from addsr.metrics.pictures import picture_files, read_picture
from addsr.models.files import load_weights
from addsr.nets import CompactNet, build
from addsr.train.flops import forward_flops

SETS = ("synthetic", "real_lr_crops")


def load_net(path: Path, batch: int) -> tuple[CompactNet, dict[str, Any]]:
    """The network in a weights file of training, and facts about it."""
    state, metadata = load_weights(path)
    net = build(str(metadata.get("kind")), metadata.get("config"))
    if not isinstance(net, CompactNet):
        raise ModelError(f"{path}: holds weights of kind {metadata.get('kind')!r}, not 'compact'")
    net.load_state_dict({k: v.float() for k, v in state.items()})
    # weights that were averaged over runs name the steps of each, such as 3000+10368
    steps = sum(int(part) for part in str(metadata.get("step", "")).split("+") if part.isdecimal())
    facts = {
        "config": net.config.to_dict(),
        "training_steps": steps,
        "crops": steps * batch,
        "parameters": sum(p.numel() for p in net.parameters()),
        "gmac": forward_flops(net, 512) / 2e9,
    }
    return net.eval().requires_grad_(False), facts


def sampled(
    net: CompactNet, lr: Tensor, seed: int, count: int, sample: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """`lr` `(1, 3, h, w)` four times larger, in `count` ways: `(count, 3, 4h, 4w)` in 8-bit levels.

    `sample` gets the low-resolution picture and one noise field, which depends on `seed` alone,
    `count` times each and on the network's device. Sides are mirrored up to what the network takes,
    and cut off again.
    """
    device = next(net.parameters()).device
    height, width = lr.shape[-2:]
    more = [-side % net.multiple for side in (width, height)]
    padded = F.pad(lr, (0, more[0], 0, more[1]), mode="reflect").to(device)
    shape = (1, 3, padded.shape[-2] * net.scale, padded.shape[-1] * net.scale)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    with torch.inference_mode():
        sr = sample(padded.expand(count, -1, -1, -1), noise.expand(count, -1, -1, -1))
    # 8-bit levels, as a file would have them
    return (sr[..., : 4 * height, : 4 * width].clamp(0, 1) * 255).round().cpu() / 255


def niqe_models(params: Path | None) -> dict[str, Any]:
    """NIQE's models by the names of the measures: our own, and the published one where given."""
    models: dict[str, Any] = {"niqe-addsr": load_niqe_params()}
    if params is not None:
        models["niqe"] = load_niqe_params(params)
    return models


def measure(sr: Tensor, lr: Tensor, hr: Tensor | None, models: dict[str, Any]) -> dict[str, float]:
    """Figures of one result."""
    figures = {"lr-psnr": lr_psnr(sr, lr)}
    if hr is not None:
        figures |= {
            "psnr-y": psnr_y(sr, hr),
            "ssim-y": ssim_y(sr, hr),
            "gradient": gradient(sr) / gradient(hr),
        }
    if (sr.shape[-2] // 96) * (sr.shape[-1] // 96) >= 2:  # whole blocks that NIQE needs
        figures |= {name: niqe(sr, params) for name, params in models.items()}
    return {name: float(value) for name, value in figures.items()}


def inputs(val: Path, dataset: str, limit: int) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """`(name, lr, hr)` of the pictures of a set; none where the folder is missing."""
    folder = val / ("lr" if dataset == "synthetic" else dataset)
    if not folder.is_dir():
        return
    references = picture_files(val / "hr") if dataset == "synthetic" else {}
    names = [n for n in picture_files(folder) if dataset != "synthetic" or n in references]
    files = picture_files(folder)
    for name in names[: limit or None]:
        hr = read_picture(references[name]) if references else None
        yield name, read_picture(files[name]), hr


def write_json(path: Path, data: dict[str, Any], indent: int | None = 1) -> None:
    """Writes `data` to the JSON file, by way of a temporary one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.part"
    temporary.write_text(json.dumps(data, indent=indent) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def device_name(device: str) -> str:
    """What the work is done on, for the page."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def remake_results(docs: Path, *, required: bool) -> int:
    """Makes docs/results.md again, of which the caller's figures are a section; exit status.

    Without its results.json nothing is made, which is an error only where it is `required`.
    """
    if not (docs / "results.json").is_file():
        print(f"{docs}: no results.json, so results.md was not made", file=sys.stderr)
        return 1 if required else 0
    try:  # it needs the command line's packages, which a machine for training may lack
        from results import main as results
    except ModuleNotFoundError as error:
        print(f"docs/results.md was not made ({error}): --render-only", file=sys.stderr)
        return 0
    results(["--render-only", "--docs", str(docs)])
    return 0
