"""The pool of pairs: reproducible, renewed at the right pace, resumable."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.data import pool as pool_module
from addsr.data.pool import PairPool
from addsr.errors import ConfigError, OptionError, TrainingError


@pytest.fixture(scope="module")
def pictures() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    out: list[Tensor] = []
    for count, side in ((6, 128), (3, 96)):
        # grey, because 4:2:0 leaves nothing of colours as fine as this
        coarse = torch.rand(count, 1, side // 8, side // 8, generator=generator)
        fine = F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
        out.append((fine.expand(-1, 3, -1, -1) * 255).round().to(torch.uint8))
    return out


def make(pictures: list[Tensor], **changes: Any) -> PairPool:
    options = {"crop_px": 64, "size": 24, "chunk": 8, "group": 4, "preset": "near-clean", "seed": 1}
    return PairPool(pictures, **(options | changes))


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_pairs_have_the_promised_form(pictures: list[Tensor]) -> None:
    hr, lr = make(pictures).get(5)
    assert hr.shape == (5, 3, 64, 64)
    assert lr.shape == (5, 3, 16, 16)
    for x in (hr, lr):
        assert x.dtype == torch.float32
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert x.min() >= 0
        assert x.max() <= 1
        assert torch.allclose(x * 255, (x * 255).round(), atol=1e-4)


def test_hr_and_lr_show_the_same_after_flips_and_turns(pictures: list[Tensor]) -> None:
    hr, lr = make(pictures).get(24)
    error = (F.avg_pool2d(hr, 4) - lr).abs().mean((1, 2, 3))
    others = (F.avg_pool2d(hr, 4).roll(1, 0) - lr).abs().mean((1, 2, 3))
    assert error.max() < 0.06
    assert error.mean() < 0.2 * others.mean()


def test_the_seed_decides_all_batches(pictures: list[Tensor]) -> None:
    first, second, other = make(pictures), make(pictures), make(pictures, seed=2)
    runs = [[p.get(6) for _ in range(12)] for p in (first, second, other)]
    assert all(same(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not any(same(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_a_pair_that_comes_again_is_turned_otherwise(pictures: list[Tensor]) -> None:
    pool = make(pictures, size=1, reuse=1e6)
    forms = {tuple(pool.get(1)[0].flatten().tolist()) for _ in range(60)}
    assert len(forms) == 8


def test_pairs_are_replaced_after_the_asked_number_of_uses(pictures: list[Tensor]) -> None:
    pool = make(pictures, reuse=2.0)
    for _ in range(40):
        pool.get(8)
    assert pool.state_dict()["served"] == 320
    # 24 to begin with; a chunk of 8 is due each 16 pairs served, the last batch not counted yet
    assert pool.state_dict()["chunks"] == 3 + 312 // 16
    assert pool.uses_per_pair == pytest.approx(2, rel=0.2)


def test_a_loaded_state_goes_on_as_if_nothing_had_happened(pictures: list[Tensor]) -> None:
    pool = make(pictures, size=20)  # not a multiple of the chunk
    for _ in range(9):
        pool.get(8)
    state = pool.state_dict()
    expected = [pool.get(8) for _ in range(9)]
    resumed = make(pictures, size=20, seed=77)
    resumed.get(3)
    resumed.load_state_dict(state)
    assert all(same(resumed.get(8), batch) for batch in expected)


def test_the_state_survives_a_file(pictures: list[Tensor], tmp_path: Any) -> None:
    pool = make(pictures)
    pool.get(8)
    torch.save(pool.state_dict(), tmp_path / "state.pt")
    resumed = make(pictures)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same(resumed.get(8), pool.get(8))


def test_the_background_makes_the_same_chunks(pictures: list[Tensor]) -> None:
    with make(pictures, background=True) as pool:
        end = time.monotonic() + 30
        while pool.state_dict()["chunks"] < 6 and time.monotonic() < end:
            pool.get(8)
            time.sleep(0.005)
        chunks = pool.state_dict()["chunks"]
        assert chunks >= 6
    plain = make(pictures)
    for number in range(chunks - 3, chunks):
        hr, lr = plain.make_chunk(number)
        start = number % 3 * 8
        assert torch.equal(pool._hr[start : start + 8], hr)
        assert torch.equal(pool._lr[start : start + 8], lr)


def test_a_closed_pool_starts_again_when_it_is_used(pictures: list[Tensor]) -> None:
    pool = make(pictures, background=True)
    pool.get(4)
    pool.close()
    pool.close()
    assert pool.get(4)[0].shape == (4, 3, 64, 64)
    pool.close()


def test_an_error_in_the_background_reaches_the_trainer(
    pictures: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make(pictures, background=True)
    pool.get(4)
    pool.close()

    def fail(*args: object, **kwargs: object) -> Tensor:
        raise RuntimeError("out of memory, say")

    monkeypatch.setattr(pool_module, "degrade", fail)
    end = time.monotonic() + 30
    with pytest.raises(TrainingError, match=r"out of memory, say; with background=False"):
        while time.monotonic() < end:
            pool.get(16)
            time.sleep(0.005)
    pool.close()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"size": 0}, "size = 0"),
        ({"reuse": 0}, "reuse = 0"),
        ({"crop_px": 66}, "crop_px = 66 .* multiple of 4"),
        ({"chunk": -1}, "chunk = -1"),
        ({"scale": 0}, "scale = 0"),
        ({"group": 0}, "group = 0"),
    ],
)
def test_wrong_options_are_named(
    pictures: list[Tensor], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        make(pictures, **change)


def test_a_wrong_preset_is_told_at_once(pictures: list[Tensor]) -> None:
    with pytest.raises(ConfigError, match="'wild' is not known"):
        make(pictures, preset="wild")
    with pytest.raises(OptionError, match="batch = 0"):
        make(pictures).get(0)


def test_each_pair_says_which_picture_it_is_of() -> None:
    greys = torch.arange(1, 9, dtype=torch.uint8) * 25
    pictures = [
        g.view(-1, 1, 1, 1).expand(-1, 3, s, s)
        for g, s in zip(greys.split(5), (128, 96), strict=True)
    ]
    pool = make(pictures, rescaled=0.5, reuse=1.0)
    assert pool.pictures == 8
    for _ in range(6):  # renewed on the way
        hr, lr, numbers = pool.get_numbered(8)
        assert hr.shape[0] == lr.shape[0] == len(numbers)
        shown = (hr.mean((1, 2, 3)) * 255).round()
        assert shown.tolist() == [float(pool.picture(n).float().mean()) for n in numbers]
    assert pool.picture(7).shape == (3, 96, 96)
