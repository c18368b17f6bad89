"""AddSR's looks at its own predictions through a tiny decoder, and where that comes from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from addsr.cli import main
from addsr.errors import ModelError, OptionError, OutputError
from addsr.models.store import find_installed
from addsr.nets.tiny_decoder import TinyDecoder, TinyDecoderConfig
from addsr.pipelines import AddSRPipeline, SeeSRPipeline
from addsr.pipelines.installing import Wish
from addsr.pipelines.installing_tiny import install_tiny
from addsr.pipelines.tiny import find_tiny, load_tiny, read_published_tiny, save_tiny

pytest.importorskip("diffusers", reason="the diffusion extra is not installed")
SHAPE = TinyDecoderConfig(8, (1, 1, 1))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADDSR_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture()
def tiny() -> TinyDecoder:
    return TinyDecoder(SHAPE).eval().requires_grad_(False)


@pytest.fixture()
def taesd(tiny: TinyDecoder, tmp_path: Path) -> Path:
    """As published: a sequence with a clamp in front."""
    state = {}
    for name, tensor in tiny.state_dict().items():
        _, _, place, rest = name.split(".", 3)
        state[f"{int(place) + 1}.{rest}"] = tensor
    torch.save(state, tmp_path / "taesd_decoder.pth")
    save_file(state, tmp_path / "taesd_decoder.safetensors")
    return tmp_path / "taesd_decoder.pth"


def run(pipe: Any, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    options = {"output_type": "pt", "generator": generator, **options}
    return pipe(image, **options).images


def test_predictions_between_steps_go_through_it_and_the_result_does_not(
    make_addsr: Callable[..., Any], tiny: TinyDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = make_addsr(tiny_decoder=tiny)
    seen: dict[str, list[Tensor]] = {"tiny": [], "full": []}
    stages = pipe._stages
    for name, method in (("tiny", "decode_tiny"), ("full", "decode")):
        plain = getattr(stages, method)

        def watch(
            z: Tensor, *rest: Any, name: str = name, plain: Any = plain, **more: Any
        ) -> Tensor:
            seen[name].append(z)
            return plain(z, *rest, **more)

        monkeypatch.setattr(stages, method, watch)
    got = run(pipe, num_inference_steps=3, refine_decoder="tiny")
    assert {k: len(v) for k, v in seen.items()} == {"tiny": 2, "full": 1}
    wanted = run(pipe, num_inference_steps=3)
    assert {k: len(v) for k, v in seen.items()} == {"tiny": 2, "full": 4}
    assert not torch.equal(got, wanted)
    one = [run(pipe, num_inference_steps=1, refine_decoder=name) for name in ("tiny", "full")]
    assert torch.equal(*one)


def test_it_is_given_the_scaled_latent(
    make_addsr: Callable[..., Any], tiny: TinyDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = make_addsr(tiny_decoder=tiny)
    latents: list[Tensor] = []
    given: list[Tensor] = []
    monkeypatch.setattr(tiny, "forward", lambda z: (given.append(z), z.new_zeros(1, 3, 32, 32))[1])

    def watch(_pipe: Any, _k: int, _t: float, tensors: dict[str, Tensor]) -> None:
        latents.append(tensors["latents"])

    run(pipe, num_inference_steps=2, refine_decoder="tiny", callback_on_step_end=watch)
    assert len(given) == 1 and torch.equal(given[0], latents[0])


def test_strips_of_it_change_nothing(make_addsr: Callable[..., Any], tiny: TinyDecoder) -> None:
    pipe = make_addsr(tiny_decoder=tiny)
    options: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent", "upscale": 8}
    wanted = run(pipe, refine_decoder="tiny", vae_tile=None, **options)
    got = run(pipe, refine_decoder="tiny", vae_tile=16, **options)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_is_refused_in_a_sentence(
    make_addsr: Callable[..., Any], tiny: TinyDecoder
) -> None:
    with pytest.raises(OptionError, match="this pipeline has no tiny decoder; give tiny_decoder="):
        run(make_addsr(), refine_decoder="tiny")
    with pytest.raises(OptionError, match="'half' is unknown; use one of full, tiny"):
        run(make_addsr(), refine_decoder="half")
    with pytest.raises(OptionError, match="SeeSR decodes nothing between steps"):
        run(make_addsr(SeeSRPipeline, tiny_decoder=tiny), refine_decoder="tiny")
    other = TinyDecoder(TinyDecoderConfig(8, (1, 1, 1, 1)))
    with pytest.raises(ModelError, match="tiny_decoder: has 8 pixels to a latent one, the VAE 4"):
        make_addsr(tiny_decoder=other)


def test_it_moves_with_the_pipeline_and_is_offloaded(
    make_addsr: Callable[..., Any], tiny: TinyDecoder
) -> None:
    pipe = make_addsr(tiny_decoder=tiny)
    wanted = run(pipe, num_inference_steps=2, refine_decoder="tiny")
    pipe.enable_model_cpu_offload("cpu")
    assert torch.equal(run(pipe, num_inference_steps=2, refine_decoder="tiny"), wanted)
    pipe.to(torch.float64)
    assert next(tiny.parameters()).dtype == torch.float64
    twin = AddSRPipeline(**pipe.components)
    assert twin.tiny_decoder is tiny


def test_a_pipelines_folder_keeps_it(
    make_addsr: Callable[..., Any], tiny: TinyDecoder, tmp_path: Path
) -> None:
    pipe = make_addsr(tiny_decoder=tiny)
    pipe.save_pretrained(tmp_path / "saved")
    again = AddSRPipeline.from_pretrained(tmp_path / "saved")
    options: dict[str, Any] = {"num_inference_steps": 2, "refine_decoder": "tiny"}
    assert torch.equal(run(again, **options), run(pipe, **options))
    other = TinyDecoder(SHAPE)
    taken = AddSRPipeline.from_pretrained(tmp_path / "saved", tiny_decoder=other)
    assert taken.tiny_decoder is other
    make_addsr().save_pretrained(tmp_path / "plain")
    assert AddSRPipeline.from_pretrained(tmp_path / "plain").tiny_decoder is None


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_the_published_file_becomes_an_installed_decoder(
    taesd: Path, tiny: TinyDecoder, ending: str
) -> None:
    assert find_tiny() is None
    done: list[str] = []
    model = install_tiny(
        [taesd.with_suffix(f".{ending}")], Wish(dtype="fp32"), lambda what, *_: done.append(what)
    )
    assert (model.name, model.kind, model.licence) == ("taesd", "tiny-decoder", "MIT")
    assert model.sources[0].what == "decoder (24 tensors)"
    assert done == ["converting", "writing", "writing"]
    found = find_tiny(torch.float64)
    assert found is not None and found.config == SHAPE
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, tiny.state_dict()[name].double())


def test_files_that_are_no_single_decoder_are_refused(taesd: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"other\.pth: a tiny decoder is one file"):
        install_tiny([taesd, tmp_path / "other.pth"], Wish())
    with pytest.raises(ModelError, match="a tiny decoder is one file"):
        install_tiny([taesd, taesd.with_suffix(".safetensors")], Wish())
    with pytest.raises(OptionError, match="--tile: 64 is not for tiny decoders"):
        install_tiny([taesd], Wish(tile=64))
    with pytest.raises(OptionError, match="--as: 'stablesr' is not for tiny decoders"):
        install_tiny([taesd], Wish("stablesr"))
    xl = taesd.rename(tmp_path / "taesdxl_decoder.pth")
    with pytest.raises(ModelError, match="Stable Diffusion XL"):
        install_tiny([xl], Wish())
    with pytest.raises(ModelError, match=r"other\.pth: no tiny decoder"):
        read_published_tiny(tmp_path / "other.pth")


def test_numbers_that_half_precision_cannot_hold_are_refused(taesd: Path, home: Path) -> None:
    state = torch.load(taesd, weights_only=True)
    state["1.bias"][0] = 1e6
    torch.save(state, taesd)
    with pytest.raises(ModelError, match=r"layers\.0\.bias holds numbers .* use --dtype fp32"):
        install_tiny([taesd], Wish())
    assert not home.exists() or not list(home.iterdir())
    assert install_tiny([taesd], Wish(dtype="fp32")).dtype == "fp32"
    with pytest.raises(ModelError, match="is imported already"):
        install_tiny([taesd], Wish(dtype="fp32"))


def test_damaged_files_are_told(tiny: TinyDecoder, tmp_path: Path) -> None:
    from addsr.models.files import save_weights

    folder = tmp_path / "tiny"
    save_tiny(tiny, folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    assert load_tiny(folder).config == SHAPE
    state = tiny.state_dict()
    for about, message in (
        ({"kind": "ram", "config": {}}, "is of kind 'ram'"),
        ({"kind": "tiny-decoder", "config": {"size": 3}}, "unknown shape"),
        ({"kind": "tiny-decoder", "config": {"width": 0}}, "unknown shape"),
        ({"kind": "tiny-decoder", "config": {"width": 16}}, "does not fit its shape"),
    ):
        save_weights(path, state, about)
        with pytest.raises(ModelError, match=message):
            load_tiny(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        save_tiny(tiny, tmp_path / "file" / "below")


def test_the_command_imports_lists_verifies_and_removes_it(
    taesd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "import", str(taesd)]) == 0
    told = capsys.readouterr()
    assert (
        "taesd: imported to" in told.out
        and "use it: addsr upscale --model addsr --refine-decoder tiny" in told.out
    )
    assert "taesd: MIT" in told.err
    assert main(["models", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["taesd"]["state"] == "imported" and rows["taesd"]["bytes"] > 0
    assert main(["models", "verify", "taesd"]) == 0
    assert main(["upscale", "photo.jpg", "--model", "taesd"]) == 1
    assert "is a tiny decoder and enlarges nothing alone" in capsys.readouterr().err
    model = find_installed("taesd")
    assert model is not None and model.dtype == "fp16"
    weights = model.folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["models", "verify", "taesd"]) == 1
    assert main(["models", "import", str(taesd), "--force", "--json"]) == 0
    capsys.readouterr()
    assert main(["models", "remove", "taesd", "-y"]) == 0 and not model.folder.exists()
