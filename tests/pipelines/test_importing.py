"""Published checkpoints, in small, become pipelines that need no text encoder."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from addsr.errors import DependencyError, ModelError
from addsr.models.pickles import read_state
from addsr.pipelines import StableSRPipeline
from addsr.pipelines.importing import Heads, embed_empty_prompt, import_stablesr
from addsr.pipelines.installing import Wish, install, plan_imports

TOKENS = 5
WIDTH = 48


def weights(golden: Path, name: str, prefix: str = "") -> dict[str, Tensor]:
    stored = load_file(golden / f"{name}.safetensors")
    return {prefix + k[7:]: v.float() for k, v in stored.items() if k.startswith("weight/")}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder and a tokenizer of no words, as diffusers' folders have them."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("base")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    vocabulary = {"!": 0, "a</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}
    (tokenizer / "vocab.json").write_text(json.dumps(vocabulary))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": TOKENS,
                "pad_token": "!",
                "bos_token": "<|startoftext|>",
                "eos_token": "<|endoftext|>",
                "unk_token": "<|endoftext|>",
            }
        )
    )
    config = CLIPTextConfig(
        vocab_size=4,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


@pytest.mark.slow
def test_a_published_checkpoint_becomes_a_pipeline(
    golden: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfw = weights(golden, "stablesr_cfw")
    state = {
        **weights(golden, "stablesr_unet", "model.diffusion_model."),
        **weights(golden, "stablesr_encoder", "structcond_stage_model."),
        **{f"first_stage_model.{k}": v for k, v in cfw.items() if "fusion_layer" not in k},
        "betas": torch.zeros(1000),
    }
    torch.save({"state_dict": state, "epoch": 117}, tmp_path / "stablesr.ckpt")
    save_file(cfw, tmp_path / "cfw.safetensors")
    pipe = import_stablesr(
        tmp_path / "stablesr.ckpt",
        base,
        cfw=tmp_path / "cfw.safetensors",
        tile=64,
        heads=Heads(unet_channels=16),
    )
    assert torch.equal(pipe.prompt_embeds, embed_empty_prompt(base))
    assert pipe.prompt_embeds.shape == (1, TOKENS, WIDTH)
    monkeypatch.setitem(sys.modules, "transformers", None)  # not needed from here on
    pipe.save_pretrained(tmp_path / "saved")
    again = StableSRPipeline.from_pretrained(tmp_path / "saved")
    first, second = (
        one(
            torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(1)),
            1,
            generator=torch.Generator().manual_seed(2),
            output_type="pt",
        ).images
        for one in (pipe, again)
    )
    assert first.shape == (1, 3, 20, 28)
    assert torch.equal(first, second)


@pytest.mark.slow
def test_the_adapter_alone_takes_the_rest_from_the_base(
    golden: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from addsr.models.convert_stablesr import convert_unet, convert_vae
    from addsr.nets.stablesr import build_unet, build_vae

    plain = weights(golden, "stablesr_unet")
    spade = {k: v for k, v in plain.items() if ".spade." in k}
    config, state = convert_unet(
        {k: v for k, v in plain.items() if k not in spade}, head_channels=16
    )
    unet = build_unet(config)
    unet.load_state_dict(state)
    cfw = weights(golden, "stablesr_cfw")
    shape, state = convert_vae({k: v for k, v in cfw.items() if "fusion_layer" not in k})
    vae = build_vae(shape)
    vae.load_state_dict(state)
    unet.save_pretrained(base / "unet")  # type: ignore[operator]
    vae.save_pretrained(base / "vae")  # type: ignore[operator]
    adapter = {
        **{f"model.diffusion_model.{k}": v for k, v in spade.items()},
        **weights(golden, "stablesr_encoder", "structcond_stage_model."),
    }
    assert len(adapter) == 376
    save_file(adapter, tmp_path / "adapter.safetensors")
    pipe = import_stablesr(tmp_path / "adapter.safetensors", base, prediction="v", tile=768)
    assert (pipe.config.prediction, pipe.config.tile, pipe.cfw) == ("v", 768, None)
    assert all(isinstance(net, nn.Module) for net in (pipe.unet, pipe.vae))
    for ours, theirs in ((pipe.unet, unet), (pipe.vae, vae)):
        assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())
    with pytest.raises(ModelError, match=r"base: the checkpoint has no unet, scheduler, vae, text"):
        import_stablesr(tmp_path / "adapter.safetensors")
    monkeypatch.setenv("ADDSR_MODELS", str(tmp_path / "models"))
    wish = Wish(variant="stablesr-768", base=str(base), dtype="fp32")
    model = install(plan_imports([tmp_path / "adapter.safetensors"], wish)[0], wish)
    assert (model.base, model.prediction, model.tile) == (str(base), "v", 768)
    assert model.sources[0].what == "adapter (376 tensors)"
    stored = StableSRPipeline.from_pretrained(model.folder)
    assert torch.equal(stored.prompt_embeds, pipe.prompt_embeds)
    with pytest.raises(ModelError, match=r"cfw: .* has no feature wrapping"):
        import_stablesr(
            tmp_path / "adapter.safetensors", base, cfw=tmp_path / "adapter.safetensors"
        )
    with pytest.raises(ModelError, match=r"checkpoint: .* as cfw"):
        save_file(cfw, tmp_path / "cfw.safetensors")
        import_stablesr(tmp_path / "cfw.safetensors", base)


def test_files_that_cannot_be_used_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="no file there"):
        read_state(tmp_path / "none.ckpt")
    (tmp_path / "bad.ckpt").write_bytes(b"not a checkpoint")
    (tmp_path / "bad.safetensors").write_bytes(b"x")
    for name in ("bad.ckpt", "bad.safetensors"):
        with pytest.raises(ModelError, match="cannot be read as tensors alone"):
            read_state(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(ModelError, match="holds no state_dict"):
        read_state(tmp_path / "list.ckpt")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DependencyError, match="pip install transformers"):
        embed_empty_prompt(tmp_path)


@pytest.mark.slow
def test_a_base_without_its_text_is_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"base: .* of .* cannot be loaded"):
        embed_empty_prompt(tmp_path, local_files_only=True)
    shutil.copytree(base / "text_encoder", tmp_path / "text_encoder")
    with pytest.raises(ModelError, match=r"base: tokenizer of .* fetch the base again"):
        embed_empty_prompt(tmp_path, local_files_only=True)


def test_widths_that_no_network_can_have_are_told(published: Path, tmp_path: Path) -> None:
    state = dict(read_state(published / "stablesr_000117.ckpt"))
    state["structcond_stage_model.fea_tran.0.out_layers.3.weight"] = torch.zeros(10**9, 0)
    torch.save(state, tmp_path / "a.ckpt")
    with pytest.raises(ModelError, match="no network has the shapes of its tensors"):
        import_stablesr(tmp_path / "a.ckpt")
