"""AddSR's and SeeSR's pipelines with tiny random networks: steps, tags, tiles, errors."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from addsr.diffusion.addsr import Cue, refinement, sample_addsr_latent
from addsr.diffusion.ddpm import start_latent
from addsr.errors import MemoryLimitError, ModelError, OptionError, OutputError
from addsr.models.placing import damages
from addsr.models.store import Installed, Source, read_facts, write_facts
from addsr.nets.seesr import SeeSRConfig, build_controlnet, build_unet
from addsr.nets.stablesr import VaeConfig, build_vae
from addsr.pipelines import AddSRPipeline, SeeSRPipeline
from addsr.pipelines.canvas import make_canvas
from addsr.pipelines.config import PipelineConfig
from addsr.pipelines.seesr_folder import load_vae

SHAPE = SeeSRConfig(
    widths=(32, 64),
    blocks=1,
    attention=(True, False),
    heads=(2, 4),
    context=24,
    image_context=20,
    condition_widths=(8, 8, 8),
)
TILE = 32  # 8 latent pixels: 4 picture pixels to one of the latent
SCALING = 0.18215


class ToyTagger:
    """Sees the mean colour."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def embed(self, image: Tensor) -> Tensor:
        self.seen.append(image)
        return F.pad(image.mean((2, 3)), (0, 17))[:, None].repeat(1, 5, 1)

    def __call__(self, image: Tensor) -> Any:
        return SimpleNamespace(
            embeds=self.embed(image),
            tags=[[SimpleNamespace(name="lake"), SimpleNamespace(name="sky")]],
        )


def embed_text(text: str) -> Tensor:
    generator = torch.Generator().manual_seed(sum(map(ord, text)))
    return torch.randn(1, 5, 24, generator=generator)


def make_pipe(kind: Any = AddSRPipeline, **more: Any) -> Any:
    generator = torch.Generator().manual_seed(2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets: dict[str, Any] = {
            "unet": build_unet(SHAPE),
            "controlnet": build_controlnet(SHAPE),
            "vae": build_vae(VaeConfig(widths=(32, 32, 32), blocks=1)),
            "prompt_embeds": torch.randn(1, 5, 24),
            "config": PipelineConfig(tile=TILE, steps=kind.steps, fidelity=0.0),
        }
        for parameter in nets["controlnet"].parameters():
            if not parameter.any():  # zeros of initialisation
                torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return kind(**{**nets, **more})


@pytest.fixture(scope="module")
def pipe() -> Any:
    return make_pipe()


@pytest.fixture(scope="module")
def seesr() -> Any:
    return make_pipe(SeeSRPipeline)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(height: int = 8, width: int = 8, seed: int = 3) -> Tensor:
    return torch.rand(1, 3, height, width, generator=seeded(seed))


def run(pipe: Any, image: Any = None, **options: Any) -> Any:
    image = picture() if image is None else image
    options = {"output_type": "pt", "generator": seeded(), **options}
    return pipe(image, **options).images


@pytest.mark.parametrize(("height", "width", "upscale"), [(8, 8, 4), (11, 7, 4), (20, 3, 2)])
def test_any_size_comes_out_enlarged(pipe: Any, height: int, width: int, upscale: float) -> None:
    got = run(pipe, picture(height, width), num_inference_steps=1, upscale=upscale)
    assert got.shape == (1, 3, height * upscale, width * upscale)
    assert got.isfinite().all()
    assert got.amin() >= 0
    assert got.amax() <= 1


def test_the_number_of_steps_is_honoured(pipe: Any) -> None:
    for steps, levels in ((1, [999]), (2, [999, 749]), (4, [999, 749, 499, 249])):
        seen: list[int] = []

        def watch(
            _pipe: Any, k: int, t: float, tensors: dict[str, Tensor], seen: Any = seen
        ) -> None:
            assert k == len(seen)
            assert set(tensors) == {"latents", "image_latents", "model_output"}
            seen.append(int(t))

        run(
            pipe,
            num_inference_steps=steps,
            callback_on_step_end=watch,
            callback_on_step_end_tensor_inputs=("latents", "image_latents", "model_output"),
            output_type="latent",
        )
        assert seen == levels
    with pytest.raises(OptionError, match=r"tensor_inputs: \['other'\] are unknown"):
        run(pipe, callback_on_step_end_tensor_inputs=("other",))
    with pytest.raises(OptionError, match="steps: 50 is not possible; AddSR takes 1, 2, 3 or 4"):
        run(pipe, num_inference_steps=50)


def test_the_pipeline_does_what_the_sampler_says() -> None:
    tagger = ToyTagger()
    own = make_pipe(tagger=tagger)
    got = run(own, num_inference_steps=2, output_type="latent", psr_weight=0.7)
    with torch.no_grad():
        vae, net, generator = own.networks["vae"], own.net, seeded()
        # 8 pixels enlarged four times: one tile, nothing padded
        canvas = make_canvas((8, 8), 4.0, TILE, 4, 2).fill(picture())
        z_lr = vae.encode(canvas).latent_dist.mean * SCALING
        first = Cue((canvas + 1) / 2, ToyTagger().embed(picture()))
        start = start_latent(z_lr, torch.randn(z_lr.shape, generator=generator))

        def predict(z: Tensor, t: Tensor, cue: Cue) -> Tensor:
            return net(z, t, own.prompt_embeds, cue.tokens, cue.picture)

        wanted = sample_addsr_latent(
            predict,
            start,
            first,
            iter([torch.randn(z_lr.shape, generator=generator)]),
            refine=refinement(
                lambda z: vae.decode(z / SCALING).sample, first, embed=ToyTagger().embed, weight=0.7
            ),
            timesteps=(999, 749),
        )
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3)


