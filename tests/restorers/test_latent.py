"""StableSR through the Upscaler, with tiny random networks from a store of models."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import addsr
from addsr import Upscaler, load_model
from addsr.engines.device import choose_latent_dtype
from addsr.errors import InputError, MemoryLimitError, ModelError, OptionError, OutputError
from addsr.image.reading import read_image
from addsr.nets.stablesr import GuidedUnet, WrappedVae
from addsr.pipelines import StableSRPipeline
from addsr.plan import Plan
from addsr.restorers import latent, latent_plan
from addsr.restorers.latent import PipelineModel

pytestmark = pytest.mark.usefixtures("installed")


@pytest.fixture(scope="module")
def up(store: Path) -> Iterator[Upscaler]:
    with Upscaler(store / "stablesr", scale=2, steps=1, dtype="fp32", device="cpu") as up:
        yield up


_loaded = cache(load_model)


def upscaler(model: Any = "stablesr", *, is_own: bool = False, **options: Any) -> Upscaler:
    """Small work; with networks that tests share, unless they are to be changed."""
    usual = {"dtype": "fp32", "device": "cpu", "scale": 2, "steps": 1}
    return Upscaler(model if is_own else _loaded(model), **{**usual, **options})


def picture(height: int = 12, width: int = 9, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(1, 1, 1), (7, 5, 2.5), (3, 8, 4), (2, 5, 8), (1, 40, 1.3)]
)
def test_every_size_and_scale_gives_the_rounded_size_in_one_pass(
    height: int, width: int, scale: float
) -> None:
    up = upscaler(scale=scale)
    out = up(picture(height, width))
    assert list(out.shape) == [1, 3, *(int(n * scale + 0.5) for n in (height, width))]
    assert float(out.min()) >= 0 and float(out.max()) <= 1
    assert len(up.plan((height, width)).passes) == 1


def test_the_result_is_that_of_the_pipeline_with_a_generator_of_its_own(store: Path) -> None:
    pipe = StableSRPipeline.from_pretrained(store / "stablesr")
    image = picture()
    seed = torch.Generator().manual_seed(7)
    wanted = pipe(image, 2, generator=seed, output_type="pt", upscale=2.0, tile_batch=1).images
    assert torch.equal(upscaler(seed=7, steps=None)(image), wanted)


def test_each_picture_of_a_batch_has_a_generator_of_its_own(up: Upscaler) -> None:
    batch = picture(batch=2)
    out = up(batch)
    assert torch.equal(out, torch.cat([up(batch[:1]), up(batch[1:])]))
    assert torch.equal(up(batch), out)
    for seed in (1, -1, 2**70 + 5):
        assert not torch.equal(upscaler(seed=seed)(batch[:1]), out[:1])


def test_each_kind_gets_its_own_kind_back(up: Upscaler, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    grey = numbers.integers(0, 256, (9, 7), np.uint8)
    assert up(grey).shape == (18, 14) and up(grey).dtype == np.uint8
    deep = up(numbers.integers(0, 65536, (9, 7, 4), np.uint16))
    assert deep.shape == (18, 14, 4) and deep.dtype == np.uint16
    assert up(numbers.random((9, 7, 3), np.float32)).dtype == np.float32
    assert up(picture(batch=2).double()).dtype == torch.float64
    image = Image.fromarray(numbers.integers(0, 256, (9, 7, 3), np.uint8))
    for mode, wanted in (("L", "L"), ("LA", "LA"), ("RGBA", "RGBA"), ("P", "RGB"), ("1", "L")):
        out = up(image.convert(mode))
        assert (out.mode, out.size) == (wanted, (14, 18))
    assert up(image, tmp_path / "b.webp") == tmp_path / "b.webp"
    assert read_image(tmp_path / "b.webp").size == (14, 18)
    exif = image.getexif()
    exif[0x0112] = 8
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert up(tmp_path / "turned.jpg").size == (18, 14)


def test_transparent_edges_do_not_bleed(up: Upscaler) -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((230, 120, 60, 255), (0, 0, 8, 16))
    out = np.asarray(up(image)).astype(int)
    plain = np.asarray(up(Image.new("RGB", (16, 16), (230, 120, 60)))).astype(int)
    assert np.abs(out[..., :3] - plain)[out[..., 3] > 0].max() <= 1
    assert out[0, 0, 3] == 255 and out[0, -1, 3] == 0


def test_files_are_protected(up: Upscaler, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(OutputError, match="is the input itself"):
        up(path, path)
    with pytest.raises(InputError, match="a batch of 2"):
        up(picture(batch=2), tmp_path / "b.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_progress_counts_the_steps_of_all_pictures() -> None:
    told: list[tuple[int, int]] = []
    upscaler(steps=3, progress=lambda *pair: told.append(pair))(picture(batch=2))
    assert told == [*((k, 6) for k in range(7)), (6, 6)]


def test_the_report_tells_model_licence_and_tiles(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "addsr")
    up = upscaler(scale=4, seed=9, fidelity=0.25, color="wavelet", tile=40)
    up(picture(12, 20))
    up(picture(12, 20))
    assert up.report is not None
    facts = up.report.to_dict()
    wanted = {
        "model": "stablesr", "licence": "S-Lab License 1.0 (non-commercial); base: CreativeML "
        "OpenRAIL++-M", "steps": 1, "fidelity": 0.25, "color": "wavelet", "seed": 9, "tile": 40,
        "input_size": [20, 12], "output_size": [80, 48], "dtype": "float32", "device": "cpu",
    }  # fmt: skip
    assert {key: facts[key] for key in wanted} == wanted
    assert facts["tiles"] == 2 * 3  # of 10 x 10 in a latent of 12 x 20, half overlapping
    assert facts["expected_bytes"] > 0
    assert caplog.text.count("non-commercial") == 1 and "expected peak" in caplog.text


def test_the_models_own_defaults_are_taken(store: Path, bare: Path) -> None:
    own = Upscaler("stablesr", device="cpu")
    assert (own.steps, own.fidelity, own.color) == (2, 0.5, "adain")
    turbo = Upscaler("stablesr-turbo", device="cpu")
    assert (turbo.steps, tuple(turbo.info.steps)) == (4, (1, 4))
    plain = Upscaler(bare, device="cpu", fidelity=0)
    assert plain.fidelity == 0 and plain.info.fidelity_drives is None
    assert (plain.info.name, plain.info.licence) == ("bare", "not stated")
    assert not plain.info.is_non_commercial and own.info.is_non_commercial


@pytest.mark.parametrize(
    ("model", "steps", "timesteps"),
    [
        ("stablesr", 2, [999, 0]),
        ("stablesr", 5, [999, 749, 500, 250, 0]),
        ("stablesr-turbo", 4, [999, 749, 499, 249]),
        ("stablesr-turbo", 1, [999]),
    ],
)
def test_the_networks_see_the_timesteps_of_their_kind(
    model: str, steps: int, timesteps: list[int]
) -> None:
    up = upscaler(model, steps=steps)
    seen: list[int] = []
    encoder: Any = up.restorer.pipe.encoder  # type: ignore[attr-defined]
    with encoder.register_forward_pre_hook(lambda _net, given: seen.append(int(given[1][0]))):
        up(picture(8, 8))
    assert seen == timesteps


def test_a_folder_says_itself_that_its_schedule_is_turbos(store: Path, tmp_path: Path) -> None:
    pipe = load_model("stablesr-turbo").pipe  # type: ignore[union-attr]
    assert pipe.config.spacing == "trailing" and pipe.config.steps == 4
    pipe.save_pretrained(tmp_path / "mine")
    assert Upscaler(tmp_path / "mine", device="cpu").info.kind == "stablesr-turbo"


def test_a_folder_of_one_variant_is_read_and_a_damaged_file_is_named(
    store: Path, tmp_path: Path
) -> None:
    pipe = load_model(store / "stablesr").pipe  # type: ignore[union-attr]
    pipe.save_pretrained(tmp_path / "half", variant="fp16")
    with Upscaler(tmp_path / "half", scale=2, steps=1, dtype="fp32", device="cpu") as up:
        assert torch.equal(up(picture()), upscaler()(picture()))
    part = tmp_path / "half" / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    part.write_bytes(part.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"vae.*not a readable safetensors.*import the model"):
        Upscaler(tmp_path / "half", device="cpu")


def test_steps_fidelity_colour_and_tile_change_the_picture(up: Upscaler) -> None:
    image = picture(24, 24)
    plain = up(image)
    for change in (
        {"steps": 2}, {"fidelity": 0.0}, {"fidelity": 1.0}, {"color": "wavelet"},
        {"color": "none"}, {"tile": 48},
    ):  # fmt: skip
        out = upscaler(**change)(image)
        assert out.shape == plain.shape
        assert not torch.equal(out, plain), change


@pytest.fixture(scope="module")
def even(store: Path) -> PipelineModel:
    """A U-Net that says the same everywhere: what is left is what tiles do to it."""
    model = load_model(store / "stablesr")
    assert isinstance(model, PipelineModel)
    nn.init.zeros_(model.pipe.unet.conv_out.weight)  # type: ignore[union-attr]
    return model


@pytest.mark.parametrize("kind", ["constant", "gradient"])
def test_neither_tiles_nor_strips_leave_a_seam(
    even: PipelineModel, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.full((1, 3, 16, 16), 0.6)
    if kind == "gradient":
        image = torch.linspace(0, 1, 16).expand(1, 3, 16, 16).contiguous()

    def run(tile: int, tiles: int, strip: int | None) -> Tensor:
        up = Upscaler(even, scale=4, steps=1, tile=tile, color="none", fidelity=1.0)
        assert up.plan((16, 16)).strip_pixels == strip
        out = up(image)
        assert up.report is not None and up.report.tiles == tiles
        return out

    whole = run(64, 1, None)
    assert float(whole.std()) > 4 / 255
    monkeypatch.setattr(latent_plan, "LARGEST_STRIP", 24**2)
    assert float((run(32, 9, 24**2) - whole).abs().max()) <= 1 / 255


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("stablesr", {"steps": 1001}, "steps: 1001 is not possible with stablesr; use 1 to 1000"),
        ("stablesr", {"steps": 0}, "steps: 0 is not possible"),
        ("stablesr-turbo", {"steps": 2}, "steps: 2 is not possible with stablesr-turbo; use 1, 4"),
        ("stablesr", {"fidelity": 1.5}, "fidelity: 1.5 is outside of 0 to 1"),
        ("bare", {"fidelity": 0.5}, r"bare has no feature wrapping \(CFW\).*vqgan_cfw_\*\.ckpt"),
        ("stablesr", {"color": "sepia"}, "color: 'sepia' is unknown"),
        ("stablesr", {"tile": 36}, "tile: 36 px is no multiple of 8; give 32 or 40"),
        ("stablesr", {"dtype": "fp8"}, "dtype: 'fp8' is unknown"),
        ("stablesr", {"scale": 9}, "scale: 9 is outside"),
    ],
)
def test_options_out_of_range_are_named(
    bare: Path, model: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        Upscaler(bare if model == "bare" else model, device="cpu", **options)


def test_what_can_be_refused_is_refused_before_the_weights_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(StableSRPipeline, "from_pretrained", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(OptionError, match="steps"):
        Upscaler("stablesr", steps=5000)
    monkeypatch.setattr(latent, "free_host_memory", lambda: 1000)
    with pytest.raises(
        MemoryLimitError, match=r"weights of stablesr take .* GiB .* float32.*--dtype bf16"
    ):
        Upscaler("stablesr", dtype="fp32", device="cpu")


def test_a_picture_beyond_the_memory_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (4000, 3000)).save(tmp_path / "large.png")
    monkeypatch.setenv("ADDSR_MEMORY", "1G")
    up = upscaler()
    monkeypatch.setattr(Image.Image, "load", lambda _self: pytest.fail("was decoded"))
    with pytest.raises(MemoryLimitError, match=r"4000x3000 -> 8000x6000 .* GiB of main memory"):
        up(tmp_path / "large.png", tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_a_vae_that_does_not_fit_works_in_strips_from_then_on(
    up: Upscaler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = picture(16, 16)
    wanted = up(image)
    mine = upscaler(is_own=True)
    tries: list[str] = []

    def full(*_args: Any) -> Any:
        tries.append("whole")
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(WrappedVae, "encode", full)
    monkeypatch.setattr(WrappedVae, "decode", full)
    for _ in range(2):
        assert float((mine(image) - wanted).abs().max()) < 1e-3
    assert tries == ["whole"] and "in strips of 16 rows" in caplog.text


def test_memory_that_never_suffices_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: Any, **_more: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    up = upscaler(is_own=True)
    monkeypatch.setattr(GuidedUnet, "forward", full)
    with pytest.raises(MemoryLimitError, match=r"tile: 32 px does not fit .* one at a time"):
        up(picture())
    monkeypatch.setattr("addsr.pipelines.stages.StripVae.encode", full)
    monkeypatch.setattr(WrappedVae, "encode", full)
    with pytest.raises(MemoryLimitError, match=r"vae: 32x\d+ does not fit .*in strips of"):
        up(picture())


def test_numbers_that_overflow_bring_a_wider_type_and_the_steps_count_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(latent, "has_bf16", lambda _device: True)
    told: list[tuple[int, int]] = []
    up = upscaler(is_own=True, dtype="fp16", steps=2, progress=lambda *pair: told.append(pair))
    decoder: Any = up.restorer.pipe.vae.decoder  # type: ignore[attr-defined]
    decoder.conv_out.register_forward_hook(lambda _net, _given, out: out * 3e4 * 1e4 / 3e8)
    out = up(picture())
    assert bool(torch.isfinite(out).all()) and up.restorer.dtype == torch.bfloat16
    assert up.report is not None and up.report.dtype == "bfloat16"
    assert "overflowed in float16; this picture is done again in bfloat16" in caplog.text
    assert told[-1] == (2, 2) and [done for done, _ in told].count(1) == 2
    nn.init.constant_(decoder.conv_out.bias, float("nan"))
    with pytest.raises(ModelError, match=r"stablesr gave NaN .* even in fp32.*models verify"):
        up(picture())
    assert up.restorer.dtype == torch.float32


def test_a_wider_type_has_to_fit_and_brings_a_plan_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(latent, "has_bf16", lambda _device: False)
    up = upscaler(is_own=True, dtype="fp16")
    encoder: Any = up.restorer.pipe.vae.encoder  # type: ignore[attr-defined]
    calls: list[torch.dtype] = []

    def overflow(_net: Any, given: Any, out: Tensor) -> Tensor:
        calls.append(given[0].dtype)
        return out * float("inf") if given[0].dtype == torch.float16 else out

    encoder.conv_in.register_forward_hook(overflow)
    with monkeypatch.context() as patch:
        patch.setattr(latent, "free_host_memory", lambda: 1000)
        with pytest.raises(MemoryLimitError, match=r"overflowed in float16.* in float32, .*free"):
            up(picture())
    assert up.restorer.dtype == torch.float16, "nothing was changed halfway"
    plans: list[Plan] = []
    usual = latent.make_latent_plan
    monkeypatch.setattr(
        latent, "make_latent_plan", lambda *given: plans.append(usual(*given)) or plans[-1]
    )
    assert bool(torch.isfinite(up(picture())).all()) and up.restorer.dtype == torch.float32
    assert plans[-1].tile_bytes > plans[0].tile_bytes, "the last is that of the wider type"


def test_a_loaded_model_can_be_handed_in_and_stays_as_it_is(store: Path) -> None:
    model = load_model(store / "stablesr")
    assert isinstance(model, PipelineModel) and model.metadata["tile"] == 32
    image = picture()
    with Upscaler(model, scale=2, steps=1) as up:
        assert up.restorer.pipe is model.pipe  # type: ignore[attr-defined]
        assert torch.equal(up(image), upscaler()(image))
    with pytest.raises(OptionError, match="is closed; make a new one"):
        up(image)
    assert model.pipe.dtype == torch.float32
    with pytest.raises(OptionError, match=r"dtype: the pipeline handed in is in float32"):
        Upscaler(model, dtype="bf16")
    with pytest.raises(OptionError, match=r"model: int cannot be used; give a name, a path"):
        Upscaler(3)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"is a folder without model_index\.json"):
        Upscaler("")  # and not the default: the variable of a script may be empty
    nn.init.constant_(model.pipe.to(torch.float16).unet.conv_out.bias, float("nan"))  # type: ignore[union-attr]
    with pytest.raises(ModelError, match=r"latents: .*pipe\.to\(torch\.bfloat16\)"):
        Upscaler(model)(image)
    assert model.pipe.dtype == torch.float16


def test_another_device_than_that_of_the_handed_in_pipeline_is_refused(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(store / "stablesr")
    monkeypatch.setattr("addsr.upscaler.choose_device", torch.device)
    with pytest.raises(OptionError, match=r"device: the pipeline .* is on cpu; move it"):
        Upscaler(model, device="cuda")
    with pytest.raises(OptionError, match=r"device: the pipeline .* is on cpu; move it"):
        Upscaler(model, device="cpu:1")
    assert Upscaler(model, device="cpu").restorer.device.type == "cpu"


def test_a_device_too_small_for_all_weights_gets_them_in_turns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = load_model("stablesr").pipe  # type: ignore[union-attr]
    moved: list[Any] = []
    monkeypatch.setattr(StableSRPipeline, "enable_model_cpu_offload", lambda _s, d: moved.append(d))
    monkeypatch.setattr(StableSRPipeline, "to", lambda s, d: (moved.append(("all", d)), s)[1])
    cuda = torch.device("cuda")
    for free, wanted in ((1 << 30, cuda), (64 << 30, ("all", cuda))):
        monkeypatch.setattr(latent, "free_memory", lambda _device, free=free: free)
        assert latent._placed(pipe, cuda) is pipe
        assert moved.pop() == wanted
    assert "networks wait in main memory" in caplog.text


def test_the_type_is_chosen_for_latents() -> None:
    assert choose_latent_dtype("auto", torch.device("cuda")) == torch.float16
    assert choose_latent_dtype("bf16", torch.device("xpu")) == torch.bfloat16
    assert choose_latent_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)


def test_the_one_call_form_takes_a_name(tmp_path: Path) -> None:
    Image.new("RGB", (5, 6), "red").save(tmp_path / "in.jpg")
    out = addsr.upscale(tmp_path / "in.jpg", tmp_path / "o.png", model="stablesr", scale=2, steps=1)
    assert read_image(out).size == (10, 12)


def test_a_model_that_is_handed_in_knows_its_weights_as_one_by_name_does() -> None:
    by_name, by_hand = upscaler(is_own=True), upscaler()
    assert by_hand.restorer.weights == by_name.restorer.weights is not None
