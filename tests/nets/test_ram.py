"""The prompt extractor against a plain transcription of it, its shape, updates and inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, interpolate, layer_norm

from addsr.errors import ConfigError, InputError, OptionError
from addsr.models.convert_ram import convert_ram
from addsr.nets.ram import (
    HeadConfig,
    LoraConfig,
    LoraLinear,
    Ram,
    RamConfig,
    SwinConfig,
    add_lora,
    merge_lora,
    prepare,
)

State = dict[str, Tensor]


def norm(p: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], eps)


def dense(p: State, name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", torch.tensor(0.0))


def attend_naively(p: State, name: str, x: Tensor, window: int, shift: int) -> Tensor:
    """One picture `(rows, rows, width)`: token by token, over those that it may see."""
    rows = x.shape[0]
    table = p[f"{name}.relative_position_bias_table"]
    heads = table.shape[1]
    q, k, v = dense(p, f"{name}.qkv", x).unflatten(-1, (3, heads, -1)).unbind(2)
    out = torch.zeros_like(q)

    def cell(i: int) -> tuple[int, bool]:
        """The window of a row after the shift, and whether the row came round the edge."""
        moved = (i - shift) % rows
        return moved // window, i < shift

    places = [(i, j) for i in range(rows) for j in range(rows)]
    for i, j in places:
        seen = [(a, b) for a, b in places if cell(a) == cell(i) and cell(b) == cell(j)]
        for h in range(heads):
            scores = []
            for a, b in seen:
                row = (i - a + window - 1) * (2 * window - 1) + (j - b + window - 1)
                scale = q.shape[-1] ** -0.5
                scores.append(q[i, j, h] @ k[a, b, h] * scale + table[row, h])
            share = torch.stack(scores).softmax(0)
            out[i, j, h] = sum(s * v[a, b, h] for s, (a, b) in zip(share, seen, strict=True))
    return dense(p, f"{name}.proj", out.flatten(2))


def see_naively(p: State, image: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and logits of one picture `(3, 32, 32)`, from published tensors."""
    patches = image.unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 0, 3, 4).flatten(2)
    weight = p["visual_encoder.patch_embed.proj.weight"].flatten(1)
    x = patches @ weight.T + p["visual_encoder.patch_embed.proj.bias"]
    x = norm(p, "visual_encoder.patch_embed.norm", x)
    for stage, shift in ((0, 2), (1, 0)):
        if stage:
            x = torch.cat([x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]], -1)
            x = norm(p, "visual_encoder.layers.0.downsample.norm", x)
            x = dense(p, "visual_encoder.layers.0.downsample.reduction", x)
        for block in (0, 1):
            name = f"visual_encoder.layers.{stage}.blocks.{block}"
            h = norm(p, f"{name}.norm1", x)
            x = x + attend_naively(p, f"{name}.attn", h, 4, shift * block)
            h = gelu(dense(p, f"{name}.mlp.fc1", norm(p, f"{name}.norm2", x)))
            x = x + dense(p, f"{name}.mlp.fc2", h)
    x = norm(p, "visual_encoder.norm", x).flatten(0, 1)
    embeds = dense(p, "image_proj", torch.cat([x.mean(0, keepdim=True), x]))
    y = dense(p, "wordvec_proj", p["label_embed"]).clamp(min=0)
    for k in (0, 1):
        name = f"tagging_head.encoder.layer.{k}"
        q = dense(p, f"{name}.crossattention.self.query", y).unflatten(-1, (4, -1))
        key = dense(p, f"{name}.crossattention.self.key", embeds).unflatten(-1, (4, -1))
        value = dense(p, f"{name}.crossattention.self.value", embeds).unflatten(-1, (4, -1))
        share = (torch.einsum("thc,nhc->htn", q, key) / q.shape[-1] ** 0.5).softmax(-1)
        seen = torch.einsum("htn,nhc->thc", share, value).flatten(1)
        seen = dense(p, f"{name}.crossattention.output.dense", seen)
        y = norm(p, f"{name}.crossattention.output.LayerNorm", y + seen, 1e-12)
        h = dense(p, f"{name}.output.dense", gelu(dense(p, f"{name}.intermediate.dense", y)))
        y = norm(p, f"{name}.output.LayerNorm", y + h, 1e-12)
    return embeds, dense(p, "fc", y).squeeze(-1)


def built(state: State) -> Ram:
    converted = convert_ram(state)
    net = Ram(converted.config)
    net.load_state_dict(converted.state, strict=True)
    return net.eval()


@pytest.fixture()
def small(ram_state: Any) -> Ram:
    return built(ram_state)


@torch.no_grad()
def test_network_agrees_with_a_transcription_token_by_token(small: Ram, ram_state: State) -> None:
    images = torch.randn(2, 3, 32, 32)
    embeds, logits = small(images)
    assert embeds.shape == (2, 17, 12) and logits.shape == (2, 6)
    for k, image in enumerate(images):
        wanted_embeds, wanted_logits = see_naively(ram_state, image)
        torch.testing.assert_close(embeds[k], wanted_embeds, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits[k], wanted_logits, rtol=1e-4, atol=1e-5)