def test_self_refinement_changes_later_steps_by_its_weight(pipe: Any) -> None:
    def latent(**options: Any) -> Tensor:
        return run(pipe, num_inference_steps=2, output_type="latent", **options)

    assert torch.equal(latent(), latent(psr_weight=0.5))
    assert torch.equal(latent(released_quirks=True), latent(psr_weight=0.4))
    assert not torch.equal(latent(), latent(psr_weight=0.4))
    assert not torch.equal(latent(psr_weight=0.0), latent(psr_weight=1.0))
    with pytest.raises(OptionError, match="psr_weight"):
        latent(psr_weight=1.5)


def test_the_tagger_looks_at_the_input_and_at_predictions() -> None:
    tagger = ToyTagger()
    own = make_pipe(tagger=tagger)
    run(own, num_inference_steps=3)
    assert [tuple(image.shape[-2:]) for image in tagger.seen] == [(8, 8), (32, 32), (32, 32)]
    tagger.seen.clear()
    run(own, num_inference_steps=3, refresh_tokens=False)
    assert len(tagger.seen) == 1
    given = torch.zeros(1, 5, 20)
    with_own = run(own, num_inference_steps=2, image_tokens=given)
    assert torch.equal(with_own, run(make_pipe(), num_inference_steps=2, image_tokens=given))


def test_without_a_tagger_it_works_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    own = make_pipe()
    with caplog.at_level(logging.WARNING, logger="addsr.pipelines.seesr"):
        plain = run(own, num_inference_steps=1)
        run(own, num_inference_steps=1)
    (told,) = (r.message for r in caplog.records)
    assert "no prompt extractor: the networks see no tags and empty image tokens" in told
    none = torch.zeros(1, 145, 20)
    assert torch.equal(plain, run(own, num_inference_steps=1, image_tokens=none))


def test_words_are_tags_prompt_and_quality() -> None:
    said: list[str] = []

    def embed(text: str) -> Tensor:
        said.append(text)
        return embed_text(text)

    own = make_pipe(tagger=ToyTagger(), text_encoder=embed)
    run(own, num_inference_steps=1, prompt="a boat")
    run(own, num_inference_steps=1, added_prompt="")
    assert said == [
        "lake, sky, a boat, clean, high-resolution, 8k, extremely detailed, best quality, sharp",
        "lake, sky",
    ]
    with pytest.raises(OptionError, match="no text encoder"):
        run(make_pipe(), prompt="a boat")
    wrong = make_pipe(text_encoder=lambda _text: torch.zeros(1, 5, 23))
    with pytest.raises(ModelError, match=r"text_encoder: gave \(1, 5, 23\)"):
        run(wrong)


def test_tags_make_room_for_the_words_that_follow_them() -> None:
    class Short:
        said: list[str]

        def __init__(self) -> None:
            self.said = []

        def fits(self, text: str) -> bool:
            return len(text) < 12

        def __call__(self, text: str) -> Tensor:
            self.said.append(text)
            return embed_text(text)

    short = Short()
    own = make_pipe(tagger=ToyTagger(), text_encoder=short)
    run(own, num_inference_steps=1, added_prompt="sharp")
    run(own, num_inference_steps=1, added_prompt="sharp", released_quirks=True)
    run(own, num_inference_steps=1, prompt="a boat", added_prompt="very sharp")
    assert short.said == ["lake, sharp", "lake, sky, sharp", "a boat, very sharp"]


