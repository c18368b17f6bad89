"""Models of others through stand-ins for spandrel and diffusers, which are not installed here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from addsr.errors import DependencyError, ModelError, OptionError
from addsr.evaluate.foreign import DiffusersUpscaler, ForeignModel, in_tiles


class Descriptor:
    """What spandrel gives for a file: callable, with facts about the network."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.scale = int(state["scale"])
        self.input_channels = self.output_channels = int(state.get("channels", torch.tensor(3)))
        self.seen: list[tuple[torch.dtype, tuple[int, ...]]] = []

    def eval(self) -> Descriptor:
        return self

    def to(self, _dtype: torch.dtype) -> Descriptor:
        return self

    def __call__(self, x: Tensor) -> Tensor:
        self.seen.append((x.dtype, tuple(x.shape)))
        return F.interpolate(x, scale_factor=float(self.scale), mode="nearest")


@pytest.fixture()
def spandrel(monkeypatch: pytest.MonkeyPatch) -> list[Descriptor]:
    made: list[Descriptor] = []

    class ModelLoader:
        def __init__(self, device: torch.device) -> None:
            assert device.type == "cpu"

        def load_from_state_dict(self, state: dict[str, Tensor]) -> Descriptor:
            if "scale" not in state:
                raise RuntimeError("unknown architecture\nand more")
            made.append(Descriptor(state))
            return made[-1]

    module = ModuleType("spandrel")
    module.ModelLoader = ModelLoader  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spandrel", module)
    monkeypatch.setattr("addsr.evaluate.foreign.find_spec", lambda name: name)
    return made


def model(path: Path, tile: int | None = None, dtype: str = "auto") -> ForeignModel:
    return ForeignModel(path, 4, tile, "cpu", dtype)


def state(scale: int = 4, **more: int) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in {"scale": scale, **more}.items()}


@pytest.mark.parametrize(
    "content",
    [
        state(),
        {"params": state(2), "params_ema": state()},
        {"state_dict": {f"module.{k}": v for k, v in state().items()}},
        {"params": {f"netG.{k}": v for k, v in state().items()}},
    ],
    ids=["plain", "averaged", "wrapped", "prefixed"],
)
def test_weights_are_found_in_every_usual_wrapping(
    tmp_path: Path, spandrel: list[Descriptor], content: dict[str, Any]
) -> None:
    torch.save(content, tmp_path / "x.pth")
    lr = torch.rand(1, 3, 9, 7)
    with model(tmp_path / "x.pth").open() as run:
        assert torch.equal(run(lr), F.interpolate(lr, scale_factor=4.0, mode="nearest"))
    assert spandrel[0].seen == [(torch.float32, (1, 3, 9, 7))]


def test_safetensors_large_pictures_and_other_number_types_work(
    tmp_path: Path, spandrel: list[Descriptor]
) -> None:
    path = tmp_path / "x.safetensors"
    save_file(state(), path)
    lr = torch.rand(1, 3, 170, 130)
    with model(path, tile=128, dtype="bf16").open() as run:
        found = run(lr)
    wanted = F.interpolate(lr, scale_factor=4.0, mode="nearest")
    assert found.dtype == torch.float32 and (found - wanted).abs().max() < 0.005
    assert len(spandrel[0].seen) > 1 and spandrel[0].seen[0][0] == torch.bfloat16
    assert all(max(shape[-2:]) <= 128 for _, shape in spandrel[0].seen)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (state(2), "enlarges 2 times with 3 channels; 4 times"),
        (state(4, channels=1), "with 1 channels"),
        ({"weight": torch.zeros(1)}, r"knows no network for it \(unknown architecture\)"),
        ([1, 2], "holds no named tensors"),
        ({"a": print}, "holds more than tensors"),
    ],
)
def test_files_that_do_not_fit_are_told(
    tmp_path: Path, spandrel: list[Descriptor], content: Any, message: str
) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ModelError, match=message), model(tmp_path / "x.pth").open():
        pass


def test_too_small_a_tile_is_refused_before_any_work(
    tmp_path: Path, spandrel: list[Descriptor]
) -> None:
    with pytest.raises(OptionError, match="tile: 96 px is too small"):
        model(tmp_path / "x.pth", tile=96).check()


def test_damaged_files_are_told(tmp_path: Path, spandrel: list[Descriptor]) -> None:
    for name in ("x.pth", "x.safetensors"):
        (tmp_path / name).write_bytes(b"nothing of use")
        with (
            pytest.raises(ModelError, match="cannot be read as tensors"),
            model(tmp_path / name).open(),
        ):
            pass


