"""The published prompt extractor: RAM's tensors and DAPE's updates renamed for our network.

State dicts in, state dict and shape out; nothing is read here. Strict: each tensor is used, or has
a name that is known not to matter, or the whole is refused. The published loaders skip what they do
not know, so that DAPE.pth alone, which holds updates and no weights, loads and tags at random.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor, nn

from addsr.errors import ConfigError, ModelError
from addsr.nets.ram import HeadConfig, LoraConfig, Ram, RamConfig, SwinConfig
from addsr.nets.ram.lora import lora_layers, update

from .renaming import few, layout_of

log = logging.getLogger("addsr")

State = Mapping[str, Tensor]

_NAMES = (
    (r"visual_encoder\.patch_embed\.proj\.", "swin.patches."),
    (r"visual_encoder\.patch_embed\.norm\.", "swin.patches_norm."),
    (r"visual_encoder\.layers\.(\d+)\.blocks\.(\d+)\.attn\.qkv\.", r"swin.stages.\1.\2.qkv."),
    (r"visual_encoder\.layers\.(\d+)\.blocks\.(\d+)\.attn\.proj\.", r"swin.stages.\1.\2.out."),
    (
        r"visual_encoder\.layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table",
        r"swin.stages.\1.\2.bias_table",
    ),
    (r"visual_encoder\.layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc1\.", r"swin.stages.\1.\2.expand."),
    (r"visual_encoder\.layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc2\.", r"swin.stages.\1.\2.shrink."),
    (r"visual_encoder\.layers\.(\d+)\.blocks\.(\d+)\.(norm[12])\.", r"swin.stages.\1.\2.\3."),
    (r"visual_encoder\.layers\.(\d+)\.downsample\.(norm|reduction)\.", r"swin.merges.\1.\2."),
    (r"visual_encoder\.norm\.", "swin.norm."),
    (
        r"tagging_head\.encoder\.layer\.(\d+)\.crossattention\.self\.(query|key|value)\.",
        r"head.layers.\1.\2.",
    ),
    (
        r"tagging_head\.encoder\.layer\.(\d+)\.crossattention\.output\.dense\.",
        r"head.layers.\1.out.",
    ),
    (
        r"tagging_head\.encoder\.layer\.(\d+)\.crossattention\.output\.LayerNorm\.",
        r"head.layers.\1.norm1.",
    ),
    (r"tagging_head\.encoder\.layer\.(\d+)\.intermediate\.dense\.", r"head.layers.\1.expand."),
    (r"tagging_head\.encoder\.layer\.(\d+)\.output\.dense\.", r"head.layers.\1.shrink."),
    (r"tagging_head\.encoder\.layer\.(\d+)\.output\.LayerNorm\.", r"head.layers.\1.norm2."),
    (r"image_proj\.", "image_proj."),
    (r"label_embed", "label_embed"),
    (r"wordvec_proj\.", "label_proj."),
    (r"fc\.", "score."),
)
_PATTERNS = tuple((re.compile(old), new) for old, new in _NAMES)

_IGNORED = tuple(
    re.compile(pattern)
    for pattern in (
        # two thirds of the file: they write captions and encode tags, and touch neither output
        r"tag_encoder\..*",
        r"text_decoder\..*",
        # tables that follow from the shape
        r"visual_encoder\..*\.(relative_position_index|attn_mask)",
        # what BERT has and the published head deletes: self-attention, words, pooler
        r"tagging_head\.(embeddings|pooler)\..*",
        r"tagging_head\.encoder\.layer\.\d+\.attention\..*",
    )
)
_MODULES = {name.split("\\")[0].split(".")[0] for name, _ in _NAMES} | {"vision_multi"}
_PARTS = ("lora_A", "lora_B")


@dataclass(frozen=True)
class ConvertedRam:
    """A network's shape, its tensors, and what of the files was left out."""

    config: RamConfig
    state: dict[str, Tensor]
    lora: dict[str, Tensor]
    """Low-rank updates not merged into `state`, under the names of `add_lora`'s layers."""
    ignored: tuple[str, ...]
    merged: int
    """How many weights had updates merged into them."""


