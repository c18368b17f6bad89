"""SeeSR's networks on diffusers' classes; published numbers are checked in test_parity."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from addsr.errors import InputError, ModelError
from addsr.nets.seesr import (
    ConditionEncoder,
    ControlledUnet,
    SeeSRConfig,
    add_image_attentions,
    build_controlnet,
    build_unet,
    encode_in_strips,
    image_attentions_of,
)
from addsr.nets.seesr.image_attention import FLAG
from addsr.nets.stablesr.backbones import rebuild

CONFIG = SeeSRConfig(
    widths=(32, 64),
    blocks=1,
    attention=(True, False),
    heads=(2, 4),
    context=24,
    image_context=20,
    condition_widths=(8, 8),
)


def scrambled(net: nn.Module) -> Any:
    """`net` without its zeros of initialisation."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.05, generator=generator)
    return net.eval()


@pytest.fixture(scope="module")
def unet() -> Any:
    return scrambled(build_unet(CONFIG))


@pytest.fixture(scope="module")
def controlnet() -> Any:
    return scrambled(build_controlnet(CONFIG))


@pytest.fixture(scope="module")
def net(unet: Any, controlnet: Any) -> ControlledUnet:
    return ControlledUnet(unet, controlnet)


def inputs(batch: int = 1, height: int = 8, width: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch + width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "z": normal(batch, 4, height, width),
        "t": torch.randint(0, 1000, (batch,), generator=generator),
        "text": normal(batch, 7, 24),
        "tokens": normal(batch, 5, 20),
        "picture": torch.rand(batch, 3, 2 * height, 2 * width, generator=generator),
    }


def noise_of(unet: Any, x: Mapping[str, Tensor]) -> Tensor:
    return unet(x["z"], x["t"], x["text"], image_tokens=x["tokens"]).sample


def controlled(net: ControlledUnet, x: Mapping[str, Tensor], **more: Any) -> Tensor:
    return net(x["z"], x["t"], x["text"], x["tokens"], x["picture"], **more)


@pytest.mark.slow  # four seconds of making layers
def test_published_sizes_are_the_defaults() -> None:
    def size(net: nn.Module) -> int:
        return sum(parameter.numel() for parameter in net.parameters())

    with torch.device("meta"):
        unet, controlnet = build_unet(), build_controlnet()
    assert (size(unet), len(unet.state_dict())) == (1_126_760_324, 1102)
    assert (size(controlnet), len(controlnet.state_dict())) == (489_031_440, 522)
    assert size(controlnet.controlnet_cond_embedding) == 1_086_480  # type: ignore[arg-type]
    for whole, count, places in ((unet, 260_849_600, 16), (controlnet, 124_803_200, 7)):
        added = image_attentions_of(whole)
        assert len(added) == places
        assert sum(map(size, added.values())) == count
        assert {len(module.state_dict()) for module in added.values()} == {26}
    assert unet.config[FLAG] is True  # type: ignore[index]


def by_hand(net: Any, x: Mapping[str, Tensor], *, is_plain: bool = False) -> Tensor:
    """The U-Net run layer by layer: residual block, text transformer, image transformer."""
    embedded = net.time_embedding(net.time_proj(x["t"]))

    def layer(block: Any, k: int, h: Tensor, resnet: int) -> Tensor:
        h = block.resnets[resnet](h, embedded)
        return attend(block, k, h)

    def attend(block: Any, k: int, h: Tensor) -> Tensor:
        if not hasattr(block, "attentions"):
            return h
        # forward and not a call, so that no hook runs
        h = block.attentions[k].forward(h, x["text"], return_dict=False)[0]
        if is_plain:
            return h
        return block.image_attentions[k].forward(h, x["tokens"], return_dict=False)[0]

    h = net.conv_in(x["z"])
    kept = [h]
    for block in net.down_blocks:
        for k in range(len(block.resnets)):
            h = layer(block, k, h, k)
            kept.append(h)
        if block.downsamplers is not None:
            h = block.downsamplers[0](h)
            kept.append(h)
    mid = net.mid_block
    h = mid.resnets[1](attend(mid, 0, mid.resnets[0](h, embedded)), embedded)
    for block in net.up_blocks:
        for k in range(len(block.resnets)):
            h = layer(block, k, torch.cat([h, kept.pop()], 1), k)
        if block.upsamplers is not None:
            h = block.upsamplers[0](h)
    return net.conv_out(nn.functional.silu(net.conv_norm_out(h)))


