"""Where training pictures come from: the published degradation, sharpening, turns, resumes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from addsr.data.draw import derive_seed
from addsr.errors import ConfigError
from addsr.train.config import DataConfig
from addsr.train.loop import _apart
from addsr.train.sources import (
    RotatingPool,
    make_pool,
    realesrgan_degradation,
    sharpened,
    stablesr_degradation,
)

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A picture that is brighter to the right and below, with an edge."""
    y, x = np.mgrid[0:64, 0:64]
    picture = np.stack([x * 2, y * 2, np.where(x > 31, 200, 50)], axis=-1).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    return tmp_path


def data(folder: Path, **fields: object) -> DataConfig:
    config = DataConfig(
        train=(str(folder),), crop_px=64, pool=8, reuse=1.0, mixture="stablesr", rescaled=0.0
    )
    return dataclasses.replace(config, **fields)  # type: ignore[arg-type]


def test_the_published_degradation_has_no_departures() -> None:
    spec = stablesr_degradation()
    assert (spec.second_order, spec.final_sinc, spec.final_antialias) == (1.0, 0.8, 0.0)
    assert spec.resize1.antialias == spec.resize2.antialias == 0.0
    assert (spec.blur1.sigma, spec.blur2.sigma, spec.blur2.probability) == (
        (0.2, 1.5), (0.2, 1.0), 0.5,
    )  # fmt: skip
    assert (spec.resize1.factor, spec.resize2.factor) == ((0.3, 1.5), (0.6, 1.2))
    assert (spec.noise1.sigma, spec.noise2.sigma) == ((1.0, 15.0), (1.0, 12.0))
    assert (spec.noise1.poisson, spec.noise2.poisson) == ((0.05, 2.0), (0.05, 1.0))
    assert (spec.jpeg1.quality, spec.jpeg2.quality) == ((60.0, 95.0), (60.0, 100.0))


def test_seesr_is_trained_on_the_published_degradation_of_full_strength(folder: Path) -> None:
    spec = realesrgan_degradation()
    assert (spec.second_order, spec.final_sinc, spec.final_antialias) == (1.0, 0.8, 0.0)
    assert spec.resize1.antialias == spec.resize2.antialias == 0.0
    assert (spec.blur1.sigma, spec.blur2.sigma, spec.blur2.probability) == (
        (0.2, 3.0), (0.2, 1.5), 0.8,
    )  # fmt: skip
    assert (spec.blur1.sizes, spec.blur2.sizes) == ((7, 21), (7, 21))
    assert (spec.resize1.factor, spec.resize2.factor) == ((0.15, 1.5), (0.3, 1.2))
    assert (spec.noise1.sigma, spec.noise2.sigma) == ((1.0, 30.0), (1.0, 25.0))
    assert (spec.noise1.poisson, spec.noise2.poisson) == ((0.05, 3.0), (0.05, 2.5))
    assert (spec.jpeg1.quality, spec.jpeg2.quality) == ((30.0, 95.0), (30.0, 95.0))
    assert make_pool(data(folder, mixture="realesrgan"), 0, CPU).preset == spec


def test_crops_that_are_not_turned_are_mirrored_left_to_right_only(folder: Path) -> None:
    def ways(turned: bool) -> set[tuple[bool, bool]]:
        hr, _ = make_pool(data(folder, turned=turned), 0, CPU).get(8)
        right = (hr[:, 0, :, -1] > hr[:, 0, :, 0]).all(dim=1).tolist()
        below = (hr[:, 1, -1] > hr[:, 1, 0]).all(dim=1).tolist()
        return set(zip(right, below, strict=True))

    assert ways(False) == {(True, True), (False, True)}
    assert len(ways(True)) > 2


def test_sharpening_comes_before_degradation_and_keeps_flat_parts(folder: Path) -> None:
    plain, _ = make_pool(data(folder), 0, CPU).make_chunk(0)
    sharp, _ = make_pool(data(folder, sharpen=0.5), 0, CPU).make_chunk(0)
    slope = [int(x[:, 2].int().diff(dim=-1).abs().max()) for x in (plain, sharp)]
    assert slope[1] > slope[0] + 20
    flat = torch.full((1, 3, 64, 64), 90, dtype=torch.uint8)
    assert torch.equal(sharpened(flat, 0.5, CPU), flat)


def test_pictures_that_are_not_there_are_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.train = '.*\*\.tar' matches nothing"):
        make_pool(data(folder, train=(str(folder / "*.tar"),)), 0, CPU)
    with pytest.raises(ConfigError, match=r"data\.train: .*none"):
        make_pool(data(folder, train=(str(folder / "none"),)), 0, CPU)


