"""Tiny frozen models that the tests of latent trainings stand on."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from addsr.models.files import save_weights
from addsr.nets import CompactNet
from addsr.train.config import Recipe, load_recipe
from addsr.train.teacher import net_config

RECIPES = Path(__file__).parents[2] / "recipes"

_BEGINNING = """
import os, sys, torch, torch.distributed as dist
from pathlib import Path

def everywhere(x):
    found = [torch.zeros_like(x) for _ in range(2)]
    dist.all_gather(found, x.contiguous())
    return found
"""
_END = """
dist.barrier()
os._exit(0)  # gloo's threads now and then abort an orderly interpreter exit
"""


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion of random numbers; its VAE reduces sides to a quarter."""
    from addsr.train.base import write_tiny_base

    folder = tmp_path_factory.mktemp("base")
    write_tiny_base(folder)
    return folder


@pytest.fixture(scope="session")
def text_base(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """`tiny_base` with a tokenizer that spells words, and a text encoder."""
    transformers = pytest.importorskip("transformers", reason="the diffusion extra is missing")
    folder = tmp_path_factory.mktemp("text") / "base"
    shutil.copytree(tiny_base, folder)
    letters = [*"abcdefghijklmnopqrstuvwxyz", ","]
    marks = ["<|startoftext|>", "<|endoftext|>"]
    words = ["!", *letters, *(f"{letter}</w>" for letter in letters), *marks]
    (folder / "tokenizer").mkdir()
    settings = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "!",
        "bos_token": marks[0], "eos_token": marks[1], "unk_token": marks[1],
    }  # fmt: skip
    for name, value in (
        ("vocab.json", {word: k for k, word in enumerate(words)}),
        ("tokenizer_config.json", settings),
    ):
        (folder / "tokenizer" / name).write_text(json.dumps(value))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=24, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=24, bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    shutil.rmtree(folder / "empty_prompt")
    return folder


@pytest.fixture(scope="session")
def tiny_tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random prompt extractor of six words."""
    from addsr.train.base import write_tiny_tagger

    folder = tmp_path_factory.mktemp("tagger") / "ram"
    write_tiny_tagger(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a compact teacher."""
    path = tmp_path_factory.mktemp("teacher") / "net.safetensors"
    net = CompactNet(net_config(load_recipe("teacher", RECIPES / "teacher-smoke.toml").net))
    save_weights(path, net.state_dict(), {"kind": "compact", "config": net.config.to_dict()})
    return path


@pytest.fixture
def latent_recipe(tmp_path: Path, tiny_base: Path, tiny_teacher: Path) -> Callable[..., Recipe]:
    """Makes the smoke recipe of stablesr or cfw on the tiny base, with fields changed."""

    def make(name: str, output: str = "run", **tables: dict[str, Any]) -> Recipe:
        recipe = load_recipe(name, RECIPES / f"{name}-smoke.toml")
        where = (
            {"base": str(tiny_base)}
            if name == "stablesr"
            else {"model": str(tiny_base), "teacher": str(tiny_teacher)}
        )
        changes = {
            "task": {**where, **tables.get("task", {})},
            "run": {"output": str(tmp_path / output), **tables.get("run", {})},
            "data": tables.get("data", {}),
            "optim": tables.get("optim", {}),
        }
        parts = {
            table: dataclasses.replace(getattr(recipe, table), **values)
            for table, values in changes.items()
        }
        return dataclasses.replace(recipe, **parts, net={**recipe.net, **tables.get("net", {})})

    return make


@pytest.fixture
def run_twice(tmp_path: Path) -> Callable[..., None]:
    """Two processes run programs, one after the other, for to start them takes longer than a run.

    A program finds the paths `recipes`, `pictures` and `output` and those given by name, as texts;
    `everywhere(x)` gives it the `x` of both processes.
    """

    def run(programs: dict[str, str], **folders: Path) -> None:
        pytest.importorskip("accelerate", reason="the train extra is not installed")
        noise = np.random.default_rng(0).integers(0, 255, (160, 160, 3), dtype=np.uint8)
        pictures, file = tmp_path / "pictures", tmp_path / "program.py"
        pictures.mkdir()
        Image.fromarray(noise).save(pictures / "a.png")
        parts = (
            f"output = {str(tmp_path / name)!r}\n{program}\nprint('well: {name};', flush=True)\n"
            for name, program in programs.items()
        )
        paths = {"recipes": RECIPES, "pictures": pictures, **folders}
        known = "".join(f"{name} = {str(path)!r}\n" for name, path in paths.items())
        file.write_text("\n".join((_BEGINNING, known, *parts, _END)))
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
        done = subprocess.run(
            [*torchrun, "--nproc_per_node=2", str(file)],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        for name in programs:
            assert done.stdout.count(f"well: {name};") == 2

    return run


@pytest.fixture(scope="session")
def cpu() -> torch.device:
    return torch.device("cpu")
