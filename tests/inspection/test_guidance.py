"""Figures of a tiny StableSR's modulation over the timesteps, their chart, and the command."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from torch import Tensor

from addsr.cli import main
from addsr.diffusion.ddpm import Schedule
from addsr.errors import InputError, ModelError, OptionError
from addsr.inspection.chart import draw_chart
from addsr.inspection.guidance import Wish, inspect_guidance, parse_timesteps
from addsr.models import hub, store
from addsr.nets.stablesr import (
    EncoderConfig,
    SftConfig,
    SftLayers,
    TimeAwareEncoder,
    UnetConfig,
    VaeConfig,
    build_unet,
    build_vae,
)
from addsr.pipelines.stablesr import PipelineConfig, StableSRPipeline

pytest.importorskip("diffusers", reason="the diffusion extra is not installed")
WIDTHS = (32, 64)
FEW = Wish(timesteps=(999, 500, 0))


def make_pipe(**more: Any) -> StableSRPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
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
            "prompt_embeds": torch.randn(1, 5, 24),
            "config": PipelineConfig(tile=32, steps=2),
        }
        for block in nets["encoder"].modules():  # its last layers start at zero, blind to the time
            if hasattr(block, "conv2"):
                torch.nn.init.normal_(block.conv2.weight, std=0.1)
    return StableSRPipeline(**{**nets, **more})


@pytest.fixture(scope="module")
def pipe() -> StableSRPipeline:
    return make_pipe()


def picture(height: int = 8, width: int = 8, seed: int = 3) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_every_layer_and_grid_has_figures_at_every_timestep(pipe: StableSRPipeline) -> None:
    seen: list[tuple[int, int]] = []
    report = inspect_guidance(pipe, [picture()], FEW, progress=lambda a, b: seen.append((a, b)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [row["timestep"] for row in report["timesteps"]] == [999, 500, 0]
    alpha_bar = Schedule.trained().alpha_bar
    for row in report["timesteps"]:
        share = float(alpha_bar[row["timestep"]])
        assert row["snr"] == pytest.approx(share / (1 - share))
        assert set(row["layers"]) == set(pipe.sft.config.places)
        for figures in row["layers"].values():
            assert -1 <= figures["cosine"] <= 1 and figures["gamma"] > 0 and figures["beta"] > 0
        for grid, told in zip(report["grids"], row["grids"], strict=True):
            mean = sum(row["layers"][p]["cosine"] for p in grid["layers"]) / len(grid["layers"])
            assert told["cosine"] == pytest.approx(mean)
            assert told["condition_sharpness"] > 0
    assert [grid["downsampling"] for grid in report["grids"]] == [1, 2]
    first = report["timesteps"][0]["grids"][0]
    assert first["condition_cosine"] == pytest.approx(1, abs=1e-5)
    for grid, index in zip(report["grids"], range(2), strict=True):
        values = {r["timestep"]: r["grids"][index]["cosine"] for r in report["timesteps"]}
        assert grid["strongest"]["cosine"]["timestep"] == min(values, key=lambda t: values[t])
    json.dumps(report, allow_nan=False)


def test_the_cosine_is_that_of_the_features_before_and_after(pipe: StableSRPipeline) -> None:
    kept: dict[str, Any] = {}
    name = "down_blocks_0_resnets_0"
    layer: Any = pipe.sft[name]
    handle = layer.register_forward_hook(
        lambda _m, given, out: kept.update(before=given[0].clone(), after=out.clone())
    )
    try:
        report = inspect_guidance(pipe, [picture()], Wish(timesteps=(700,)))
    finally:
        handle.remove()
    a, b = kept["before"].flatten(2)[0].double(), kept["after"].flatten(2)[0].double()
    by_hand = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean()
    figures = report["timesteps"][0]["layers"]["down_blocks.0.resnets.0"]
    assert figures["cosine"] == pytest.approx(float(by_hand), abs=1e-5)
    normalised = layer.norm(kept["before"]).flatten(2)[0].double()
    by_hand = ((normalised * b).sum(1) / (normalised.norm(dim=1) * b.norm(dim=1))).mean()
    assert figures["cosine_normalised"] == pytest.approx(float(by_hand), abs=1e-5)


def test_without_modulation_only_the_normalisation_is_seen() -> None:
    pipe = make_pipe()
    for layer in pipe.sft.values():
        for part in (layer.gamma, layer.beta):  # type: ignore[union-attr]
            torch.nn.init.zeros_(part.weight)  # type: ignore[arg-type]
            torch.nn.init.zeros_(part.bias)  # type: ignore[arg-type]
    report = inspect_guidance(pipe, [picture()], Wish(timesteps=(500,)))
    for figures in report["timesteps"][0]["layers"].values():
        assert figures["cosine_normalised"] == pytest.approx(1, abs=1e-4)
        assert figures["gamma"] == figures["beta"] == 0
        assert figures["cosine"] < 0.9999


def test_an_encoder_that_is_told_one_timestep_gives_the_same_features(
    pipe: StableSRPipeline,
) -> None:
    def cosines(told: int | None) -> list[float]:
        wish = Wish(timesteps=(999, 0), encoder_timestep=told)
        rows = inspect_guidance(pipe, [picture()], wish)["timesteps"]
        return [grid["condition_cosine"] for grid in rows[-1]["grids"]]

    assert cosines(770) == pytest.approx([1, 1], abs=1e-5)
    assert min(cosines(None)) < 0.999


def test_the_seed_decides_and_several_seeds_give_their_mean(pipe: StableSRPipeline) -> None:
    def cosine(*seeds: int) -> float:
        report = inspect_guidance(pipe, [picture()], Wish(timesteps=(800,), seeds=seeds))
        return report["timesteps"][0]["grids"][0]["cosine"]

    one, two = cosine(1), cosine(2)
    assert one == cosine(1) != two
    assert cosine(1, 2) == pytest.approx((one + two) / 2)


def test_sampling_and_a_reference_lead_along_other_latents(pipe: StableSRPipeline) -> None:
    def last(wish: Wish, references: list[Tensor] | None = None) -> float:
        report = inspect_guidance(pipe, [picture()], wish, references=references)
        return report["timesteps"][-1]["grids"][0]["cosine"]

    noised = last(FEW)
    sampled = last(Wish(timesteps=FEW.timesteps, way="sampled"))
    true = last(FEW, [picture(32, 32, seed=8)])
    assert len({noised, sampled, true}) == 3


def test_of_a_large_picture_the_tile_in_its_middle_is_taken(pipe: StableSRPipeline) -> None:
    # 24 and 20 px become 96 and 80: the tile of 32 begins at 32 and 24, pixels 8 and 6
    large = picture(24, 20)
    other = large.clone()
    other[..., :4, :] = 0.5  # far outside, beyond what the enlargement reaches
    wish = Wish(timesteps=(500,))
    one, same = (inspect_guidance(pipe, [p], wish)["timesteps"] for p in (large, other))
    assert one == same
    other[..., 12, 10] = 0.5
    assert inspect_guidance(pipe, [other], wish)["timesteps"] != one


def test_odd_sizes_and_panoramas_can_be_looked_at(pipe: StableSRPipeline) -> None:
    report = inspect_guidance(pipe, [picture(1, 60), picture(7, 5)], Wish(timesteps=(500,)))
    assert report["runs"] == 2
    assert math.isfinite(report["timesteps"][0]["grids"][0]["cosine"])


def test_nothing_stays_attached(pipe: StableSRPipeline) -> None:
    def hooks() -> int:
        return sum(len(layer._forward_hooks) for layer in pipe.sft.values())

    before = hooks()
    inspect_guidance(pipe, [picture()], Wish(timesteps=(1,)))
    with pytest.raises(InputError, match="references: 9x9 is not the size of the result, 32x32"):
        inspect_guidance(pipe, [picture()], FEW, references=[picture(9, 9)])
    assert hooks() == before


def test_what_cannot_be_looked_at_is_named(pipe: StableSRPipeline) -> None:
    with pytest.raises(InputError, match="pictures: none"):
        inspect_guidance(pipe, [])
    with pytest.raises(InputError, match="references: 1 for 2 pictures"):
        inspect_guidance(pipe, [picture(), picture()], references=[picture()])
    with pytest.raises(OptionError, match="sampling looks at none"):
        inspect_guidance(pipe, [picture()], Wish(way="sampled"), references=[picture()])
    broken = make_pipe()
    torch.nn.init.constant_(broken.unet.conv_out.bias, float("nan"))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="NaN or infinity at timestep 5"):
        inspect_guidance(broken, [picture()], Wish(timesteps=(5,)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"way": "backwards"}, "way: 'backwards' is unknown"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"seeds": (-1,)}, "seeds"),
        ({"encoder_timestep": 1000}, "encoder_timestep: 1000 is not 0 to 999"),
        ({"timesteps": (1000,)}, "timesteps"),
        ({"upscale": 9.0}, "scale"),
    ],
)
def test_options_that_are_not_possible_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Wish(**fields)


def test_timesteps_are_a_number_or_a_list() -> None:
    assert parse_timesteps("4") == (0, 333, 666, 999)
    assert parse_timesteps("770, 10") == (10, 770)
    for wrong in ("", "-1", "1.5", "some", "1,1", "0,1000", "0"):
        with pytest.raises(OptionError):
            parse_timesteps(wrong)


def test_the_chart_is_whole_and_marks_the_papers_ratio(pipe: StableSRPipeline) -> None:
    report = inspect_guidance(pipe, [picture()], Wish(timesteps=(999, 800, 700, 300, 0)))
    text = draw_chart(report, "a <b> & c.png")
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    texts = [e.text or "" for e in root.iter(f"{space}text")]
    assert "a <b> & c.png" in texts and "0.05" in texts and "SNR" in texts
    curves = root.findall(f"{space}polyline")
    assert len(curves) == 2 * (2 + 2 + 1 + 1)  # two grids; two panels have dashed curves too
    assert all(len(curve.attrib["points"].split()) == 5 for curve in curves)
    marked = [e for e in root.findall(f"{space}line") if e.get("stroke-dasharray") == "5 4"]
    # timestep 770 between 999 on the left and 0 on the right
    share = (float(marked[0].attrib["x1"]) - 64) / (760 - 24 - 64)
    assert 999 * (1 - share) == pytest.approx(770, abs=4)
    assert "http" not in re.sub(r'xmlns="[^"]+"', "", text)
    alone = inspect_guidance(pipe, [picture()], Wish(timesteps=(500,)))
    assert len(ElementTree.fromstring(draw_chart(alone, "one")).findall(f"{space}circle")) == 12


@pytest.fixture
def saved(pipe: StableSRPipeline, tmp_path: Path) -> Path:
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    levels = (picture(12, 10)[0].permute(1, 2, 0) * 255).byte().numpy()
    Image.fromarray(levels).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def test_the_command_writes_figures_and_chart(
    saved: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["inspect", str(saved), str(photo), "-o", str(out), "--device", "cpu"]
    assert main([*words, "--dtype", "fp32", "--timesteps", "999,770,0", "--seeds", "0,1"]) == 0
    report = json.loads((out / "inspection.json").read_text())
    assert report["pictures"] == ["cat.png"] and report["runs"] == 2
    assert [row["timestep"] for row in report["timesteps"]] == [999, 770, 0]
    assert "cat.png" in (out / "inspection.svg").read_text()
    assert sorted(p.name for p in out.iterdir()) == ["inspection.json", "inspection.svg"]
    told = capsys.readouterr().out
    assert "strongest modulation" in told and "inspection.svg" in told


def test_an_imported_model_is_found_by_its_name(
    saved: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(kind: str) -> store.Installed:
        return store.Installed("mine", saved, kind, "free", (), "none", "2026-01-01")

    model = installed("stablesr")
    monkeypatch.setattr(hub, "find_installed", lambda name: model if name == "mine" else None)
    words = ["inspect", "mine", str(photo), "-o", str(tmp_path / "out"), "-q", "--timesteps", "1"]
    assert main([*words, "--dtype", "fp32"]) == 0
    assert json.loads((tmp_path / "out" / "inspection.json").read_text())["model"] == "mine"


def test_a_folder_that_has_its_weights_in_one_variant_alone_is_taken(
    pipe: StableSRPipeline, photo: Path, tmp_path: Path
) -> None:
    pipe.save_pretrained(tmp_path / "model", variant="fp16")
    words = ["inspect", str(tmp_path / "model"), str(photo), "-o", str(tmp_path / "out"), "-q"]
    assert main([*words, "--timesteps", "1", "--dtype", "fp32"]) == 0


def test_a_file_name_that_is_no_text_does_not_stop_the_chart(
    saved: Path, photo: Path, tmp_path: Path
) -> None:
    odd = tmp_path / os.fsdecode(b"c\xff\x01.png")
    try:
        photo.rename(odd)
    except OSError:
        pytest.skip("this file system takes no such name")
    words = ["inspect", str(saved), str(odd), "-o", str(tmp_path / "out"), "-q"]
    assert main([*words, "--timesteps", "1", "--dtype", "fp32"]) == 0
    text = (tmp_path / "out" / "inspection.svg").read_text(encoding="utf-8")
    assert "c??.png" in text
    ElementTree.fromstring(text)


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"model": "stablesr"}, 1, "model: 'stablesr' is not installed"),
        ({"model": "compact"}, 1, "model: 'compact' is neither an imported StableSR model"),
        ({"model": "models/typo"}, 1, "model: 'models/typo' is neither an imported StableSR"),
        ({"photo": "none.png"}, 1, "none.png"),
        ({"more": ["--reference", "a.png", "--reference", "b.png"]}, 2, "2 given for 1 images"),
        ({"more": ["--timesteps", "few"]}, 2, "timesteps: 'few'"),
        ({"more": ["--seeds", "x"]}, 2, "seeds: 'x'"),
        ({"more": ["--seeds", str(2**63)]}, 2, "numbers from 0 to 2**63 - 1"),
        ({"more": ["--device", "toaster"]}, 2, "device: 'toaster'"),
        ({"model": None}, 1, "model_index.json"),
    ],
)
def test_mistakes_of_the_command_are_named(
    change: dict[str, Any],
    status: int,
    message: str,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ADDSR_MODELS", str(tmp_path / "none"))
    empty = tmp_path / "empty"
    empty.mkdir()
    words = ["inspect", change.get("model") or str(empty), str(change.get("photo", photo))]
    words += ["-o", str(tmp_path / "out"), *change.get("more", [])]
    assert main(words) == status
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "inspection.json").exists()
