"""Published StableSR checkpoints: their tensors renamed for our networks and diffusers'.

State dict in, state dicts and shapes out; nothing is read, unpickled or downloaded here. Shapes are
deduced from the tensors (but for attention heads, which no tensor shows). Conversion is strict:
each tensor is used, or named as ignored, or the whole is refused. The published loaders skip what
they do not know without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from addsr.errors import ModelError
from addsr.nets.stablesr import CfwConfig, EncoderConfig, SftConfig, UnetConfig, VaeConfig
from addsr.nets.stablesr.sft import module_name

from .renaming import Renaming, layout_of

State = Mapping[str, Tensor]
Converted = dict[str, Tensor]

IGNORED = ("betas", "alphas_cumprod", "sqrt_", "posterior_", "log_one_minus_", "loss.")
"""Beginnings of what is not needed: tables of the schedule, losses of the VAE's training."""


@dataclass(frozen=True)
class Parts:
    """What a checkpoint held; a part it does not have is None, and its shape too."""

    unet: Converted | None = None
    unet_config: UnetConfig | None = None
    sft: Converted | None = None
    sft_config: SftConfig | None = None
    encoder: Converted | None = None
    encoder_config: EncoderConfig | None = None
    vae: Converted | None = None
    vae_config: VaeConfig | None = None
    cfw: Converted | None = None
    cfw_config: CfwConfig | None = None
    text: Converted | None = None
    """The OpenCLIP text tower under its published names, not converted."""
    ignored: tuple[str, ...] = ()


def convert_checkpoint(state: State, *, heads: int = 4, head_channels: int = 64) -> Parts:
    """The parts of a whole published file, given what is under its `state_dict`.

    Takes `stablesr_*.ckpt`, the files with the 376 adapter tensors alone, and `vqgan_cfw_*.ckpt`.

    Args:
        heads: attention heads of the time-aware encoder.
        head_channels: channels per attention head of the U-Net.

    Raises:
        ModelError: a tensor is unknown, missing or of an unexpected shape; the message names it.
    """
    groups: dict[str, Converted] = {}
    ignored: list[str] = []
    unknown: list[str] = []
    for name, tensor in state.items():
        for prefix, group in _PREFIXES.items():
            if name.startswith(prefix):
                keep = name if group == "vae" and prefix != "first_stage_model." else None
                groups.setdefault(group, {})[keep or name.removeprefix(prefix)] = tensor
                break
        else:
            (ignored if name.startswith(IGNORED) else unknown).append(name)
    if unknown or not groups:
        raise ModelError(
            f"not a published StableSR checkpoint: {layout_of(unknown or state)}; "
            f"known beginnings are {', '.join(_PREFIXES)}"
        )
    parts: dict[str, object] = {"text": groups.get("text"), "ignored": tuple(ignored)}
    net = groups.get("unet", {})
    spade = {k: v for k, v in net.items() if ".spade." in k}
    plain = {k: v for k, v in net.items() if ".spade." not in k}
    if spade:
        parts["sft_config"], parts["sft"] = convert_sft(spade)
    if plain:
        parts["unet_config"], parts["unet"] = convert_unet(plain, head_channels=head_channels)
    if "encoder" in groups:
        converted = convert_encoder(groups["encoder"], heads=heads)
        parts["encoder_config"], parts["encoder"] = converted
    if "vae" in groups:
        fusion = {k: v for k, v in groups["vae"].items() if k.startswith(_FUSION)}
        rest = {k: v for k, v in groups["vae"].items() if not k.startswith(_FUSION)}
        if fusion:
            parts["cfw_config"], parts["cfw"] = convert_cfw(fusion)
        if rest:
            parts["vae_config"], parts["vae"] = convert_vae(rest)
    return Parts(**parts)  # type: ignore[arg-type]


_FUSION = "decoder.fusion_layer_"
_PREFIXES = {
    "model.diffusion_model.": "unet",
    "structcond_stage_model.": "encoder",
    "first_stage_model.": "vae",
    "cond_stage_model.": "text",
    "encoder.": "vae",
    "decoder.": "vae",
    "quant_conv.": "vae",
    "post_quant_conv.": "vae",
}


