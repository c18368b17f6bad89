from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from addsr.errors import InputError, OptionError
from addsr.metrics.pixel import (
    gradient,
    high_frequency_share,
    lr_psnr,
    luma,
    psnr_rgb,
    psnr_y,
    ssim_y,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics.safetensors"


def picture(height: int, width: int, seed: int = 0, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Tensor, Tensor]]:
    stored = load_file(GOLDEN)
    read = lambda key: stored[key].permute(2, 0, 1)[None].float() / 255  # noqa: E731
    return [(read(f"input/{i}/distorted"), read(f"input/{i}/reference")) for i in range(6)]


@pytest.mark.parametrize("border", [0, 4])
def test_psnr_and_ssim_give_the_published_figures(
    pairs: list[tuple[Tensor, Tensor]], border: int
) -> None:
    stored = load_file(GOLDEN)
    psnr = torch.cat([psnr_y(a, b, border) for a, b in pairs])
    ssim = torch.cat([ssim_y(a, b, border) for a, b in pairs])
    assert (psnr - stored[f"output/psnr_y_crop{border}"]).abs().max() < 1e-4
    assert (ssim - stored[f"output/ssim_y_crop{border}"]).abs().max() < 1e-6


def test_psnr_of_all_channels_gives_the_published_figures(
    pairs: list[tuple[Tensor, Tensor]],
) -> None:
    stored = load_file(GOLDEN)
    psnr = torch.cat([psnr_rgb(a, b) for a, b in pairs])
    assert (psnr - stored["output/psnr_rgb_crop4"]).abs().max() < 1e-4


def test_psnr_of_all_channels_agrees_with_scikit_image() -> None:
    a, b = picture(30, 41).double(), picture(30, 41, 1).double()
    expected = peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1)
    assert float(psnr_rgb(a, b, border=0)) == pytest.approx(expected, abs=1e-9)
    assert math.isinf(psnr_rgb(a, a))


def test_ssim_agrees_with_scikit_image() -> None:
    a = picture(40, 53)
    b = (a + 0.2 * picture(40, 53, 1)).clamp(0, 1)
    expected = structural_similarity(
        luma(a)[0].numpy(),
        luma(b)[0].numpy(),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
    )
    assert float(ssim_y(a, b, border=0)) == pytest.approx(expected, abs=1e-9)


def test_white_and_black_have_the_lumas_of_the_standard() -> None:
    assert luma(torch.ones(1, 3, 2, 2)).unique().item() == pytest.approx(235)
    assert luma(torch.zeros(1, 3, 2, 2)).unique().item() == 16
    assert luma(torch.ones(1, 3, 2, 2), "yiq").unique().item() == pytest.approx(255)
    assert luma(torch.zeros(1, 3, 2, 2), "yiq").unique().item() == 0


def test_both_lumas_weigh_the_colours_alike() -> None:
    image = picture(5, 7)
    assert torch.allclose(16 + 219 / 255 * luma(image, "yiq"), luma(image), atol=2e-3)
    with pytest.raises(OptionError, match="luma: 'rec709' is unknown"):
        luma(image, "rec709")  # type: ignore[arg-type]


def test_equal_pictures_score_infinite_and_one() -> None:
    a = picture(24, 24)
    assert math.isinf(psnr_y(a, a))
    assert float(ssim_y(a, a)) == pytest.approx(1)


def test_a_shift_of_one_level_gives_48_decibels() -> None:
    a = torch.full((1, 3, 16, 16), 0.5)
    one_level_of_luma = 1 / 219
    assert float(psnr_y(a, a + one_level_of_luma)) == pytest.approx(20 * math.log10(255), abs=1e-3)


def test_the_border_hides_damage_at_the_edge() -> None:
    a = picture(32, 32)
    b = a.clone()
    b[..., :4, :] = 0
    assert math.isinf(psnr_y(a, b, border=4))
    assert math.isfinite(psnr_y(a, b, border=3))


