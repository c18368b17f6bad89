"""The StableSR pipeline with tiny random networks: sizes, seeds, seams, folders, errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from addsr.errors import DependencyError, InputError, ModelError, OptionError, OutputError
from addsr.nets.stablesr import (
    CfwConfig,
    EncoderConfig,
    FeatureWrapping,
    GuidedUnet,
    SftConfig,
    SftLayers,
    TimeAwareEncoder,
    UnetConfig,
    VaeConfig,
    WrappedVae,
    build_unet,
    build_vae,
)
from addsr.nets.stablesr.strips import StripVae
from addsr.pipelines import StableSRPipeline, folder
from addsr.pipelines.canvas import make_canvas, mirrored
from addsr.pipelines.stablesr import PipelineConfig
from addsr.pipelines.walk import trailing_timesteps

WIDTHS = (32, 64)
TILE = 32  # 8 latent pixels, for this VAE has 4 picture pixels to one of the latent


def make_pipe(seed: int = 0, **more: Any) -> StableSRPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        nets: dict[str, Any] = {
            "unet": build_unet(
                UnetConfig(
                    widths=WIDTHS, blocks=1, attention=(True, False), head_channels=16, context=24
                )
            ),
            "encoder": TimeAwareEncoder(
                EncoderConfig(
                    widths=WIDTHS, blocks=1, attention=(True, False), time_channels=32, features=32
                )
            ),
            "sft": SftLayers(SftConfig(widths=WIDTHS, blocks=1, features=32, hidden=16)),
            "vae": build_vae(VaeConfig(widths=(32, 32, 32), blocks=1)),
            "cfw": FeatureWrapping(CfwConfig(widths=(32,), growth=8)),
            "prompt_embeds": torch.randn(1, 5, 24),
            "config": PipelineConfig(tile=TILE, steps=2),
        }
    return StableSRPipeline(**{**nets, **more})


@pytest.fixture(scope="module")
def pipe() -> StableSRPipeline:
    return make_pipe()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(height: int = 12, width: int = 9, batch: int = 1, seed: int = 3) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=seeded(seed))


def run(pipe: StableSRPipeline, image: Any, seed: int = 0, **options: Any) -> Any:
    options = {"output_type": "pt", "generator": seeded(seed), **options}
    return pipe(image, **options).images


SIDES = st.sampled_from([1, 2, 3, 5, 7, 8, 11, 13, 16, 17, 23])


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(height=SIDES, width=SIDES, upscale=st.sampled_from([1.0, 1.5, 2.0, 4.0]))
def test_any_size_comes_out_enlarged(
    pipe: StableSRPipeline, height: int, width: int, upscale: float
) -> None:
    result = run(pipe, picture(height, width), num_inference_steps=1, upscale=upscale)
    wanted = [max(1, int(side * upscale + 0.5)) for side in (height, width)]
    assert list(result.shape) == [1, 3, *wanted]
    assert result.isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(1, 97), (67, 2)])
def test_long_panoramas_are_not_enlarged_without_bound(
    pipe: StableSRPipeline, height: int, width: int
) -> None:
    result = run(pipe, picture(height, width), num_inference_steps=1)
    assert result.shape == (1, 3, 4 * height, 4 * width)


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), upscale=st.floats(1, 8))
def test_the_canvas_fits_the_networks_and_stays_bounded(
    height: int, width: int, upscale: float
) -> None:
    canvas = make_canvas((height, width), upscale, 512, 8, 8)
    for target, content, padded in zip(canvas.target, canvas.content, canvas.padded, strict=True):
        assert target <= content <= padded < content + 64
        assert padded % 8 == 0
        assert padded >= 512 or padded % 64 == 0
    assert max(canvas.content) <= max(4 * 512 + 1, *canvas.target)


def test_a_square_of_one_tile_needs_no_change() -> None:
    canvas = make_canvas((128, 128), 4, 512, 8, 8)
    assert canvas.target == canvas.content == canvas.padded == (512, 512)


def test_a_larger_tile_does_not_make_small_pictures_larger() -> None:
    for tile, side in ((256, 400), (512, 512), (1024, 512)):
        canvas = make_canvas((100, 100), 4, tile, 8, 8, trained=512)
        assert canvas.content == (side, side) and canvas.target == (400, 400)


def test_the_network_sees_the_picture_enlarged_as_it_was_trained() -> None:
    image = picture(10, 8)
    canvas = make_canvas((10, 8), 4, 32, 4, 8)
    wanted = nn.functional.interpolate(image, scale_factor=4.0, mode="bicubic").clamp(0, 1) * 2 - 1
    seen = canvas.fill(image)
    assert canvas.content == (40, 32)
    torch.testing.assert_close(seen[..., :40, :32], wanted, atol=1e-6, rtol=0)
    # Catmull-Rom's a = -0.5 would be another picture
    other = nn.functional.interpolate(image, scale_factor=4.0, mode="bicubic", antialias=True)
    assert (seen[..., :40, :32] - (other.clamp(0, 1) * 2 - 1)).abs().max() > 0.01


def test_mirroring_starts_at_the_edge() -> None:
    assert mirrored(4, 4).tolist() == [0, 1, 2, 3]
    assert mirrored(1, 3).tolist() == [0, 0, 0]


def test_the_generator_decides_the_result(pipe: StableSRPipeline) -> None:
    first, same, other = (run(pipe, picture(), seed) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_the_number_of_tiles_at_once_does_not_matter(pipe: StableSRPipeline) -> None:
    one, many = (run(pipe, picture(9, 20), tile_batch=n) for n in (1, 7))
    assert (one - many).abs().max() < 1e-4


def test_tiles_that_do_not_fit_together_go_on_in_halves(
    pipe: StableSRPipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = run(pipe, picture(9, 20), tile_batch=1)
    plain, seen = GuidedUnet.forward, list[int]()

    def small_device(self: GuidedUnet, z_t: Tensor, *more: Any) -> Tensor:
        seen.append(len(z_t))
        if len(z_t) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, z_t, *more)

    mine = make_pipe()
    monkeypatch.setattr(GuidedUnet, "forward", small_device)
    told: list[tuple[int, int]] = []
    for _ in range(2):
        assert torch.equal(
            run(mine, picture(9, 20), progress=lambda *pair: told.append(pair)), wanted
        )
    assert "going on with 2 at a time" in caplog.text and "going on with 1 at" in caplog.text
    assert seen.count(4) == seen.count(2) == 1, "what did not fit is not tried again"
    assert told == [(1, 2), (2, 2)] * 2, "no step is lost"


def test_an_error_that_is_not_about_memory_comes_through(
    pipe: StableSRPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: Any) -> Any:
        raise RuntimeError("cuDNN error: bad parameter")

    monkeypatch.setattr(WrappedVae, "encode", broken)
    with pytest.raises(RuntimeError, match="bad parameter"):
        run(pipe, picture(8, 8))


def test_trailing_timesteps_leave_out_the_last(pipe: StableSRPipeline) -> None:
    assert [trailing_timesteps(n) for n in (1, 2, 4)] == [[999], [999, 499], [999, 749, 499, 249]]
    assert trailing_timesteps(1000) == list(range(999, -1, -1))
    seen: list[float] = []
    turbo = make_pipe(config=PipelineConfig(tile=TILE, steps=4, spacing="trailing"))
    result = run(turbo, picture(8, 8), callback_on_step_end=lambda _p, _k, t, _x: seen.append(t))
    assert seen == [999, 749, 499, 249] and result.isfinite().all()
    assert not torch.equal(result, run(pipe, picture(8, 8), num_inference_steps=4))
    with pytest.raises(OptionError, match="spacing: 'leading' is unknown"):
        PipelineConfig(spacing="leading")  # type: ignore[arg-type]


def test_our_ddim_can_be_chosen_by_name(pipe: StableSRPipeline) -> None:
    plain = run(pipe, picture(8, 8), output_type="latent")
    pipe.set_scheduler("ddim")
    try:
        assert not torch.equal(run(pipe, picture(8, 8), output_type="latent"), plain)
    finally:
        pipe.set_scheduler("ddpm")


def test_pictures_of_a_list_are_those_of_single_calls(pipe: StableSRPipeline) -> None:
    pictures = [picture(8, 8), picture(5, 11)]
    together = run(pipe, pictures, generator=[seeded(1), seeded(2)])
    for k, one in enumerate(pictures):
        assert torch.equal(together[k], run(pipe, one, k + 1))


def smooth(kind: str, height: int, width: int) -> Tensor:
    if kind == "constant":
        return torch.tensor([0.2, 0.5, 0.7])[None, :, None, None].expand(1, 3, height, width)
    ramp = torch.linspace(0, 1, width)[None, None, None].expand(1, 3, height, width)
    return ramp.contiguous()


@pytest.mark.parametrize(
    ("kind", "fidelity"), [("constant", 1.0), ("gradient", 0.0), ("gradient", 1.0), ("noise", 1.0)]
)
def test_the_vae_in_strips_leaves_no_seams(
    pipe: StableSRPipeline, kind: str, fidelity: float
) -> None:
    image = picture(10, 14) if kind == "noise" else smooth(kind, 10, 14)
    whole, strips = (
        run(pipe, image, vae_tile=side, fidelity=fidelity, color_fix="none", num_inference_steps=1)
        for side in (None, 24)
    )
    assert (whole - strips).abs().max() < 1 / 255


def test_maps_wait_on_the_device_while_it_has_room_and_never_ran_out(
    pipe: StableSRPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = pipe._stages
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    width = 4 * inner.vae.config["block_out_channels"][0]  # type: ignore[index]
    waiting = width * (4.6 * 100 * 200 + 9 * 1000)
    cases = (
        (gpu, 1.3, None, gpu), (gpu, 1.2, None, cpu), (gpu, 1.3, 500, cpu), (cpu, 9, None, cpu),
    )  # fmt: skip
    for device, times, limit, wanted in cases:
        monkeypatch.setattr(inner, "device", device)
        monkeypatch.setattr(inner, "_strip_limit", limit)
        monkeypatch.setattr("addsr.pipelines.stages.free_memory", lambda _, n=times: n * waiting)
        assert inner._strip_vae(1000, (1, 3, 100, 200)).store == wanted


@pytest.mark.parametrize("pixels", [60, 10**6])
@torch.no_grad()
def test_strips_give_the_values_of_the_whole(pixels: int) -> None:
    torch.manual_seed(1)
    vae = build_vae(VaeConfig(widths=(32, 32, 64, 64), blocks=2)).eval()
    wrapping = FeatureWrapping(CfwConfig(widths=(32, 64), growth=8)).eval()
    for norm in [m for m in vae.modules() if isinstance(m, nn.GroupNorm)]:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.rand(1, 3, 16, 24) * 2 - 1
    ours = StripVae(vae, wrapping, pixels)
    with WrappedVae(vae, wrapping) as whole:
        moments, taps = whole.encode(x)
        wanted = whole.decode(moments[:, :4], taps, 0.7)
    found, our_taps = ours.encode(x)
    torch.testing.assert_close(found, moments, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(list(our_taps), list(taps), atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(ours.decode(moments[:, :4], taps, 0.7), wanted, atol=5e-4, rtol=1e-3)
    assert ours.encode(x, has_taps=False)[1] == ()
    with pytest.raises(InputError, match="taps: 0 given"):
        ours.decode(moments[:, :4], (), 0.5)
    with pytest.raises(InputError, match="do not fit"):
        ours.decode(moments[:, :4, :1], taps, 0.5)


def test_fidelity_0_is_the_plain_decoder(pipe: StableSRPipeline) -> None:
    bare = make_pipe(cfw=None)
    image = picture()
    assert torch.equal(run(pipe, image, fidelity=0), run(bare, image))
    assert torch.equal(run(bare, image, vae_tile=24), run(pipe, image, fidelity=0.0, vae_tile=24))
    assert not torch.equal(run(pipe, image, fidelity=0), run(pipe, image, fidelity=1.0))
    with pytest.raises(OptionError, match=r"fidelity: 0\.5 needs .* use 0"):
        bare(image, fidelity=0.5)


def test_colour_is_that_of_the_input(pipe: StableSRPipeline) -> None:
    image = picture(8, 8)
    for method, limit in (("adain", 0.02), ("wavelet", 0.1)):
        result = run(pipe, image * 0.2 + 0.4, color_fix=method)
        assert (result.mean((2, 3)) - (image * 0.2 + 0.4).mean((2, 3))).abs().max() < limit


def test_switches_have_an_effect(pipe: StableSRPipeline) -> None:
    plain = run(pipe, picture())
    for options in (
        {"start": "noise"},
        {"sample_posterior": True},
        {"prompt_embeds": torch.zeros(1, 5, 24)},
        {"negative_prompt_embeds": torch.zeros(1, 5, 24), "guidance_scale": 3.0},
        {"tile": TILE + 8},
    ):
        other = run(pipe, picture(), **options)
        assert other.isfinite().all()
        assert not torch.equal(plain, other), options


def test_kinds_of_pictures_go_in_and_kinds_come_out(pipe: StableSRPipeline, tmp_path: Path) -> None:
    values = (picture()[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    image = Image.fromarray(values)
    image.save(tmp_path / "in.png")
    tensor = torch.from_numpy(values).permute(2, 0, 1)[None]
    wanted = run(pipe, image)
    for one in (values, tensor, tmp_path / "in.png", [image], values.astype(np.float32) / 255):
        assert torch.allclose(run(pipe, one), wanted, atol=1e-4)
    assert wanted.shape == (1, 3, 48, 36)
    array = run(pipe, image, output_type="np")
    assert array.shape == (1, 48, 36, 3)
    assert np.array_equal(array[0], wanted[0].permute(1, 2, 0).numpy())
    (pil,) = run(pipe, image, output_type="pil")
    assert pil.size == (36, 48)
    assert np.array_equal(np.asarray(pil), (array[0] * 255).round().astype(np.uint8))
    assert run(pipe, image, output_type="latent").shape == (1, 4, 12, 9)
    assert run(pipe, tensor.expand(2, -1, -1, -1)).shape == (2, 3, 48, 36)
    (in_tuple,) = pipe(image, generator=seeded(), output_type="pt", return_dict=False)
    assert torch.equal(in_tuple, wanted)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_grey_and_alpha_are_kept_in_pil_images(pipe: StableSRPipeline, mode: str) -> None:
    image = Image.new(mode, (6, 5), {"L": 90, "LA": (90, 128), "RGBA": (9, 99, 200, 128)}[mode])
    (result,) = run(pipe, image, output_type="pil", num_inference_steps=1)
    assert (result.mode, result.size) == (mode, (24, 20))
    if "A" in mode:
        assert set(np.asarray(result)[..., -1].ravel().tolist()) == {128}


def test_the_callback_sees_each_step_and_may_change_it(pipe: StableSRPipeline) -> None:
    seen: list[tuple[int, float, tuple[str, ...]]] = []
    told: list[tuple[int, int]] = []

    def watch(of: Any, k: int, t: float, tensors: dict[str, Any]) -> dict[str, Any] | None:
        assert of is pipe
        seen.append((k, t, tuple(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if k == 2 else None

    latents = run(
        pipe,
        [picture(), picture()],
        num_inference_steps=3,
        callback_on_step_end=watch,
        callback_on_step_end_tensor_inputs=["latents", "image_latents", "model_output"],
        progress=lambda done, total: told.append((done, total)),
        output_type="latent",
    )
    names = ("latents", "image_latents", "model_output")
    assert seen == [(0, 999, names), (1, 500, names), (2, 0, names)] * 2
    assert told == [(k, 6) for k in range(1, 7)]
    assert not latents.any()
    with pytest.raises(OptionError, match="keep the shape"):
        run(pipe, picture(), callback_on_step_end=lambda *_: {"latents": torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("DDPMScheduler", 2),
        ("DDIMScheduler", 2),
        ("EulerDiscreteScheduler", 2),
        ("EulerAncestralDiscreteScheduler", 2),
        ("DPMSolverMultistepScheduler", 3),
        ("UniPCMultistepScheduler", 3),
        ("HeunDiscreteScheduler", 2),
        ("LCMScheduler", 2),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_schedulers_of_diffusers_can_be_used(name: str, steps: int) -> None:
    import diffusers

    scheduler = getattr(diffusers, name)(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )
    pipe = make_pipe(scheduler=scheduler)
    options: dict[str, Any] = {"num_inference_steps": steps, "output_type": "latent"}
    first, again = (run(pipe, picture(8, 8), **options) for _ in range(2))
    assert first.isfinite().all()
    assert torch.equal(first, again)
    assert run(pipe, picture(8, 8), start="noise", **options).isfinite().all()


def test_our_ddpm_is_that_of_diffusers() -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        timestep_spacing="linspace",
    )  # fmt: skip
    for prediction, told in (("eps", "epsilon"), ("v", "v_prediction")):
        config = PipelineConfig(prediction=prediction, tile=TILE)  # type: ignore[arg-type]
        scheduler = DDPMScheduler.from_config(theirs.config, prediction_type=told)
        ours, others = (
            run(make_pipe(config=config, **more), picture(8, 8), num_inference_steps=3)
            for more in ({}, {"scheduler": scheduler})
        )
        assert (ours - others).abs().max() < 1e-3


def test_the_prediction_of_a_scheduler_must_be_the_models(
    pipe: StableSRPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    from diffusers import DDIMScheduler

    with pytest.raises(OptionError, match=r"from_config\(.*prediction_type='epsilon'\)"):
        pipe.set_scheduler(DDIMScheduler(prediction_type="v_prediction"))
    for wrong in ("euler", 3):
        with pytest.raises(OptionError, match=r"scheduler: .*ddpm or ddim"):
            pipe.set_scheduler(wrong)
    assert pipe.scheduler == "ddpm"
    make_pipe(scheduler=DDIMScheduler())
    assert "beta_schedule" in caplog.text and "clip_sample" in caplog.text


@pytest.mark.parametrize("variant", [None, pytest.param("fp32", marks=pytest.mark.slow)])
def test_a_saved_pipeline_comes_back_the_same(
    pipe: StableSRPipeline, tmp_path: Path, variant: str | None
) -> None:
    pipe.save_pretrained(tmp_path / "a" / "b", variant=variant)
    again = StableSRPipeline.from_pretrained(tmp_path / "a" / "b", variant=variant)
    assert again.config == pipe.config
    assert torch.equal(run(again, picture()), run(pipe, picture()))
    half = StableSRPipeline.from_pretrained(
        tmp_path / "a" / "b", variant=variant, torch_dtype=torch.bfloat16, scheduler="ddim"
    )
    assert (half.dtype, half.scheduler) == (torch.bfloat16, "ddim")
    names = {p.name for p in (tmp_path / "a" / "b").rglob("*") if p.is_file()}
    file = f"diffusion_pytorch_model.{variant}.safetensors".replace(".None", "")
    assert names == {"model_index.json", "config.json", file}


def test_a_folder_that_is_overwritten_halfway_is_no_model(
    pipe: StableSRPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe.save_pretrained(tmp_path)
    usual = folder.save_weights

    def full(path: Path, *more: Any) -> str:
        if "sft" in str(path):
            raise OutputError(f"{path}: weights cannot be written (No space left on device)")
        return usual(path, *more)

    monkeypatch.setattr(folder, "save_weights", full)
    with pytest.raises(OutputError, match="No space left"):
        make_pipe(seed=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"model_index\.json: cannot be read"):
        StableSRPipeline.from_pretrained(tmp_path)


def test_diffusers_reads_what_is_its_own(tmp_path: Path) -> None:
    from diffusers import DDIMScheduler, UNet2DConditionModel

    pipe = make_pipe(scheduler=DDIMScheduler(clip_sample=False), cfw=None)
    pipe.save_pretrained(tmp_path)
    theirs = UNet2DConditionModel.from_pretrained(tmp_path / "unet").state_dict()
    ours = pipe.unet.state_dict()
    assert all(torch.equal(theirs[k], v) for k, v in ours.items())
    again = StableSRPipeline.from_pretrained(tmp_path)
    assert again.cfw is None
    assert again.scheduler.config.clip_sample is False
    assert torch.equal(run(again, picture()), run(pipe, picture()))


def test_damaged_folders_are_named(pipe: StableSRPipeline, tmp_path: Path) -> None:
    load = StableSRPipeline.from_pretrained
    with pytest.raises(ModelError, match=r"path_or_id: .* is no folder; give one"):
        load(tmp_path / "none")
    with pytest.raises(ModelError, match=r"model_index.json: cannot be read"):
        load(tmp_path)
    pipe.save_pretrained(tmp_path / "a")
    with pytest.raises(ModelError, match="check `variant`"):
        load(tmp_path / "a", variant="fp16")

    def broken(name: str, text: str) -> Path:
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        (tmp_path / "b" / name).write_text(text)
        return tmp_path / "b"

    index = json.loads((tmp_path / "a" / "model_index.json").read_text())
    with pytest.raises(ModelError, match="not 'StableSRPipeline'"):
        load(broken("model_index.json", '{"_class_name": "Other"}'))
    with pytest.raises(ModelError, match="has no unet; fetch"):
        part = {k: v for k, v in index.items() if k != "unet"}
        load(broken("model_index.json", json.dumps(part)))
    with pytest.raises(ModelError, match="no JSON object"):
        load(broken("unet/config.json", "3"))
    with pytest.raises(ModelError, match="not a readable safetensors"):
        load(broken("vae/diffusion_pytorch_model.safetensors", "x"))
    with pytest.raises(ModelError, match="not a readable safetensors"):
        load(broken("sft/diffusion_pytorch_model.safetensors", "x"))
    with pytest.raises(ModelError, match="do not fit their config"):
        config = json.loads((tmp_path / "a" / "unet" / "config.json").read_text())
        load(broken("unet/config.json", json.dumps({**config, "block_out_channels": [32, 96]})))
    for change, message in (
        ({"tile": 0}, r"model_index\.json: tile: 0 is not possible"),
        ({"tile": 36}, r"b: its parts do not fit .*tile: 36 px is no multiple of 8.*fetch"),
        ({"prediction": "x0"}, r"model_index\.json: prediction: 'x0' is unknown"),
        ({"scheduler": None}, r"model_index\.json: scheduler = None is no pair"),
        ({"scheduler": ["addsr", "euler"]}, r"b: its parts do not fit .*'euler' is unknown"),
    ):
        with pytest.raises(ModelError, match=message):
            load(broken("model_index.json", json.dumps({**index, **change})))
    with pytest.raises(ModelError, match=r"model_index\.json: cannot be read"):
        load(broken("model_index.json", "[" * 100_000))
    for text in ('{"block_out_channels": null}', '{"down_block_types": ["A", "B"]}'):
        with pytest.raises(ModelError, match=r"unet: nothing can be built of its configuration"):
            load(broken("unet/config.json", text))
    with pytest.raises(OptionError, match="'euler' is unknown"):
        load(tmp_path / "a", scheduler="euler")
    with pytest.raises(OptionError, match="tile: 36 px is no multiple of 8"):
        make_pipe(config=PipelineConfig(tile=36))
    with pytest.raises(OptionError, match="safe_serialization"):
        pipe.save_pretrained(tmp_path / "c", safe_serialization=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        pipe.save_pretrained(tmp_path / "file")


def test_the_networks_type_is_that_of_the_pipeline() -> None:
    pipe = make_pipe()
    full = run(pipe, picture(8, 8), num_inference_steps=1)
    half = run(pipe.to(torch.bfloat16), picture(8, 8), num_inference_steps=1)
    assert pipe.dtype == torch.bfloat16
    assert half.dtype == torch.float32
    assert (full - half).abs().mean() < 0.1
    strips = run(pipe, picture(8, 8), vae_tile=24, num_inference_steps=1)
    assert (strips - half).abs().mean() < 0.05
    assert pipe.to("cpu", torch.float32).dtype == torch.float32


def test_numbers_that_are_none_are_not_handed_out() -> None:
    pipe = make_pipe()
    nn.init.constant_(pipe.vae.decoder.conv_out.bias, float("nan"))  # type: ignore[union-attr]
    with pytest.raises(ModelError, match=r"vae: .*bfloat16"):
        run(pipe, picture())
    nn.init.constant_(pipe.unet.conv_out.bias, float("nan"))  # type: ignore[union-attr]
    with pytest.raises(ModelError, match=r"latents: .*bfloat16"):
        run(pipe, picture())


def test_offload_has_only_working_networks_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_pipe()
    wanted = run(pipe, picture())
    moves: list[tuple[str, str]] = []
    for name, net in pipe.components.items():
        if isinstance(net, nn.Module):
            plain = net.to
            monkeypatch.setattr(
                net,
                "to",
                lambda where, name=name, plain=plain: (
                    moves.append((name, str(where))),
                    plain("cpu"),
                )[1],
            )
    pipe.enable_model_cpu_offload("cpu:0")
    moves.clear()
    assert torch.equal(run(pipe, picture()), wanted)
    on = [name for name, where in moves if where == "cpu:0"]
    assert on == ["vae", "unet", "encoder", "sft", "vae", "cfw"]
    assert [name for name, where in moves if where == "cpu"] == on
    pipe.to("cpu")
    moves.clear()
    run(pipe, picture())
    assert not moves
    if not torch.accelerator.is_available():
        with pytest.raises(DependencyError, match="no accelerator"):
            pipe.enable_model_cpu_offload()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps: 0 .* whole number from 1"),
        ({"num_inference_steps": 1001}, "steps: 1001 .* 1 and 1000"),
        ({"fidelity": 1.5}, r"fidelity: 1\.5 is outside of 0 to 1"),
        ({"upscale": 9}, "scale: 9 is outside of 1 to 8"),
        ({"tile": 36}, "tile: 36 px is no multiple of 8; give 32 or 40"),
        ({"tile_overlap": 32}, r"tile_overlap: 32 px must be below tile \(32\)"),
        ({"tile_batch": 0}, "tile_batch: 0 .* from 1"),
        ({"vae_tile": 0}, "vae_tile: 0 .* from 1"),
        ({"color_fix": "x"}, "color_fix: 'x' is unknown; use one of adain, wavelet, none"),
        ({"start": "x"}, "start: 'x' .* image, noise"),
        ({"output_type": "x"}, "output_type: 'x' .* pil, np, pt, latent"),
        ({"prompt_embeds": torch.zeros(1, 4, 24)}, r"prompt_embeds: .* give \(1, 5, 24\)"),
        ({"guidance_scale": 2.0}, "guidance_scale: 2 has no effect .* negative_prompt_embeds"),
        ({"generator": [seeded()] * 3}, "generator: 3 given for 1 pictures"),
        ({"callback_on_step_end_tensor_inputs": ["x"]}, r"\['x'\] are unknown; use some of"),
    ],
)
def test_options_out_of_range_are_named(
    pipe: StableSRPipeline, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        pipe(picture(), **options)


def test_pictures_and_parts_that_cannot_be_used_are_named(pipe: StableSRPipeline) -> None:
    with pytest.raises(InputError, match="image: an empty list"):
        pipe([])
    with pytest.raises(InputError, match="image: int cannot be used"):
        pipe(3)
    with pytest.raises(ModelError, match=r"prompt_embeds: .* \(1, tokens, 24\)"):
        make_pipe(prompt_embeds=torch.zeros(1, 5, 25))
    with pytest.raises(ModelError, match="feature wrapping is made for widths"):
        make_pipe(cfw=FeatureWrapping(CfwConfig(widths=(64,), growth=8)))
    with pytest.raises(OptionError, match="prediction: 'x0' is unknown"):
        PipelineConfig(prediction="x0")  # type: ignore[arg-type]
    parts = pipe.components
    assert parts["unet"] is pipe.unet
    assert pipe.device == torch.device("cpu")