def convert_ram(
    ram: State,
    dape: State | None = None,
    *,
    merge: bool = True,
    heads: int = 4,
    side: int | None = None,
    lora: LoraConfig | None = None,
    leaves_out_unknown: bool = False,
) -> ConvertedRam:
    """The network of `ram_swin_large_14m.pth`, with the updates of `DAPE.pth` if they are given.

    Updates may also lie in `ram` itself. The tag head has its query and key matrices in common with
    the tag encoder, so the updates of both are added to them (measured on the published code); the
    tag encoder has no other part in what comes out.

    Args:
        merge: add the updates to the weights; else they come back apart, those of head and tag
            encoder as one of twice the rank where the latter are not zero.
        heads: attention heads of the tag head, which no tensor shows.
        side: of the pictures; by default what the last stage's window covers, 384 px for window 12.
        lora: rank and scale of the updates; the rank must be that of the file.
        leaves_out_unknown: let modules of other names than the published ones be, with a warning.

    Raises:
        ModelError: a tensor is unknown, missing or of an unexpected shape; the message names it.
    """
    lora = lora or LoraConfig()
    if dape is not None and (not dape or any(not name.endswith(_PARTS) for name in dape)):
        raise ModelError(f"DAPE: does not hold low-rank updates alone; {layout_of(dape)}")
    base, updates, ignored, unknown = _sort({**ram, **(dape or {})})
    inside = [name for name in unknown if name.split(".")[0] in _MODULES]
    if unknown and (inside or not leaves_out_unknown or not base):
        raise ModelError(
            f"prompt extractor: {len(unknown)} unknown tensors{few(inside or unknown)}; known are "
            "those of ram_swin_large_14m.pth and DAPE.pth"
            + ("" if inside else ", and modules besides are left out with --force")
        )
    if unknown:
        log.warning("%d unknown tensors%s are left out", len(unknown), few(unknown))
        ignored += unknown
    if not base:
        raise ModelError(
            "prompt extractor: holds low-rank updates alone, which are no weights; give "
            "ram_swin_large_14m.pth with DAPE.pth"
            if updates
            else f"prompt extractor: no layout of RAM; {layout_of({**ram, **(dape or {})})}"
        )
    config = _shape(base, heads, side)
    with torch.device("meta"):
        try:
            net = Ram(config)
        except ConfigError as error:
            raise ModelError(f"prompt extractor: unknown layout ({error})") from error
    _compare(net.state_dict(), base, "tensors")
    groups = lora_layers(net)
    kept: dict[str, Tensor] = {}
    merged = 0
    if updates:
        _check_updates(net, groups, updates, lora)
        for name, of in groups.items():
            down, up = (updates[f"{name}.{part}"] for part in _PARTS)
            shared = [updates.get(f"tag_encoder.{name}.{part}") for part in _PARTS]
            changes = [update(down.float(), up.float(), of, lora.scale)]
            if shared[0] is not None and shared[1] is not None and bool(shared[1].any()):
                changes.append(update(shared[0].float(), shared[1].float(), of, lora.scale))
            if merge:
                weight = base[f"{name}.weight"]
                base[f"{name}.weight"] = (weight.float() + sum(changes)).to(weight.dtype)
                merged += 1
            elif len(changes) > 1:
                raise ModelError(
                    f"DAPE: the tag encoder has an update of {name} too; only merged (merge=True) "
                    "can both be kept"
                )
            else:
                kept |= {f"{name}.lora_A": down, f"{name}.lora_B": up}
    return ConvertedRam(config, base, kept, tuple(ignored), merged)


def has_weights(names: Iterable[str]) -> bool:
    """Whether a file holds the encoder's own weights, by the names of its tensors."""
    return any(n.startswith("visual_encoder.") and not n.endswith(_PARTS) for n in names)


def has_updates(names: Iterable[str]) -> bool:
    """Whether a file holds low-rank updates of the encoder, as DAPE.pth does."""
    return any(n.startswith("visual_encoder.") and n.endswith(_PARTS) for n in names)


def our_name(name: str) -> str | None:
    """Our name of a published tensor; None if it has none.

    >>> our_name("visual_encoder.layers.1.blocks.0.attn.qkv.lora_A")
    'swin.stages.1.0.qkv.lora_A'
    """
    name = name.replace("vision_multi.", "tagging_head.", 1)  # as older files call it
    for pattern, new in _PATTERNS:
        if match := pattern.match(name):
            return match.expand(new) + name[match.end() :]
    return None


def published_update(name: str) -> str:
    """The published name of one of our tensors of low-rank updates.

    >>> published_update("swin.stages.1.0.qkv.lora_A")
    'visual_encoder.layers.1.blocks.0.attn.qkv.lora_A'
    """
    for ours, published in (
        (r"^swin\.stages\.(\d+)\.(\d+)\.", r"visual_encoder.layers.\1.blocks.\2.attn."),
        (r"^head\.layers\.(\d+)\.", r"tagging_head.encoder.layer.\1.crossattention.self."),
    ):
        name = re.sub(ours, published, name)
    return name


