"""Masters, averages and rates of training, and the averaging of gradients over processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from addsr.train.config import OptimConfig
from addsr.train.optim import Trained, rate_factor

CPU = torch.device("cpu")


def make(precision: str, rate: float = 1e-2, **options: float) -> Trained:
    torch.manual_seed(0)
    optim = OptimConfig(learning_rate=rate, **options)  # type: ignore[arg-type]
    return Trained(nn.Conv2d(3, 4, 3), optim, precision=precision, ema=0.9, device=CPU)


def test_masters_keep_updates_that_bf16_would_lose() -> None:
    trained = make("bf16", rate=1e-5)
    before = [m.clone() for m in trained.masters]
    working = [p.clone() for p in trained.working]
    for _ in range(3):
        trained.net(torch.rand(1, 3, 8, 8).bfloat16()).float().sum().backward()
        trained.step()
    assert trained.working[0].dtype == torch.bfloat16
    moved = (trained.masters[0] - before[0]).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 3e-5), rtol=0.2, atol=0)
    share = (trained.working[0] == working[0]).float().mean()
    assert share > 0.5, "most working weights are too coarse to have moved"


def test_fp32_training_equals_plain_adamw() -> None:
    trained = make("fp32", clip=1e9)
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 4, 3)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0)
    for k in range(4):
        x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(k))
        trained.net(x).square().mean().backward()
        trained.step()
        optimizer.zero_grad()
        plain(x).square().mean().backward()
        optimizer.step()
    for a, b in zip(trained.masters, plain.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach())


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_told() -> None:
    trained = make("fp32", clip=0.5)
    (trained.net(torch.rand(1, 3, 8, 8)) * 1000).sum().backward()
    grads = torch.cat([p.grad.flatten() for p in trained.working if p.grad is not None])
    norm = trained.step()
    torch.testing.assert_close(norm, grads.norm())
    clipped = torch.cat([m.grad.flatten() for m in trained.masters if m.grad is not None])
    torch.testing.assert_close(clipped.norm(), torch.tensor(0.5))
    assert all(p.grad is None for p in trained.working)


def test_an_optimiser_in_main_memory_makes_the_same_updates() -> None:
    here, offloaded = (make("bf16", offload=choice, weight_decay=0.01) for choice in (False, True))
    for trained in (here, offloaded):
        trained.passes = 2
        for k in range(6):
            x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(k)).bfloat16()
            trained.net(x).square().mean().backward()
            norm = trained.step()
        assert norm.device == CPU and trained.updates == 3
        assert {m.device for m in trained.masters} == {trained.home} == {CPU}
    for a, b in zip(
        here.masters + here.average, offloaded.masters + offloaded.average, strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(here.working, offloaded.working, strict=True))


def test_without_memory_the_average_is_the_masters_and_takes_no_room() -> None:
    torch.manual_seed(0)
    trained = Trained(nn.Conv2d(3, 4, 3), OptimConfig(), precision="fp32", ema=0.0, device=CPU)
    trained.net(torch.rand(1, 3, 8, 8)).sum().backward()
    trained.step()
    state = trained.full_state()
    assert all(torch.equal(v, trained.masters[k]) for k, v in enumerate(state["average"].values()))
    again = Trained(nn.Conv2d(3, 4, 3), OptimConfig(), precision="fp32", ema=0.0, device=CPU)
    # a checkpoint of a run with an average: its masters are gone on with
    again.load_full_state({**state, "average": {k: v + 1 for k, v in state["average"].items()}})
    assert all(torch.equal(a, b) for a, b in zip(again.masters, trained.masters, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(again.working, trained.masters, strict=True))


def test_the_working_weights_are_the_averaged_ones_for_a_while() -> None:
    trained = make("fp32")
    trained.net(torch.rand(1, 3, 8, 8)).sum().backward()
    trained.step()
    with trained.averaged():
        assert all(torch.equal(a, b) for a, b in zip(trained.working, trained.average, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(trained.working, trained.masters, strict=True))
    assert not torch.equal(trained.average[0], trained.masters[0])


def test_gradients_of_several_passes_are_averaged_for_one_update() -> None:
    def trained(passes: int) -> Trained:
        torch.manual_seed(0)
        net = nn.Conv2d(3, 2, 3)
        optim = OptimConfig(learning_rate=0.1, clip=float("inf"))
        device = torch.device("cpu")
        return Trained(net, optim, precision="fp32", ema=0.9, device=device, passes=passes)

    x = torch.rand(4, 3, 8, 8)
    whole, parts = trained(1), trained(4)
    for _ in range(2):
        whole.net(x).square().mean().backward()
        norm = whole.step()
        for k in range(4):
            before = [m.clone() for m in parts.masters]
            parts.net(x[k : k + 1]).square().mean().backward()
            found = parts.step()
            assert all(p.grad is None for p in parts.working)
            moved = any(not torch.equal(a, b) for a, b in zip(before, parts.masters, strict=True))
            assert moved == (k == 3)
        torch.testing.assert_close(found, norm)
    assert parts.updates == whole.updates == 2
    for a, b in zip(whole.masters, parts.masters, strict=True):
        torch.testing.assert_close(a, b)


def test_passes_are_added_up_in_float32() -> None:
    net = nn.Linear(1, 1, bias=False)
    optim = OptimConfig(clip=float("inf"))
    trained = Trained(
        net, optim, precision="bf16", ema=0.9, device=torch.device("cpu"), passes=1024
    )
    for k in range(1024):  # in bf16 a sum of 256 ones stays 256
        trained.working[0].grad = torch.ones_like(trained.working[0])
        norm = trained.step()
        assert float(norm) == (1.0 if k == 1023 else 0.0)


def test_the_average_follows_the_masters() -> None:
    trained = make("fp32")
    start = trained.average[0].clone()
    trained.net(torch.rand(1, 3, 8, 8)).sum().backward()
    trained.step()
    decay = min(0.9, 2 / 11)
    torch.testing.assert_close(trained.average[0], decay * start + (1 - decay) * trained.masters[0])


def test_rates_warm_up_hold_and_fall() -> None:
    optim = OptimConfig(warmup_steps=10, decay_from=0.5, final=0.1)
    assert rate_factor(optim, 0, 0.0) == pytest.approx(0.1)
    assert rate_factor(optim, 9, 0.0) == 1.0
    assert rate_factor(optim, 1000, 0.5) == 1.0
    assert rate_factor(optim, 1000, 0.75) == pytest.approx(0.55)
    assert rate_factor(optim, 1000, 1.0) == pytest.approx(0.1)


PROGRAM = """
import os, torch, torch.distributed as dist
from torch import nn
from addsr.train.config import OptimConfig
from addsr.train.optim import Trained, agree, process_count
dist.init_process_group("gloo")
for offload in (False, True):
    torch.manual_seed(0)
    net = nn.Linear(4, 1, bias=False)
    optim = OptimConfig(offload=offload)
    trained = Trained(net, optim, precision="fp32", ema=0.9, device=torch.device("cpu"))
    if offload:
        trained.home = torch.device("cpu:0")  # as if the networks were elsewhere
    x = torch.full((1, 4), float(dist.get_rank() + 1))  # gradients 1 and 2: their mean is 1.5
    net(x).sum().backward()
    norm = trained.step()
    assert abs(float(norm) - 3.0) < 1e-5, norm  # 1.5 * sqrt(4)
    other = [torch.zeros_like(trained.masters[0]) for _ in range(2)]
    dist.all_gather(other, trained.masters[0])
    assert torch.equal(other[0], other[1])
# clocks differ between processes: all stop when the first one wants to
assert process_count() == 2
assert agree(0.25 + 0.5 * dist.get_rank(), torch.device("cpu")) == 0.75
dist.barrier()
os._exit(0)  # gloo's threads now and then abort an orderly interpreter exit
"""


def test_two_processes_average_their_gradients(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, str(program)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