def test_a_resumed_process_keeps_a_seed_of_its_own(folder: Path) -> None:
    main, other = (make_pool(data(folder), seed, CPU) for seed in (0, 1000))
    main.get(8)
    state = _apart(main.state_dict(), other.state_dict(), step=5)
    assert (state["seed"], state["served"]) == (1000, 8)
    assert not torch.equal(state["choices"], main.state_dict()["choices"])
    other.load_state_dict(state)
    assert not torch.equal(other.get(8)[1], main.get(8)[1])


def test_shards_take_turns_and_a_resume_holds_the_same(folder: Path) -> None:
    for k, level in enumerate((40, 120, 220)):  # told by their brightness
        (folder / str(k)).mkdir()
        flat = np.full((64, 64, 3), level, dtype=np.uint8)
        Image.fromarray(flat).save(folder / str(k) / "a.png")
    shards = tuple(str(folder / str(k)) for k in range(3))
    config = data(folder, train=shards, held=1, held_pairs=4, pool=4)
    source = RotatingPool(config, 5, CPU)
    seen = [round(float(source.get(4)[0].mean()) * 255) for _ in range(6)]
    assert sorted(seen[:3]) == sorted(seen[3:]) == [40, 120, 220] and seen[:3] != seen[3:]
    source = RotatingPool(config, 3, CPU)
    source.get(4)
    source.get(2)
    state, wanted = source.state_dict(), [source.get(2) for _ in range(3)]
    other = RotatingPool(config, 99, CPU)
    other.load_state_dict(state)
    for pair in wanted:
        assert all(torch.equal(a, b) for a, b in zip(pair, other.get(2), strict=True))
    with pytest.raises(ConfigError, match=r"data\.train: .*none"):
        RotatingPool(data(folder, train=("none",), held=1), 0, CPU)


def shelves(folder: Path, levels: tuple[int | None, ...]) -> DataConfig:
    """A folder for each level, held one at a time, told by its brightness; None: unusable."""
    for k, level in enumerate(levels):
        (folder / str(k)).mkdir()
        if level is None:
            (folder / str(k) / "a.png").write_bytes(b"no picture")
        else:
            flat = np.full((64, 64, 3), level, dtype=np.uint8)
            Image.fromarray(flat).save(folder / str(k) / "a.png")
    names = tuple(str(folder / str(k)) for k in range(len(levels)))
    return data(folder, train=names, held=1, held_pairs=4, pool=4)


def level_of(pair: tuple[torch.Tensor, ...]) -> int:
    return round(float(pair[0].mean()) * 255)


def test_shards_that_cannot_be_used_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = shelves(tmp_path, (40, None, 220))
    seeds = [s for s in range(9) if _first(config, s) != "1"]
    source = RotatingPool(config, seeds[0], CPU)
    seen = [level_of(source.get(4)) for _ in range(8)]
    assert set(seen) == {40, 220} and "(passed over)" in caplog.text
    other = RotatingPool(config, 99 if _first(config, 99) != "1" else seeds[1], CPU)
    other.load_state_dict(source.state_dict())
    assert [level_of(other.get(4)) for _ in range(3)] == [level_of(source.get(4)) for _ in range(3)]


def _first(config: DataConfig, seed: int) -> str:
    """The name of what a pool of that seed holds first."""
    dice = torch.Generator().manual_seed(derive_seed(seed, "order", 0))
    return str(torch.randperm(len(config.train), generator=dice).tolist()[0])


def test_a_run_ends_when_no_shard_can_be_used_any_more(tmp_path: Path) -> None:
    config = shelves(tmp_path, (40, 220))
    source = RotatingPool(config, 0, CPU)
    source.get(4)
    for k in range(2):
        (tmp_path / str(k) / "a.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"data\.train: "):
        source.get(4)
    source.close()


def test_a_window_is_asked_for_by_its_number_in_any_order(tmp_path: Path) -> None:
    config = shelves(tmp_path, (40, 120, 220))
    source = RotatingPool(config, 3, CPU)
    forward = [level_of(source.at(k).get(4)) for k in range(6)]
    assert sorted(forward[:3]) == sorted(forward[3:]) == [40, 120, 220]
    other = RotatingPool(config, 3, CPU)
    assert [level_of(other.at(k).get(4)) for k in (5, 0, 2, 2)] == [
        forward[5], forward[0], forward[2], forward[2],
    ]  # fmt: skip
    held = other.pool
    assert other.at(2) is held  # nothing is read again
