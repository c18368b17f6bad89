"""Blur kernels against the published ones and against their own definition."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from addsr.data.draw import Dice, upload
from addsr.data.kernels import (
    GAUSSIAN,
    IDENTITY,
    PLATEAU,
    SINC,
    KernelDraw,
    build_kernels,
    density_kernels,
    draw_final_sinc,
    draw_kernels,
    sinc_kernels,
)
from addsr.data.spec import PRESETS, BlurSpec, DegradationSpec


def draw_of(family: int, *, dtype: torch.dtype = torch.float64, **params: float) -> KernelDraw:
    defaults = {"size": 21, "sigma_x": 1, "sigma_y": 1, "theta": 0, "beta": 1, "cutoff": 1}
    values = {"family": family, **defaults, **params}
    return KernelDraw(**{k: torch.tensor([float(v)], dtype=dtype) for k, v in values.items()})


def dice(spec: DegradationSpec, count: int, seed: int = 0) -> Dice:
    return Dice([spec], torch.zeros(count, dtype=torch.long), torch.Generator().manual_seed(seed))


def test_kernels_are_those_of_the_published_pipeline(golden: Path) -> None:
    stored = load_file(golden / "degradation_kernels.safetensors")
    cases = json.loads((golden / "degradation_kernels.json").read_text())["kernels"]
    assert len(cases) == len(stored) == 42
    for case in cases:
        expected, p = stored[f"output/{case['name']}"], case["params"]
        taps = expected.shape[-1]
        if case["type"] == "sinc":
            cutoff = torch.tensor([p["cutoff"]], dtype=torch.float64)
            got = sinc_kernels(cutoff, torch.tensor([p["size"]]), taps)[0]
            assert (got - expected).abs().max() <= 1e-10, case["name"]
            continue
        sigma_y = p["sigma_x"] if p["isotropic"] else p["sigma_y"]
        draw = draw_of(
            PLATEAU if case["type"] == "plateau" else GAUSSIAN,
            size=p["size"],
            sigma_x=p["sigma_x"],
            sigma_y=sigma_y,
            theta=p["theta"],
            beta=p.get("beta", 1),
        )
        got = density_kernels(draw, taps)[0]
        assert (got - expected).abs().max() <= 1e-12, case["name"]


@pytest.mark.parametrize("blur", ["blur1", "blur2"])
def test_drawn_kernels_sum_to_one_and_keep_to_their_sizes(blur: str) -> None:
    draw = draw_kernels(dice(PRESETS["strong"], 400), blur)
    kernels = build_kernels(KernelDraw(*upload(torch.device("cpu"), draw)[0]))
    assert kernels.shape == (400, 21, 21)
    assert torch.allclose(kernels.sum((1, 2)), torch.ones(400), atol=1e-5)
    assert set(draw.size.int().tolist()) == set(range(7, 22, 2))
    for kernel, size in zip(kernels, draw.size.int().tolist(), strict=True):
        margin = (21 - size) // 2
        inside = kernel[margin : 21 - margin, margin : 21 - margin]
        assert torch.isclose(inside.abs().sum(), kernel.abs().sum())


def test_every_kind_of_kernel_is_drawn_about_as_often_as_asked() -> None:
    draw = draw_kernels(dice(PRESETS["strong"], 20_000), "blur2")

    def share(condition: Tensor) -> float:
        return condition.float().mean().item()

    assert share(draw.family == IDENTITY) == pytest.approx(0.2, abs=0.02)
    assert share(draw.family == SINC) == pytest.approx(0.8 * 0.1, abs=0.02)
    is_density = (draw.family == GAUSSIAN) | (draw.family == PLATEAU)
    assert share(draw.family == PLATEAU) == pytest.approx(0.72 * 0.15, abs=0.02)
    assert share(is_density & (draw.sigma_x != draw.sigma_y)) == pytest.approx(
        0.72 * 0.31, abs=0.02
    )
    # half of the plateaus draw from 1 to 1
    assert share(draw.beta != 1) == pytest.approx(0.15 + 0.075, abs=0.02)


def test_kernel_parameters_stay_in_the_ranges_of_their_spec() -> None:
    blur = BlurSpec(sigma=(0.4, 0.9), beta_generalised=(0.6, 1.7), beta_plateau=(1.0, 1.2))
    draw = draw_kernels(dice(DegradationSpec(blur1=blur), 5000), "blur1")
    for sigma in (draw.sigma_x, draw.sigma_y):
        assert 0.4 <= sigma.min() < 0.41
        assert 0.89 < sigma.max() <= 0.9
    assert draw.beta.min() >= 0.6
    assert draw.beta.max() <= 1.7
    assert draw.beta[draw.family == PLATEAU].max() <= 1.2
    assert draw.cutoff[draw.size < 13].min() >= math.pi / 3
    assert draw.cutoff.max() <= math.pi


def test_samples_of_a_batch_get_kernels_of_their_own() -> None:
    draw = draw_kernels(dice(PRESETS["mild"], 32), "blur1")
    kernels = build_kernels(KernelDraw(*upload(torch.device("cpu"), draw)[0]))
    assert len({tuple(k.flatten().tolist()) for k in kernels}) == 32


def test_half_of_the_final_sinc_filters_do_nothing() -> None:
    draw = draw_final_sinc(dice(PRESETS["mild"], 4000))
    is_nothing = draw.family == IDENTITY
    assert is_nothing.float().mean().item() == pytest.approx(0.5, abs=0.03)
    kernels = build_kernels(KernelDraw(*upload(torch.device("cpu"), draw)[0]))
    impulse = torch.zeros(21, 21)
    impulse[10, 10] = 1
    assert torch.equal(kernels[is_nothing], impulse.expand(int(is_nothing.sum()), 21, 21))
    assert (kernels[~is_nothing].amin((1, 2)) < 0).all()  # ringing