@given(
    st.integers(11, 40),
    st.integers(11, 40),
    st.integers(1, 3),
    st.sampled_from([psnr_y, ssim_y, psnr_rgb]),
)
@settings(max_examples=20, deadline=None)
def test_a_batch_scores_as_its_pictures_do(height: int, width: int, batch: int, measure) -> None:
    a, b = picture(height, width, 1, batch), picture(height, width, 2, batch)
    together = measure(a, b, border=0)
    alone = torch.cat([measure(a[i : i + 1], b[i : i + 1], border=0) for i in range(batch)])
    assert together.shape == (batch,)
    assert torch.allclose(together, alone, atol=1e-9)
    assert torch.allclose(together, measure(b, a, border=0), atol=1e-9)


def test_lr_psnr_sees_only_what_survives_shrinking() -> None:
    lr = picture(8, 9)
    sr = lr.repeat_interleave(4, 2).repeat_interleave(4, 3)
    checker = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(16, 18) * 0.1
    assert float(lr_psnr(sr, lr)) > 100
    assert float(lr_psnr(sr + checker, lr)) > 100
    assert float(lr_psnr(sr + 0.1, lr)) == pytest.approx(20 * math.log10(255 / 21.9), abs=1e-3)


def test_lr_psnr_refuses_sizes_that_do_not_belong_together() -> None:
    with pytest.raises(InputError, match="33x32 is no whole multiple of the input's 8x8"):
        lr_psnr(picture(32, 33), picture(8, 8))


def test_gradient_of_a_ramp_is_its_slope() -> None:
    ramp = torch.linspace(0, 1, 65).expand(1, 3, 40, 65)
    inside = gradient(ramp) * 65 / 63  # mirrored edges have no slope: two columns of 65
    assert float(inside) == pytest.approx(219 / 64, rel=1e-6)
    assert float(gradient(ramp.transpose(2, 3))) == pytest.approx(float(gradient(ramp)))
    assert float(gradient(torch.full((1, 3, 8, 8), 0.3))) == pytest.approx(0, abs=1e-9)


def test_high_frequency_share_tells_slow_waves_from_fast_ones() -> None:
    x = torch.arange(64) / 64
    slow = (0.5 + 0.4 * torch.sin(2 * math.pi * 4 * x)).expand(1, 3, 64, 64)
    fast = (0.5 + 0.4 * torch.sin(2 * math.pi * 20 * x)).expand(1, 3, 64, 64)
    assert float(high_frequency_share(slow)) < 0.1
    assert float(high_frequency_share(fast)) > 95
    assert float(high_frequency_share(torch.full((1, 3, 9, 9), 0.5))) == 0


def test_noise_raises_the_high_frequency_share() -> None:
    smooth = torch.nn.functional.interpolate(picture(8, 8), size=64, mode="bicubic")
    noisy = smooth + 0.05 * picture(64, 64, 3)
    assert float(high_frequency_share(noisy)) > 5 * float(high_frequency_share(smooth))


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (picture(16, 16), picture(16, 17), "differs from a's"),
        (picture(8, 8), picture(8, 8), "border: 4 leaves nothing of 8x8"),
        (picture(16, 16)[0], picture(16, 16)[0], r"no picture; give a float tensor"),
        (picture(16, 16)[:, :1], picture(16, 16)[:, :1], r"no picture; give a float tensor"),
        (None, None, None),
    ],
)
def test_wrong_pictures_are_refused_with_the_remedy(a, b, words: str | None) -> None:
    if words is None:
        a = b = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
        words = "torch.uint8"
    with pytest.raises(InputError, match=words):
        psnr_y(a, b)


def test_gradients_need_two_pixels_a_side() -> None:
    with pytest.raises(InputError, match="is too small for a gradient"):
        gradient(picture(1, 5))


def test_ssim_refuses_pictures_smaller_than_its_window() -> None:
    with pytest.raises(InputError, match="leaves no 11x11 window"):
        ssim_y(picture(18, 40), picture(18, 40))
