from __future__ import annotations

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
