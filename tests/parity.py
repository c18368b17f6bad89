"""Runs our modules on golden fixtures: `python tests/parity.py DIR [--only NAME]`.

DIR holds `NAME.safetensors` and `NAME.json` in the layout of the project's golden fixtures (inputs,
outputs and published weights, under `input/`, `output/` and `weight*/`); seeds, sizes and widths
are those of the files. Weights pass through our own converters. A line per output says how far off
it is and what is allowed; the exit status is 0 if every output of every covered fixture is right.

`ADDSR_NIQE_PARAMS` names niqe_pris_params.npz, without which NIQE is not checked.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))  # the checks of other systems lie beside this file

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from addsr.data.filters import filter2d, gaussian_window, sharpen_usm
from addsr.data.jpeg import jpeg
from addsr.data.kernels import GAUSSIAN, PLATEAU, KernelDraw, density_kernels, sinc_kernels
from addsr.diffusion.aggregate import TileSpec, aggregate
from addsr.diffusion.aggregate import gaussian_window as tile_window
from addsr.diffusion.ddpm import Schedule, ddpm_step, sample_latent, start_latent
from addsr.image.color import low_pass, match_color
from addsr.metrics.matlab_resize import matlab_resize
from addsr.metrics.niqe import load_niqe_params, niqe
from addsr.metrics.pixel import psnr_rgb, psnr_y, ssim_maps, ssim_y
from addsr.models.convert_stablesr import (
    convert_cfw,
    convert_encoder,
    convert_sft,
    convert_unet,
    convert_vae,
    move_resnet,
    move_sft_layer,
)
from addsr.models.renaming import Renaming
from addsr.nets.stablesr import (
    FeatureWrapping,
    GuidedUnet,
    SftLayer,
    SftLayers,
    TimeAwareEncoder,
    WrappedVae,
    build_unet,
    build_vae,
)


class Fixture:
    """A pair of files: facts, inputs, expected outputs and weights as float32."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.facts: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
        self.tensors = load_file(folder / f"{name}.safetensors")

    @property
    def outputs(self) -> dict[str, Tensor]:
        return self.group("output")

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Everything below `prefix/`, under the rest of its name."""
        begin = f"{prefix}/"
        return {k[len(begin) :]: v for k, v in self.tensors.items() if k.startswith(begin)}

    def weights(self, prefix: str = "weight") -> dict[str, Tensor]:
        """Published weights; stored in short types that hold them exactly."""
        return {k: v.float() for k, v in self.group(prefix).items()}

    def cases(self) -> list[tuple[str, dict[str, Any]]]:
        """Names and settings of the cases, whichever way they are listed."""
        listed = self.facts.get("cases", {})
        if isinstance(listed, dict):
            return list(listed.items())
        return [(case["name"], case) for case in listed]

    def sibling(self, part: str) -> Fixture:
        """The fixture that holds the weights of `part`."""
        return Fixture(self.folder, self.facts["weights_from"][part])


@dataclass(frozen=True)
class Result:
    """How one output compares with what is expected."""

    output: str
    error: float
    relative: float
    allowed: float
    is_right: bool
    note: str = ""


Got = tuple[str, Tensor]
Check = Callable[[Fixture], Iterator[Got]]


def loaded(net: nn.Module, state: Mapping[str, Tensor]) -> Any:
    """`net` in evaluation mode with the weights of `state`, all of them."""
    net.load_state_dict(dict(state), strict=True)
    return net.eval().requires_grad_(False)


def encoder_of(fixture: Fixture) -> TimeAwareEncoder:
    heads = fixture.facts["config"]["num_heads"]
    config, state = convert_encoder(fixture.weights(), heads=heads)
    return loaded(TimeAwareEncoder(config), state)


def unet_of(fixture: Fixture) -> tuple[nn.Module, SftLayers]:
    weights = fixture.weights()
    spade = {k: v for k, v in weights.items() if ".spade." in k}
    rest = {k: v for k, v in weights.items() if k not in spade}
    head_channels = fixture.facts["config"]["num_head_channels"]
    config, state = convert_unet(rest, head_channels=head_channels)
    sft_config, sft_state = convert_sft(spade)
    return loaded(build_unet(config), state), loaded(SftLayers(sft_config), sft_state)


def stablesr_encoder(fixture: Fixture) -> Iterator[Got]:
    encoder = encoder_of(fixture)
    for case, _ in fixture.cases():
        given = fixture.group(f"input/{case}")
        for feature in encoder(given["latent"], given["timesteps"]):
            yield f"{case}/features/{feature.shape[-1]}", feature
        yield f"{case}/time_embed", encoder.embed_time(given["timesteps"])


def stablesr_spade(fixture: Fixture) -> Iterator[Got]:
    def layer_of(move: Renaming, prefix: str) -> SftLayer:
        move_sft_layer(move, prefix, "sft")
        state = {k[4:]: v for k, v in move.finish().items() if k.startswith("sft.")}
        hidden, features = state["shared.weight"].shape[:2]
        return loaded(SftLayer(len(state["norm.weight"]), features, hidden), state)

    for i in range(len(fixture.facts["spades"])):
        layer = layer_of(Renaming(fixture.weights(f"weight_spade{i}"), "spade"), "")
        given = fixture.group(f"input/spade{i}")
        yield f"spade{i}", layer(given["hidden"], given["cond"])

    from diffusers.models.resnet import ResnetBlock2D

    config, given = fixture.facts["resblock"], fixture.group("input/resblock")
    weights = {f"block.{k}": v for k, v in fixture.weights("weight_resblock").items()}
    spade = {k: v for k, v in weights.items() if ".spade." in k}
    move = Renaming({k: v for k, v in weights.items() if k not in spade}, "residual block")
    move_resnet(move, "block", "block", "time_emb_proj", "conv_shortcut")
    block = loaded(
        ResnetBlock2D(
            in_channels=config["channels"],
            out_channels=config["out_channels"],
            temb_channels=config["emb_channels"],
            eps=1e-5,
        ),
        {k[6:]: v for k, v in move.finish().items()},
    )
    layer = layer_of(Renaming(spade, "spade"), "block.spade.")
    block.conv2.register_forward_hook(lambda _m, _i, output: layer(output, given["cond"]))
    yield "resblock", block(given["hidden"], given["time_embed"])


def stablesr_unet(fixture: Fixture) -> Iterator[Got]:
    unet, layers = unet_of(fixture)
    config = fixture.facts["config"]
    per_level = config["num_res_blocks"] + 1
    tapped: dict[str, Tensor] = {}

    def listen(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
            tapped[name] = output if isinstance(output, Tensor) else output[0]

        return hook

    from addsr.nets.stablesr.sft import Guide

    wanted = {name.split("/tap/")[1] for name in fixture.outputs if "/tap/" in name}
    for name in wanted:
        published_block(unet, name, per_level).register_forward_hook(listen(name))
    with Guide(unet, layers) as guide:
        for case, _ in fixture.cases():
            given = fixture.group(f"input/{case}")
            maps = fixture.group(f"input/{case}/struct_cond")
            features = [maps[width] for width in sorted(maps, key=int, reverse=True)]
            with guide.using(features):
                out = unet(given["latent"], given["timesteps"], given["context"]).sample
            yield f"{case}/prediction", out
            for name in wanted:
                yield f"{case}/tap/{name}", tapped[name]


def published_block(unet: Any, name: str, per_level: int) -> nn.Module:
    """The diffusers module whose output is that of the published block `name`."""
    if name == "middle_block":
        return unet.mid_block
    half, number = name.split(".")
    index = int(number) - (half == "input_blocks")
    level, k = divmod(index, per_level)
    block = (unet.down_blocks if half == "input_blocks" else unet.up_blocks)[level]
    resizer = getattr(block, "downsamplers" if half == "input_blocks" else "upsamplers", None)
    if k == per_level - 1 and resizer is not None:
        return resizer[0]
    attentions = getattr(block, "attentions", None)
    return block.resnets[k] if attentions is None else attentions[k]


def stablesr_cfw(fixture: Fixture) -> Iterator[Got]:
    weights = fixture.weights()
    fusion = {k: v for k, v in weights.items() if ".fusion_layer_" in k}
    config, state = convert_vae({k: v for k, v in weights.items() if k not in fusion})
    cfw_config, cfw_state = convert_cfw(fusion)
    wrapping = loaded(FeatureWrapping(cfw_config), cfw_state)
    vae = WrappedVae(loaded(build_vae(config), state), wrapping)
    for case, _ in fixture.cases():
        given = fixture.group(f"input/{case}")
        moments, taps = vae.encode(given["image"])
        yield f"{case}/moments", moments
        for level, tap in enumerate(taps, 1):
            yield f"{case}/tap_level{level}", tap
        for w in fixture.facts["w"]:
            yield f"{case}/decoded_w{w}", vae.decode(given["latent"], taps, w)


def stablesr_colorfix(fixture: Fixture) -> Iterator[Got]:
    for case, _ in fixture.cases():
        given = fixture.group(f"input/{case}")
        restored, reference = given["restored"], given["reference"]
        for method in ("adain", "wavelet"):
            yield f"{case}/{method}", match_color(restored, reference, method)
        low = low_pass(restored)
        yield f"{case}/wavelet_low_of_restored", low
        yield f"{case}/wavelet_high_of_restored", restored - low


def stablesr_schedule(fixture: Fixture) -> Iterator[Got]:
    full = Schedule.trained()
    for name, table in tables(full).items():
        if f"full/{name}" in fixture.outputs:
            yield f"full/{name}", table
    for steps in fixture.facts["steps"]:
        respaced = Schedule.respaced(steps)
        yield f"n{steps}/timesteps", torch.tensor(respaced.timesteps)
        for name, table in tables(respaced).items():
            yield f"n{steps}/{name}", table
    for case in fixture.facts["step_cases"]:
        given = fixture.group(f"input/{case['name']}")
        schedule, index = Schedule.respaced(case["num_steps"]), case["index"]
        z_t, output, prediction = given["z_t"], given["model_output"], case["parameterization"]
        z_0 = schedule.split(z_t, output, index, prediction).z_0
        mean, variance = schedule.posterior(z_0, z_t, index)
        yield f"{case['name']}/x0", z_0
        yield f"{case['name']}/posterior_mean", mean
        yield f"{case['name']}/posterior_variance", torch.full((len(z_t),), variance)
        z_prev = ddpm_step(schedule, z_t, output, given["noise"], index, prediction)
        yield f"{case['name']}/z_prev", z_prev
    given = fixture.group("input/q_sample")
    for t in fixture.facts["q_sample_t"]:
        yield f"q_sample/t{t}", full.add_noise(given["z_lr"], given["noise"], t)


def tables(schedule: Schedule) -> dict[str, Tensor]:
    """All tables under their published names, as float32."""
    alpha_bar = schedule.alpha_bar
    clean, noisy = schedule.posterior_weights
    found = {
        "betas": schedule.betas,
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": schedule.alpha_bar_prev,
        "sqrt_alphas_cumprod": alpha_bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alpha_bar).sqrt(),
        "sqrt_recip_alphas_cumprod": alpha_bar.rsqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / alpha_bar - 1).sqrt(),
        "posterior_mean_coef1": clean,
        "posterior_mean_coef2": noisy,
        "posterior_variance": schedule.posterior_variance,
        "posterior_log_variance_clipped": schedule.posterior_variance.clamp_min(1e-20).log(),
    }
    return {name: table.float() for name, table in found.items()}


def stablesr_canvas(fixture: Fixture) -> Iterator[Got]:
    for side in fixture.facts["weight_sizes"]:
        yield f"tile_weight/{side}", torch.outer(tile_window(side, 0.5), tile_window(side))
    for name, case in fixture.cases():
        given = fixture.group(f"input/{name}")
        spec = TileSpec(case["tile"], case["overlap"], batch=3, parity=True)
        model = aggregate(TOYS[case["toy"]], given["z_lr"], spec)
        schedule = Schedule.respaced(case["num_steps"])
        prediction, outputs = case["parameterization"], list[Tensor]()
        z_0 = sample_latent(
            model,
            given["z_T"],
            schedule,
            iter(given["noise"]),
            prediction=prediction,
            on_step=lambda _t, output, _z, keep=outputs: keep.append(output),
        )
        yield f"{name}/fused_output", outputs[0]
        first = schedule.split(given["z_T"], outputs[0], len(schedule) - 1, prediction)
        yield f"{name}/x0_first", first.z_0
        yield f"{name}/z_0", z_0


def toy_pixel(x: Tensor, t: Tensor, _lr: Tensor) -> Tensor:
    return 0.9 * x + 0.1 * t[:, None, None, None] / 1000


def toy_tile(x: Tensor, t: Tensor, lr: Tensor) -> Tensor:
    rows = (torch.arange(x.shape[-2]) / (x.shape[-2] - 1))[:, None]
    columns = torch.arange(x.shape[-1]) / (x.shape[-1] - 1)
    mean = x.mean((1, 2, 3), keepdim=True)
    return toy_pixel(x, t, lr) + 0.3 * mean + 0.2 * columns - 0.15 * rows**2 + 0.25 * lr


TOYS = {"pixel": toy_pixel, "tile": toy_tile}


def stablesr_sampler(fixture: Fixture) -> Iterator[Got]:
    unet, layers = unet_of(fixture.sibling("unet"))
    net = GuidedUnet(unet, encoder_of(fixture.sibling("encoder")), layers)
    for name, case in fixture.cases():
        given = fixture.group(f"input/{name}")
        z_lr = given["z_lr"]

        def predict(
            z_t: Tensor,
            t: Tensor,
            lr: Tensor,
            given: Mapping[str, Tensor] = given,
            guidance: float = case["guidance_scale"],
        ) -> Tensor:
            negative = given.get("context_negative")
            return net(z_t, t, lr, given["context"], negative, guidance)

        def whole(z_t: Tensor, t: Tensor, z_lr: Tensor = z_lr, predict: Any = predict) -> Tensor:
            return predict(z_t, t, z_lr)

        spec = TileSpec(case["tile"], case["overlap"], parity=True) if case["tile"] else None
        start = start_latent(z_lr, given["start_noise"])
        yield f"{name}/z_T", start
        steps: list[tuple[int, Tensor, Tensor]] = []
        sample_latent(
            aggregate(predict, z_lr, spec) if spec else whole,
            start,
            Schedule.respaced(case["num_steps"]),
            iter(given["noise"]),
            prediction=case["parameterization"],
            on_step=lambda *step, keep=steps: keep.append(step),
        )
        for k, (t, output, z) in enumerate(steps):
            yield f"{name}/step{k}_t{t}/network_output", output
            yield f"{name}/step{k}_t{t}/z_prev", z


def degradation_filters(fixture: Fixture) -> Iterator[Got]:
    given = fixture.group("input")
    yield "filter2d_shared", filter2d(given["image"], given["kernel_shared"][0])
    yield "filter2d_per_image", filter2d(given["image"], given["kernel_per_image"])
    for case in fixture.facts["usm"]:
        settings = {k: case[k] for k in ("weight", "radius", "sigma", "threshold")}
        yield case["name"], sharpen_usm(given[case["image"]], **settings)
        side = case["radius"] + (case["radius"] + 1) % 2
        yield f"{case['name']}_kernel", gaussian_window(side, case["sigma"]).float()


def degradation_jpeg(fixture: Fixture) -> Iterator[Got]:
    for name, case in fixture.cases():
        quality = case["quality"]
        quality = torch.tensor(quality) if isinstance(quality, list) else quality
        yield name, jpeg(fixture.tensors[f"input/{case['image']}"], quality)


def degradation_kernels(fixture: Fixture) -> Iterator[Got]:
    def number(value: float) -> Tensor:
        return torch.tensor([float(value)], dtype=torch.float64)

    for case in fixture.facts["kernels"]:
        p, taps = case["params"], fixture.outputs[case["name"]].shape[-1]
        if case["type"] == "sinc":
            yield case["name"], sinc_kernels(number(p["cutoff"]), number(p["size"]), taps)[0]
            continue
        draw = KernelDraw(
            family=number(PLATEAU if case["type"] == "plateau" else GAUSSIAN),
            size=number(p["size"]),
            sigma_x=number(p["sigma_x"]),
            sigma_y=number(p["sigma_x"] if p["isotropic"] else p["sigma_y"]),
            theta=number(p["theta"]),
            beta=number(p.get("beta", 1)),
            cutoff=number(1),
        )
        yield case["name"], density_kernels(draw, taps)[0]


def degradation_matlab_resize(fixture: Fixture) -> Iterator[Got]:
    for name, case in fixture.cases():
        image = fixture.tensors[f"input/{case['image']}"]
        is_hwc = case.get("layout") == "hwc"
        got = matlab_resize(
            image.permute(2, 0, 1) if is_hwc else image, case["scale"], case["antialiasing"]
        )
        yield name, got.permute(1, 2, 0) if is_hwc else got


def metrics(fixture: Fixture) -> Iterator[Got]:
    def ssim_rgb(a: Tensor, b: Tensor, border: int) -> Tensor:
        inner = (..., slice(border, -border), slice(border, -border))
        a, b = (255 * x[0][inner].double() for x in (a, b))
        brightness, structure = ssim_maps(a, b)
        return (brightness * structure).mean()[None]

    path = os.environ.get("ADDSR_NIQE_PARAMS")
    measures: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
        "psnr_y": psnr_y,
        "psnr_rgb": psnr_rgb,
        "ssim_y": ssim_y,
        "ssim_rgb": ssim_rgb,
    }
    if path:
        params = load_niqe_params(path)
        measures["niqe_distorted"] = lambda a, _b, border: niqe(a, params, border)
        measures["niqe_reference"] = lambda _a, b, border: niqe(b, params, border)
    pairs = [
        tuple(
            fixture.tensors[f"input/{i}/{kind}"].permute(2, 0, 1)[None].float() / 255
            for kind in ("distorted", "reference")
        )
        for i in range(fixture.facts["num_images"])
    ]
    for name in fixture.outputs:
        measure, _, border = name.removesuffix("_torch").rpartition("_crop")
        if measure in measures:
            got = torch.cat([measures[measure](a, b, int(border)) for a, b in pairs])
            if measure.startswith("psnr") and name.endswith("_torch"):
                # the published torch variant adds 1e-8 to the mean squared error
                got = -10 * torch.log10(10 ** (-got / 10) + 1e-8)
            yield name, got


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        stablesr_encoder,
        stablesr_spade,
        stablesr_unet,
        stablesr_cfw,
        stablesr_colorfix,
        stablesr_schedule,
        stablesr_canvas,
        stablesr_sampler,
        degradation_filters,
        degradation_jpeg,
        degradation_kernels,
        degradation_matlab_resize,
        metrics,
    )
}
for _more in sorted(Path(__file__).parent.glob("parity_*.py")):  # beside this one, by its path
    _spec = importlib.util.spec_from_file_location(f"addsr_{_more.stem}", _more)
    assert _spec and _spec.loader
    _module = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)
    CHECKS.update(_module.CHECKS)

FLIPS = {"degradation_jpeg": 0.005}
"""Share of pixels that may be off where rounding may fall to the other side at a tie."""


def check_of(fixture: Fixture) -> str | None:
    """The check for a fixture, by its stated kind or its name; the longest that fits."""
    kind = fixture.facts.get("fixture", fixture.name)
    fitting = [name for name in CHECKS if kind == name or kind.startswith(f"{name}_")]
    return max(fitting, key=len, default=None)


def compare(fixture: Fixture, output: str, got: Tensor, expected: Tensor, flips: float) -> Result:
    """`got` against `expected` under the fixture's own tolerance."""
    if got.shape != expected.shape:
        shapes = f"shape {tuple(got.shape)}, not {tuple(expected.shape)}"
        return Result(output, float("nan"), float("nan"), 0.0, False, shapes)
    got, expected = got.double(), expected.double()
    off = (got - expected).abs()
    error, largest = float(off.max()), float(expected.abs().max())
    tolerance = fixture.facts["tolerance"]
    if "relative" in tolerance:
        allowed = tolerance["relative"] * largest + 1e-7
    elif tolerance.get("rule") == "exact":
        allowed = 0.0
    else:  # absolute, by what is measured
        allowed = tolerance[output.split("_")[0]]
    share = float((~(off <= allowed)).double().mean())
    note = f"{share:.2%} of the pixels are off" if 0 < share <= flips else ""
    return Result(output, error, error / max(largest, 1e-30), allowed, share <= flips, note)


