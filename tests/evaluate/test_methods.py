from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from addsr.errors import DependencyError, ModelError, OptionError
from addsr.evaluate.methods import (
    Method,
    ModelOptions,
    make_id,
    make_methods,
    split_name,
)
from addsr.evaluate.protocol import Dataset, Protocol
from addsr.models.files import save_weights
from addsr.nets import CompactConfig, CompactNet

TINY = CompactConfig(
    widths=(32, 32, 32), depths=(1, 1, 1), decoder_widths=(32, 16, 16), decoder_depth=1,
    time_channels=32, lr_channels=8,
)  # fmt: skip
HERE = Path()
PROTOCOL = Protocol("p", "P", (Dataset("d", None, HERE),))
CPU = ModelOptions(device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    torch.manual_seed(0)
    save_weights(path, CompactNet(TINY).state_dict(), {"kind": "compact", "config": TINY.to_dict()})
    return path


def make(*words: str, options: ModelOptions = CPU, scores: tuple[str, ...] = ()) -> list[Method]:
    return make_methods(words, scores, PROTOCOL, options)


def test_each_number_of_steps_is_a_method_and_says_how_it_runs(weights: Path) -> None:
    options = ModelOptions(steps=(4, 1, 4), fidelity=0.5, seed=7, device="cpu", dtype="fp32")
    four, one = make(str(weights), options=options)
    assert (four.id, four.title, four.kind) == ("tiny-4", "tiny, 4 steps", "model")
    assert (one.id, one.title, one.steps) == ("tiny-1", "tiny, 1 step", 1)
    assert one.licence == "not stated" and len(str(one.sha256)) == 64
    assert one.details == {
        "fidelity": 0.5, "color": "wavelet", "seed": 7, "tile": "auto", "device": "cpu",
        "dtype": "float32",
    }  # fmt: skip
    assert one.maker is not None
    with one.maker.open() as run:
        result = run(torch.rand(1, 3, 16, 24))
    assert result.shape == (1, 3, 64, 96)


def test_the_fingerprint_changes_with_all_that_changes_a_result(
    weights: Path, tmp_path: Path
) -> None:
    plain = make(str(weights))[0].fingerprint
    changed = [
        ModelOptions(steps=(2,), device="cpu", dtype="fp32"),
        ModelOptions(fidelity=0.1, device="cpu", dtype="fp32"),
        ModelOptions(seed=1, device="cpu", dtype="fp32"),
        ModelOptions(color="none", device="cpu", dtype="fp32"),
        ModelOptions(tile=128, device="cpu", dtype="fp32"),
        ModelOptions(device="cpu", dtype="bf16"),
    ]
    prints = {make(str(weights), options=options)[0].fingerprint for options in changed}
    assert len(prints | {plain}) == len(changed) + 1
    # the same weights elsewhere, under another title, give the same results
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(weights.read_bytes())
    assert make(f"Other={moved}")[0].fingerprint == plain


def test_a_pipeline_is_a_method_by_name_or_folder(installed: Path, bare: Path) -> None:
    options = ModelOptions(steps=(3, 1), fidelity=0.25, device="cpu", dtype="fp32")
    three, one = make("stablesr", options=options)
    assert (three.id, three.title, three.kind) == ("stablesr-3", "stablesr, 3 steps", "model")
    assert str(three.licence).startswith("S-Lab License 1.0 (non-commercial)")
    assert three.details["fidelity"] == 0.25 and three.details["color"] == "adain"
    assert one.maker is not None
    with one.maker.open() as run:
        result = run(torch.rand(1, 3, 3, 4))
    assert result.shape == (1, 3, 12, 16)
    (plain,) = make(f"Mine={bare}")
    assert (plain.id, plain.steps, plain.details["fidelity"]) == ("Mine-2", 2, 0.0)
    assert plain.maker is not None and plain.licence == "not stated"
    with plain.maker.open() as run:  # a model without the knob is not asked to turn it
        assert run(torch.rand(1, 3, 3, 4)).shape == (1, 3, 12, 16)
    (turbo,) = make(str(installed / "stablesr-turbo"))
    assert (turbo.id, turbo.steps) == ("stablesr-turbo-4", 4)
    with pytest.raises(OptionError, match="steps: 2 is not possible with stablesr-turbo; use 1, 4"):
        make("stablesr-turbo", options=ModelOptions(steps=(2,), device="cpu"))
    with pytest.raises(OptionError, match="model bare has no feature wrapping"):
        make(str(bare), options=options)


def test_a_pipelines_fingerprint_follows_the_bytes_of_its_files(
    installed: Path, tmp_path: Path
) -> None:
    plain = make("stablesr")[0]
    copy = tmp_path / "copy"
    shutil.copytree(installed / "stablesr", copy)
    assert make(str(copy))[0].fingerprint == plain.fingerprint, "whatever it is called"
    (copy / "README.md").write_text("no part of it")
    facts = copy / "addsr.json"
    facts.write_text(facts.read_text().replace("2026-11-25", "2026-11-26"))
    other = copy / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    other.write_bytes(b"of a variant that is not loaded")
    assert make(str(copy))[0].fingerprint == plain.fingerprint
    seen = {plain.fingerprint, make("stablesr-turbo")[0].fingerprint}
    for place in (
        "sft/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json", "model_index.json",
    ):  # fmt: skip
        before = (copy / place).read_bytes()
        # the same size and the same facts beside it: only the content tells
        changed = before[:-2] + bytes([before[-2] ^ 1]) + before[-1:]
        if place.endswith(".json"):
            changed = before + b" "
        (copy / place).write_bytes(changed)
        seen.add(make(str(copy))[0].fingerprint)
        (copy / place).write_bytes(before)
    assert len(seen) == 6


def test_a_folder_without_an_index_holds_results_whatever_its_name(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stablesr").mkdir()
    assert make("stablesr")[0].kind == "model", "a name goes before a folder"
    assert make("./stablesr")[0].kind == "folder"
    monkeypatch.setenv("ADDSR_MODELS", str(tmp_path / "none"))
    with pytest.raises(ModelError, match=r"stablesr is not installed; write \./stablesr if"):
        make("stablesr")
    with pytest.raises(ModelError, match="'stablesr-768' is not installed; get it with `addsr mod"):
        make("stablesr-768")
    (tmp_path / "stablesr_turbo.ckpt").write_bytes(b"PK")
    with pytest.raises(ModelError, match="as it was published; import it once with"):
        make("stablesr_turbo.ckpt")


def test_the_baseline_is_torchs_bicubic() -> None:
    (method,) = make("Baseline=bicubic")
    assert (method.id, method.kind) == ("Baseline", "resize")
    lr = torch.rand(1, 3, 5, 6)
    assert method.maker is not None
    with method.maker.open() as run:
        wanted = torch.nn.functional.interpolate(lr, scale_factor=4.0, mode="bicubic")
        assert torch.equal(run(lr), wanted)


def test_folders_are_found_below_the_name_of_the_set(tmp_path: Path) -> None:
    (tmp_path / "x4plus" / "real").mkdir(parents=True)
    (method,) = make(str(tmp_path / "x4plus"))
    assert (method.id, method.kind) == ("x4plus", "folder")
    assert method.results_folder("real") == tmp_path / "x4plus" / "real"
    assert method.results_folder("synthetic") == tmp_path / "x4plus"
    (method,) = make(f"A b={tmp_path}/{{dataset}}/out")
    assert method.id == "A-b" and method.results_folder("d") == tmp_path / "d" / "out"


def test_names_are_split_off_and_files_with_equals_signs_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    assert split_name("a=b") == (None, "a=b")
    assert split_name("My model=x/y=z") == ("My model", "x/y=z")
    assert split_name("x/y=z") == (None, "x/y=z")
    assert make_id("Ä/../x y+") == "Ä-..-x-y+" and make_id("hr") == "method-hr"
    assert make_id("***") == "method"


def test_a_protocol_brings_results_and_scores_of_its_own() -> None:
    sets = (
        Dataset("a", None, HERE, results={"x4": "r/a"}, scores={"s": "f.json#a"}),
        Dataset("b", None, HERE, results={"x4": "r/b"}),
    )
    folder, scores = make_methods((), (), Protocol("p", "P", sets), CPU)
    assert folder.results_folder("b") == Path("r/b") and folder.kind == "folder"
    assert scores.score_place("a") == "f.json#a" and scores.score_place("b") is None


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("compacter", "neither a model"),
        ("{tmp}/notes.txt", "is no model file"),
        ("{tmp}/run", "is a folder of training; give"),
        ("diffusers:sdxl", "is unknown; write diffusers:ldm"),
        ("a=b=bicubic", "neither a model"),
    ],
)
def test_words_that_mean_nothing_are_refused(tmp_path: Path, word: str, message: str) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "run" / "weights").mkdir(parents=True)
    (tmp_path / "run" / "weights" / "net-ema.safetensors").touch()
    with pytest.raises(OptionError, match=message):
        make(word.format(tmp=tmp_path))


def test_two_methods_need_two_names_and_there_has_to_be_one(weights: Path) -> None:
    with pytest.raises(OptionError, match="two are called 'bicubic'"):
        make("bicubic", "bicubic")
    with pytest.raises(OptionError, match="name what to evaluate"):
        make()
    with pytest.raises(OptionError, match="steps: 3 is not possible"):
        make(str(weights), options=ModelOptions(steps=(3,), device="cpu"))
    with pytest.raises(OptionError, match="has no name; write NAME="):
        make(scores=("f.json#a",))
    broken = weights.with_name("broken.safetensors")
    broken.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="not a readable safetensors"):
        make(str(broken))


def test_files_of_others_need_their_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("addsr.evaluate.foreign.find_spec", lambda _name: None)
    (tmp_path / "x4.pth").write_bytes(b"weights")
    with pytest.raises(DependencyError, match=r"pip install 'addsr\[foreign-models\]'"):
        make(str(tmp_path / "x4.pth"))
    with pytest.raises(DependencyError, match="pip install diffusers transformers"):
        make("diffusers:ldm")