def test_a_spandrel_that_cannot_be_imported_names_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("addsr.evaluate.foreign.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(DependencyError, match="torchvision that fits"), model(tmp_path).open():
        pass


def test_small_pictures_are_given_whole() -> None:
    seen: list[tuple[int, ...]] = []

    def restore(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape[-2:]))
        return F.interpolate(x, scale_factor=2.0)

    assert in_tiles(restore, torch.rand(1, 3, 512, 8), 2, None).shape == (1, 3, 1024, 16)
    assert seen == [(512, 8)]
    assert in_tiles(restore, torch.rand(1, 3, 600, 8), 2, None).shape == (1, 3, 1200, 16)
    assert len(seen) == 3


class Pipeline:
    """What both upscalers of diffusers have in common."""

    made: list[Pipeline] = []  # noqa: RUF012

    def __init__(self, source: str) -> None:
        self.source = source
        self.calls: list[dict[str, Any]] = []
        Pipeline.made.append(self)

    @classmethod
    def from_pretrained(cls, source: str) -> Pipeline:
        if source == "gone":
            raise OSError("no file named model_index.json\nand more")
        return cls(source)

    def to(self, device: torch.device, dtype: torch.dtype) -> Pipeline:
        assert (device.type, dtype) == ("cpu", torch.float32)
        return self

    def set_progress_bar_config(self, disable: bool) -> None:
        assert disable

    def __call__(
        self, *, image: Image.Image, generator: torch.Generator, **arguments: Any
    ) -> SimpleNamespace:
        self.calls.append({"size": image.size, "seed": generator.initial_seed(), **arguments})
        large = image.resize((image.width * 4, image.height * 4), Image.Resampling.NEAREST)
        return SimpleNamespace(images=np.asarray(large, np.float32)[None] / 255)


@pytest.fixture()
def diffusers(monkeypatch: pytest.MonkeyPatch) -> list[Pipeline]:
    module = ModuleType("diffusers")
    module.LDMSuperResolutionPipeline = Pipeline  # type: ignore[attr-defined]
    module.StableDiffusionUpscalePipeline = Pipeline  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "diffusers", module)
    monkeypatch.setattr("addsr.evaluate.foreign.find_spec", lambda name: name)
    monkeypatch.setattr(Pipeline, "made", [])
    return Pipeline.made


def upscaler(word: str, scale: int = 4) -> DiffusersUpscaler:
    return DiffusersUpscaler.parse(word, scale, 3, "cpu", "auto")


def test_pipelines_get_padded_pictures_and_give_their_part(diffusers: list[Pipeline]) -> None:
    lr = (torch.rand(1, 3, 20, 70) * 255).round() / 255
    with upscaler("diffusers:x4:some/folder@9").open() as run:
        found = run(lr)
    assert (found - F.interpolate(lr, scale_factor=4.0)).abs().max() < 1e-6
    (pipe,) = diffusers
    assert pipe.source == "some/folder"
    assert pipe.calls == [
        {"size": (128, 64), "seed": 3, "num_inference_steps": 9, "output_type": "np", "prompt": ""}
    ]


def test_without_more_words_the_usual_weights_and_steps_are_taken(
    diffusers: list[Pipeline],
) -> None:
    ldm = upscaler("diffusers:ldm")
    assert (ldm.source, ldm.steps) == ("CompVis/ldm-super-resolution-4x-openimages", 100)
    with ldm.open() as run:
        run(torch.rand(1, 3, 64, 64))
    assert "prompt" not in diffusers[0].calls[0]
    assert upscaler("diffusers:x4").steps == 75 and upscaler("diffusers:x4@20").steps == 20
    assert upscaler(r"diffusers:x4:C:\models\x4@20").source == r"C:\models\x4"
    assert ldm.sha256() is None


def test_the_key_of_a_folder_depends_on_its_files(
    tmp_path: Path, diffusers: list[Pipeline]
) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "w").write_bytes(b"1")
    first = upscaler(f"diffusers:ldm:{tmp_path}").sha256()
    (tmp_path / "unet" / "w").write_bytes(b"2")
    assert first and first != upscaler(f"diffusers:ldm:{tmp_path}").sha256()


def test_what_pipelines_cannot_do_is_told(diffusers: list[Pipeline]) -> None:
    message = r"cannot load it \(no file named model_index.json\)"
    with pytest.raises(ModelError, match=message), upscaler("diffusers:ldm:gone").open():
        pass
    with pytest.raises(OptionError, match="4 times and not 2"):
        upscaler("diffusers:ldm", scale=2)
