"""Published folders of SeeSR and AddSR in miniature: imported, checked, and enlarging pictures."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from addsr import Upscaler, load_model
from addsr.cli import main
from addsr.errors import ModelError, OptionError
from addsr.evaluate.ours import find_ours
from addsr.models.convert_ram import convert_ram
from addsr.models.store import Installed, find_installed, recorded
from addsr.models.tags import TagList
from addsr.nets.ram import Ram
from addsr.nets.seesr import SeeSRConfig, build_controlnet, build_unet
from addsr.nets.stablesr import VaeConfig, build_vae
from addsr.nets.tiny_decoder import TinyDecoder, TinyDecoderConfig
from addsr.pipelines import AddSRPipeline, SeeSRPipeline
from addsr.pipelines.checking import misfits
from addsr.pipelines.installing import Wish
from addsr.pipelines.installing_seesr import install_seesr, plan_seesr, takes
from addsr.pipelines.tagger import Tagger

WEIGHTS = "diffusion_pytorch_model.safetensors"
SHAPE = SeeSRConfig(
    widths=(32, 64),
    blocks=1,
    attention=(True, False),
    heads=(2, 4),
    context=16,
    image_context=12,
    condition_widths=(8, 8, 8),
)


def save(net: Any, folder: Path, **more: Any) -> None:
    folder.mkdir(parents=True)
    config = {**json.loads(net.to_json_string()), **more}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder / WEIGHTS)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, text_base: Path) -> Path:
    """`seesr` as published, and `base`, a Stable Diffusion with another U-Net."""
    root = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    controlnet = build_controlnet(SHAPE)
    for parameter in controlnet.parameters():
        if not parameter.any():  # zeros of initialisation, through which nothing is seen
            torch.nn.init.normal_(parameter, std=0.1)
    save(build_unet(SHAPE), root / "seesr" / "unet")
    save(controlnet, root / "seesr" / "controlnet")
    (root / "seesr" / "scaler.pt").write_bytes(b"no weights")
    shutil.copytree(text_base, root / "base")
    save(build_vae(VaeConfig(widths=(32, 32, 32), blocks=1)), root / "base" / "vae")
    other = build_unet(SHAPE)
    plain = {k: v for k, v in other.state_dict().items() if ".image_attentions." not in k}
    (root / "base" / "unet").mkdir()
    (root / "base" / "unet" / "config.json").write_text("{}")
    save_file(plain, root / "base" / "unet" / WEIGHTS)
    return root


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADDSR_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def installed(given: Path, variant: str, **options: Any) -> Installed:
    wish = Wish(variant, base=str(given / "base"), dtype="fp32", tile=64, **options)
    return install_seesr(plan_seesr([given / "seesr"], wish), wish)


@pytest.fixture(scope="module")
def made(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with addsr and seesr; read, do not change."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADDSR_MODELS", str(root))
        installed(given, "addsr")
        installed(given, "seesr")
    return root


@pytest.fixture()
def store(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADDSR_MODELS", str(made))
    return made


@pytest.fixture()
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((12, 10)).convert("RGB").save(path)
    return path


@pytest.fixture()
def tagger(ram_state: Any) -> Tagger:
    """Tags every picture `a` and `b`, which the text encoder knows."""
    converted = convert_ram(ram_state)
    net = Ram(converted.config)
    net.load_state_dict(converted.state)
    return Tagger(net, TagList(("a", "b", "c", "d", "e", "f"), (0.0,) * 2 + (1.0,) * 4))


def test_a_folder_becomes_a_model_with_all_that_its_base_gives(given: Path) -> None:
    assert takes([given / "seesr"]) and not takes([given / "base"])
    model = installed(given, "addsr")
    assert (model.kind, model.variant, model.name) == ("addsr", "addsr", "addsr")
    assert "OpenRAIL++-M" in model.licence and "as stated there" in model.licence
    told = {source.name: source.what for source in model.sources}
    total = len(load_file(given / "seesr" / "unet" / WEIGHTS))
    assert told[f"addsr/unet/{WEIGHTS}"] == (
        f"image attention (104 tensors), U-Net ({total - 104} tensors)"
    )
    assert recorded().keys() == told.keys()
    assert misfits(model.folder) == []
    pipe = AddSRPipeline.from_pretrained(model.folder)
    assert pipe.text_encoder is not None and pipe.tagger is None and pipe.config.tile == 64
    wanted = load_file(given / "seesr" / "controlnet" / WEIGHTS)
    for name, tensor in pipe.networks["controlnet"].state_dict().items():
        assert torch.equal(tensor, wanted[name])


def test_over_turbo_the_u_net_is_the_bases_but_for_the_image_attention(given: Path) -> None:
    model = installed(given, "seesr-turbo")
    assert model.kind == "seesr"
    pipe = SeeSRPipeline.from_pretrained(model.folder)
    assert (pipe.config.steps, pipe.config.guidance) == (2, 1.0)
    own = load_file(given / "seesr" / "unet" / WEIGHTS)
    base = load_file(given / "base" / "unet" / WEIGHTS)
    for name, tensor in pipe.networks["unet"].state_dict().items():
        assert torch.equal(tensor, own[name] if ".image_attentions." in name else base[name])
    with Upscaler(model.name, device="cpu", dtype="fp32", scale=2) as up:
        assert up.steps == 2 and not up.info.takes_negative_prompt
        assert up(torch.rand(1, 3, 8, 8)).shape == (1, 3, 16, 16)


def test_a_folder_that_is_called_neither_has_to_be_named(given: Path, tmp_path: Path) -> None:
    other = shutil.copytree(given / "seesr", tmp_path / "mine")
    with pytest.raises(ModelError, match="--as seesr or --as addsr or --as seesr-turbo"):
        plan_seesr([other], Wish())
    assert plan_seesr([given / "seesr"], Wish()).model.name == "seesr"
    for wish, message in (
        (Wish("stablesr"), "published as files and not as a folder"),
        (Wish("seesr", prediction="v"), "--prediction: 'v' is not for SeeSR"),
    ):
        with pytest.raises(OptionError, match=message):
            plan_seesr([other], wish)
    with pytest.raises(OptionError, match="FILE: 2 are given with a folder"):
        plan_seesr([other, other / "scaler.pt"], Wish("seesr"))
    (other / "unet" / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"no diffusion_pytorch_model.safetensors or .bin"):
        plan_seesr([other], Wish("seesr"))


def test_nothing_is_left_behind_by_an_import_that_fails(
    given: Path, tmp_path: Path, home: Path
) -> None:
    broken = shutil.copytree(given / "seesr", tmp_path / "addsr")
    state = load_file(broken / "unet" / WEIGHTS)
    state["conv_in.bias"][0] = torch.nan
    save_file(state, broken / "unet" / WEIGHTS)
    wish = Wish(base=str(given / "base"))
    with pytest.raises(ModelError, match=r"unet: conv_in.bias holds NaN"):
        install_seesr(plan_seesr([broken], wish), wish)
    del state["conv_in.bias"]
    save_file(state, broken / "unet" / WEIGHTS)
    with pytest.raises(ModelError, match="1 tensors missing"):
        install_seesr(plan_seesr([broken], wish), wish)
    lacking = shutil.copytree(given / "base", tmp_path / "lacking")
    shutil.rmtree(lacking / "tokenizer")
    wish = Wish("seesr", base=str(lacking))
    with pytest.raises(ModelError, match="does not have all of vae, text_encoder, tokenizer"):
        install_seesr(plan_seesr([given / "seesr"], wish), wish)
    lacking = shutil.copytree(given / "base", tmp_path / "smaller")
    plain = load_file(lacking / "unet" / WEIGHTS)
    del plain["conv_out.bias"]
    save_file(plain, lacking / "unet" / WEIGHTS)
    wish = Wish("seesr-turbo", base=str(lacking))
    with pytest.raises(ModelError, match=r"another network \(1 tensors missing"):
        install_seesr(plan_seesr([given / "seesr"], wish), wish)
    assert not home.exists() or list(home.iterdir()) == []


def test_another_release_is_taken_by_force_alone(given: Path, tmp_path: Path) -> None:
    installed(given, "seesr")
    other = shutil.copytree(given / "seesr", tmp_path / "seesr")
    state = load_file(other / "unet" / WEIGHTS)
    state["conv_in.bias"] += 1
    save_file(state, other / "unet" / WEIGHTS)
    wish = Wish(base=str(given / "base"), name="second")
    with pytest.raises(ModelError, match=r"is not the seesr/unet/.* on record"):
        install_seesr(plan_seesr([other], wish), wish)
    wish = Wish(base=str(given / "base"), name="second", force=True)
    assert install_seesr(plan_seesr([other], wish), wish).dtype == "fp16"


@pytest.mark.usefixtures("store")
def test_tags_of_the_picture_reach_the_text_encoder_and_the_report(
    tagger: Tagger, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = {"device": "cpu", "dtype": "fp32", "scale": 2, "steps": 2}
    picture = torch.rand(1, 3, 8, 8)
    with Upscaler("addsr", **options) as up:
        plain = up(picture)
        assert up.report is not None and up.report.tags is None
    both = shutil.copytree(made, tmp_path / "both")
    monkeypatch.setenv("ADDSR_MODELS", str(both))
    tagger.save_pretrained(both / "ram")
    facts = json.loads((both / "addsr" / "addsr.json").read_text())
    (both / "ram" / "addsr.json").write_text(json.dumps({**facts, "kind": "ram", "files": {}}))
    with Upscaler("addsr", prompt="b", **options) as up:
        tagged = up(picture)
        assert up.report is not None and up.report.tags == ("a", "b")
        assert up.report.prompt == "b" and up.report.to_dict()["tags"] == ["a", "b"]
        pipe: Any = up.restorer.pipe  # type: ignore[attr-defined]
        looks: list[Any] = []
        embed = pipe.tagger.embed
        pipe.tagger.embed = lambda image: looks.append(image) or embed(image)
        up(picture)
        assert len(looks) == 1  # at the prediction of the first step; the last one ends it
    assert not torch.equal(plain, tagged)


@pytest.mark.usefixtures("store")
def test_fidelity_is_the_inputs_share_and_steps_are_those_of_the_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model: Any = load_model("addsr")
    picture = torch.rand(1, 3, 8, 8)
    options: Any = {"scale": 2, "dtype": "fp32", "device": "cpu"}
    for fidelity, weight in ((1.0, 0.0), (0.25, 0.75)):
        got = Upscaler(model, steps=2, fidelity=fidelity, **options)(picture)
        wanted = model.pipe(
            picture, 2, generator=torch.Generator().manual_seed(0), upscale=2.0,
            psr_weight=weight, output_type="pt",
        ).images  # fmt: skip
        assert torch.equal(got, wanted)
    assert Upscaler(model, **options).steps == 4
    assert Upscaler("addsr-2", **options).steps == 2
    with Upscaler("addsr-1", **options) as up:
        assert (up.steps, up.info.name) == (1, "addsr-1")
        assert up(picture).shape == (1, 3, 16, 16)
    with pytest.raises(OptionError, match="steps: 4 is not possible with addsr-1; use 1"):
        Upscaler("addsr-1", steps=4, **options)
    with pytest.raises(OptionError, match="has no fidelity knob with one step"):
        Upscaler("addsr-1", fidelity=0.5, **options)
    with caplog.at_level(logging.WARNING):
        Upscaler(model, steps=1, fidelity=0.2, **options)
    assert "fidelity: has no effect in one step" in caplog.text


@pytest.mark.usefixtures("store")
def test_words_change_what_seesr_makes_and_are_refused_where_nobody_hears_them(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = f"upscale {photo} --scale 2 --steps 1 --device cpu --dtype fp32 --json"
    made: list[bytes] = []
    for words in ([], ["--prompt", "a b"], ["--negative-prompt", "b"]):
        out = photo.with_name("large.png")
        assert main([*base.split(), "--model", "seesr", "-o", str(out), *words]) == 0
        made.append(out.read_bytes())
        out.unlink()
        shown = capsys.readouterr()
        told = json.loads(shown.out.splitlines()[0])
        assert told["model"] == "seesr" and told["tags"] is None
        assert "Loading weights" not in shown.err
    assert told["negative_prompt"] == "b" and len(set(made)) == 3
    for model, words, message in (
        ("compact", ["--prompt", "a"], "prompt: model compact hears no words"),
        ("addsr", ["--negative-prompt", "a"], "negative_prompt: model addsr runs without guidance"),
        ("compact", ["--negative-prompt", "a"], "negative_prompt: model compact hears no words"),
        ("seesr", ["--fidelity", "0.5"], "fidelity: model seesr has no fidelity knob"),
    ):
        assert main([*base.split(), "--model", model, *words]) == 2
        assert message in capsys.readouterr().err


def test_models_that_are_not_there_say_how_to_get_them(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, message in (
        ("addsr", "fetch it from https://github.com/NJU-PCALab/AddSR, then `addsr models import"),
        ("addsr-1", "'addsr' is not installed"),
        ("seesr", "get it with `addsr models pull seesr`, or with `addsr models import FOLDER"),
    ):
        assert main(["upscale", str(photo), "--model", model]) == 1
        assert message in capsys.readouterr().err
    assert main(["models", "pull", "addsr"]) == 1
    assert "is on no hub; https://github.com/NJU-PCALab/AddSR says" in capsys.readouterr().err
    assert main(["models", "pull", "seesr"]) == 1
    assert "no mirror gave it (CSWRY/SeeSR/seesr: not in the hub's" in capsys.readouterr().err


def test_the_commands_import_list_describe_verify_and_remove(
    given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["models", "import", str(given / "seesr"), "--base", str(given / "base")]
    assert main([*words, "--as", "addsr", "--tile", "64"]) == 0
    told = capsys.readouterr()
    assert "addsr: Apache-2.0; its page also names" in told.err
    assert "no prompt extractor is imported" in told.out
    assert "use it: addsr upscale --model addsr" in told.out
    assert main(["models", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["addsr"]["state"] == "imported" and rows["seesr"]["state"] == "available"
    assert main(["models", "info", "addsr-1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "addsr" and facts["bases"][0].endswith("stable-diffusion-2-base")
    assert main(["models", "verify", "addsr", "-q"]) == 0
    model = find_installed("addsr")
    assert model is not None
    path = model.folder / "unet" / WEIGHTS
    save_file({k: v for k, v in load_file(path).items() if k != "conv_in.bias"}, path)
    assert any("conv_in.bias" in line for line in misfits(model.folder))
    assert main(["models", "verify", "addsr", "-q"]) == 1
    assert main(["models", "remove", "addsr", "--yes"]) == 0
    assert find_installed("addsr") is None


@pytest.mark.usefixtures("store")
def test_an_evaluation_tells_results_with_another_extractor_apart(
    made: Path, tmp_path: Path, tagger: Tagger, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = find_ours("addsr")
    both = shutil.copytree(made, tmp_path / "both")
    monkeypatch.setenv("ADDSR_MODELS", str(both))
    again = find_ours("addsr")
    assert first is not None and again is not None and first.sha256 == again.sha256
    tagger.save_pretrained(both / "dape")
    facts = json.loads((both / "addsr" / "addsr.json").read_text())
    files = {"model.safetensors": {"bytes": 1, "sha256": "0" * 64}}
    (both / "dape" / "addsr.json").write_text(json.dumps({**facts, "kind": "ram", "files": files}))
    tagged = find_ours("addsr")
    assert tagged is not None and tagged.sha256 != first.sha256


@pytest.mark.usefixtures("store")
def test_predictions_are_looked_at_through_the_imported_tiny_decoder(
    made: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = f"upscale {photo} --scale 2 --device cpu --dtype fp32 --json --refine-decoder"
    for model, message in (
        ("addsr", "refine_decoder: no tiny decoder is imported; get taesd_decoder.safetensors"),
        ("seesr", "refine_decoder: model seesr looks at no predictions of its own"),
        ("compact", "refine_decoder: model compact looks at no predictions of its own"),
    ):
        assert main([*base.split(), "tiny", "--model", model]) == 2
        assert message in capsys.readouterr().err
    both = shutil.copytree(made, photo.with_name("both"))
    monkeypatch.setenv("ADDSR_MODELS", str(both))
    tiny = TinyDecoder(TinyDecoderConfig(8, (1, 1, 1)))
    state = {}
    for name, tensor in tiny.state_dict().items():
        _, _, place, rest = name.split(".", 3)
        state[f"{int(place) + 1}.{rest}"] = tensor
    save_file(state, photo.with_name("taesd_decoder.safetensors"))
    assert main(["models", "import", str(photo.with_name("taesd_decoder.safetensors"))]) == 0
    capsys.readouterr()
    results: list[bytes] = []
    for decoder in ("tiny", "full"):
        out = photo.with_name("large.png")
        assert main([*base.split(), decoder, "--model", "addsr-2", "-o", str(out)]) == 0
        results.append(out.read_bytes())
        out.unlink()
        told = json.loads(capsys.readouterr().out.splitlines()[0])
        assert told["refine_decoder"] == decoder
    assert results[0] != results[1]
    with pytest.raises(OptionError, match="refine_decoder: 'half' is unknown; use full or tiny"):
        Upscaler("addsr", refine_decoder="half")  # type: ignore[arg-type]