def run(fixture: Fixture) -> tuple[list[Result], list[str]]:
    """`(results, outputs left unchecked)` of a covered fixture."""
    name = check_of(fixture)
    assert name is not None
    expected = fixture.outputs
    results: list[Result] = []
    with torch.no_grad():
        for output, got in CHECKS[name](fixture):
            if output in expected:
                flips = FLIPS.get(name, 0.0)
                results.append(compare(fixture, output, got, expected.pop(output), flips))
    return results, sorted(expected)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--only", metavar="NAME", help="one fixture, or all whose name begins so")
    chosen = parser.parse_args(arguments)
    names = sorted(file.stem for file in chosen.folder.glob("*.safetensors"))
    names = [n for n in names if (chosen.folder / f"{n}.json").exists()]
    names = [n for n in names if not chosen.only or n.startswith(chosen.only)]
    if not names:
        print(f"{chosen.folder}: no fixtures there{f' named {chosen.only}' * bool(chosen.only)}")
        return 2
    wrong, uncovered, unchecked, count = 0, list[str](), 0, 0
    for name in names:
        fixture = Fixture(chosen.folder, name)
        if check_of(fixture) is None:
            uncovered.append(name)
            continue
        print(f"\n{name}")
        print(f"  {'output':<44} {'max error':>10} {'relative':>10} {'allowed':>10}")
        try:
            results, left = run(fixture)
        except Exception as error:  # one broken fixture should not hide the others
            print(f"  FAIL  {type(error).__name__}: {error}")
            wrong += 1
            continue
        for r in results:
            verdict = "ok" if r.is_right else "FAIL"
            line = f"  {r.output:<44} {r.error:>10.2e} {r.relative:>10.2e} {r.allowed:>10.2e}"
            print(f"{line}  {verdict}  {r.note}".rstrip())
        count += len(results)
        wrong += sum(not r.is_right for r in results)
        for output in left:
            is_niqe = output.startswith("niqe") and not os.environ.get("ADDSR_NIQE_PARAMS")
            reason = "not checked: set ADDSR_NIQE_PARAMS" if is_niqe else "FAIL  not computed"
            print(f"  {output:<44} {reason}")
            unchecked += is_niqe
            wrong += not is_niqe
    if uncovered:
        print(f"\nnot covered yet: {', '.join(uncovered)}")
    print(f"\n{count} outputs compared, {wrong} wrong, {unchecked} not checked")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
