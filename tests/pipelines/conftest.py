"""A text encoder in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

WORDS = ["!", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"]
TOKENS = 6


@pytest.fixture(scope="session")
def text_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of two words and its text encoder, as Stable Diffusion's folders have them."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("base")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(WORDS)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "pad_token": "!",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=3,
        eos_token_id=4,
        pad_token_id=0,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder
