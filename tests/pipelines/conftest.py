"""A text encoder and AddSR's networks in miniature."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="session")
def make_addsr() -> Callable[..., Any]:
    """Makes a pipeline of random networks, the same ones every time: `make(kind, **parts)`."""

    def make(kind: Any = None, **more: Any) -> Any:
        from addsr.nets.seesr import SeeSRConfig, build_controlnet, build_unet
        from addsr.nets.stablesr import VaeConfig, build_vae
        from addsr.pipelines import AddSRPipeline
        from addsr.pipelines.config import PipelineConfig

        shape = SeeSRConfig(
            widths=(32,),
            blocks=1,
            attention=(True,),
            heads=(2,),
            context=24,
            image_context=20,
            condition_widths=(8, 8, 8),
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            parts: dict[str, Any] = {
                "unet": build_unet(shape),
                "controlnet": build_controlnet(shape),
                "vae": build_vae(VaeConfig(widths=(32,) * 3, blocks=1)),
                "prompt_embeds": torch.randn(1, 5, 24),
                "config": PipelineConfig(tile=32, steps=4, fidelity=0.0),
            }
            for parameter in parts["controlnet"].parameters():
                if not parameter.any():  # zeros of initialisation
                    torch.nn.init.normal_(parameter, std=0.1)
        return (kind or AddSRPipeline)(**{**parts, **more})

    return make
