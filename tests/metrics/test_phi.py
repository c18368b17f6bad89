from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from addsr.errors import InputError
from addsr.metrics import phi
from addsr.metrics.distributions import Moments, frechet_distance
from addsr.metrics.phi import phi_features
from addsr.nets import FeatureNet, FeatureNetConfig


def picture(height: int, width: int, seed: int = 0, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def net() -> FeatureNet:
    torch.manual_seed(0)
    return FeatureNet(FeatureNetConfig(widths=(8, 8, 12, 16, 24))).eval()


@given(st.integers(64, 150), st.integers(64, 150))
@settings(max_examples=10)
def test_there_is_a_vector_every_16_pixels(net: FeatureNet, height: int, width: int) -> None:
    image = picture(height, width)
    features = phi_features(net, image)
    assert features.shape == (-(-height // 16) * -(-width // 16), 24)
    assert features.dtype == torch.float32 and not features.requires_grad
    whole = net.features(image)[-1][0]
    assert torch.allclose(features.T.reshape(whole.shape), whole, atol=1e-6)


@pytest.mark.parametrize("size", [(200, 330), (128, 129), (257, 64)])
@pytest.mark.parametrize("widths", [(8, 8, 12, 16, 24), (8, 8, 12)])
def test_parts_of_a_large_picture_give_what_the_whole_gives(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], widths: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    net = FeatureNet(FeatureNetConfig(widths=widths)).eval()
    image = picture(*size)
    whole = phi_features(net, image)
    monkeypatch.setattr(phi, "TILE", 64)
    parts = phi_features(net, image)
    assert torch.allclose(parts, whole, atol=1e-5)


def test_forty_pictures_fill_the_covariance_of_the_real_net() -> None:
    torch.manual_seed(0)
    net, moments = FeatureNet().eval(), Moments()
    for seed in range(40):
        moments.add(phi_features(net, picture(64, 64, seed)))
    assert moments.count == 640
    assert int(torch.linalg.matrix_rank(moments.covariance)) == 256


def test_blurred_pictures_are_farther_away_than_others_of_the_same_kind() -> None:
    torch.manual_seed(0)
    net, sets = FeatureNet().eval(), [Moments() for _ in range(3)]
    for seed in range(12):
        image, other = picture(96, 96, seed), picture(96, 96, seed + 50)
        blurred = torch.nn.functional.avg_pool2d(other, 5, stride=1, padding=2)
        for moments, x in zip(sets, (image, other, blurred), strict=True):
            moments.add(phi_features(net, x))
    reference, same, blurred_set = sets
    assert frechet_distance(reference, blurred_set) > 1.5 * frechet_distance(reference, same)


@pytest.mark.parametrize("image", [picture(63, 80), picture(80, 80, batch=2)])
def test_small_pictures_and_batches_are_refused(net: FeatureNet, image: Tensor) -> None:
    with pytest.raises(InputError, match=r"one picture \(1, 3, H, W\) with sides of 64"):
        phi_features(net, image)