def convert_encoder(state: State, *, heads: int = 4) -> tuple[EncoderConfig, Converted]:
    """Shape and tensors of the `TimeAwareEncoder` in 200 published tensors.

    The published attention keeps q, k and v of one head together, `[heads, 3, C / heads, C]`;
    three plain thirds would fit in shape and be wrong.

    Raises:
        ModelError: another layout than the published one.
    """
    move = Renaming(state, "time-aware encoder")
    with move.reading():
        widths, blocks, attended = _contracting(move, "qkv.weight")
        config = EncoderConfig(
            widths=widths,
            blocks=blocks,
            attention=attended,
            heads=heads,
            time_channels=move.shape("time_embed.0.weight")[1],
            features=move.shape("fea_tran.0.out_layers.3.weight")[0],
            latent_channels=move.shape("input_blocks.0.0.weight")[1],
        )

    def attention(old: str, new: str) -> None:
        move.layer(f"{old}.norm", f"{new}.norm")
        move.split_heads(f"{old}.qkv", [f"{new}.{part}" for part in "qkv"], heads)
        move.layer(f"{old}.proj_out", f"{new}.out", flat=True)

    move.layer("time_embed.0", "time.0")
    move.layer("time_embed.2", "time.2")
    move.layer("input_blocks.0.0", "conv_in")
    for level in range(len(widths)):
        for k in range(blocks):
            old = f"input_blocks.{level * (blocks + 1) + 1 + k}"
            move_resnet(move, f"{old}.0", f"grids.{level}.blocks.{k}", "time", "shortcut")
            if attended[level]:
                attention(f"{old}.1", f"grids.{level}.attentions.{k}")
        if level + 1 < len(widths):
            move.layer(f"input_blocks.{(level + 1) * (blocks + 1)}.0.op", f"grids.{level}.down")
        move_resnet(move, f"fea_tran.{level}", f"outputs.{level}", "time", "shortcut")
    for k in (0, 2):
        move_resnet(move, f"middle_block.{k}", f"middle.{k}", "time", "shortcut")
    attention("middle_block.1", "middle.1")
    return config, move.finish()


def convert_unet(state: State, *, head_channels: int = 64) -> tuple[UnetConfig, Converted]:
    """Shape and tensors of diffusers' U-Net in 686 published tensors, those of SPADE taken out.

    Raises:
        ModelError: another layout than that of Stable Diffusion.
    """
    move = Renaming(state, "U-Net")
    with move.reading():
        widths, blocks, attended = _contracting(move, "proj_in.weight")
        # the middle always attends
        config = UnetConfig(
            widths=widths,
            blocks=blocks,
            attention=attended,
            head_channels=head_channels,
            context=move.shape("middle_block.1.transformer_blocks.0.attn2.to_k.weight")[1],
            has_linear_projection=len(move.shape("middle_block.1.proj_in.weight")) == 2,
            latent_channels=move.shape("input_blocks.0.0.weight")[1],
        )
    per_level, deepest = blocks + 1, len(widths) - 1

    def resnet(old: str, new: str) -> None:
        move_resnet(move, old, new, "time_emb_proj", "conv_shortcut")

    move.layer("time_embed.0", "time_embedding.linear_1")
    move.layer("time_embed.2", "time_embedding.linear_2")
    move.layer("input_blocks.0.0", "conv_in")
    for level in range(len(widths)):
        for k in range(blocks):
            old = f"input_blocks.{level * per_level + 1 + k}"
            resnet(f"{old}.0", f"down_blocks.{level}.resnets.{k}")
            if attended[level]:
                move_transformer(move, f"{old}.1", f"down_blocks.{level}.attentions.{k}")
        if level < deepest:
            old = f"input_blocks.{(level + 1) * per_level}.0.op"
            move.layer(old, f"down_blocks.{level}.downsamplers.0.conv")
    resnet("middle_block.0", "mid_block.resnets.0")
    move_transformer(move, "middle_block.1", "mid_block.attentions.0")
    resnet("middle_block.2", "mid_block.resnets.1")
    for i in range(len(widths)):
        level = deepest - i
        for k in range(per_level):
            old = f"output_blocks.{i * per_level + k}"
            resnet(f"{old}.0", f"up_blocks.{i}.resnets.{k}")
            if attended[level]:
                move_transformer(move, f"{old}.1", f"up_blocks.{i}.attentions.{k}")
        if level > 0:
            old = f"output_blocks.{i * per_level + blocks}.{2 if attended[level] else 1}.conv"
            move.layer(old, f"up_blocks.{i}.upsamplers.0.conv")
    move.layer("out.0", "conv_norm_out")
    move.layer("out.2", "conv_out")
    return config, move.finish()