def _sort(state: State) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str], list[str]]:
    """Weights and updates under our names; the names of what does not matter, and of the rest."""
    base: dict[str, Tensor] = {}
    updates: dict[str, Tensor] = {}
    ignored: list[str] = []
    unknown: list[str] = []
    for name, tensor in state.items():
        # the shared matrices of the tag head are the first layers' of the tag encoder
        shared = name.replace("tag_encoder.", "tagging_head.", 1)
        is_update = name.endswith(_PARTS)
        ours = our_name(name)
        if any(pattern.fullmatch(name) for pattern in _IGNORED):
            if is_update and shared != name and (ours := our_name(shared)):
                updates[f"tag_encoder.{ours}"] = tensor
            ignored.append(name)
        elif ours is None:
            unknown.append(name)
        else:
            (updates if is_update else base)[ours] = tensor
    return base, updates, ignored, unknown


def _shape(state: State, heads: int, side: int | None) -> RamConfig:
    """The shape that the tensors show."""

    def size(name: str) -> tuple[int, ...]:
        if name not in state:
            raise ModelError(f"prompt extractor: {name} is missing; {layout_of(state)}")
        return tuple(state[name].shape)

    def count(pattern: str) -> int:
        found = {int(m[1]) for name in state if (m := re.match(pattern, name))}
        return max(found, default=-1) + 1

    stages = count(r"swin\.stages\.(\d+)\.")
    try:
        width, _, patch, _ = size("swin.patches.weight")
        table = [size(f"swin.stages.{k}.0.bias_table") for k in range(stages)]
        inner = size("swin.stages.0.0.expand.weight")[0]
        window = (isqrt(table[0][0]) + 1) // 2
        tags, label_width = size("label_embed")
        return RamConfig(
            SwinConfig(
                side=side or (window * patch) << (stages - 1),
                patch=patch,
                width=width,
                depths=tuple(count(rf"swin\.stages\.{k}\.(\d+)\.") for k in range(stages)),
                heads=tuple(columns for _, columns in table),
                window=window,
                mlp_ratio=inner / width,
            ),
            HeadConfig(
                tokens=size("image_proj.weight")[0],
                width=size("label_proj.weight")[0],
                inner=size("head.layers.0.expand.weight")[0],
                heads=heads,
                layers=count(r"head\.layers\.(\d+)\."),
            ),
            tags,
            label_width,
        )
    except (ConfigError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ModelError(
            f"prompt extractor: unknown layout ({type(error).__name__}: {error}); "
            f"{layout_of(state)}"
        ) from error


def _compare(wanted: State, there: State, what: str) -> None:
    missing = [name for name in wanted if name not in there]
    extra = [name for name in there if name not in wanted]
    if missing or extra:
        raise ModelError(
            f"prompt extractor: {len(missing)} {what} missing{few(missing)}, {len(extra)} "
            f"unknown{few(extra)}"
        )
    for name, tensor in wanted.items():
        if tensor.shape != there[name].shape:
            raise ModelError(
                f"prompt extractor: {name} is {tuple(there[name].shape)}, not {tuple(tensor.shape)}"
            )


def _check_updates(
    net: Ram, groups: Mapping[str, tuple[bool, ...]], updates: State, lora: LoraConfig
) -> None:
    """Whether there is an update, of the right shape, for each layer that DAPE has one for."""
    wanted: dict[str, Tensor] = {}
    for name, of in groups.items():
        layer = net.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        outputs, inputs = layer.out_features, layer.in_features
        count = sum(of)
        wanted[f"{name}.lora_A"] = torch.empty(lora.rank * count, inputs, device="meta")
        wanted[f"{name}.lora_B"] = torch.empty(outputs // len(of) * count, lora.rank, device="meta")
    own = {k: v for k, v in updates.items() if not k.startswith("tag_encoder.")}
    _compare(wanted, own, "low-rank updates")
    shared = {k.removeprefix("tag_encoder."): v for k, v in updates.items() if k not in own}
    # its further layers have no counterpart in the head
    shared = {k: v for k, v in shared.items() if k in wanted}
    if shared:
        _compare({k: v for k, v in wanted.items() if k.startswith("head.")}, shared, "updates")