@torch.no_grad()
def test_image_attention_follows_each_text_attention(unet: Any) -> None:
    x = inputs(2, 8, 12)
    torch.testing.assert_close(noise_of(unet, x), by_hand(unet, x), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(by_hand(unet, x), by_hand(unet, x, is_plain=True), atol=1e-3)
    assert not torch.allclose(
        noise_of(unet, x), noise_of(unet, {**x, "tokens": x["tokens"] + 1}), atol=1e-4
    )


@torch.no_grad()
def test_a_batch_gives_what_its_entries_give(net: ControlledUnet) -> None:
    x = inputs(2, 8, 12)
    both = controlled(net, x)
    for k in range(2):
        one = {name: value[k : k + 1] for name, value in x.items()}
        torch.testing.assert_close(both[k : k + 1], controlled(net, one), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_image_tokens_are_needed_and_must_fit(unet: Any, controlnet: Any) -> None:
    x = inputs(2)
    with pytest.raises(InputError, match="image_tokens: missing"):
        unet(x["z"], x["t"], x["text"])
    with pytest.raises(InputError, match=r"give \(1 or 2, tokens, 20\)"):
        noise_of(unet, {**x, "tokens": torch.zeros(2, 5, 24)})
    with pytest.raises(InputError, match="image_tokens"):
        controlnet(x["z"], x["t"], x["text"], x["picture"], image_tokens=torch.zeros(3, 5, 20))
    one = {**x, "tokens": x["tokens"][:1]}
    torch.testing.assert_close(
        noise_of(unet, one), noise_of(unet, {**x, "tokens": x["tokens"][:1].repeat(2, 1, 1)})
    )


@torch.no_grad()
def test_a_run_that_fails_leaves_nothing_behind(unet: Any) -> None:
    x = inputs()
    before = noise_of(unet, x)
    with pytest.raises(RuntimeError):
        noise_of(unet, {**x, "text": torch.zeros(1, 7, 25)})
    (hook,) = unet._forward_pre_hooks.values()
    assert hook.__self__.current is None
    assert torch.equal(noise_of(unet, x), before)


@torch.no_grad()
def test_a_copy_follows_its_own_layers(unet: Any) -> None:
    x = inputs()
    before, twin = noise_of(unet, x), copy.deepcopy(unet)
    assert torch.equal(noise_of(twin, x), before)
    for parameter in twin.mid_block.image_attentions.parameters():
        parameter.add_(0.1)
    assert not torch.allclose(noise_of(twin, x), before, atol=1e-4)
    assert torch.equal(noise_of(unet, x), before)


@pytest.mark.slow  # tracing
@torch.no_grad()
def test_both_compile_into_one_graph_that_follows_new_tokens(net: ControlledUnet) -> None:
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    x = inputs()
    for shift in (0, 1):
        other = {**x, "tokens": x["tokens"] + shift}
        given = (other["z"], other["t"], other["text"], other["tokens"], other["picture"])
        torch.testing.assert_close(compiled(*given), net(*given))


def test_checkpointing_saves_memory_and_keeps_the_gradients(net: ControlledUnet) -> None:
    net = copy.deepcopy(net).train()
    x = inputs()
    grads = list[list[Tensor]]()
    for has_checkpoints in (False, True):
        if has_checkpoints:
            net.unet.enable_gradient_checkpointing()  # type: ignore[operator]
            net.controlnet.enable_gradient_checkpointing()  # type: ignore[operator]
            attention: Any = net.unet.mid_block.image_attentions[0]  # type: ignore[union-attr,index]
            assert attention.gradient_checkpointing
        net.zero_grad()
        controlled(net, x).square().mean().backward()
        # time embeddings of classes and the like have none
        grads.append([p.grad for p in net.parameters() if p.grad is not None])
        for part in (net.unet, net.controlnet):
            for module in image_attentions_of(part).values():
                assert all(p.grad is not None and p.grad.any() for p in module.parameters())
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_the_picture_is_encoded_once_and_shared_by_steps_tiles_and_prompts(
    net: ControlledUnet,
) -> None:
    x = inputs(1, 8, 12)
    seen = net.encode(x["picture"])
    assert seen.shape == (1, 32, 8, 12)
    calls: list[int] = []
    encoder: Any = net.controlnet.controlnet_cond_embedding
    handle = encoder.conv_in.register_forward_hook(lambda *_: calls.append(1))
    try:
        reused = controlled(net, {**x, "picture": seen})
        assert calls == []
        assert torch.equal(reused, controlled(net, x))
        negative = torch.ones_like(x["text"])
        guided = controlled(net, x, negative=negative, guidance=3.0)
        assert calls == [1, 1]
    finally:
        handle.remove()
    without = controlled(net, {**x, "text": negative})
    torch.testing.assert_close(guided, without + 3 * (reused - without), atol=1e-5, rtol=1e-4)
    assert torch.equal(controlled(net, x, negative=negative), reused)
    assert torch.equal(controlled(net, x, guidance=3.0), reused)


@torch.no_grad()
def test_the_control_can_be_weakened(net: ControlledUnet) -> None:
    x = inputs()
    full, none = controlled(net, x), controlled(net, x, control_scale=0.0)
    torch.testing.assert_close(none, noise_of(net.unet, x))
    assert not torch.allclose(full, none, atol=1e-4)
    assert not torch.allclose(controlled(net, x, control_scale=0.5), full, atol=1e-4)


@torch.no_grad()
def test_one_prompt_serves_all_tiles_and_prompts_of_a_batch_serve_theirs(
    net: ControlledUnet,
) -> None:
    x = inputs(4)
    two = {**x, "text": x["text"][:2], "tokens": x["tokens"][:2]}
    spread = {**x, "text": two["text"].repeat(2, 1, 1), "tokens": two["tokens"].repeat(2, 1, 1)}
    assert torch.equal(controlled(net, two), controlled(net, spread))
    with pytest.raises(InputError, match="text: 3 given for 4 latents"):
        controlled(net, {**x, "text": x["text"][:3]})
    with pytest.raises(InputError, match="differ in size"):
        controlled(net, {**x, "picture": x["picture"][..., :-2]})


def test_the_encoder_takes_pictures_and_its_own_maps_alone() -> None:
    encoder = ConditionEncoder()
    assert encoder.factor == 8
    picture = torch.rand(1, 3, 16, 24)
    assert not encoder(picture).any()  # a fresh one changes nothing
    assert encoder(picture).shape == (1, 320, 2, 3)
    given = torch.rand(1, 320, 2, 3)
    assert encoder(given) is given
    with pytest.raises(InputError, match=r"give a picture \(B, 3, H, W\)"):
        encoder(torch.rand(1, 4, 16, 16))
    with pytest.raises(InputError, match="20x16 has a side that is no multiple of 8"):
        encoder(torch.rand(1, 3, 16, 20))
    with pytest.raises(ModelError, match="could not be told from a picture"):
        ConditionEncoder(channels=3)


@torch.no_grad()
@pytest.mark.parametrize("widths", [(8, 8), (8, 8, 8, 8)])
def test_strips_of_a_picture_give_the_map_of_the_whole(widths: tuple[int, ...]) -> None:
    encoder = scrambled(ConditionEncoder(32, widths))
    picture = torch.rand(1, 3, 136, 24)
    whole = encoder(picture)
    for pixels in (1, 24 * 50, 24 * 136):
        torch.testing.assert_close(encode_in_strips(encoder, picture, pixels), whole)


def test_image_attention_is_added_once_and_where_there_is_text_attention(unet: Any) -> None:
    with pytest.raises(ModelError, match="already"):
        add_image_attentions(unet)
    with pytest.raises(ModelError, match="no text attention"):
        add_image_attentions(nn.Linear(1, 1))


@torch.no_grad()
def test_a_plain_network_becomes_seesrs_and_keeps_its_dtype() -> None:
    plain = {k: v for k, v in CONFIG.unet().items() if "image_cross" not in k}
    net = rebuild("UNet2DConditionModel", plain).to(torch.bfloat16)
    count = len(net.state_dict())
    add_image_attentions(net, 20)
    assert len(net.state_dict()) == count + 26 * len(image_attentions_of(net))
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    assert image_attentions_of(build_unet({**CONFIG.unet(), FLAG: False})) == {}


@pytest.mark.parametrize(
    ("build", "wrong", "message"),
    [
        (build_unet, {"fusion": "gated"}, r"unknown settings \{'fusion': 'gated'\}"),
        (build_unet, {"_class_name": "ControlNetModel"}, "is no UNet2DConditionModel"),
        (build_unet, {"block_out_channels": (32,)}, "no network can be built"),
        (build_unet, {"layers_per_block": "two"}, "no network can be built"),
        (build_controlnet, {"controlnet_conditioning_channel_order": "bgr"}, "only 'rgb'"),
    ],
)
def test_configurations_that_are_not_understood_are_refused(
    build: Any, wrong: dict[str, Any], message: str
) -> None:
    config = CONFIG.unet() if build is build_unet else CONFIG.controlnet()
    with pytest.raises(ModelError, match=message):
        build({**config, **wrong})


def test_settings_that_say_nothing_are_passed_over() -> None:
    config = {**CONFIG.unet(), "_diffusers_version": "0.21.0", "some_day": None}
    assert len(image_attentions_of(build_unet(config))) == 4


def test_a_shape_has_as_many_heads_as_levels() -> None:
    with pytest.raises(ValueError, match=r"heads = \(2,\)"):
        SeeSRConfig(widths=(32, 64), attention=(True, False), heads=(2,))
