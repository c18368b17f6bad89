"""The whole way of a picture through a small random network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import addsr
from addsr.engines.run import Engine, TileTooLarge
from addsr.errors import InputError, MemoryLimitError, OptionError, OutputError
from addsr.image.reading import read_file, read_image, read_size
from addsr.image.resize import resize
from addsr.image.writing import write_image
from addsr.image.xmp import read_done
from addsr.models.files import save_weights
from addsr.models.hub import Model, load_model
from addsr.models.registry import COMPACT
from addsr.nets import CompactConfig, CompactNet
from addsr.target import Target
from addsr.upscaler import Upscaler

TINY = CompactConfig(
    widths=(32, 32, 32), depths=(1, 1, 1), decoder_widths=(32, 16, 16), decoder_depth=1,
    time_channels=32, lr_channels=8,
)  # fmt: skip


def lively_net() -> CompactNet:
    """A random network whose output depends on input, noise, fidelity and on far pixels.

    A fresh one is close to its enlarged input: the last convolutions of its blocks start near
    zero. Here they get ordinary sizes, the LR skip, zero at the start, is opened, and the output
    is scaled until other noise changes the picture by 8/255, about what a trained network does.
    """
    torch.manual_seed(3)
    net = CompactNet(TINY)
    with torch.no_grad():
        for name, value in net.named_parameters():
            if name.endswith("conv2.weight"):
                value.normal_(std=0.06)
            elif "lr_skip.weight" in name:
                value.normal_(std=0.2)
        lr, t = torch.rand(1, 3, 32, 32), torch.ones(1)
        a, b = (net(torch.randn(1, 3, 128, 128), t, lr) for _ in range(2))
        net.decoder.out.weight.mul_(8 / 255 / (a - b).abs().mean())
    return net


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, lively_net().state_dict(), {"kind": "compact", "config": TINY.to_dict()})
    return path


@pytest.fixture(scope="module")
def model(weights: Path) -> Model:
    return load_model(weights)


def photo(height: int, width: int) -> Tensor:
    """A smooth random picture `(1, 3, height, width)` with the statistics of none in particular."""
    small = torch.rand(1, 3, max(height // 6, 1), max(width // 6, 1))
    return resize(small, (height, width), "bicubic").clamp(0, 1)


@settings(max_examples=25)
@given(st.integers(1, 24), st.integers(1, 24), st.floats(1, 8))
def test_every_size_and_scale_gives_the_rounded_size(height: int, width: int, scale: float) -> None:
    net = CompactNet(TINY)
    with Upscaler(Model(net, COMPACT, {}), scale=scale, dtype="fp32") as up:
        out = up(photo(height, width))
    expected = [max(1, int(n * scale + 0.5)) for n in (height, width)]
    assert list(out.shape[-2:]) == expected
    assert bool(torch.isfinite(out).all()) and float(out.min()) >= 0 and float(out.max()) <= 1


def test_the_same_seed_gives_the_same_picture_under_any_tiling(model: Model) -> None:
    x = photo(150, 200)

    def run(tile: Any, seed: int = 0, steps: int = 2) -> Tensor:
        return Upscaler(model, tile=tile, seed=seed, steps=steps, dtype="fp32")(x)

    whole = run(256)
    assert torch.equal(whole, run(256))
    # the test means something only where noise and network move the picture by much more
    assert float((run(256, seed=1) - whole).abs().mean()) > 4 / 255
    assert float((resize(x, (600, 800), "bicubic") - whole).abs().mean()) > 4 / 255
    for tile in (80, 104, 136):
        difference = (run(tile) - whole).abs()
        assert float(difference.mean()) <= 1 / 255, tile
        inside = difference[..., 64:-64, 64:-64]
        assert float(inside.max()) <= 8 / 255, tile


def test_tiles_leave_no_seam_on_a_flat_picture(model: Model) -> None:
    flat = torch.full((1, 3, 40, 200), 0.5)
    whole = Upscaler(model, tile=256, dtype="fp32")(flat)
    tiled = Upscaler(model, tile=80, dtype="fp32")(flat)
    steps = [(out.mean(dim=(1, 2)).diff(dim=-1)).abs().max() for out in (whole, tiled)]
    assert float(steps[1]) <= float(steps[0]) + 1 / 255


def test_memory_that_runs_out_halves_the_tile_and_goes_on(
    model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    x = photo(150, 200)
    expected = Upscaler(model, tile=256, dtype="fp32")(x)
    seen: list[int] = []
    restore = Engine.restore

    def small_device(self: Engine, lr: Tensor, *args: Any) -> Tensor:
        seen.append(max(lr.shape[-2:]))
        if seen[-1] > 110:
            raise TileTooLarge(f"tile: {seen[-1]} px does not fit into the memory of cpu")
        return restore(self, lr, *args)

    monkeypatch.setattr(Engine, "restore", small_device)
    told: list[tuple[int, int]] = []
    up = Upscaler(model, tile=256, dtype="fp32", progress=lambda *pair: told.append(pair))
    out = up(x)
    assert float((out - expected).abs().mean()) <= 1 / 255
    assert "going on with 96 px" in caplog.text
    assert told[-1][0] == told[-1][1] == len(seen) - 1
    count = sum(side > 110 for side in seen)
    up(x)
    assert sum(side > 110 for side in seen) == count == 1, "later pictures start with small tiles"


def test_memory_that_never_suffices_is_told(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_args: Any) -> Tensor:
        raise TileTooLarge("tile: 96 px does not fit into the memory of cpu")

    monkeypatch.setattr(Engine, "restore", no_memory)
    with pytest.raises(MemoryLimitError, match=r"smaller tiles do not work.*free memory"):
        Upscaler(model, dtype="fp32")(photo(90, 90))


def test_each_kind_gets_its_own_kind_back(model: Model, tmp_path: Path) -> None:
    up = Upscaler(model, dtype="fp32", scale=2)
    grey = np.random.default_rng(0).integers(0, 256, (9, 7), np.uint8)
    assert up(grey).shape == (18, 14) and up(grey).dtype == np.uint8
    rgb = np.random.default_rng(0).random((9, 7, 3), np.float32)
    assert up(rgb).shape == (18, 14, 3) and up(rgb).dtype == np.float32
    batch = torch.rand(2, 3, 9, 7, dtype=torch.float64)
    out = up(batch)
    assert out.shape == (2, 3, 18, 14) and out.dtype == torch.float64
    torch.testing.assert_close(out[1:], up(batch[1:]))
    image = Image.fromarray(rgb.__mul__(255).astype(np.uint8))
    for mode in ("L", "LA", "RGB", "RGBA"):
        assert up(image.convert(mode)).mode == mode
    assert up(image.convert("P")).mode == "RGB"
    image.save(tmp_path / "a.png")
    assert isinstance(up(tmp_path / "a.png"), Image.Image)
    assert up(str(tmp_path / "a.png"), str(tmp_path / "b.webp")) == tmp_path / "b.webp"
    assert read_image(tmp_path / "b.webp").size == (14, 18)
    assert up(rgb, tmp_path / "c.png") == tmp_path / "c.png"
    assert read_image(tmp_path / "c.png").size == (14, 18)


def test_kinds_agree_on_the_pixels(model: Model) -> None:
    up = Upscaler(model, dtype="fp32")
    array = (photo(12, 10)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    from_array = up(array).astype(int)
    from_pil = np.asarray(up(Image.fromarray(array))).astype(int)
    tensor = torch.from_numpy(array).permute(2, 0, 1)[None]
    from_tensor = up(tensor)[0].permute(1, 2, 0).numpy().astype(int)
    from_float = up(tensor.float() / 255)[0].permute(1, 2, 0).numpy() * 255
    np.testing.assert_array_equal(from_array, from_pil)
    np.testing.assert_array_equal(from_array, from_tensor)
    assert float(np.abs(from_float - from_array).max()) <= 0.51


def test_a_grey_picture_stays_grey_and_a_flat_colour_keeps_its_tone(model: Model) -> None:
    up = Upscaler(model, dtype="fp32")
    grey = up(Image.new("L", (20, 20), 100))
    assert grey.mode == "L" and abs(float(np.asarray(grey).mean()) - 100) < 2
    colour = np.asarray(up(Image.new("RGB", (60, 60), (200, 90, 40)))).reshape(-1, 3).mean(axis=0)
    assert np.abs(colour - (200, 90, 40)).max() < 3


def test_transparent_edges_do_not_bleed(model: Model) -> None:
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((230, 120, 60, 255), (0, 0, 20, 40))
    up = Upscaler(model, dtype="fp32")
    out = np.asarray(up(image)).astype(int)
    plain = np.asarray(up(Image.new("RGB", (40, 40), (230, 120, 60)))).astype(int)
    # wherever anything shows, the colour is that of the same picture without transparency
    shown = out[..., 3] > 0
    assert np.abs(out[..., :3] - plain)[shown].max() <= 1
    assert out[0, 0, 3] == 255 and out[0, -1, 3] == 0
    assert (out[:, :, 3].mean(axis=0)[:72] == 255).all()


@pytest.mark.parametrize("ground", ["white", "black", "magenta"])
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_a_sharp_disc_has_no_fringe_whatever_lies_below(
    model: Model, tmp_path: Path, ground: str, suffix: str
) -> None:
    # the hidden colour is the strongest contrast to the disc's
    y, x = np.mgrid[0:48, 0:48]
    inside = (y - 23.5) ** 2 + (x - 23.5) ** 2 < 16**2
    disc = Image.new("RGBA", (48, 48), ground)
    disc.paste((40, 160, 90, 255), mask=Image.fromarray(inside))
    disc.putalpha(Image.fromarray(inside.astype(np.uint8) * 255))
    disc.save(tmp_path / f"in{suffix}", lossless=True)
    up = Upscaler(model, dtype="fp32", scale=2)
    result = Image.open(up(tmp_path / f"in{suffix}", tmp_path / "out.png"))
    plain = np.asarray(up(Image.new("RGB", (48, 48), (40, 160, 90)))).astype(int)
    out = np.asarray(result).astype(int)
    shown = out[..., 3] > 0
    assert np.abs(out[..., :3] - plain)[shown].max() <= 1
    covered = (out[..., 3] / 255).sum() / 4
    assert covered == pytest.approx(inside.sum(), rel=0.01)


def test_a_transparent_palette_is_enlarged_without_a_fringe(model: Model, tmp_path: Path) -> None:
    image = Image.new("P", (40, 40), 0)
    image.putpalette([255, 0, 255, 40, 160, 90])
    image.paste(1, (0, 0, 20, 40))
    image.save(tmp_path / "in.gif", transparency=0)
    out = np.asarray(Upscaler(model, dtype="fp32", scale=2)(tmp_path / "in.gif")).astype(int)
    plain = Upscaler(model, dtype="fp32", scale=2)(Image.new("RGB", (40, 40), (40, 160, 90)))
    shown = out[..., 3] > 0
    assert 0.45 < shown.mean() < 0.55
    assert np.abs(out[..., :3] - np.asarray(plain).astype(int))[shown].max() <= 1


def test_sixteen_bits_go_through_as_floats_and_become_eight_without_bands(
    model: Model, tmp_path: Path
) -> None:
    pytest.importorskip("pyvips")
    ramp = np.linspace(0.40, 0.43, 96)[None, :, None] * np.ones((32, 1, 3))
    write_image((ramp * 65535).round().astype(np.uint16), tmp_path / "in.png")
    options: dict[str, Any] = {"dtype": "fp32", "color": "wavelet", "seed": 3}
    for name in ("out.tif", "out.png", "again.png"):
        Upscaler(model, **options)(tmp_path / "in.png", tmp_path / name)
    deep = read_file(tmp_path / "out.tif").pixels
    assert isinstance(deep, np.ndarray) and deep.shape == (128, 384, 3)
    assert len(np.unique(deep)) > 5000
    np.testing.assert_array_equal(deep, read_file(tmp_path / "again.png").pixels)
    eights = [
        np.asarray(Upscaler(model, **options)(tmp_path / "in.png")).astype(float) for _ in range(2)
    ]
    np.testing.assert_array_equal(eights[0], eights[1])
    difference = eights[0] - deep / 257
    assert np.abs(difference).max() < 1.01 and abs(float(difference.mean())) < 0.01


def test_what_was_done_is_in_the_file_and_enough_to_repeat_it(
    weights: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in.png"
    Image.effect_noise((20, 24), 60).convert("RGB").save(source)
    options: dict[str, Any] = {"scale": 2.5, "steps": 2, "fidelity": 0.25, "seed": 11}
    Upscaler(weights, dtype="fp32", tile=80, color="adain", **options)(source, tmp_path / "a.png")
    packet = read_file(tmp_path / "a.png").metadata.xmp
    assert packet is not None
    done = read_done(packet)
    assert (
        done["Version"] == addsr.__version__
        and done["Weights"] == load_model(weights).metadata["sha256"]
    )
    again = Upscaler(
        weights, scale=float(done["Scale"]), steps=int(done["Steps"]), color=done["Color"],
        fidelity=float(done["Fidelity"]), seed=int(done["Seed"]), tile=int(done["Tile"]),
        device=done["Device"], dtype={"float32": "fp32"}[done["DType"]],
    )  # fmt: skip
    again(source, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_file_options_reach_the_file(model: Model, tmp_path: Path) -> None:
    source = tmp_path / "in.jpg"
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    Image.effect_noise((24, 24), 60).convert("RGB").save(source, exif=exif)
    sizes: list[int] = []
    for quality in (20, 95):
        up = Upscaler(model, dtype="fp32", scale=2, quality=quality, metadata="strip")
        up(source, tmp_path / "out.jpg")
        sizes.append((tmp_path / "out.jpg").stat().st_size)
        assert b"Maker" not in (tmp_path / "out.jpg").read_bytes()
    assert sizes[0] < sizes[1] / 2
    Upscaler(model, dtype="fp32", scale=2)(source, tmp_path / "out.jpg")
    assert b"Maker" in (tmp_path / "out.jpg").read_bytes()
    with pytest.raises(OptionError, match="quality: 101 is outside of 1 to 100"):
        Upscaler(model, quality=101)
    with pytest.raises(OutputError, match="JPEG holds 8 bits"):
        Upscaler(model, bit_depth="16")(source, tmp_path / "deep.jpg")
    assert not (tmp_path / "deep.jpg").exists()


def test_orientation_is_honoured_and_the_result_is_upright(model: Model, tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10), "blue")
    exif = image.getexif()
    exif[0x0112] = 8
    image.save(tmp_path / "a.jpg", exif=exif)
    out = Upscaler(model, dtype="fp32", scale=2)(tmp_path / "a.jpg")
    assert out.size == (20, 40)


def test_one_pixel_works_at_every_kind_of_scale(model: Model) -> None:
    for scale, side in ((1, 1), (2.5, 3), (4, 4), (8, 8)):
        out = Upscaler(model, dtype="fp32", scale=scale)(Image.new("RGB", (1, 1), (9, 99, 199)))
        assert out.size == (side, side)
        mean = np.asarray(out).reshape(-1, 3).mean(axis=0)
        assert np.abs(mean - (9, 99, 199)).max() < 40


def test_fidelity_steps_and_colour_change_the_picture(model: Model) -> None:
    x = photo(24, 24)
    base = {"dtype": "fp32", "steps": 1, "fidelity": 1.0, "color": "wavelet"}
    first = Upscaler(model, **base)(x)
    for change in ({"steps": 2}, {"steps": 4}, {"fidelity": 0.0}, {"color": "adain"}):
        assert float((Upscaler(model, **{**base, **change})(x) - first).abs().mean()) > 1e-3


def test_the_report_tells_what_was_done(model: Model) -> None:
    up = Upscaler(
        model, dtype="fp32", tile=80, scale=3, steps=2, fidelity=0.25, color="none", seed=9
    )
    up(photo(30, 100))
    report = up.report
    assert report is not None and report.to_dict()["input_size"] == [100, 30]
    assert report.output_size == (300, 90) and report.tiles == 2 and report.tile == 80
    assert (report.steps, report.fidelity, report.color, report.seed) == (2, 0.25, "none", 9)
    assert (report.device, report.dtype, report.output) == ("cpu", "float32", None)


def test_progress_counts_steps_of_all_tiles(model: Model) -> None:
    told: list[tuple[int, int]] = []
    up = Upscaler(model, dtype="fp32", tile=80, steps=2, progress=lambda *pair: told.append(pair))
    up(photo(30, 100))
    assert told[0] == (0, 4) and told[-1] == (4, 4)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_wrong_options_are_refused_before_any_work(model: Model) -> None:
    for options, message in (
        ({"scale": 9}, "scale: 9 is outside"),
        ({"steps": 3}, "steps: 3 is not possible"),
        ({"fidelity": 2.0}, "fidelity: 2.0 is outside"),
        ({"color": "sepia"}, "color: 'sepia' is unknown; use one of wavelet, adain, none"),
        ({"dtype": "fp8"}, "dtype: 'fp8' is unknown"),
        ({"device": "abacus"}, "device: 'abacus' is unknown"),
        ({"tile": 8}, "tile: 8 px is too small"),
    ):
        with pytest.raises(OptionError, match=message):
            Upscaler(model, **options)


def test_files_are_protected(model: Model, tmp_path: Path) -> None:
    up = Upscaler(model, dtype="fp32")
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path)
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"is the input itself.*originals are kept"):
        up(path, path)
    with pytest.raises(OutputError, match="does not exist"):
        up(path, tmp_path / "gone" / "b.png")
    with pytest.raises(InputError, match="a batch of 2 cannot go into one file"):
        up(torch.rand(2, 3, 4, 4), tmp_path / "b.png")
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_picture_beyond_the_memory_is_refused_before_it_is_decoded(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (4000, 3000)).save(tmp_path / "large.png")
    monkeypatch.setenv("ADDSR_MEMORY", "500M")
    up = Upscaler(model, dtype="fp32")
    monkeypatch.setattr(Image.Image, "load", lambda _self: pytest.fail("was decoded"))
    with pytest.raises(MemoryLimitError, match=r"4000x3000 -> 16000x12000 .* GiB.*smaller --scale"):
        up(tmp_path / "large.png", tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_a_model_that_is_handed_in_is_not_changed(model: Model) -> None:
    with Upscaler(model, dtype="fp32") as exact, Upscaler(model, dtype="bf16") as half:
        before = exact(torch.full((1, 3, 8, 8), 0.5))
        half(photo(8, 8))
        assert torch.equal(exact(torch.full((1, 3, 8, 8), 0.5)), before)
    assert next(model.net.parameters()).dtype == torch.float32


def test_a_closed_upscaler_says_so(model: Model) -> None:
    with Upscaler(model) as up:
        pass
    with pytest.raises(OptionError, match="is closed; make a new one"):
        up(photo(4, 4))


def test_the_one_call_form_takes_a_path(weights: Path, tmp_path: Path) -> None:
    Image.new("RGB", (5, 6), "red").save(tmp_path / "in.jpg")
    out = addsr.upscale(tmp_path / "in.jpg", tmp_path / "out.png", model=weights, scale=2)
    assert read_image(out).size == (10, 12)


BIG = """
import sys, addsr
def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(x for x in lines if x.startswith(name)).split()[1]) / 2**20
with addsr.Upscaler(sys.argv[1], color=sys.argv[4], scale=float(sys.argv[5])) as up:
    up(sys.argv[2], sys.argv[3])
    print(status("VmHWM"), up.report.expected_bytes / 2**30, up.report.seconds)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("color", "scale"), [("wavelet", 4.0), ("adain", 3.0)])
