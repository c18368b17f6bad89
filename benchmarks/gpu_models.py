"""The models of benchmarks/gpu.py with fresh weights, their parts, and the work these take.

    python benchmarks/gpu_models.py

counts the multiplications of each part and of whole runs at full size, on a device without memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from addsr.diffusion.aggregate import tile_starts
from addsr.models.tags import TagList
from addsr.nets.ram import HeadConfig, Ram, RamConfig, SwinConfig
from addsr.nets.seesr import SeeSRConfig, build_controlnet
from addsr.nets.seesr import build_unet as build_seesr_unet
from addsr.nets.stablesr import (
    CfwConfig,
    EncoderConfig,
    FeatureWrapping,
    SftConfig,
    SftLayers,
    TimeAwareEncoder,
    UnetConfig,
    VaeConfig,
    build_unet,
    build_vae,
)
from addsr.nets.tiny_decoder import TinyDecoder, TinyDecoderConfig
from addsr.pipelines import AddSRPipeline, SeeSRPipeline, StableSRPipeline
from addsr.pipelines.config import PipelineConfig
from addsr.pipelines.tagger import Tagger
from addsr.pipelines.text import PromptEncoder

TOKENS = 77
"""Of a prompt."""
Part = Callable[[], Any]


class Words:
    """A tokenizer that makes as many tokens of every prompt as a text encoder takes."""

    def __init__(self, size: int, tokens: int) -> None:
        """`size` is that of the vocabulary."""
        self.size, self.tokens = size, tokens

    def __len__(self) -> int:
        return self.size

    def __call__(self, _prompt: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[1] * self.tokens)


def random_text(width: int, layers: int, heads: int, tokens: int) -> PromptEncoder:
    """A text encoder of Stable Diffusion 2's shape; the words of a prompt do not matter to it."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=49408 if width == 1024 else 100,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=tokens,
        hidden_act="gelu",
        bos_token_id=0,
        eos_token_id=1,
    )
    return PromptEncoder(Words(config.vocab_size, tokens), CLIPTextModel(config))


def build(name: str, device: str, dtype: torch.dtype, *, is_tiny: bool) -> Any:
    """The pipeline `name`, made where it will run and in the type it will run in.

    SeeSR's has AddSR's networks: of that `as_model` makes it.
    """
    make = _stablesr if name == "stablesr" else _addsr
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return make(device, is_tiny)
    finally:
        torch.set_default_dtype(before)


def as_model(name: str, pipe: Any) -> Any:
    """The pipeline `name` of the same networks."""
    kind = {"addsr": AddSRPipeline, "seesr": SeeSRPipeline}.get(name)
    if kind is None or type(pipe) is kind:
        return pipe
    return kind(**{**pipe.components, "config": replace(pipe.config, steps=kind.steps)})


def fuse(pipe: Any, *, is_wanted: bool) -> None:
    """Has each attention of U-Net, ControlNet and VAE make all it can of one product, or no more.

    diffusers' own fusing knows no ControlNet. The joined matrices are copies beside the others.
    """
    from diffusers.models.attention_processor import (
        Attention,
        AttnProcessor2_0,
        FusedAttnProcessor2_0,
    )

    for net in pipe.networks.values():
        for module in net.modules():
            if not isinstance(module, Attention):
                continue
            if is_wanted:
                with torch.no_grad():
                    module.fuse_projections()
                module.set_processor(FusedAttnProcessor2_0())
                continue
            for name in ("to_qkv", "to_kv"):
                if hasattr(module, name):
                    delattr(module, name)
            module.fused_projections = False
            module.set_processor(AttnProcessor2_0())


class Timed:
    """A tagger or a text encoder, with the seconds that its calls took while it was watched."""

    def __init__(self, inner: Any, wait: Callable[[], None]) -> None:
        """`wait` returns when the device has done everything."""
        self.inner, self.wait, self.seconds = inner, wait, 0.0
        self.is_watched = False

    def __call__(self, *args: Any) -> Any:
        return self._time(self.inner, *args)

    def embed(self, image: Tensor) -> Any:
        """The tagger's tokens."""
        return self._time(self.inner.embed, image)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def _time(self, run: Callable[..., Any], *args: Any) -> Any:
        if not self.is_watched:
            return run(*args)
        self.wait()
        started = time.perf_counter()
        result = run(*args)
        self.wait()
        self.seconds += time.perf_counter() - started
        return result


