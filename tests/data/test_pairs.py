"""Pairs as files: originals are safe, every file stands for itself."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from addsr.data.degrade import degrade
from addsr.data.pairs import make_pairs, peak_bytes
from addsr.data.spec import DegradationSpec, Preset, ResizeSpec
from addsr.errors import ConfigError, InputError, OptionError, OutputError


def save_photo(path: Path, width: int = 50, height: int = 41, seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(values).save(path)
    return values


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_every_picture_gives_a_cropped_hr_and_a_lr_a_quarter_as_large(tmp_path: Path) -> None:
    values = save_photo(tmp_path / "in" / "a.png")
    save_photo(tmp_path / "in" / "sub" / "b.jpg", 64, 64)
    summary = make_pairs(tmp_path / "in", tmp_path / "out", "mild", 1)
    assert summary.written == ("a.png", "sub/b.jpg")
    assert summary.skipped == ()
    pairs = ["hr/a.png", "hr/sub/b.png", "lr/a.png", "lr/sub/b.png"]
    assert files(tmp_path / "out") == ["degrade.json", *pairs]
    np.testing.assert_array_equal(read(tmp_path / "out" / "hr" / "a.png"), values[:40, :48])
    assert read(tmp_path / "out" / "lr" / "a.png").shape == (10, 12, 3)
    assert files(tmp_path / "in") == ["a.png", "sub/b.jpg"]


def test_a_result_depends_on_seed_and_name_and_not_on_the_other_files(tmp_path: Path) -> None:
    for folder, names in (("few", "b"), ("many", "abc")):
        for name in names:
            save_photo(tmp_path / folder / f"{name}.png")
    lr: dict[str, np.ndarray] = {}
    for folder, seed in (("few", 1), ("many", 1), ("few", 2)):
        out = tmp_path / f"out-{folder}-{seed}"
        make_pairs(tmp_path / folder, out, "strong", seed)
        lr |= {f"{folder}-{seed}-{p.stem}": read(p) for p in (out / "lr").iterdir()}
    assert np.array_equal(lr["few-1-b"], lr["many-1-b"])
    assert not np.array_equal(lr["few-1-b"], lr["few-2-b"])
    # the same picture under another name is degraded in another way
    assert not np.array_equal(lr["many-1-a"], lr["many-1-b"])


def test_bad_pictures_are_named_and_the_rest_is_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_photo(tmp_path / "in" / "good.png")
    save_photo(tmp_path / "in" / "tiny.png", 3, 9)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no picture")
    seen: list[tuple[int, int, str]] = []
    with caplog.at_level(logging.WARNING):
        summary = make_pairs(
            tmp_path / "in", tmp_path / "out", on_file=lambda *done: seen.append(done)
        )
    assert summary.written == ("good.png",)
    assert [name for name, _ in summary.skipped] == ["broken.jpg", "tiny.png"]
    assert "3 x 9 is smaller than scale 4" in summary.skipped[1][1]
    assert "broken.jpg: cannot be read (not a picture); give .png" in caplog.text
    assert "0x" not in caplog.text
    assert files(tmp_path / "out") == ["degrade.json", "hr/good.png", "lr/good.png"]
    assert seen == [(1, 3, "broken.jpg"), (2, 3, "good.png"), (3, 3, "tiny.png")]


def test_pictures_that_differ_in_their_suffix_do_not_overwrite_each_other(tmp_path: Path) -> None:
    save_photo(tmp_path / "in" / "cat.png", seed=1)
    save_photo(tmp_path / "in" / "cat.bmp", seed=2)
    make_pairs(tmp_path / "in", tmp_path / "out")
    assert files(tmp_path / "out" / "hr") == ["cat.bmp.png", "cat.png.png"]


@pytest.mark.parametrize("out", ["in", "in/out", "in/deep/er", "."])
def test_an_output_folder_that_overlaps_with_the_originals_is_refused(
    tmp_path: Path, out: str
) -> None:
    source = tmp_path / ("in" if out != "." else "hr")
    values = save_photo(source / "a.png")
    with pytest.raises(OutputError, match="give an output folder outside"):
        make_pairs(source, tmp_path / out)
    assert files(tmp_path) == [f"{source.name}/a.png"]
    np.testing.assert_array_equal(read(source / "a.png"), values)


def test_a_link_back_to_the_originals_is_seen_through(tmp_path: Path) -> None:
    save_photo(tmp_path / "in" / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "hr").symlink_to(tmp_path / "in", target_is_directory=True)
    with pytest.raises(OutputError, match="outside"):
        make_pairs(tmp_path / "in", tmp_path / "out")


def test_what_cannot_be_written_is_an_error_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    save_photo(tmp_path / "in" / "a.png")
    (tmp_path / "out").write_text("a file where a folder should be")
    with pytest.raises(OutputError, match="cannot be written"):
        make_pairs(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(("preset", "seed"), [("strong", 0), ("mild", 1), ({"mild": 1.0}, 0)])
def test_pairs_of_another_preset_or_seed_are_not_mixed_in(
    tmp_path: Path, preset: Preset, seed: int
) -> None:
    save_photo(tmp_path / "in" / "a.png")
    out = tmp_path / "out"
    make_pairs(tmp_path / "in", out, "mild", 0)
    before = {name: (out / name).read_bytes() for name in files(out)}
    message = r"holds pairs made with preset mild, seed 0, .*; give another folder, or delete it"
    with pytest.raises(OutputError, match=message):
        make_pairs(tmp_path / "in", out, preset, seed)
    assert {name: (out / name).read_bytes() for name in files(out)} == before
    make_pairs(tmp_path / "in", out, "mild", 0)
    assert {name: (out / name).read_bytes() for name in files(out)} == before


def test_pairs_without_a_note_of_how_they_were_made_are_not_added_to(tmp_path: Path) -> None:
    save_photo(tmp_path / "in" / "a.png")
    save_photo(tmp_path / "out" / "lr" / "old.png")
    with pytest.raises(OutputError, match=r"holds pairs made nobody knows how, .*another folder"):
        make_pairs(tmp_path / "in", tmp_path / "out")
    assert files(tmp_path / "out") == ["lr/old.png"]


@pytest.mark.parametrize("preset", [DegradationSpec(), {"mild": 1.0, "strong": 2.0}])
def test_a_preset_of_ones_own_can_be_run_twice(tmp_path: Path, preset: Preset) -> None:
    save_photo(tmp_path / "in" / "a.png")
    for _ in range(2):
        assert make_pairs(tmp_path / "in", tmp_path / "out", preset, 3).written == ("a.png",)
    assert json.loads((tmp_path / "out" / "degrade.json").read_text())["seed"] == 3


def test_a_long_name_that_can_be_read_can_be_written(tmp_path: Path) -> None:
    save_photo(tmp_path / "in" / f"{'n' * 245}.png")
    make_pairs(tmp_path / "in", tmp_path / "out")
    assert files(tmp_path / "out" / "lr") == [f"{'n' * 245}.png"]


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        make_pairs(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="no pictures; give a folder with"):
        make_pairs(tmp_path / "in", tmp_path / "out")
    with pytest.raises(ConfigError, match="'wild' is not known"):
        make_pairs(tmp_path / "in", tmp_path / "out", "wild")
    with pytest.raises(OptionError, match="scale = 0"):
        make_pairs(tmp_path / "in", tmp_path / "out", scale=0)


def test_what_might_not_fit_in_memory_is_left_out_beforehand_and_named(tmp_path: Path) -> None:
    save_photo(tmp_path / "in" / "large.png", 48, 40)
    save_photo(tmp_path / "in" / "small.png", 16, 16)
    limit = peak_bytes("mild", 30 * 40)
    summary = make_pairs(tmp_path / "in", tmp_path / "out", memory_bytes=limit)
    assert summary.written == ("small.png",)
    ((name, reason),) = summary.skipped
    assert name == "large.png"
    assert re.match(
        r"large.png: 48 x 40 may need 0.05 GiB to degrade, 0.05 GiB are free; cut", reason
    )
    assert files(tmp_path / "out" / "lr") == ["small.png"]


def test_running_out_of_memory_spoils_one_picture_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_photo(tmp_path / "in" / "large.png", 48, 40)
    save_photo(tmp_path / "in" / "small.png", 16, 16)

    def out_of_memory(hr: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if hr.shape[-1] > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return degrade(hr, *args, **options)

    monkeypatch.setattr("addsr.data.pairs.degrade", out_of_memory)
    summary = make_pairs(tmp_path / "in", tmp_path / "out")
    assert summary.written == ("small.png",)
    assert "48 x 40 did not fit in the memory of cpu" in summary.skipped[0][1]


def test_more_memory_is_expected_where_the_first_resize_may_enlarge_or_a_camera_is_drawn() -> None:
    def per_pixel(preset: Preset) -> float:
        return (peak_bytes(preset, 2_000_000) - peak_bytes(preset, 1_000_000)) / 1e6

    shrinks = DegradationSpec(resize1=ResizeSpec(shares=(0, 1, 0), factor=(0.5, 1)))
    assert 100 < per_pixel(shrinks) < per_pixel("near-clean") < per_pixel("mild") < 500
    assert per_pixel("mixture") == per_pixel("strong")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("preset", ["near-clean", "strong"])
def test_the_peak_stays_below_the_expected_one(preset: str) -> None:
    code = f"""
import torch
from addsr.data.degrade import degrade
from addsr.data.pairs import peak_bytes

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

degrade(torch.rand(1, 3, 64, 64), {preset!r})
before = peak()
for seed in range(6):
    x = torch.rand(1, 3, 1200, 1000)
    degrade(x, {preset!r}, generator=torch.Generator().manual_seed(seed), group=1)
print((peak() - before) / peak_bytes({preset!r}, 1200 * 1000))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.3 < float(ran.stdout) <= 1
