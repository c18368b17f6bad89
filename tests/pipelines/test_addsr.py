"""AddSR's and SeeSR's pipelines with tiny random networks: steps, tags, tiles, errors."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.diffusion.addsr import Cue, refinement, sample_addsr_latent
from addsr.diffusion.ddpm import start_latent
from addsr.errors import ModelError, OptionError
from addsr.nets.seesr import SeeSRConfig, build_controlnet, build_unet
from addsr.nets.stablesr import VaeConfig, build_vae
from addsr.pipelines import AddSRPipeline, SeeSRPipeline
from addsr.pipelines.config import PipelineConfig

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

        run(pipe, num_inference_steps=steps, callback_on_step_end=watch, output_type="latent")
        assert seen == levels
    with pytest.raises(OptionError, match="steps: 50 is not possible; AddSR takes 1, 2, 3 or 4"):
        run(pipe, num_inference_steps=50)


def test_the_pipeline_does_what_the_sampler_says(pipe: Any) -> None:
    tagger = ToyTagger()
    own = make_pipe(tagger=tagger)
    got = run(own, num_inference_steps=2, output_type="latent", psr_weight=0.7)
    with torch.no_grad():
        vae, net, generator = own.networks["vae"], own.net, seeded()
        # 8 pixels enlarged four times: one tile, nothing padded
        filled = own(picture(), 1, generator=seeded(), output_type="latent").images  # warms nothing
        assert filled.shape == got.shape
        from addsr.pipelines.canvas import make_canvas

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
    with caplog.at_level(logging.WARNING, logger="addsr.pipelines.addsr"):
        plain = run(own, num_inference_steps=1)
        run(own, num_inference_steps=1)
    assert [r.message for r in caplog.records].count(
        "no prompt extractor: the networks see no tags and empty image tokens"
    ) == 1
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
    done: list[tuple[int, int]] = []
    run(seesr, progress=lambda *at: done.append(at), output_type="latent")
    assert done == [(k, 50) for k in range(1, 51)]
    for wrong in ({"psr_weight": 0.5}, {"released_quirks": True}):
        with pytest.raises(OptionError, match="SeeSR does not refine itself"):
            run(seesr, num_inference_steps=1, **wrong)


def test_tiles_and_strips_change_nothing_but_memory(pipe: Any) -> None:
    image = picture(16, 20)

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
        return run(pipe, generator=seeded(seed), output_type="latent", **options)

    assert torch.equal(latent(1), latent(1))
    assert not torch.equal(latent(1), latent(2))
    zero = latent(1, callback_on_step_end=lambda _p, _k, _t, x: {"latents": 0 * x["latents"]})
    assert not zero.any()
    with pytest.raises(OptionError, match="keep the shape"):
        latent(1, callback_on_step_end=lambda *_: {"latents": torch.zeros(1)})
    assert not torch.equal(latent(1, start="noise"), latent(1))
    assert not torch.equal(latent(1, sample_posterior=True), latent(1))


def test_the_control_can_be_weakened_but_not_reversed(pipe: Any) -> None:
    assert not torch.equal(run(pipe, control_scale=0.5), run(pipe))
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