def _stablesr(_device: str, is_tiny: bool) -> StableSRPipeline:
    shapes: dict[str, Any] = {"unet": None, "encoder": None, "sft": None, "vae": None, "cfw": None}
    context, config = 1024, PipelineConfig()
    if is_tiny:
        widths, context = (32, 64), 24
        shapes = {
            "unet": UnetConfig(
                widths=widths, blocks=1, attention=(True, False), head_channels=16, context=context
            ),
            "encoder": EncoderConfig(
                widths=widths, blocks=1, attention=(True, False), time_channels=32, features=32
            ),
            "sft": SftConfig(widths=widths, blocks=1, features=32, hidden=16),
            "vae": VaeConfig(widths=(32, 32, 32), blocks=1),
            "cfw": CfwConfig(widths=(32,), growth=8),
        }
        config = PipelineConfig(tile=32, steps=2)
    return StableSRPipeline(
        unet=build_unet(shapes["unet"]),
        encoder=TimeAwareEncoder(shapes["encoder"]),
        sft=SftLayers(shapes["sft"]),
        vae=build_vae(shapes["vae"]),
        cfw=FeatureWrapping(shapes["cfw"]),
        prompt_embeds=torch.randn(1, TOKENS, context),
        config=config,
    )


def _addsr(device: str, is_tiny: bool) -> AddSRPipeline:
    shape, vae, ram, tiny = SeeSRConfig(), VaeConfig(), RamConfig(), TinyDecoderConfig()
    text: tuple[int, int, int, int] = (1024, 23, 16, TOKENS)
    config = PipelineConfig(steps=4, fidelity=0.0)
    if is_tiny:
        shape = SeeSRConfig(
            widths=(32, 64),
            blocks=1,
            attention=(True, False),
            heads=(2, 4),
            context=24,
            image_context=16,
            condition_widths=(8, 8, 16),
        )
        vae, tiny = VaeConfig(widths=(32, 32, 32), blocks=1), TinyDecoderConfig(8, (1, 1, 1))
        ram = RamConfig(
            SwinConfig(side=32, width=8, depths=(1, 1), heads=(2, 2), window=4),
            HeadConfig(tokens=16, width=16, inner=32, layers=1, heads=2),
            tags=6,
            label_width=8,
        )
        text, config = (24, 1, 2, 8), PipelineConfig(tile=32, steps=4, fidelity=0.0)
    net = Ram(ram).requires_grad_(False).to(device)
    count = ram.tags
    # probabilities of random numbers mean nothing, and none is above 1: pictures have no tags
    tags = TagList(tuple(f"tag {k}" for k in range(count)), (1.0,) * count)
    return AddSRPipeline(
        unet=build_seesr_unet(shape),
        controlnet=build_controlnet(shape),
        vae=build_vae(vae),
        prompt_embeds=torch.randn(1, text[3], shape.context),
        tagger=Tagger(net, tags),
        text_encoder=random_text(*text),
        tiny_decoder=TinyDecoder(tiny).eval().requires_grad_(False),
        config=config,
    )