def test_addsr_takes_no_guidance(pipe: Any) -> None:
    with pytest.raises(OptionError, match=r"guidance_scale: 5\.5 is not possible"):
        run(pipe, guidance_scale=5.5, negative_prompt_embeds=torch.zeros(1, 5, 24))


def test_seesr_is_guided_away_from_the_negative_prompt(seesr: Any) -> None:
    negative = embed_text("noise")

    def latent(**options: Any) -> Tensor:
        return run(seesr, num_inference_steps=2, output_type="latent", **options)

    plain = latent()
    guided = latent(negative_prompt_embeds=negative)
    assert torch.equal(guided, latent(negative_prompt_embeds=negative, guidance_scale=5.5))
    assert not torch.equal(guided, plain)
    assert torch.equal(latent(negative_prompt_embeds=negative, guidance_scale=1.0), plain)
    own = make_pipe(SeeSRPipeline, text_encoder=embed_text)
    words = run(own, num_inference_steps=2, output_type="latent", added_prompt="",
                negative_prompt="noise")  # fmt: skip
    wanted = latent(prompt_embeds=embed_text(""), negative_prompt_embeds=negative)
    assert torch.equal(words, wanted)
    with pytest.raises(OptionError, match="guidance_scale: 3 has no effect alone"):
        latent(guidance_scale=3)


def test_seesr_takes_fifty_steps_unless_told(seesr: Any) -> None:
    assert seesr.config.steps == 50
    done: list[tuple[int, int]] = []
    run(seesr, num_inference_steps=3, progress=lambda *at: done.append(at), output_type="latent")
    assert done == [(1, 3), (2, 3), (3, 3)]
    for wrong in ({"psr_weight": 0.5}, {"released_quirks": True}):
        with pytest.raises(OptionError, match="SeeSR does not refine itself"):
            run(seesr, num_inference_steps=1, **wrong)


def test_tiles_and_strips_change_nothing_but_memory(pipe: Any) -> None:
    image = picture(12, 8)

    def latent(**options: Any) -> Tensor:
        return run(pipe, image, num_inference_steps=2, output_type="latent", **options)

    one = latent(tile_batch=1)
    torch.testing.assert_close(latent(tile_batch=8), one, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(latent(tile_batch=1, vae_tile=32), one, rtol=1e-3, atol=1e-3)
    # the picture is encoded once in each of the two steps, not once a tile
    encoder: Any = pipe.net.controlnet.controlnet_cond_embedding
    calls: list[int] = []
    handle = encoder.conv_in.register_forward_hook(lambda *_: calls.append(1))
    try:
        latent()
    finally:
        handle.remove()
    assert len(calls) == 2


def test_seeds_decide_and_callbacks_may_replace_the_latent(pipe: Any) -> None:
    def latent(seed: int, **options: Any) -> Tensor:
        options = {"num_inference_steps": 1, "output_type": "latent", **options}
        return run(pipe, generator=seeded(seed), **options)

    assert torch.equal(latent(1), latent(1))
    assert not torch.equal(latent(1), latent(2))
    zero = latent(1, callback_on_step_end=lambda _p, _k, _t, x: {"latents": 0 * x["latents"]})
    assert not zero.any()
    with pytest.raises(OptionError, match="keep the shape"):
        latent(1, callback_on_step_end=lambda *_: {"latents": torch.zeros(1)})
    assert not torch.equal(latent(1, start="noise"), latent(1))
    assert not torch.equal(latent(1, sample_posterior=True), latent(1))


def test_the_control_can_be_weakened_but_not_reversed(pipe: Any) -> None:
    half, full = (run(pipe, num_inference_steps=1, control_scale=s) for s in (0.5, 1.0))
    assert not torch.equal(half, full)
    for wrong in (-1.0, float("nan")):
        with pytest.raises(OptionError, match="control_scale"):
            run(pipe, control_scale=wrong)
    with pytest.raises(OptionError, match=r"image_tokens: shape \(1, 5, 24\)"):
        run(pipe, image_tokens=torch.zeros(1, 5, 24))


def test_offload_gives_the_same(pipe: Any) -> None:
    wanted = run(pipe, num_inference_steps=2)
    own = make_pipe()
    own.enable_model_cpu_offload("cpu")
    assert torch.equal(run(own, num_inference_steps=2), wanted)


def test_a_pipeline_is_made_again_of_its_components(pipe: Any) -> None:
    twin = AddSRPipeline(**pipe.components)
    assert torch.equal(run(twin, num_inference_steps=1), run(pipe, num_inference_steps=1))
    as_seesr = SeeSRPipeline(**{**pipe.components, "config": None})
    assert as_seesr.config.steps == 50


def test_pil_pictures_keep_their_kind(pipe: Any) -> None:
    from PIL import Image

    (result,) = pipe([Image.new("LA", (5, 8), (90, 128))], 1, generator=seeded()).images
    assert (result.mode, result.size) == ("LA", (20, 32))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"prompt_embeds": torch.zeros(1, 5, 23)},
            r"give the empty prompt's embedding \(1, tokens",
        ),
        ({"vae": VaeConfig(widths=(32, 32), blocks=1)}, "4 pixels to a latent one, the VAE 2"),
        ({"vae": VaeConfig(widths=(32,) * 3, blocks=1, latent_channels=8)}, "8 channels"),
        ({"controlnet": {"context": 16}}, "cross_attention_dim 16 is not the U-Net's 24"),
    ],
)
def test_parts_that_do_not_fit_are_refused(wrong: dict[str, Any], message: str) -> None:
    if isinstance(vae := wrong.get("vae"), VaeConfig):
        wrong = {"vae": build_vae(vae)}
    if "controlnet" in wrong:
        other = SeeSRConfig(**{**vars(SHAPE), **wrong["controlnet"]})
        wrong = {"controlnet": build_controlnet(other)}
    with pytest.raises(ModelError, match=message):
        make_pipe(**wrong)


