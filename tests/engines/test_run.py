"""One tile through a network: every size, failures of memory, values that are not finite."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from addsr.engines.memory import is_out_of_memory
from addsr.engines.run import Engine, TileTooLarge, pad_to_multiple
from addsr.errors import ModelError
from addsr.nets import CompactConfig, CompactNet
from addsr.nets.blocks import ResBlock

CPU = torch.device("cpu")
TINY = CompactConfig(
    widths=(32, 32, 32), depths=(1, 1, 1), decoder_widths=(32, 16, 16), decoder_depth=1,
    time_channels=32, lr_channels=8,
)  # fmt: skip


class Enlarge(nn.Module):
    """Nearest enlargement; counts what it sees and does what it is told."""

    scale, multiple = 4, 8

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.sizes: list[tuple[int, ...]] = []
        self.fail: BaseException | None = None
        self.break_dtype: torch.dtype | None = None
        self.broken = float("inf")

    def forward(
        self, x_t: Tensor, t: Tensor, lr: Tensor, condition: Tensor | None, fidelity: float
    ) -> Tensor:
        self.sizes.append(tuple(lr.shape[-2:]))
        assert x_t.shape[-2:] == (lr.shape[-2] * 4, lr.shape[-1] * 4)
        if self.fail is not None:
            raise self.fail
        out = nn.functional.interpolate(lr, scale_factor=4.0)
        return out * self.broken if self.weight.dtype == self.break_dtype else out


@given(st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=30)
def test_any_size_is_padded_for_the_network_and_cropped_again(height: int, width: int) -> None:
    net = Enlarge()
    lr = torch.rand(1, 3, height, width)
    out = Engine(net, CPU, torch.float32).restore(lr, torch.randn(1, 3, 4 * height, 4 * width))
    torch.testing.assert_close(out, nn.functional.interpolate(lr, scale_factor=4.0))
    assert all(side % 8 == 0 for side in net.sizes[0])


@given(st.integers(1, 20), st.integers(1, 9))
def test_padding_mirrors_as_numpy_does(size: int, multiple: int) -> None:
    import numpy as np

    x = torch.rand(1, 1, size, 3)
    padded = pad_to_multiple(x, multiple)[0, 0, :, 0].numpy()
    extra = -size % multiple
    expected = np.pad(x[0, 0, :, 0].numpy(), (0, extra), mode="reflect" if size > 1 else "edge")
    np.testing.assert_array_equal(padded, expected)


def test_each_step_is_told_and_uses_the_same_noise() -> None:
    torch.manual_seed(0)
    engine = Engine(CompactNet(TINY), CPU, torch.float32)
    lr, noise = torch.rand(1, 3, 9, 11), torch.randn(1, 3, 36, 44)
    seen: list[None] = []
    four = engine.restore(lr, noise, 4, 0.5, lambda: seen.append(None))
    assert len(seen) == 4 and four.shape == (1, 3, 36, 44) and four.dtype == torch.float32
    torch.testing.assert_close(four, engine.restore(lr, noise, 4, 0.5))
    assert float((four - engine.restore(lr, noise, 1, 0.5)).abs().mean()) > 1e-4


def test_the_context_is_the_same_for_every_tile_and_changes_the_picture() -> None:
    torch.manual_seed(0)
    net = CompactNet(TINY)
    for block in net.modules():
        if isinstance(block, ResBlock):
            nn.init.kaiming_uniform_(block.conv2.weight)
    engine = Engine(net, CPU, torch.float32)
    lr, noise = torch.rand(1, 3, 300, 270), torch.randn(1, 3, 64, 64)
    context = engine.context(lr)
    assert context is not None
    with torch.no_grad():
        blocks = [
            lr[..., :256, :256],
            lr[..., :256, 256:],
            lr[..., 256:, :256],
            lr[..., 256:, 256:],
        ]
        areas = [b.shape[-1] * b.shape[-2] for b in blocks]
        values = [net.context(pad_to_multiple(b, 8)) for b in blocks]
    mean = sum(v * a for v, a in zip(values, areas, strict=True) if v is not None) / sum(areas)
    torch.testing.assert_close(context, mean)
    tile = lr[..., :16, :16]
    with_whole = engine.restore(tile, noise, context=context)
    assert float((with_whole - engine.restore(tile, noise)).abs().max()) > 1e-5
    assert Engine(Enlarge(), CPU, torch.float32).context(lr) is None


def test_bf16_stays_close_to_fp32() -> None:
    torch.manual_seed(0)
    net = CompactNet(TINY)
    lr, noise = torch.rand(1, 3, 16, 16), torch.randn(1, 3, 64, 64)
    exact = Engine(net, CPU, torch.float32).restore(lr, noise)
    half = Engine(net, CPU, torch.bfloat16).restore(lr, noise)
    assert half.dtype == torch.float32
    assert 0 < float((half - exact).abs().mean()) < 2 / 255


def test_fp16_weights_stay_small_and_compute_what_their_fp32_copies_do() -> None:
    torch.manual_seed(0)
    halves = CompactNet(TINY).half()
    lr, noise = torch.rand(1, 3, 16, 16), torch.randn(1, 3, 64, 64)
    wide = Engine(copy.deepcopy(halves).float(), CPU, torch.float32)
    engine = Engine(halves, CPU, torch.float32)
    assert torch.equal(engine.restore(lr, noise, 2), wide.restore(lr, noise, 2))
    context, expected = engine.context(lr), wide.context(lr)
    assert context is not None and expected is not None and torch.equal(context, expected)
    sizes = [sum(p.numel() * p.element_size() for p in e.net.parameters()) for e in (engine, wide)]
    assert sizes[0] < 0.55 * sizes[1]


def test_an_overflow_in_half_precision_is_done_again_in_fp32(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = Enlarge()
    net.break_dtype = torch.float16
    lr = torch.rand(1, 3, 8, 8)
    engine = Engine(net, CPU, torch.float16)
    out = engine.restore(lr, torch.randn(1, 3, 32, 32))
    torch.testing.assert_close(out, nn.functional.interpolate(lr, scale_factor=4.0))
    assert "again in fp32" in caplog.text
    assert net.weight.dtype == torch.float16


def test_black_where_the_input_is_not_is_done_again_in_fp32(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = Enlarge()
    net.break_dtype, net.broken = torch.float16, -1.0
    lr = torch.rand(3, 3, 8, 8)
    lr[1] = 0.002
    out = Engine(net, CPU, torch.float16).restore(lr, torch.randn(3, 3, 32, 32))
    assert caplog.text.count("again in fp32") == 2, "the second one is black as it is"
    torch.testing.assert_close(out[[0, 2]], nn.functional.interpolate(lr[[0, 2]], scale_factor=4.0))
    net.break_dtype = torch.float32
    assert Engine(net, CPU, torch.float32).restore(lr, torch.randn(3, 3, 32, 32)).max() == 0


def test_values_that_are_never_finite_are_blamed_on_the_weights() -> None:
    net = Enlarge()
    net.break_dtype = torch.float32
    with pytest.raises(ModelError, match=r"not finite even in fp32.*fetch them again"):
        Engine(net, CPU, torch.float32).restore(torch.rand(1, 3, 8, 8), torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
        MemoryError(),
    ],
)
def test_every_way_to_run_out_of_memory_becomes_one_error(error: BaseException) -> None:
    assert is_out_of_memory(error)
    net = Enlarge()
    net.fail = error
    with pytest.raises(TileTooLarge, match="tile: 24x16 px does not fit"):
        Engine(net, CPU, torch.float32).restore(torch.rand(1, 3, 16, 24), torch.randn(1, 3, 64, 96))


def test_other_errors_are_not_mistaken_for_memory() -> None:
    net = Enlarge()
    net.fail = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        Engine(net, CPU, torch.float32).restore(torch.rand(1, 3, 8, 8), torch.randn(1, 3, 32, 32))


class Moody(Enlarge):
    """Has memory for so many tiles, and overflows in half precision where a tile is white."""

    def __init__(self, most: int = 100) -> None:
        super().__init__()
        self.most = most
        self.batches: list[int] = []

    def forward(
        self, x_t: Tensor, t: Tensor, lr: Tensor, condition: Tensor | None, fidelity: float
    ) -> Tensor:
        self.batches.append(len(lr))
        if len(lr) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        out = nn.functional.interpolate(lr, scale_factor=4.0)
        is_white = (lr > 0.999).flatten(1).all(dim=1)[:, None, None, None]
        return torch.where(is_white & (self.weight.dtype == torch.float16), torch.inf, out)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("size", [(1, 1), (9, 11), (16, 24)])
def test_tiles_that_go_together_are_what_they_are_alone(steps: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = CompactNet(TINY)
    for block in net.modules():
        if isinstance(block, ResBlock):
            nn.init.kaiming_uniform_(block.conv2.weight)
    engine = Engine(net, CPU, torch.float32)
    lr, noise = torch.rand(3, 3, *size), torch.randn(3, 3, 4 * size[0], 4 * size[1])
    contexts = engine.context(torch.rand(3, 3, 40, 30))
    assert contexts is not None and contexts.shape[0] == 3
    told: list[None] = []
    together = engine.restore(lr, noise, steps, 0.5, lambda: told.append(None), contexts)
    alone = [
        engine.restore(lr[k : k + 1], noise[k : k + 1], steps, 0.5, None, contexts[k : k + 1])
        for k in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert len(told) == 3 * steps
    # the pictures' own contexts matter, and one for all is taken too
    of_first = engine.restore(lr, noise, steps, 0.5, None, contexts[:1])
    torch.testing.assert_close(of_first[:1], together[:1], rtol=1e-4, atol=1e-5)
    assert float((of_first[1:] - together[1:]).abs().max()) > 1e-5


def test_a_batch_that_does_not_fit_is_halved_down_to_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = Moody(most=1)
    engine = Engine(net, CPU, torch.float32)
    lr, noise = torch.rand(5, 3, 8, 16), torch.randn(5, 3, 32, 64)
    told: list[None] = []
    out = engine.restore(lr, noise, 2, on_step=lambda: told.append(None))
    torch.testing.assert_close(out, nn.functional.interpolate(lr, scale_factor=4.0))
    # 5, 2, and then one by one, in two steps each
    assert net.batches == [5, 2, *[1] * 10] and len(told) == 10
    assert "5 tiles of 16x8 px at once do not fit into the memory of cpu; going on with 2" in (
        caplog.text
    )
    net.batches.clear()
    engine.restore(lr, noise)
    assert net.batches == [1] * 5, "later batches start with what was found to fit"
    engine.restore(lr[..., :4, :4], noise[..., :16, :16])
    assert net.batches[5] == 5, "smaller tiles may go in larger numbers"
    net.most = 0
    with pytest.raises(TileTooLarge, match="tile: 16x8 px does not fit"):
        engine.restore(lr, noise)


def test_only_the_tiles_that_overflow_are_done_again(caplog: pytest.LogCaptureFixture) -> None:
    net = Moody()
    engine = Engine(net, CPU, torch.float16)
    lr, noise = torch.rand(4, 3, 8, 8), torch.randn(4, 3, 32, 32)
    lr[1] = lr[3] = 1.0
    seen: list[int] = []  # batches in fp32; the hook is copied with the network
    net.register_forward_pre_hook(
        lambda net, given: (
            seen.append(len(given[2])) if next(net.parameters()).dtype == torch.float32 else None
        )
    )
    told: list[None] = []
    out = engine.restore(lr, noise, 2, 1.0, lambda: told.append(None), None, [5, 6, 7, 8])
    torch.testing.assert_close(out, nn.functional.interpolate(lr, scale_factor=4.0))
    assert net.batches == [4, 4] and seen == [1] * 4 and len(told) == 8
    records = [r for r in caplog.records if "again in fp32" in r.getMessage()]
    assert [getattr(record, "picture", None) for record in records] == [6, 8]
    lr[:] = 1.0
    net.batches.clear()
    told.clear()
    engine.restore(lr, noise, 2, 1.0, lambda: told.append(None))
    assert net.batches == [4], "nothing more is computed once none of them is good"
    assert len(told) == 8
