"""Published StableSR tensors under our names: none lost, none left, none guessed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from addsr.errors import ModelError
from addsr.models.convert_stablesr import (
    Parts,
    convert_checkpoint,
    convert_encoder,
    convert_sft,
    convert_unet,
    convert_vae,
)
from addsr.nets.stablesr import (
    FeatureWrapping,
    SftLayers,
    TimeAwareEncoder,
    UnetConfig,
    build_unet,
    build_vae,
)

State = dict[str, Tensor]


def weights(golden: Path, name: str, prefix: str = "") -> State:
    stored = load_file(golden / f"{name}.safetensors")
    return {prefix + k[7:]: v.float() for k, v in stored.items() if k.startswith("weight/")}


@pytest.fixture(scope="module")
def checkpoint(golden: Path) -> State:
    """A `stablesr_*.ckpt` in small."""
    cfw = weights(golden, "stablesr_cfw", "first_stage_model.")
    return {
        **weights(golden, "stablesr_unet", "model.diffusion_model."),
        **weights(golden, "stablesr_encoder", "structcond_stage_model."),
        **{k: v for k, v in cfw.items() if "fusion_layer" not in k},
        "cond_stage_model.model.positional_embedding": torch.zeros(77, 8),
        "betas": torch.zeros(1000),
        "sqrt_alphas_cumprod": torch.zeros(1000),
    }


def loads_all(parts: Parts) -> None:
    for net, state in (
        (build_unet(parts.unet_config), parts.unet),
        (SftLayers(parts.sft_config), parts.sft),
        (TimeAwareEncoder(parts.encoder_config), parts.encoder),
        (build_vae(parts.vae_config), parts.vae),
    ):
        assert state is not None
        net.load_state_dict(state, strict=True)


def test_a_whole_checkpoint_becomes_networks_that_load(checkpoint: State) -> None:
    parts = convert_checkpoint(checkpoint, head_channels=16)
    loads_all(parts)
    assert parts.unet and len(parts.unet) == 684  # at full width one more block has a shortcut
    assert parts.sft and len(parts.sft) == 176
    assert parts.encoder and len(parts.encoder) == 200 + 7 * 4  # q, k and v of 7 attentions apart
    assert parts.text and list(parts.text) == ["model.positional_embedding"]
    assert parts.ignored == ("betas", "sqrt_alphas_cumprod")
    assert parts.cfw is None and parts.cfw_config is None
    assert parts.unet_config and parts.unet_config.context == 48


def test_the_published_widths_fit(checkpoint: State) -> None:
    def tags(prefix: str) -> State:
        names = [k.removeprefix(prefix) for k in checkpoint if k.startswith(prefix)]
        return {k: checkpoint[prefix + k].to("meta") for k in names if ".spade." not in k}

    # names by identity in small, shapes of the full size
    small = tags("model.diffusion_model.")
    new_name = {id(v): k for k, v in convert_unet(small, head_channels=16)[1].items()}
    with torch.device("meta"):
        full = build_unet().state_dict()
    state = {old: full[new_name[id(tag)]] for old, tag in small.items()}
    shortcut = "down_blocks.1.resnets.0.conv_shortcut"
    for part in ("weight", "bias"):
        state[f"input_blocks.4.0.skip_connection.{part}"] = full[f"{shortcut}.{part}"]
    config, converted = convert_unet(state)
    assert config == UnetConfig()
    assert len(converted) == 686
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in full.items()}


def test_no_number_is_lost_or_made_up(checkpoint: State) -> None:
    parts = convert_checkpoint(checkpoint, head_channels=16)
    groups = [parts.unet, parts.sft, parts.encoder, parts.vae, parts.text]
    got = torch.cat([v.flatten() for group in groups if group for v in group.values()])
    kept = [v.flatten() for k, v in checkpoint.items() if k not in parts.ignored]
    assert torch.equal(got.sort().values, torch.cat(kept).sort().values)


def test_the_file_of_the_vae_gives_its_feature_wrapping(golden: Path) -> None:
    state = weights(golden, "stablesr_cfw")
    state["loss.logvar"] = state["loss.discriminator.main.0.weight"] = torch.zeros(())
    parts = convert_checkpoint(state)
    assert parts.cfw and len(parts.cfw) == 156
    FeatureWrapping(parts.cfw_config).load_state_dict(parts.cfw, strict=True)
    build_vae(parts.vae_config).load_state_dict(parts.vae or {}, strict=True)
    assert parts.ignored == ("loss.logvar", "loss.discriminator.main.0.weight")


def test_a_file_of_the_adapter_alone_is_enough(checkpoint: State) -> None:
    few = {k: v for k, v in checkpoint.items() if ".spade." in k or k.startswith("structcond")}
    assert len(few) == 376
    parts = convert_checkpoint(few)
    assert parts.unet is None and parts.vae is None and parts.text is None
    SftLayers(parts.sft_config).load_state_dict(parts.sft or {}, strict=True)
    TimeAwareEncoder(parts.encoder_config).load_state_dict(parts.encoder or {}, strict=True)


@pytest.mark.parametrize(
    "lost",
    [
        "model.diffusion_model.output_blocks.5.2.conv.bias",
        "model.diffusion_model.input_blocks.4.0.spade.mlp_beta.weight",
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
        "structcond_stage_model.input_blocks.2.1.qkv.bias",
        "structcond_stage_model.fea_tran.3.skip_connection.bias",
        "first_stage_model.decoder.up.1.block.2.norm2.weight",
        "structcond_stage_model.time_embed.0.weight",
    ],
)
def test_a_lost_tensor_is_named(checkpoint: State, lost: str) -> None:
    with pytest.raises(ModelError) as caught:
        convert_checkpoint({k: v for k, v in checkpoint.items() if k != lost}, head_channels=16)
    assert lost.split(".", 2)[-1] in str(caught.value)


@pytest.mark.parametrize(
    "odd",
    [
        "model.diffusion_model.label_emb.0.0.weight",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.1.norm1.weight",
        "structcond_stage_model.input_blocks.12.0.weight",
        "first_stage_model.encoder.down.0.attn.0.q.weight",
        "model_ema.decay",
    ],
)
def test_an_unknown_tensor_is_named(checkpoint: State, odd: str) -> None:
    with pytest.raises(ModelError) as caught:
        convert_checkpoint({**checkpoint, odd: torch.zeros(1)}, head_channels=16)
    assert odd.split(".", 2)[-1] in str(caught.value)


def test_a_foreign_file_is_refused_with_what_was_found() -> None:
    with pytest.raises(ModelError, match=r"found 1 tensors \(layer1\.0\.conv1\.weight\)"):
        convert_checkpoint({"layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match="found 0 tensors"):
        convert_checkpoint({})
    for convert in (convert_encoder, convert_unet, convert_sft, convert_vae):
        with pytest.raises(ModelError, match=r"found 1 tensors \(conv\.weight\)"):
            convert({"conv.weight": torch.zeros(1)})


def test_joint_attention_is_taken_apart_head_by_head(golden: Path) -> None:
    state = weights(golden, "stablesr_encoder")
    _, converted = convert_encoder(state, heads=4)
    joint = state["middle_block.1.qkv.weight"][..., 0]  # head-major
    width = len(joint) // 3
    of_head = joint.view(4, 3, width // 4, width)
    assert torch.equal(converted["middle.1.k.weight"], of_head[:, 1].reshape(width, width))
    assert not torch.equal(converted["middle.1.k.weight"], joint.chunk(3)[1])


def test_heads_that_do_not_divide_are_refused(golden: Path) -> None:
    with pytest.raises((ModelError, ValueError), match="heads"):
        convert_encoder(weights(golden, "stablesr_encoder"), heads=5)


@pytest.mark.parametrize(
    ("convert", "old", "new"),
    [
        (convert_encoder, "input_blocks.3.0.op.weight", "input_blocks.900000000.0.op.weight"),
        (convert_unet, "input_blocks.3.0.op.weight", "input_blocks.900000000.0.op.weight"),
        (
            convert_sft,
            "input_blocks.4.0.spade.param_free_norm.weight",
            "input_blocks.900000000.0.spade.param_free_norm.weight",
        ),
    ],
)
def test_a_block_of_number_900_million_is_refused_without_counting_to_it(
    checkpoint: State, convert: Callable[[State], object], old: str, new: str
) -> None:
    prefix = "structcond_stage_model." if convert is convert_encoder else "model.diffusion_model."
    state = {k.removeprefix(prefix): v for k, v in checkpoint.items() if k.startswith(prefix)}
    state = {k: v for k, v in state.items() if (".spade." in k) == (convert is convert_sft)}
    last = max((k for k in state if k.endswith(old.partition(".0.")[2])), key=len)
    state[new] = state.pop(last)
    with pytest.raises(ModelError, match=r"unknown layout .*900000000.* among \d+ tensors"):
        convert(state)


def test_a_joint_projection_without_a_dimension_is_refused(checkpoint: State) -> None:
    prefix = "structcond_stage_model."
    state = {k.removeprefix(prefix): v for k, v in checkpoint.items() if k.startswith(prefix)}
    name = "middle_block.1.qkv.bias"
    with pytest.raises(ModelError, match=r"qkv\.bias \(\) has no 4 heads"):
        convert_encoder({**state, name: torch.zeros(())})
