"""Files of DINO."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from addsr.errors import ModelError
from addsr.models.convert_dino import load_vit
from addsr.nets.dino import Vit, VitConfig

CONFIG = VitConfig(width=64, depth=2, heads=1, patch=4, side=12, hidden=40)


def test_files_of_either_kind_are_read_frozen_and_in_float32(tmp_path: Path) -> None:
    state = {k: v.half() for k, v in Vit(CONFIG).state_dict().items()}
    torch.save(state, tmp_path / "vit.pth")
    save_file(state, tmp_path / "vit.safetensors")
    for name in ("vit.pth", "vit.safetensors"):
        vit = load_vit(tmp_path / name)
        assert vit.config == CONFIG and not vit.training
        for key, value in vit.named_parameters():
            assert not value.requires_grad and torch.equal(value, state[key].float())


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.pth"):
        load_vit(tmp_path / "absent.pth")
    state = Vit(CONFIG).state_dict()
    del state["norm.bias"]
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(ModelError, match=r"short.safetensors: .*norm.bias.*DINO or DINOv2"):
        load_vit(tmp_path / "short.safetensors")
    state["norm.bias"] = torch.zeros(63)
    save_file(state, tmp_path / "narrow.safetensors")
    with pytest.raises(ModelError, match=r"narrow.safetensors: .*norm.bias"):
        load_vit(tmp_path / "narrow.safetensors")
