"""Checks of the fixtures of SeeSR's networks and AddSR's sampler, for `tests/parity.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addsr.diffusion.addsr import Cue, FewStep, refinement, sample_addsr_latent
from addsr.diffusion.ddpm import Schedule, start_latent
from addsr.models.convert_seesr import Kind, seesr_from
from addsr.nets.seesr import ControlledUnet
from addsr.nets.stablesr.backbones import rebuild

Got = tuple[str, Tensor]
SCALING = 0.18215


def net_of(fixture: Any, kind: Kind) -> Any:
    net = seesr_from(fixture.facts["config"], fixture.weights(), kind)
    return net.requires_grad_(False)


def both_of(fixture: Any) -> ControlledUnet:
    parts: tuple[Kind, Kind] = ("unet", "controlnet")
    return ControlledUnet(*(net_of(fixture.sibling(part), part) for part in parts))


def seesr_unet(fixture: Any) -> Iterator[Got]:
    unet, tapped = net_of(fixture, "unet"), dict[str, Tensor]()
    wanted = {name.split("/tap/")[1] for name in fixture.outputs if "/tap/" in name}

    def listen(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
            tapped[name] = output if isinstance(output, Tensor) else output[0]

        return hook

    for name in wanted:
        unet.get_submodule(name).register_forward_hook(listen(name))
    for case, _ in fixture.cases():
        given = fixture.group(f"input/{case}")
        down = fixture.group(f"input/{case}/down_residual")
        out = unet(
            given["latent"],
            given["timesteps"],
            given["text"],
            image_tokens=given["image_tokens"],
            down_block_additional_residuals=[down[str(k)] for k in range(len(down))] or None,
            mid_block_additional_residual=given.get("mid_residual"),
        ).sample
        yield f"{case}/prediction", out
        for name in wanted:
            yield f"{case}/tap/{name}", tapped[name]


def seesr_controlnet(fixture: Any) -> Iterator[Got]:
    controlnet = net_of(fixture, "controlnet")
    for name, case in fixture.cases():
        given = fixture.group(f"input/{name}")
        seen = controlnet.controlnet_cond_embedding(given["image"])
        yield f"{name}/condition_embedding", seen
        down, mid = controlnet(
            given["latent"],
            given["timesteps"],
            given["text"],
            controlnet_cond=seen,
            conditioning_scale=case["conditioning_scale"],
            image_tokens=given["image_tokens"],
            return_dict=False,
        )
        for k, residual in enumerate(down):
            yield f"{name}/down_residual/{k}", residual
        yield f"{name}/mid_residual", mid


def seesr_step(fixture: Any) -> Iterator[Got]:
    net, full = both_of(fixture), Schedule.trained()
    yield "alphas_cumprod", full.alpha_bar.float()
    for name, case in fixture.cases():
        yield f"{name}/alphas_cumprod", full.alpha_bar.float()
        given = fixture.group(f"input/{name}")
        z_t = given["latent"]
        eps = net(
            z_t,
            torch.tensor(case["timesteps"]),
            given["text"],
            given["image_tokens"],
            given["image"],
            control_scale=case["conditioning_scale"],
        )
        yield f"{name}/eps", eps
        z_0 = torch.cat(
            [
                full.split(z_t[k : k + 1], eps[k : k + 1], t, "eps").z_0
                for k, t in enumerate(case["timesteps"])
            ]
        )
        yield f"{name}/x0", z_0
        t = case["renoise_t"]
        yield f"{name}/renoised_t{t}", full.add_noise(z_0, given["noise"], t)


def addsr_sampler(fixture: Any) -> Iterator[Got]:
    net = both_of(fixture)
    vae = rebuild("AutoencoderKL", fixture.facts["vae_config"])
    vae.load_state_dict(fixture.weights("weight_vae"), strict=True)
    vae.eval()
    toy = fixture.weights("weight_toytagger")

    def embed(picture: Tensor) -> Tensor:
        small = F.interpolate(picture, (384, 384), mode="bicubic", align_corners=False)
        mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        spread = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        tokens = F.avg_pool2d((small - mean) / spread, 96).flatten(2).mT
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        return F.linear(tokens, toy["weight"], toy["bias"])

    def decode(z_0: Tensor) -> Tensor:
        return vae.decode(z_0 / SCALING).sample

    for name, case in fixture.cases():
        given = fixture.group(f"input/{name}")
        picture, noise = given["image"], given["noise"]
        z_lr = noise
        if case["start_point"] == "lr":
            moments = vae.encode(2 * picture - 1).latent_dist
            z_lr = SCALING * (moments.mean + moments.std * given["posterior_noise"])
        start = start_latent(z_lr, noise, from_noise=case["start_point"] == "noise")
        yield f"{name}/start_latent", start
        first, steps = Cue(picture, given["image_tokens"]), list[FewStep]()

        def predict(
            z_t: Tensor, t: Tensor, cue: Cue, given: Any = given, case: Any = case
        ) -> Tensor:
            scale = case["conditioning_scale"]
            return net(z_t, t, given["text"], cue.tokens, cue.picture, control_scale=scale)

        final = sample_addsr_latent(
            predict,
            start,
            first,
            iter(given.get("renoise", ())),
            refine=refinement(decode, first, embed=embed, weight=case["psr_weight"]),
            timesteps=case["timesteps"],
            on_step=steps.append,
        )
        for step in steps:
            begin = f"{name}/step{step.index}_t{step.timestep}"
            yield f"{begin}/z_t", step.z_t
            yield f"{begin}/eps", step.eps
            yield f"{begin}/condition_image", step.cue.picture
            yield f"{begin}/image_tokens", step.cue.tokens
        yield f"{name}/final_latent", final
        yield f"{name}/image", (decode(final) / 2 + 0.5).clamp(0, 1)


CHECKS = {
    check.__name__: check for check in (seesr_unet, seesr_controlnet, seesr_step, addsr_sampler)
}
