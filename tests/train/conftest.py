"""Tiny frozen models that the tests of latent trainings stand on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from addsr.models.files import save_weights
from addsr.nets import CompactNet
from addsr.train.config import Recipe, load_recipe
from addsr.train.teacher import net_config

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion of random numbers; its VAE reduces sides to a quarter."""
    from addsr.train.base import write_tiny_base

    folder = tmp_path_factory.mktemp("base")
    write_tiny_base(folder)
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


@pytest.fixture(scope="session")
def cpu() -> torch.device:
    return torch.device("cpu")
