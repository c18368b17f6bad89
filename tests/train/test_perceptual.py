"""Perceptual and adversarial losses of feature wrapping."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from addsr.errors import ConfigError, ModelError
from addsr.metrics.backbones import vgg16
from addsr.metrics.lpips import Lpips
from addsr.models.files import save_weights
from addsr.train.latent_config import CfwTaskConfig
from addsr.train.patchgan import PatchGan, PatchGanConfig, hinge
from addsr.train.perceptual import LpipsLoss, TeacherLoss, make_perceptual, unit

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random numbers under the published names of LPIPS with VGG16."""
    torch.manual_seed(0)
    net = vgg16()
    state = {k: v.detach() for k, v in net.state_dict().items()}
    heads = {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate(net.channels)}
    return {**state, **heads}


def pair(side: int = 32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dice = torch.Generator().manual_seed(1)
    x, hr = (torch.rand(2, 3, side, side, generator=dice) for _ in range(2))
    return x, hr, torch.nn.functional.avg_pool2d(hr, 4), torch.randn(hr.shape, generator=dice)


def test_the_loss_is_the_metric_and_has_a_gradient(weights: dict[str, Tensor]) -> None:
    metric = Lpips(weights, "vgg")
    x, hr, lr, noise = pair()
    x.requires_grad_(True)
    loss = LpipsLoss(metric)(x, hr, lr, noise)
    torch.testing.assert_close(loss.double(), metric(x.detach(), hr).mean(), rtol=1e-5, atol=1e-7)
    loss.backward()
    assert x.grad is not None and x.grad.abs().max() > 0 and x.grad.isfinite().all()


def test_features_of_zeros_have_a_finite_gradient() -> None:
    x = torch.zeros(1, 4, 2, 2, requires_grad=True)
    unit(x).square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_published_weights_are_read_and_what_is_wrong_is_named(
    weights: dict[str, Tensor], tmp_path: Path, tiny_teacher: Path
) -> None:
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "lpips.safetensors")
    loss = make_perceptual(CfwTaskConfig(lpips=str(tmp_path / "lpips.safetensors")), CPU)
    assert isinstance(loss, LpipsLoss)
    with pytest.raises(ModelError, match="no weights file there"):
        make_perceptual(CfwTaskConfig(lpips=str(tmp_path / "none.pth")), CPU)
    with pytest.raises(ConfigError, match=r"task\.lpips_heads = 'h'"):
        make_perceptual(CfwTaskConfig(lpips_heads="h"), CPU)
    save_weights(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {"kind": "features"})
    with pytest.raises(ConfigError, match=r"kind 'features'; give a file of kind 'compact'"):
        make_perceptual(CfwTaskConfig(teacher=str(tmp_path / "other.safetensors")), CPU)


def test_a_teachers_features_tell_pictures_apart(tiny_teacher: Path) -> None:
    loss = make_perceptual(CfwTaskConfig(teacher=str(tiny_teacher)), CPU)
    assert isinstance(loss, TeacherLoss)
    x, hr, lr, noise = pair(64)
    near = (hr + 0.1 * (x - hr)).requires_grad_(True)
    value = loss(near, hr, lr, noise)
    assert loss(hr, hr, lr, noise) == 0 < value < loss(x, hr, lr, noise)
    value.backward()
    assert near.grad is not None and near.grad.abs().max() > 0


@pytest.mark.slow
def test_the_embedded_model_stands_in_where_no_weights_are_named() -> None:
    assert isinstance(make_perceptual(CfwTaskConfig(), CPU), TeacherLoss)


def test_a_logit_sees_seventy_pixels() -> None:
    net = PatchGan(PatchGanConfig(width=4)).double()
    x = torch.rand(1, 3, 128, 128, dtype=torch.float64, requires_grad=True)
    # what a normalisation carries across the picture is no part of the receptive field
    for stage in net.stages:
        if isinstance(stage, torch.nn.InstanceNorm2d):
            stage.register_forward_hook(lambda _module, inputs, _output: inputs[0])
    logits = net(x)
    assert logits.shape == (1, 1, 14, 14)
    logits[0, 0, 7, 7].backward()
    assert x.grad is not None
    seen = x.grad.abs().sum(dim=1)[0].nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [70, 70]


def test_a_picture_is_judged_alike_in_any_batch() -> None:
    net = PatchGan(PatchGanConfig(width=4, layers=2))
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(net(x)[:1], net(x[:1]))


def test_hinge_counts_what_lacks_to_the_margin() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0])
    assert float(hinge(real, fake)) == pytest.approx(((0 + 0.5 + 2) / 3 + (0 + 1) / 2) / 2)
