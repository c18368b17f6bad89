"""Tiles of one picture, and pictures of one size, that go through the network together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from addsr.engines.run import Engine
from addsr.errors import OptionError
from addsr.models.hub import Model, load_model
from addsr.restorers import Counter, TiledRestorer, Wish, tiled
from addsr.restorers.base import Room
from addsr.upscaler import Upscaler

GIB = 1 << 30


@pytest.fixture(scope="module")
def model(weights: str) -> Model:
    """Its noise, context and input all show in the result: no convolution is near zero."""
    made = load_model(weights)
    with torch.no_grad():
        torch.manual_seed(1)
        for name, value in made.net.named_parameters():
            if name.endswith("conv2.weight"):
                value.normal_(std=0.06)
    return made


@pytest.fixture()
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of all that goes through an engine."""
    seen: list[tuple[int, ...]] = []
    restore = Engine.restore

    def noted(self: Engine, lr: Tensor, *rest: Any) -> Tensor:
        seen.append(tuple(lr.shape))
        return restore(self, lr, *rest)

    monkeypatch.setattr(Engine, "restore", noted)
    return seen


@pytest.mark.parametrize(("steps", "scale"), [(1, 4), (4, 3), (2, 5)])
def test_the_number_of_tiles_at_once_does_not_show(
    model: Model, batches: list[tuple[int, ...]], steps: int, scale: float
) -> None:
    x = torch.rand(1, 3, 13, 187)

    def run(count: int) -> Tensor:
        batches.clear()
        options: dict[str, Any] = {"steps": steps, "scale": scale, "dtype": "fp32", "device": "cpu"}
        return Upscaler(model, tile=80, tile_batch=count, **options)(x)

    one = run(1)
    assert {shape[0] for shape in batches} == {1}
    assert len({shape[-2:] for shape in batches}) > 1, "tiles at the edge are smaller"
    for count in (3, 16):
        torch.testing.assert_close(run(count), one, rtol=0, atol=1e-5)
        assert 1 < max(shape[0] for shape in batches) <= count


def restorer_of(model: Model, dtype: str = "fp32") -> TiledRestorer:
    made = Upscaler(model, dtype=dtype, device="cpu").restorer
    assert isinstance(made, TiledRestorer)
    return made


@pytest.mark.parametrize("scale", [2.5, 4.0, 6.0])
def test_pictures_that_go_together_are_what_they_are_alone(
    model: Model, batches: list[tuple[int, ...]], scale: float
) -> None:
    restorer = restorer_of(model)
    wish = Wish(scale, 2, 0.5, "wavelet", 7, 80, tile_batch=12)
    pictures = [torch.rand(1, 3, 13, 90) * level for level in (0.2, 0.6, 1.0)]
    plan = restorer.plan((13, 90), wish, Room(8 * GIB, None, 4))
    tiles, steps = restorer.count(plan, wish)
    told: list[tuple[int, int]] = []
    counter = Counter(lambda *pair: told.append(pair))
    counter.total = 3 * steps
    together = restorer.together(pictures, plan, wish, counter)
    assert told[-1] == (3 * steps, 3 * steps), "the network is done before any row is asked for"
    assert sum(shape[0] for shape in batches) == 3 * tiles
    assert max(shape[0] for shape in batches) > 1
    for rgb, bands in zip(pictures, together, strict=True):
        alone = torch.cat(list(restorer.bands(rgb, plan, wish, Counter(None))), dim=-2)
        torch.testing.assert_close(torch.cat(list(bands), dim=-2), alone, rtol=0, atol=1e-5)


def test_memory_that_runs_out_makes_batches_smaller_before_tiles(
    model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.rand(1, 3, 13, 180)
    expected = Upscaler(model, tile=80, dtype="fp32", device="cpu")(x)
    told: list[tuple[int, int]] = []
    up = Upscaler(
        model, tile=80, tile_batch=4, dtype="fp32", device="cpu",
        progress=lambda *pair: told.append(pair),
    )  # fmt: skip
    restorer = up.restorer
    assert isinstance(restorer, TiledRestorer)
    seen: list[int] = []

    def short(*given: Any) -> None:
        seen.append(len(given[1][2]))
        if seen[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    restorer.engine.net.register_forward_pre_hook(short)
    torch.testing.assert_close(up(x), expected, rtol=0, atol=1e-5)
    assert "tiles of" in caplog.text and "going on with 1" in caplog.text
    assert up.report is not None and up.report.tile == 80
    assert told[-1][0] == told[-1][1] and max(seen) > 1
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_an_accelerator_takes_as_many_tiles_as_keep_it_busy_and_fit(model: Model) -> None:
    restorer = restorer_of(model, "bf16")
    restorer.engine.device = torch.device("cuda")  # nothing runs there

    def count(side: int, free: float = 40, **more: Any) -> int:
        wish = Wish(4.0, 1, 0.5, "wavelet", 0, "auto", **more)
        return restorer.plan((side, side), wish, Room(64 * GIB, int(free * GIB), 4)).tile_batch

    assert [count(side) for side in (16, 100, 300, 512, 3000)] == [16, 16, 2, 1, 1]
    assert 1 <= count(100, free=0.2) < 16
    assert count(100, tile_batch=3) == 3 and count(100, tile_batch=40) == 40
    assert count(100, free=0.2, tile_batch=40) < 40
    wish = Wish(4.0, 1, 0.5, "wavelet", 0, "auto")
    for side, most in ((100, 16), (300, 2), (900, 1), (1100, 0)):
        plan = restorer.plan((side, side), wish, Room(64 * GIB, 40 * GIB, 4))
        assert restorer.most_together(plan, wish) == most, side


def test_what_goes_together_is_expected_to_take_memory_together(model: Model) -> None:
    restorer = restorer_of(model)
    one, four = (
        restorer.plan((80, 300), Wish(4.0, 1, 0.5, "wavelet", 0, 80, tile_batch=n),
                      Room(8 * GIB, None, 4))
        for n in (1, 4)
    )  # fmt: skip
    assert four.tile_bytes == 4 * one.tile_bytes
    assert four.host_bytes - one.host_bytes == 3 * one.tile_bytes


@pytest.mark.parametrize(
    ("dtype", "has_bf16", "most"), [("bf16", True, 6), ("bf16", False, 1), ("fp32", True, 1)]
)
def test_a_cpu_takes_small_tiles_together_where_that_is_quicker(
    model: Model, monkeypatch: pytest.MonkeyPatch, dtype: str, has_bf16: bool, most: int
) -> None:
    monkeypatch.setattr(tiled, "cpu_has_bf16", lambda: has_bf16)
    restorer = restorer_of(model, "fp32")
    restorer.engine.dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    wish = Wish(4.0, 1, 0.5, "wavelet", 0, "auto")
    for side, count in ((64, most), (160, 1), (2000, 1)):
        plan = restorer.plan((side, side), wish, Room(8 * GIB, None, 4))
        assert plan.tile_batch == count
        assert restorer.most_together(plan, wish) == (count if count > 1 else 0)


def test_a_number_of_tiles_is_a_whole_number(model: Model) -> None:
    for wrong in (0, -1, 2.0, True, "many"):
        with pytest.raises(OptionError, match=r"tile_batch: .* is no number of tiles"):
            Upscaler(model, tile_batch=wrong)  # type: ignore[arg-type]