def convert_sft(state: State) -> tuple[SftConfig, Converted]:
    """Shape and tensors of `SftLayers` in the 176 published SPADE tensors of a U-Net.

    Raises:
        ModelError: another layout than the published one.
    """
    move = Renaming(state, "modulation layers")
    suffix = ".0.spade.param_free_norm.weight"
    with move.reading():
        at = move.indices("input_blocks", suffix)
        per_level = next((b for a, b in pairwise(at) if b - a > 1), at[-1] + 2) - 1
        widths = tuple(move.shape(f"input_blocks.{i}{suffix}")[0] for i in at if i % per_level == 1)
        hidden, features = move.shape("middle_block.0.spade.mlp_shared.0.weight")[:2]
        config = SftConfig(widths, per_level - 1, features, hidden)
    for place in config.places:
        move_sft_layer(move, f"{_published_block(place, per_level)}.spade.", module_name(place))
    return config, move.finish()


def move_sft_layer(move: Renaming, old: str, new: str) -> None:
    """Moves the 8 tensors of one layer; `old` is their prefix with its dot, or nothing."""
    move.layer(f"{old}param_free_norm", f"{new}.norm")
    move.layer(f"{old}mlp_shared.0", f"{new}.shared")
    move.layer(f"{old}mlp_gamma", f"{new}.gamma")
    move.layer(f"{old}mlp_beta", f"{new}.beta")


def convert_vae(state: State) -> tuple[VaeConfig, Converted]:
    """Shape and tensors of diffusers' `AutoencoderKL`; fusion layers taken out before.

    Raises:
        ModelError: another layout than that of Stable Diffusion.
    """
    move = Renaming(state, "VAE")
    with move.reading():
        levels = move.indices("encoder.down", ".block.0.conv1.weight")
        config = VaeConfig(
            widths=tuple(move.shape(f"encoder.down.{i}.block.0.conv1.weight")[0] for i in levels),
            blocks=len(move.indices("encoder.down.0.block", ".conv1.weight")),
            latent_channels=move.shape("post_quant_conv.weight")[0],
            picture_channels=move.shape("encoder.conv_in.weight")[1],
        )

    def resnet(old: str, new: str) -> None:
        for name in ("norm1", "conv1", "norm2", "conv2"):
            move.layer(f"{old}.{name}", f"{new}.{name}")
        if move.has(f"{old}.nin_shortcut.weight"):
            move.layer(f"{old}.nin_shortcut", f"{new}.conv_shortcut")

    count = len(levels)
    for half in ("encoder", "decoder"):
        move.layer(f"{half}.conv_in", f"{half}.conv_in")
        for k in (0, 1):
            resnet(f"{half}.mid.block_{k + 1}", f"{half}.mid_block.resnets.{k}")
        old, new = f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0"
        move.layer(f"{old}.norm", f"{new}.group_norm")
        for part in "qkv":
            move.layer(f"{old}.{part}", f"{new}.to_{part}", flat=True)
        move.layer(f"{old}.proj_out", f"{new}.to_out.0", flat=True)
        move.layer(f"{half}.norm_out", f"{half}.conv_norm_out")
        move.layer(f"{half}.conv_out", f"{half}.conv_out")
    for level in range(count):
        for k in range(config.blocks):
            old = f"encoder.down.{level}.block.{k}"
            resnet(old, f"encoder.down_blocks.{level}.resnets.{k}")
        for k in range(config.blocks + 1):
            resnet(
                f"decoder.up.{level}.block.{k}",
                f"decoder.up_blocks.{count - 1 - level}.resnets.{k}",
            )
        if level + 1 < count:
            new = f"encoder.down_blocks.{level}.downsamplers.0.conv"
            move.layer(f"encoder.down.{level}.downsample.conv", new)
        if level > 0:
            new = f"decoder.up_blocks.{count - 1 - level}.upsamplers.0.conv"
            move.layer(f"decoder.up.{level}.upsample.conv", new)
    move.layer("quant_conv", "quant_conv")
    move.layer("post_quant_conv", "post_quant_conv")
    return config, move.finish()


