"""A tiny random StableSR, in a store as `addsr models import` leaves it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

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
from addsr.pipelines import StableSRPipeline
from addsr.pipelines.stablesr import PipelineConfig

WIDTHS = (32, 64)
LICENCE = "S-Lab License 1.0 (non-commercial); base: CreativeML OpenRAIL++-M"


def make_pipe(**more: Any) -> StableSRPipeline:
    """Tiles of 32 px and a grid of 8 px: its VAE has 4 picture pixels to one of the latent."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets: dict[str, Any] = {
            "unet": build_unet(
                UnetConfig(
                    widths=WIDTHS, blocks=1, attention=(True, False), head_channels=16, context=24
                )
            ),
            "encoder": TimeAwareEncoder(
                EncoderConfig(
                    widths=WIDTHS, blocks=1, attention=(True, False), time_channels=32, features=32
                )
            ),
            "sft": SftLayers(SftConfig(widths=WIDTHS, blocks=1, features=32, hidden=16)),
            "vae": build_vae(VaeConfig(widths=(32, 32, 32), blocks=1)),
            "cfw": FeatureWrapping(CfwConfig(widths=(32,), growth=8)),
            "prompt_embeds": torch.randn(1, 5, 24),
            "config": PipelineConfig(tile=32, steps=2),
        }
    return StableSRPipeline(**{**nets, **more})


def write_facts(folder: Path, kind: str, licence: str = LICENCE) -> None:
    """`addsr.json` as the importer writes it."""
    facts = {
        "format": 1, "kind": kind, "licence": licence, "base": "a/base", "imported": "2026-11-25",
        "sources": [{"name": "a.ckpt", "bytes": 3, "sha256": "0" * 64, "what": "adapter"}],
        "variant": kind, "prediction": "eps", "tile": 32, "dtype": "fp32", "files": {},
    }  # fmt: skip
    (folder / "addsr.json").write_text(json.dumps(facts))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stablesr, stablesr-turbo and one without feature wrapping and without facts, `bare`."""
    root = tmp_path_factory.mktemp("store")
    for name in ("stablesr", "stablesr-turbo"):
        make_pipe().save_pretrained(root / name)
        write_facts(root / name, name)
    make_pipe(cfw=None).save_pretrained(root.parent / "elsewhere" / "bare")
    return root


@pytest.fixture()
def installed(store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store, where `--model stablesr` looks."""
    monkeypatch.setenv("ADDSR_MODELS", str(store))
    return store


@pytest.fixture()
def bare(store: Path) -> Path:
    """A folder of `save_pretrained` alone."""
    return store.parent / "elsewhere" / "bare"


@pytest.fixture()
def facts_writer() -> Callable[..., None]:
    """`write_facts`, for tests that make a model of their own."""
    return write_facts
