"""Checks of `parity.py` for AddSR's discriminator and its losses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from addsr.models.convert_dino import convert_vit
from addsr.nets.dino import TokenMaps, Vit
from addsr.nets.projected import ProjectedHead, ProjectedHeads
from addsr.train.addsr_losses import (
    LEVELS,
    distillation,
    hinge,
    opposition,
    r1_penalty,
    student_weights,
    teacher_weights,
)

Got = tuple[str, Tensor]

HEAD_NAMES = (
    (r"^main\.0\.", "mix."),
    (r"^main\.1\.fn\.", "residual."),
    (r"^cls\.", "out."),
    (r"^cmapper\.", "project."),
    (r"weight_orig$", "weight"),
    (r"weight_([uv])$", r"\1"),
)


def head_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a published head under our names."""
    state: dict[str, Tensor] = {}
    for name, tensor in published.items():
        for pattern, ours in HEAD_NAMES:
            name = re.sub(pattern, ours, name)
        state[name] = tensor
    return state


def addsr_disc_head(fixture: Any) -> Iterator[Got]:
    config, c = fixture.facts["config"], fixture.tensors["input/c"]
    penalties: list[Tensor] = []
    for i in range(config["num_heads_used"]):
        head = ProjectedHead(config["channels"], config["c_dim"], config["cmap_dim"])
        head.load_state_dict(head_state(fixture.weights(f"weight_head{i}")))
        features = fixture.tensors[f"input/head{i}/features"].clone()
        head.eval()
        yield f"head{i}/eval_logits", head(features, c)
        with torch.enable_grad():
            features.requires_grad_(True)
            penalties.append(r1_penalty([head(features, c)], [features]).detach())
            features.requires_grad_(False)
        head.train()
        yield f"head{i}/train_logits_after_1_power_iteration", head(features, c)
        for theirs, layer in (("main.0.0", head.mix[0]), ("main.1.fn.0", head.residual[0]),
                              ("cls", head.out)):  # fmt: skip
            yield f"head{i}/after_train_forward/{theirs}.weight_u", layer.u
            yield f"head{i}/after_train_forward/{theirs}.weight_v", layer.v
    each = torch.cat(penalties) * fixture.facts["r1_lambda"]
    yield "r1_penalty_per_head", each
    yield "r1_penalty", each.mean()[None]


def addsr_discriminator(fixture: Any) -> Iterator[Got]:
    config = fixture.facts["config"]
    vit_config, state = convert_vit(fixture.weights("weight_vit"), heads=config["vit"]["num_heads"])
    vit = Vit(vit_config)
    vit.load_state_dict(state)
    extractor = TokenMaps(vit, config["hooks"])
    count = len(config["hooks"]) + bool(config.get("hook_patch", True))
    heads = ProjectedHeads(extractor.widths[:count], config["c_dim"], config["cmap_dim"])
    weights = fixture.weights("weight_heads")
    for i, head in enumerate(heads.heads):
        own = {k.partition(".")[2]: v for k, v in weights.items() if k.startswith(f"{i}.")}
        head.load_state_dict(head_state(own))
    heads.eval()
    given = fixture.group("input")
    maps = extractor((given["image"] + 1) / 2)[:count]
    for i, logits in enumerate(heads(maps, given["c"])):
        yield f"features/{i}", maps[i]
        yield f"logits/{i}", logits


def addsr_losses(fixture: Any) -> Iterator[Got]:
    levels = torch.tensor(LEVELS)
    yield "ta_weight", student_weights(levels).double()
    yield "sqrt_alpha_bar", teacher_weights(torch.arange(1000))
    for case in fixture.facts["distill_cases"]:
        name = case["name"]
        given = fixture.group(f"input/{name}")
        each = distillation(
            (given["student_decoded"] + 1) / 2,
            (given["teacher_decoded"] + 1) / 2,
            given["teacher_timesteps"],
            student_weights(torch.tensor(case["ta_timestep"])),
        )
        yield f"{name}/distill_loss_per_sample", each
        yield f"{name}/distill_loss", each.mean()[None]
    for case in fixture.facts["hinge_cases"]:
        name = case["name"]
        real, fake = (
            [group[str(i)] for i in range(len(group))]
            for group in (fixture.group(f"input/{name}/logits_{kind}") for kind in ("real", "fake"))
        )
        loss = hinge(real, fake)
        yield f"{name}/loss_d_real", loss.real[None]
        yield f"{name}/loss_d_fake", loss.fake[None]
        yield f"{name}/loss_d", loss.total[None]
        yield f"{name}/loss_g_adv", opposition(fake)[None]


CHECKS = {check.__name__: check for check in (addsr_disc_head, addsr_discriminator, addsr_losses)}