def test_a_saved_pipeline_comes_back_bit_for_bit(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    tagger = ToyTagger()
    twin = AddSRPipeline.from_pretrained(tmp_path, tagger=tagger, text_encoder=embed_text)
    assert (twin.config, twin.tagger, twin.text_encoder) == (pipe.config, tagger, embed_text)
    twin = AddSRPipeline.from_pretrained(tmp_path)
    assert torch.equal(run(twin, num_inference_steps=1), run(pipe, num_inference_steps=1))
    half = SeeSRPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.config.steps == 50  # the other class's are not taken over


def test_a_saved_pipeline_keeps_the_licence_of_the_model_it_was_loaded_from(
    pipe: Any, tmp_path: Path
) -> None:
    pipe.save_pretrained(tmp_path / "a")
    source = Source("unet.safetensors", 9, "0" * 64, "U-Net")
    facts = Installed("a", tmp_path / "a", "addsr", "Apache-2.0", (source,), "base", "2026-01-01")
    write_facts(facts)
    AddSRPipeline.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    kept = read_facts(tmp_path / "b")
    assert (kept.licence, kept.sources, kept.kind) == ("Apache-2.0", (source,), "addsr")
    assert {f"{part}/config.json" for part in ("unet", "controlnet", "vae")} <= set(kept.files)
    assert damages(kept) == []


def test_published_networks_stand_on_a_stable_diffusion(text_base: Path, tmp_path: Path) -> None:
    shape = SeeSRConfig(**{**vars(SHAPE), "context": 16})
    whole = make_pipe(
        unet=build_unet(shape),
        controlnet=build_controlnet(shape),
        prompt_embeds=torch.zeros(1, 6, 16),
    )
    whole.save_pretrained(tmp_path)
    base = tmp_path / "base"
    base.mkdir()
    (tmp_path / "vae").rename(base / "vae")
    for part in ("text_encoder", "tokenizer"):
        (base / part).symlink_to(text_base / part)
    own = AddSRPipeline.from_published(tmp_path, base, local_files_only=True)
    state = own.networks["unet"].state_dict()
    assert all(torch.equal(state[k], v) for k, v in whole.networks["unet"].state_dict().items())
    assert own.prompt_embeds.shape == (1, 6, 16)
    assert run(own, num_inference_steps=1, tile=32, prompt="a b").isfinite().all()
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        AddSRPipeline.from_published(base, base, local_files_only=True)


def test_folders_that_are_not_whole_are_refused(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model_index\.json: cannot be read"):
        AddSRPipeline.from_pretrained(tmp_path)
    pipe.save_pretrained(tmp_path, variant="fp32")
    with pytest.raises(ModelError, match="check `variant`"):
        AddSRPipeline.from_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    facts = json.loads(index.read_text())
    for wrong, message in (
        ([], "holds no JSON object"),
        ({**facts, "_class_name": "StableSRPipeline"}, "_class_name is 'StableSRPipeline'"),
        ({**facts, "tile": 0}, "tile: 0 is not possible"),
    ):
        index.write_text(json.dumps(wrong))
        with pytest.raises(ModelError, match=message):
            AddSRPipeline.from_pretrained(tmp_path, variant="fp32")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        pipe.save_pretrained(tmp_path / "file")


def test_a_vae_in_the_names_of_older_versions_is_read(tmp_path: Path) -> None:
    vae: Any = build_vae(VaeConfig(widths=(32, 32), blocks=1))
    state = vae.state_dict()
    for new, old in (
        ("to_q", "query"),
        ("to_k", "key"),
        ("to_v", "value"),
        ("to_out.0", "proj_attn"),
    ):
        state = {k.replace(f".{new}.", f".{old}."): v for k, v in state.items()}
    assert state.keys() != vae.state_dict().keys()
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(vae.to_json_string())
    got = load_vae(tmp_path).state_dict()
    assert all(torch.equal(got[k], v) for k, v in vae.state_dict().items())
    (tmp_path / "config.json").write_text(json.dumps({"block_out_channels": [33]}))
    with pytest.raises(ModelError, match=r"vae"):
        load_vae(tmp_path)


def test_pictures_stay_on_the_device_where_there_is_room(
    make_addsr: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = make_addsr()._stages
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    room = 3000 * 2000 * 12 * 8 / 0.8

    def has_room(device: torch.device, times: float, count: int = 1, **more: Any) -> bool:
        monkeypatch.setattr(stages, "device", device)
        monkeypatch.setattr(stages, "_strip_limit", more.get("limit"))
        monkeypatch.setattr(stages, "is_offloading", more.get("is_offloading", False))
        monkeypatch.setattr(
            "addsr.pipelines.seesr_stages.free_memory", lambda _: 1.01 * times * room
        )
        side = more.get("side", (3000, 2000))
        options: Any = SimpleNamespace(strip_pixels=more.get("strips", 1024**2))
        return stages.has_room(side, options, count)

    assert has_room(gpu, 1) and not has_room(gpu, 0.9)
    assert has_room(gpu, 3, count=3) and not has_room(gpu, 2.9, count=3)
    assert not has_room(gpu, 9, limit=500) and not has_room(gpu, 9, is_offloading=True)
    assert not has_room(cpu, 9)
    # what the VAE takes whole is not asked about
    assert has_room(gpu, 0, side=(1024, 1024)) and has_room(cpu, 0, side=(1024, 1024))
    assert has_room(gpu, 0, side=(2048, 2048), strips=None)
    assert not has_room(gpu, 0, side=(2048, 2049), strips=None)


@pytest.mark.parametrize("stays", [True, False])
def test_predictions_are_where_the_picture_is(
    make_addsr: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    """Memory that others take during a run does not part them."""
    pipe, asked = make_addsr(), list[bool]()
    stages = pipe._stages
    decode = stages.decode

    def watched(*args: Any, stays: bool = False, **more: Any) -> Tensor:
        asked.append(stays)
        return decode(*args, stays=stays, **more)

    monkeypatch.setattr(stages, "decode", watched)
    answers = iter([stays])  # asked for once
    monkeypatch.setattr(stages, "has_room", lambda *_: next(answers))
    if not stays:
        pipe.enable_model_cpu_offload("cpu")
    pipe(torch.rand(1, 3, 8, 8), num_inference_steps=3, output_type="pt")
    assert asked == [stays] * 3


def test_memory_that_runs_out_between_the_networks_costs_one_more_try(
    make_addsr: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pipe, tries = make_addsr(), list[int]()
    from addsr.pipelines import seesr, seesr_stages

    finish = seesr.finish

    def full(*args: Any) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return finish(*args)

    def run(one: Any) -> Tensor:
        seed = torch.Generator().manual_seed(0)
        picture = torch.full((1, 3, 8, 8), 0.4)
        return one(picture, num_inference_steps=1, output_type="pt", generator=seed).images

    monkeypatch.setattr(seesr, "finish", full)
    with pytest.raises(MemoryLimitError, match=r"^image: 8x8 made 4 times larger does not fit"):
        run(pipe)  # on a CPU nothing else can be done
    tries.clear()
    monkeypatch.setattr(seesr_stages, "_ASKED", ("cpu",))
    with caplog.at_level(logging.WARNING):
        got = run(pipe)
    assert len(tries) == 2 and "do not fit on cpu beside the networks" in caplog.text
    assert torch.equal(got, run(make_addsr()))  # with the same noise
    tries.clear()
    with pytest.raises(MemoryLimitError, match="enlarge less, use the CPU, or free memory"):
        run(pipe)  # once
    tries.clear()
    two = [torch.full((1, 3, 8, 8), 0.4)] * 2
    options: dict[str, Any] = {"num_inference_steps": 1, "output_type": "pt", "picture_batch": 2}
    assert len(pipe(two, **options).images) == 2
    assert len(tries) == 3 and "2 pictures do not fit together, one by one" in caplog.text