def convert_cfw(state: State) -> tuple[CfwConfig, Converted]:
    """Shape and tensors of `FeatureWrapping` in the 156 published `decoder.fusion_layer_*`.

    Raises:
        ModelError: another layout than the published one.
    """
    move = Renaming(state, "feature wrapping")
    with move.reading():
        count = sum(1 for name in state if name.endswith(".encode_enc_1.conv1.weight"))
        fusions = [f"{_FUSION}{level + 1}" for level in range(count)]
        config = CfwConfig(
            widths=tuple(move.shape(f"{old}.encode_enc_1.conv1.weight")[0] for old in fusions),
            growth=move.shape(f"{fusions[0]}.encode_enc_2.0.rdb1.conv1.weight")[0],
        )
    for k, old in enumerate(fusions):
        new = f"fusions.{k}"
        for name in ("norm1", "conv1", "norm2", "conv2"):
            move.layer(f"{old}.encode_enc_1.{name}", f"{new}.reduce.{name}")
            move.layer(f"{old}.encode_enc_3.{name}", f"{new}.finish.{name}")
        move.layer(f"{old}.encode_enc_1.conv_out", f"{new}.reduce.shortcut")
        for chain in range(2):
            for block in range(3):
                for conv in range(5):
                    move.layer(
                        f"{old}.encode_enc_2.{chain}.rdb{block + 1}.conv{conv + 1}",
                        f"{new}.dense.{chain}.blocks.{block}.convs.{conv}",
                    )
    return config, move.finish()


def _contracting(move: Renaming, attention: str) -> tuple[tuple[int, ...], int, tuple[bool, ...]]:
    """`(widths, blocks, attended)` of a contracting half made of `input_blocks`."""
    downs = move.indices("input_blocks", ".0.op.weight")
    resnets = move.indices("input_blocks", ".0.in_layers.2.weight")
    blocks = (downs[0] if downs else resnets[-1] + 1) - 1
    firsts = [level * (blocks + 1) + 1 for level in range(len(downs) + 1)]
    widths = tuple(move.shape(f"input_blocks.{i}.0.in_layers.2.weight")[0] for i in firsts)
    return widths, blocks, tuple(move.has(f"input_blocks.{i}.1.{attention}") for i in firsts)


def _published_block(place: str, per_level: int) -> str:
    """The published name of residual block `place` of a diffusers U-Net."""
    owner, *numbers = place.split(".")
    if owner == "mid_block":
        return f"middle_block.{2 * int(numbers[1])}"
    i, k = int(numbers[0]), int(numbers[2])
    if owner == "down_blocks":
        return f"input_blocks.{i * per_level + 1 + k}.0"
    return f"output_blocks.{i * per_level + k}.0"


def move_resnet(move: Renaming, old: str, new: str, time: str, shortcut: str) -> None:
    move.layer(f"{old}.in_layers.0", f"{new}.norm1")
    move.layer(f"{old}.in_layers.2", f"{new}.conv1")
    move.layer(f"{old}.emb_layers.1", f"{new}.{time}")
    move.layer(f"{old}.out_layers.0", f"{new}.norm2")
    move.layer(f"{old}.out_layers.3", f"{new}.conv2")
    if move.has(f"{old}.skip_connection.weight"):
        move.layer(f"{old}.skip_connection", f"{new}.{shortcut}")


def move_transformer(move: Renaming, old: str, new: str) -> None:
    for name in ("norm", "proj_in", "proj_out"):
        move.layer(f"{old}.{name}", f"{new}.{name}")
    old, new = f"{old}.transformer_blocks.0", f"{new}.transformer_blocks.0"
    for name in ("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"):
        move.layer(f"{old}.{name}", f"{new}.{name}")
    for attention in ("attn1", "attn2"):
        for part in "qkv":
            name = f"{attention}.to_{part}"
            move.layer(f"{old}.{name}", f"{new}.{name}", parts=("weight",))
        move.layer(f"{old}.{attention}.to_out.0", f"{new}.{attention}.to_out.0")