def test_seven_megapixels_become_a_hundred_in_less_than_four_gib(
    weights: Path, tmp_path: Path, color: str, scale: float
) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc/self/status to read the peak from")
    source, target = tmp_path / "photo.jpg", tmp_path / "large.png"
    values = (photo(2250, 3000)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    Image.fromarray(values).save(source, quality=90)
    arguments = [str(weights), str(source), str(target), color, str(scale)]
    done = subprocess.run(
        [sys.executable, "-c", BIG, *arguments],
        capture_output=True, text=True, timeout=1800, env={**os.environ, "ADDSR_MEMORY": "3.6G"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    peak, expected, _seconds = (float(word) for word in done.stdout.split())
    print(done.stdout)
    assert peak < 4.0
    assert peak < expected + 0.5, "the plan told less than was taken (0.5 GiB: torch itself)"
    assert read_size(target) == (round(2250 * scale), round(3000 * scale))


def test_a_target_is_met_by_arrays_and_tensors_too(model: Model) -> None:
    with Upscaler(model, target=Target(size="50x30", fit="cover"), device="cpu") as up:
        assert up(np.zeros((12, 16, 3), np.uint8)).shape == (30, 50, 3)
        assert up.report is not None and up.report.output_size == (50, 30)
        assert up.scale is None
    with Upscaler(model, target=Target(size="50x30", fit="stretch"), device="cpu") as up:
        assert up(torch.rand(2, 3, 12, 16)).shape == (2, 3, 30, 50)
    with Upscaler(model, target=Target(scale=2, preview="4,4,5,6"), device="cpu") as up:
        assert up(torch.rand(1, 4, 12, 16)).shape == (1, 4, 12, 10)
        with pytest.raises(InputError, match="lies outside"):
            up(torch.rand(1, 3, 8, 8))
    with pytest.raises(OptionError, match="contradicts the target"):
        Upscaler(model, scale=2, target=Target())


def test_a_turned_photo_is_planned_as_it_will_be_shown(model: Model, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 10)).save(tmp_path / "a.jpg", exif=exif)
    with Upscaler(model, target=Target(size="20x"), device="cpu") as up:
        assert up(tmp_path / "a.jpg").size == (20, 80)


def test_a_target_is_a_target_and_a_number_of_bits_a_number(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"target: '64x64' is no Target; use addsr.Target\(size"):
        Upscaler(weights, target="64x64")  # type: ignore[arg-type]
    with Upscaler(weights, target=addsr.Target(size="30x"), bit_depth=8) as up:  # type: ignore[arg-type]
        assert up(torch.rand(1, 3, 8, 10)).shape == (1, 3, 24, 30)


def test_words_that_are_no_text_are_refused(weights: Path) -> None:
    with pytest.raises(OptionError, match=r"prompt: holds U\+0001, which no text has; leave it"):
        Upscaler(weights, prompt="a\x01")