def test_full_width_has_the_published_numbers_and_sizes() -> None:
    with torch.device("meta"):
        net = Ram()
    used = sum(p.numel() for p in net.parameters())
    assert used == 212_117_045
    # The published file besides: tag encoder and text decoder of 12 BERT layers each, words and
    # places for both, the decoder's output; the tag head lies in the tag encoder's first layers.
    square, norm = 768 * 768 + 768, 2 * 768
    narrow = 512 * 768 + 768
    feed_forward = 768 * 3072 + 3072 + 3072 * 768 + 768
    encoder = 12 * (6 * square + 2 * narrow + feed_forward + 3 * norm)
    decoder = 12 * (8 * square + feed_forward + 3 * norm)
    words = 2 * (30_524 * 768 + 512 * 768 + norm)
    output = square + norm + 30_524
    shared = sum(p.numel() for p in net.head.parameters())
    lora = sum(p.numel() for p in add_lora(net))
    assert lora == 622_592 and len(list(net.named_parameters())) == 366 + 56
    text_lora = 12 * (2 * 16 * 768 + 16 * 768 + 8 * (512 + 768)) + 12 * 4 * 16 * 768
    assert lora + text_lora == 1_777_664
    total = used + encoder + decoder + words + output - shared + lora + text_lora
    assert total == 470_926_449


@torch.no_grad()
def test_published_side_gives_145_tokens_and_4585_logits() -> None:
    thin = SwinConfig(width=8, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1))
    embeds, logits = Ram(RamConfig(thin, HeadConfig(width=8, inner=8)))(torch.rand(2, 3, 384, 384))
    assert embeds.shape == (2, 145, 512) and logits.shape == (2, 4585)
    torch.testing.assert_close(embeds[:, 0], embeds[:, 1:].mean(1), rtol=1e-4, atol=1e-5)


def test_batches_and_single_pictures_agree(small: Ram) -> None:
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        together = small(images).logits
        alone = torch.cat([small(one[None]).logits for one in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_network_refuses_pictures_of_another_size(small: Ram) -> None:
    with pytest.raises(InputError, match=r"\(1, 3, 64, 32\) is not \(B, 3, 32, 32\)"):
        small(torch.zeros(1, 3, 64, 32))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: SwinConfig(heads=(6, 12)), "one number for each stage"),
        (lambda: SwinConfig(width=0), "must be positive"),
        (lambda: SwinConfig(heads=(5, 12, 24, 48)), "5 does not divide"),
        (lambda: SwinConfig(side=380), "380 is no multiple of 32"),
        (lambda: SwinConfig(side=416), "multiple of 384"),
        (lambda: HeadConfig(heads=5), "5 does not divide the 768"),
        (lambda: HeadConfig(layers=0), "must be positive"),
        (lambda: RamConfig(tags=0), "both are positive"),
        (lambda: LoraConfig(rank=0), "0 is no rank"),
        (lambda: LoraLinear(4, 6, (True, False, False, False)), "do not divide 6 rows"),
        (lambda: LoraLinear(4, 6, (False,)), "or are none"),
    ],
)
def test_impossible_shapes_are_refused(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config()


def test_fresh_updates_change_nothing_and_alone_are_trained(small: Ram) -> None:
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = small(image)
    trained = add_lora(small)
    after = small(image)
    torch.testing.assert_close(after.logits, before.logits)
    (after.logits.mean() + after.embeds.mean()).backward()
    assert [p for p in small.parameters() if p.requires_grad] == trained
    assert all(p.grad is not None for p in trained)
    # B is zero at first, so that A has no gradient yet and B has
    assert all(bool(p.grad.any()) for p in trained[1::2] if p.grad is not None)
    with pytest.raises(ConfigError, match="merge them first"):
        add_lora(small)


@torch.no_grad()
def test_merged_updates_do_as_they_do_apart(small: Ram) -> None:
    image = torch.randn(2, 3, 32, 32)
    before = small(image)
    for parameter in add_lora(small, LoraConfig(rank=4, alpha=2)):
        parameter.normal_(std=0.3)
    apart = small(image)
    names = {name for name, _ in small.named_parameters() if "lora" not in name}
    assert merge_lora(small) is small
    merged = small(image)
    assert not torch.allclose(apart.embeds, before.embeds, atol=1e-2)
    torch.testing.assert_close(merged.embeds, apart.embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merged.logits, apart.logits, rtol=1e-4, atol=1e-5)
    assert {name for name, _ in small.named_parameters()} == names


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_enlarging_for_the_network_is_what_the_published_scripts_do(mode: Any) -> None:
    image = torch.rand(1, 3, 20, 28)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    wanted = (interpolate(image, (32, 32), mode=mode, align_corners=False) - mean) / std
    for antialias in (True, False):
        assert torch.equal(prepare(image, 32, interpolation=mode, antialias=antialias), wanted)


def test_shrinking_for_the_network_does_not_alias() -> None:
    lines = torch.zeros(1, 3, 96, 96)
    lines[..., 1::3] = 1.0  # every third column: plain sampling at a third sees nothing else
    grey = prepare(torch.full_like(lines, 1 / 3), 32)
    smooth, published = prepare(lines, 32), prepare(lines, 32, antialias=False)
    inside = (..., slice(1, -1), slice(1, -1))
    assert float((smooth - grey)[inside].abs().max()) < 0.2
    assert float((published - grey)[inside].abs().min()) > 2


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(InputError, match="no batch of pictures"):
        prepare(torch.zeros(1, 1, 8, 8))
    with pytest.raises(InputError, match="uint8"):
        prepare(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(OptionError, match="'nearest' is unknown"):
        prepare(torch.zeros(1, 3, 8, 8), interpolation="nearest")  # type: ignore[arg-type]