def parts_of(name: str, pipe: Any, size: int) -> dict[str, Part]:
    """What a run is made of, each ready to run once, for an output of `size` px.

    The network is for one tile (no guidance), all else for the whole picture.
    """
    stages = pipe._stages
    device, dtype = pipe.device, pipe.dtype

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device, dtype=dtype)

    side = size // stages.factor
    tile = min(pipe.config.tile, size) // stages.factor
    z, t, text = rand(1, 4, tile, tile), torch.full((1,), 499, device=device), pipe.prompt_embeds
    text = text.to(device, dtype)
    compiled, picture, latent = stages._compiled, rand(1, 3, size, size), rand(1, 4, side, side)
    if name == "stablesr":
        run = compiled("net", stages.guided.forward, has_one_shape=True)
        encode = compiled("encode", stages._wrapped.encode)
        _, taps = stages._wrapped.encode(picture)
        decode = compiled("decode", stages._wrapped.decode)
        return {
            "network": lambda: run(z, t, z, text, None, 1.0),
            "VAE encoder": lambda: encode(picture),
            "VAE decoder": lambda: decode(latent, taps, pipe.config.fidelity),
        }
    net, tagger = stages.net, pipe.tagger
    seen = rand(1, net.controlnet.controlnet_cond_embedding.channels, tile, tile)
    looked = rand(1, 3, tagger.net.config.swin.side, tagger.net.config.swin.side)
    tokens = tagger.net.embed(looked)
    shared = {"encoder_hidden_states": text, "image_tokens": tokens, "return_dict": False}
    down, mid = net.controlnet(z, t, controlnet_cond=seen, **shared)

    def control(z: Tensor, t: Tensor) -> Any:
        return net.controlnet(z, t, controlnet_cond=seen, **shared)

    def unet(z: Tensor, t: Tensor) -> Any:
        return net.unet(
            z, t, down_block_additional_residuals=down, mid_block_additional_residual=mid, **shared
        )

    run = compiled("net", net.forward, has_one_shape=True)
    run_unet = compiled("U-Net alone", unet, has_one_shape=True)
    run_control = compiled("ControlNet alone", control, has_one_shape=True)
    encode, decode = compiled("encode", stages._moments), compiled("decode", stages._picture)
    show = compiled("tiny", pipe.tiny_decoder.forward)
    condition = compiled("condition", net.encode)
    return {
        "network": lambda: run(z, t, text, tokens, seen, None, 1.0, 1.0),
        "U-Net alone": lambda: run_unet(z, t),
        "ControlNet alone": lambda: run_control(z, t),
        "map of the picture": lambda: condition(picture),
        "VAE encoder": lambda: encode(picture),
        "VAE decoder": lambda: decode(latent),
        "tiny decoder": lambda: show(latent),
        "tagger, tokens": lambda: tagger._embed(looked),
        "tagger, tags": lambda: tagger.net.classify(tokens),
        "text encoder": lambda: pipe.text_encoder("words"),
    }


def count(name: str, size: int, *, is_tiny: bool) -> dict[str, float]:
    """Floating-point operations of each part, two for a multiplication and its addition."""
    # SeeSR's parts are AddSR's
    return dict(_count("addsr" if name == "seesr" else name, size, is_tiny))


@cache
@torch.no_grad()
def _count(name: str, size: int, is_tiny: bool) -> dict[str, float]:
    pipe = build(name, "meta", torch.float32, is_tiny=is_tiny)
    found: dict[str, float] = {}
    for part, run in parts_of(name, pipe, size).items():
        with FlopCounterMode(display=False) as counter:
            run()
        found[part] = float(counter.get_total_flops())
    return found


@dataclass(frozen=True)
class Work:
    """How often each part runs for a picture."""

    words: dict[str, int]
    """Tagger and text encoder."""
    rest: dict[str, int]

    def flops(self, parts: Mapping[str, float], *, has_words: bool = True) -> float:
        """Operations in all."""
        both = [self.rest, self.words] if has_words else [self.rest]
        return sum(parts[k] * n for some in both for k, n in some.items())


def work_of(name: str, size: int, steps: int, tile: int, *, is_tiny_decoder: bool = False) -> Work:
    """What a run at x4 makes of the parts; SeeSR with guidance and a negative prompt."""
    tiles = len(tile_starts(size, min(tile, size), min(tile, size) // 2)) ** 2
    rest = {"network": steps * tiles, "VAE encoder": 1, "VAE decoder": 1}
    if name == "stablesr":
        return Work({}, rest)
    if name == "seesr":
        rest |= {"network": 2 * steps * tiles, "map of the picture": 1}
        return Work({"tagger, tokens": 1, "tagger, tags": 1, "text encoder": 2}, rest)
    looks = steps - 1
    rest["map of the picture"] = steps
    if is_tiny_decoder:
        rest["tiny decoder"] = looks
    else:
        rest["VAE decoder"] += looks
    return Work({"tagger, tokens": steps, "tagger, tags": 1, "text encoder": 1}, rest)


def main() -> None:
    """Prints the counts at full size."""
    for name, all_steps in (("addsr", (1, 2, 4)), ("seesr", (50,)), ("stablesr", (4, 200))):
        for size in (512, 2048):
            parts = count(name, size, is_tiny=False)
            print(f"{name} at {size} px, thousand million multiplications (GMAC):")
            for part, flops in parts.items():
                print(f"  {part:20} {flops / 2e9:10.1f}")
            for steps in all_steps:
                for tiny in (False, True) if name == "addsr" and steps > 1 else (False,):
                    work = work_of(name, size, steps, 512, is_tiny_decoder=tiny)
                    told = f"{steps} steps{', tiny decoder' if tiny else ''}"
                    print(f"  {told:20} {work.flops(parts) / 2e9:10.1f}")


if __name__ == "__main__":
    main()
