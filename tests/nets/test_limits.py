"""Configurations of strangers are refused before they cost time or memory."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from addsr.errors import ModelError
from addsr.models.files import save_weights
from addsr.models.hub import load_model
from addsr.nets import CompactConfig, CompactNet
from addsr.nets.limits import check_limits

SDXL = {
    "block_out_channels": [320, 640, 1280],
    "transformer_layers_per_block": [1, 2, 10],
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "projection_class_embeddings_input_dim": 2816,
    "norm_eps": 1e-5,
    "use_linear_projection": True,
    "_class_name": "UNet2DConditionModel",
    "sample_size": None,
}


def test_published_shapes_pass() -> None:
    check_limits(SDXL)
    check_limits({"num_train_timesteps": 1000, "trained_betas": None, "beta_end": 0.012})
    check_limits({"widths": (256, 256, 512, 512), "blocks": 2, "attention": (True, False)})


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("layers_per_block", 10**9, "layers_per_block = 1000000000: no more than"),
        ("layers_per_block", 600, "no more than 1000 layers in all"),
        ("layers_per_block", [2, 2, 400], "no more than 1000 layers in all"),
        ("transformer_layers_per_block", [[1, 9000], 1, 1], "no more than 1000 layers"),
        ("reverse_transformer_layers_per_block", 9000, "no more than 1000 layers"),
        ("block_out_channels", [10**9] * 3, r"block_out_channels = \[1000000000, .*no more than"),
        ("block_out_channels", [32] * 17, "has 17 levels"),
        ("num_train_timesteps", 10**12, "num_train_timesteps"),
        ("sample_size", -(10**9), "sample_size"),
        ("norm_eps", float("nan"), "norm_eps = nan"),
        ("norm_eps", float("inf"), "norm_eps = inf"),
        ("heads", 10**4000, r"heads = 10{56}\.\.\.: no more"),
    ],
)
def test_absurd_sizes_are_named(field: str, value: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        check_limits({**SDXL, field: value})


@pytest.mark.parametrize("name", ["UNet2DConditionModel", "AutoencoderKL", "DDPMScheduler"])
def test_nothing_of_diffusers_is_built_of_them(name: str) -> None:
    pytest.importorskip("diffusers", reason="the diffusion extra is not installed")
    from addsr.nets.stablesr.backbones import rebuild

    began = time.monotonic()
    field = "num_train_timesteps" if name == "DDPMScheduler" else "layers_per_block"
    with pytest.raises(ModelError, match=f"{field} = "):
        rebuild(name, {field: 10**10})
    assert time.monotonic() - began < 20


def test_seesrs_networks_have_the_same_limits() -> None:
    pytest.importorskip("diffusers", reason="the diffusion extra is not installed")
    from addsr.nets.seesr.backbones import build_controlnet, build_unet

    for build in (build_unet, build_controlnet):
        with pytest.raises(ModelError, match="layers_per_block = "):
            build({"layers_per_block": 10**10})


def test_a_tagger_of_absurd_depth_is_refused(tmp_path: Path) -> None:
    from addsr.nets.ram import HeadConfig, SwinConfig
    from addsr.pipelines.tagger import read_shape

    swin, head = (json.loads(json.dumps(vars(c()))) for c in (SwinConfig, HeadConfig))
    deep = {**swin, "depths": [2, 2, 10**9, 2]}
    with pytest.raises(ModelError, match=r"unknown shape \(depths = "):
        read_shape({"swin": deep, "head": head}, tmp_path)
    with pytest.raises(ModelError, match=r"unknown shape \(layers = "):
        read_shape({"swin": swin, "head": {**head, "layers": 10**9}}, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"depths": (10**9, 1, 1)},
        {"widths": (10**6,) * 3},
        {"widths": (10**30,) * 3},
        {"decoder_depth": 10**9},
    ],
)
def test_a_compact_model_never_becomes_larger_than_its_weights(
    change: dict[str, Any], tmp_path: Path
) -> None:
    small = CompactConfig((16, 16, 16), (1, 1, 1), (16, 16, 16), 1, context_channels=0)
    net, path = CompactNet(small), tmp_path / "net.safetensors"
    about = {"kind": "compact", "config": {**net.config.to_dict(), **change}}
    save_weights(path, net.state_dict(), about)
    with pytest.raises(ModelError, match="of a larger network than the weights"):
        load_model(path)
    save_weights(path, net.state_dict(), {**about, "config": net.config.to_dict()})
    assert torch.equal(next(load_model(path).net.parameters()), next(net.parameters()))
