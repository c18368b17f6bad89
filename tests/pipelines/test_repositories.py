"""What is fetched of a repository: the files that are read, and no other variant's."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from addsr.errors import ModelError
from addsr.pipelines.folder import find_folder

THERE = [
    "README.md",
    "model_index.json",
    "v2-1_512-ema-pruned.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.bin",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder/model.fp16.safetensors",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "scheduler/scheduler_config.json",
]


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the last call has fetched."""
    names: list[str] = []

    def fetch(_name: str, *, allow_patterns: list[str], **_options: Any) -> str:
        names[:] = [n for n in THERE if any(fnmatch.fnmatch(n, p) for p in allow_patterns)]
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    return names


@pytest.mark.parametrize(("variant", "infix"), [(None, ""), ("fp16", ".fp16")])
def test_weights_of_one_variant_are_fetched(
    variant: str | None, infix: str, fetched: list[str], tmp_path: Path
) -> None:
    assert find_folder("owner/name", None, False, variant) == tmp_path
    weights = [n for n in fetched if n.endswith("safetensors")]
    assert weights == [
        f"unet/diffusion_pytorch_model{infix}.safetensors",
        f"vae/diffusion_pytorch_model{infix}.safetensors",
        "text_encoder/model.safetensors",
    ]
    small = [n for n in THERE if n.endswith((".json", ".txt"))]
    assert [n for n in fetched if n not in weights] == small


def test_of_a_base_that_gives_its_vae_no_unet_is_fetched(fetched: list[str]) -> None:
    find_folder("owner/name", None, False, parts=("vae",))
    assert fetched == [
        "model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip


def test_a_folder_is_taken_as_it_is_and_what_is_neither_is_told(tmp_path: Path) -> None:
    assert find_folder(tmp_path, None, True) == tmp_path
    for name in ("none", "./owner/name", "/owner/name"):
        with pytest.raises(ModelError, match="is no folder; give one written by save_pretrained"):
            find_folder(name, None, True)
