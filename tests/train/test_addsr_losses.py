"""AddSR's losses against a plain transcription, sample by sample."""

from __future__ import annotations

import pytest
import torch

from addsr.errors import InputError, OptionError
from addsr.nets.projected import ProjectedHead
from addsr.train.addsr_losses import (
    distillation,
    draw_loss,
    hinge,
    level_index,
    opposition,
    r1_penalty,
    student_weights,
    teacher_weights,
)


def test_weights_of_the_students_steps_grow_by_2_1() -> None:
    got = student_weights(torch.tensor([249, 999, 749, 499, 999]))
    torch.testing.assert_close(got, torch.tensor([4.6305, 0.5, 1.05, 2.205, 0.5]))
    torch.testing.assert_close(
        student_weights(torch.tensor([249]), growth=1.0), torch.tensor([0.5])
    )
    assert level_index(torch.tensor([499, 999])).tolist() == [2, 0]
    with pytest.raises(OptionError, match=r"\[999, 666\] must be of 999, 749, 499, 249"):
        student_weights(torch.tensor([999, 666]))


def test_weights_of_the_teachers_timesteps_are_the_share_of_the_signal() -> None:
    # from the schedule's definition, to the published table's four digits
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    expected = (1 - betas).cumprod(0).sqrt()
    t = torch.tensor([[249, 499], [749, 999]])
    torch.testing.assert_close(teacher_weights(t), expected[t].float())
    torch.testing.assert_close(
        teacher_weights(t),
        torch.tensor([[0.82185, 0.52694], [0.23796, 0.06826]]),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("n", [1, 2, 5])
def test_distillation_is_the_weighted_square_over_all_draws(n: int) -> None:
    torch.manual_seed(n)
    student, teachers = torch.randn(n, 3, 4, 6), torch.randn(4, n, 3, 4, 6)
    t = torch.randint(1000, (4, n))
    s = torch.tensor([999, 749, 499, 249, 999])[:n]
    weights = student_weights(s)
    got = distillation(student, teachers, t, weights)
    mu, nu, order = 0.5, 2.1, [999, 749, 499, 249]
    for b in range(n):
        total = 0.0
        for k in range(4):
            betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
            root = float(torch.prod(1 - betas[: int(t[k, b]) + 1]) ** 0.5)
            gap = student[b].double() - teachers[k, b].double().clamp(0, 1)
            total += root * float((gap**2).mean()) / 4
        expected = mu * nu ** order.index(int(s[b])) * total
        assert float(got[b]) == pytest.approx(expected, rel=1e-5)
    parts = sum(draw_loss(student, teachers[k], t[k]) for k in range(4))
    torch.testing.assert_close(weights * parts / 4, got)


def test_teachers_get_no_gradient_and_the_student_does() -> None:
    student = torch.rand(2, 3, 4, 4, requires_grad=True)
    teachers = torch.rand(1, 2, 3, 4, 4, requires_grad=True)
    distillation(student, teachers, torch.zeros(1, 2).long(), torch.ones(2)).mean().backward()
    assert student.grad is not None and teachers.grad is None


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(InputError, match=r"\(4, 2, 3, 8, 8\) with timesteps \(4, 3\)"):
        distillation(
            torch.rand(2, 3, 8, 8), torch.rand(4, 2, 3, 8, 8), torch.zeros(4, 3), torch.ones(2)
        )


def test_the_hinge_counts_what_lacks_to_one_over_all_logits() -> None:
    real = [torch.tensor([[2.0, 0.5]]), torch.tensor([[-1.0, 1.0, 0.0, 3.0]])]
    fake = [torch.tensor([[-2.0, 0.0]]), torch.tensor([[0.5, -1.0, -1.0, -3.0]])]
    loss = hinge(real, fake)
    assert float(loss.real) == pytest.approx((0.5 + 2 + 1) / 6)  # not a mean of means
    assert float(loss.fake) == pytest.approx((1 + 1.5) / 6)
    assert float(loss.total) == pytest.approx(1.0)
    assert float(opposition(fake)) == pytest.approx(6.5 / 6)


def test_r1_is_the_squared_gradient_per_sample_and_can_be_learnt_from() -> None:
    torch.manual_seed(0)
    head = ProjectedHead(8, 6, 4).eval()
    features = torch.randn(3, 8, 9, requires_grad=True)
    c = torch.randn(3, 6)
    penalty = r1_penalty([head(features, c)], [features])
    norms = []
    for b in range(3):
        one = features[b : b + 1].detach().requires_grad_(True)
        head(one, c[b : b + 1]).sum().backward()
        norms.append(float(one.grad.square().sum()))
    assert penalty.tolist() == pytest.approx([sum(norms) / 3])
    head.zero_grad()
    penalty.mean().backward()
    assert float(head.mix[0].weight.grad.abs().max()) > 0
