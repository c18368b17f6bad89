"""Published SeeSR folders, in miniature: what is read, inferred and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from addsr.errors import ModelError
from addsr.models.convert_seesr import load_seesr, seesr_from
from addsr.nets.seesr import SeeSRConfig, build_controlnet, build_unet, image_attentions_of

CONFIG = SeeSRConfig(
    widths=(32, 64),
    blocks=1,
    attention=(True, False),
    heads=(2, 4),
    context=24,
    condition_widths=(8, 8),
)
FLAG = "use_image_cross_attention"
SOME = "mid_block.image_attentions.0.norm.weight"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build_unet(CONFIG).state_dict()


@pytest.fixture(scope="module")
def control() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return build_controlnet(CONFIG).state_dict()


def published(kind: str = "unet", **more: Any) -> dict[str, Any]:
    """A config.json as it is published: with the flag, without the tokens' width."""
    config = CONFIG.unet() if kind == "unet" else CONFIG.controlnet()
    del config["image_cross_attention_dim"]
    name = "UNet2DConditionModel" if kind == "unet" else "ControlNetModel"
    return {"_class_name": name, "_diffusers_version": "0.21.0", **config, **more}


def write(folder: Path, config: dict[str, Any], state: dict[str, Tensor], ending: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / f"diffusion_pytorch_model.{ending}"
    if ending.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save(state, path)
    return folder


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_both_kinds_of_files_give_each_tensor_back(
    tmp_path: Path, state: dict[str, Tensor], control: dict[str, Tensor], ending: str
) -> None:
    for kind, given in (("unet", state), ("controlnet", control)):
        folder = write(tmp_path / kind, published(kind), given, ending)
        net = load_seesr(folder, kind)  # type: ignore[arg-type]
        assert not net.training
        got = net.state_dict()
        assert got.keys() == given.keys()
        assert all(torch.equal(got[name], given[name]) for name in given)


def test_numbers_keep_their_type_or_take_the_one_that_is_asked_for(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    half = {k: v.half() for k, v in state.items()}
    folder = write(tmp_path, published(), half, "fp16.safetensors")
    assert {p.dtype for p in load_seesr(folder, "unet", variant="fp16").parameters()} == {
        torch.float16
    }
    net = load_seesr(folder, "unet", variant="fp16", dtype=torch.float32)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    with pytest.raises(ModelError, match=r"there are .*fp16\.safetensors: check `variant`"):
        load_seesr(folder, "unet")


def test_the_flag_is_inferred_where_it_is_missing(state: dict[str, Tensor]) -> None:
    config = published()
    del config[FLAG]
    net: Any = seesr_from(config, state, "unet")
    assert len(image_attentions_of(net)) == 4
    assert net.config[FLAG] is True


def test_a_width_of_tokens_other_than_the_published_one_is_read_off_the_tensors() -> None:
    torch.manual_seed(0)
    other = build_unet(SeeSRConfig(**{**vars(CONFIG), "image_context": 16})).state_dict()
    net: Any = seesr_from(published(), other, "unet")
    assert net.config["image_cross_attention_dim"] == 16
    # what is written into its config.json makes it again
    assert build_unet(json.loads(net.to_json_string())).state_dict().keys() == other.keys()
    mixed = {**other, "mid_block.image_attentions.0.x.attn2.to_k.weight": torch.zeros(64, 8)}
    with pytest.raises(ModelError, match=r"of widths \[8, 16\]"):
        seesr_from(published(), mixed, "unet")


def test_a_flag_that_contradicts_the_tensors_is_refused(state: dict[str, Tensor]) -> None:
    plain = {k: v for k, v in state.items() if ".image_attentions." not in k}
    with pytest.raises(ModelError, match=f"{FLAG} is True and the weights have 0"):
        seesr_from(published(), plain, "unet")
    with pytest.raises(ModelError, match=f"{FLAG} is False and the weights have 104"):
        seesr_from(published(**{FLAG: False}), state, "unet")
    config = published()
    del config[FLAG]
    with pytest.raises(ModelError, match="a plain Stable Diffusion"):
        seesr_from(config, plain, "unet")


def test_every_tensor_is_accounted_for(
    state: dict[str, Tensor], control: dict[str, Tensor]
) -> None:
    missing = {k: v for k, v in state.items() if k != SOME}
    with pytest.raises(ModelError, match=rf"1 tensors missing \({SOME}\), 0 unknown"):
        seesr_from(published(), missing, "unet")
    with pytest.raises(ModelError, match=r"1 unknown \(ema_decay\)"):
        seesr_from(published(), {**state, "ema_decay": torch.zeros(1)}, "unet")
    with pytest.raises(ModelError, match=r"1 of another shape .*\(3,\), not \(64,\)"):
        seesr_from(published(), {**state, SOME: torch.zeros(3)}, "unet")
    with pytest.raises(ModelError, match="controlnet_cond_embedding"):
        seesr_from(published(), control, "unet")


def test_folders_that_are_not_whole_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        load_seesr(tmp_path, "unet")
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        load_seesr(tmp_path, "unet")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="holds no JSON object"):
        load_seesr(tmp_path, "unet")
    (tmp_path / "config.json").write_text(json.dumps(published()))
    with pytest.raises(ModelError, match=r"no diffusion_pytorch_model\.safetensors or \.bin there"):
        load_seesr(tmp_path, "unet")
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(ModelError, match="cannot be read as tensors"):
        load_seesr(tmp_path, "unet")
    write(tmp_path, published(fusion="gated"), state, "safetensors")
    with pytest.raises(ModelError, match=rf"{tmp_path}: .*unknown settings"):
        load_seesr(tmp_path, "unet")
