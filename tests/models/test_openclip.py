"""The empty prompt out of a checkpoint's own text tower."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from addsr.errors import ModelError
from addsr.models.openclip import embed_empty_prompt, is_known

WIDTH, TOKENS, WORDS, BLOCKS = 32, 7, 11, 3


def tower() -> dict[str, Tensor]:
    """A text tower as OpenCLIP names it, in small."""
    make = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=make) * 0.3

    state = {
        "model.positional_embedding": draw(TOKENS, WIDTH),
        "model.token_embedding.weight": draw(WORDS, WIDTH),
        "model.ln_final.weight": draw(WIDTH),
        "model.ln_final.bias": draw(WIDTH),
        "model.text_projection": draw(WIDTH, WIDTH),
        "model.logit_scale": draw(),
    }
    shapes = {
        "attn.in_proj_": (3 * WIDTH, WIDTH),
        "attn.out_proj.": (WIDTH, WIDTH),
        "mlp.c_fc.": (4 * WIDTH, WIDTH),
        "mlp.c_proj.": (WIDTH, 4 * WIDTH),
    }
    for k in range(BLOCKS):
        block = f"model.transformer.resblocks.{k}."
        for name, shape in shapes.items():
            state |= {block + name + "weight": draw(*shape), block + name + "bias": draw(shape[0])}
        for name in ("ln_1.", "ln_2."):
            state |= {block + name + "weight": draw(WIDTH), block + name + "bias": draw(WIDTH)}
    return state


def transformers_embeds(state: Mapping[str, Tensor], heads: int) -> Tensor:
    """The same through transformers' text encoder, as the hub's copies of Stable Diffusion 2 do."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=4 * WIDTH,
        num_hidden_layers=BLOCKS - 1, num_attention_heads=heads, hidden_act="gelu",
        max_position_embeddings=TOKENS, bos_token_id=WORDS - 2, eos_token_id=WORDS - 1,
        pad_token_id=0,
    )  # fmt: skip
    model = CLIPTextModel(config).eval()
    there = {
        "embeddings.token_embedding.weight": state["model.token_embedding.weight"],
        "embeddings.position_embedding.weight": state["model.positional_embedding"],
        "final_layer_norm.weight": state["model.ln_final.weight"],
        "final_layer_norm.bias": state["model.ln_final.bias"],
    }
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
             "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}  # fmt: skip
    for k in range(BLOCKS - 1):
        old, new = f"model.transformer.resblocks.{k}.", f"encoder.layers.{k}."
        for part in ("weight", "bias"):
            for a, b in names.items():
                there[f"{new}{b}.{part}"] = state[f"{old}{a}.{part}"]
            joint = state[f"{old}attn.in_proj_{part}"].chunk(3)
            for a, tensor in zip("qkv", joint, strict=True):
                there[f"{new}self_attn.{a}_proj.{part}"] = tensor
    known = {name.removeprefix("text_model."): name for name in model.state_dict()}
    loaded = model.load_state_dict({known[k]: v for k, v in there.items()}, strict=False)
    assert not loaded.unexpected_keys
    assert all("position_ids" in name for name in loaded.missing_keys)
    tokens = torch.tensor([[WORDS - 2, WORDS - 1] + [0] * (TOKENS - 2)])
    with torch.no_grad():
        embeds: Tensor = model(tokens)[0]
    return embeds


@pytest.mark.slow
@pytest.mark.parametrize("heads", [1, 4])
def test_it_agrees_with_transformers(heads: int) -> None:
    state = tower()
    ours = embed_empty_prompt(state, head_channels=WIDTH // heads)
    torch.testing.assert_close(ours, transformers_embeds(state, heads), atol=2e-5, rtol=1e-5)


def test_it_agrees_with_a_plain_transcription() -> None:
    state = {k: v.double() for k, v in tower().items()}
    words = torch.tensor([WORDS - 2, WORDS - 1] + [0] * (TOKENS - 2))
    x = state["model.token_embedding.weight"][words] + state["model.positional_embedding"]
    later = torch.full((TOKENS, TOKENS), float("-inf"), dtype=torch.double).triu(1)

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return scaled * state[f"{name}weight"] + state[f"{name}bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}weight"].T + state[f"{name}bias"]

    for k in range(BLOCKS - 1):  # the last block is left out
        block = f"model.transformer.resblocks.{k}."
        q, k_, v = linear(norm(x, f"{block}ln_1."), f"{block}attn.in_proj_").chunk(3, -1)
        heads = []
        for one in range(2):
            part = slice(16 * one, 16 * one + 16)
            weights = (q[:, part] @ k_[:, part].T / 4 + later).softmax(-1)
            heads.append(weights @ v[:, part])
        x = x + linear(torch.cat(heads, -1), f"{block}attn.out_proj.")
        y = linear(norm(x, f"{block}ln_2."), f"{block}mlp.c_fc.")
        y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
        x = x + linear(y, f"{block}mlp.c_proj.")
    ours = embed_empty_prompt(tower(), head_channels=16)
    assert ours.shape == (1, TOKENS, WIDTH) and ours.dtype == torch.float32
    torch.testing.assert_close(ours[0].double(), norm(x, "model.ln_final."), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "lost",
    ["model.positional_embedding", "model.transformer.resblocks.1.mlp.c_fc.bias"],
)
def test_a_lost_tensor_is_named(lost: str) -> None:
    state = {k: v for k, v in tower().items() if k != lost}
    assert is_known(tower()) and not is_known(state)
    with pytest.raises(ModelError, match=rf"1 tensors missing \({lost}\).*give --base"):
        embed_empty_prompt(state)


@pytest.mark.parametrize("odd", ["model.visual.proj", "model.transformer.resblocks.0.ls_1.gamma"])
def test_an_unknown_tensor_is_named(odd: str) -> None:
    with pytest.raises(ModelError, match=rf"1 unknown \({odd}\)"):
        embed_empty_prompt({**tower(), odd: torch.ones(1)})


def test_numbers_that_no_tower_has_are_refused_without_counting_to_them() -> None:
    block = "model.transformer.resblocks.900000000.mlp.c_fc.bias"
    with pytest.raises(ModelError, match=rf"1 unknown \({block}\)"):
        embed_empty_prompt({**tower(), block: torch.ones(1)})
    state = {**tower(), "model.positional_embedding": torch.zeros(10_000, WIDTH)}
    with pytest.raises(ModelError, match="10000 positions in a prompt"):
        embed_empty_prompt(state)


def test_shapes_that_do_not_fit_are_told() -> None:
    state = {**tower(), "model.positional_embedding": torch.zeros(TOKENS, WIDTH + 1)}
    with pytest.raises(ModelError, match="do not fit each other"):
        embed_empty_prompt(state)
    with pytest.raises(ModelError, match="missing"):
        embed_empty_prompt({})
