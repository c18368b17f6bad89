"""One noise field, whatever rectangle of it is read and in which order."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from addsr.engines import noise as module
from addsr.engines.noise import NoiseField

WHOLE = NoiseField(7).read(0, 0, 600, 600)


@given(st.integers(0, 550), st.integers(0, 550), st.integers(1, 50), st.integers(1, 50))
def test_any_rectangle_holds_the_values_of_its_place(
    top: int, left: int, height: int, width: int
) -> None:
    part = NoiseField(7).read(top, left, height, width)
    assert torch.equal(part, WHOLE[..., top : top + height, left : left + width])


def test_the_field_is_normal_and_its_blocks_are_unlike() -> None:
    assert abs(float(WHOLE.mean())) < 0.01 and abs(float(WHOLE.std()) - 1) < 0.01
    a, b = WHOLE[0, 0, :256, :256].flatten(), WHOLE[0, 0, :256, 256:512].flatten()
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.02


def test_seed_and_stage_change_the_field() -> None:
    fields = [NoiseField(*args).read(0, 0, 8, 8) for args in ((7, 0), (8, 0), (7, 1), (-1, 0))]
    assert all(not torch.equal(a, b) for i, a in enumerate(fields) for b in fields[:i])


def test_global_random_state_is_neither_read_nor_changed() -> None:
    torch.manual_seed(5)
    first = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(NoiseField(7).read(0, 0, 600, 600), WHOLE)
    assert torch.equal(torch.rand(1), first)


def test_memory_stays_bounded_on_a_long_walk() -> None:
    field = NoiseField(0)
    for left in range(0, 100_000, 256):
        field.read(0, left, 4, 256)
    assert len(field._blocks) <= module._KEPT
