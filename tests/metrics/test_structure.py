"""MS-SSIM, GMSD and HaarPSI against torchmetrics, scikit-image and naive transcriptions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import convolve2d
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from addsr.errors import InputError
from addsr.metrics.pixel import luma
from addsr.metrics.structure import SCALE_WEIGHTS, gmsd, haarpsi, ms_ssim

MEASURES = [ms_ssim, gmsd, haarpsi]


def pair(height: int, width: int, seed: int = 0, batch: int = 1) -> tuple[Tensor, Tensor]:
    """A soft picture and a noisy, darker copy."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(batch, 3, height // 6 + 2, width // 6 + 2, generator=generator)
    a = interpolate(small.double(), size=(height, width), mode="bicubic").clamp(0, 1)
    noise = torch.rand(batch, 3, height, width, generator=generator).double()
    return a, (0.8 * a + 0.15 * noise).clamp(0, 1)


def levels(image: Tensor) -> np.ndarray:
    """`(H, W, 3)` on the scale of 0..255."""
    return 255 * image[0].permute(1, 2, 0).numpy()


def naive_conv2(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """MATLAB's conv2(x, kernel, 'same'): of an even kernel it keeps the later half."""
    full = convolve2d(x, kernel, mode="full")
    top, left = kernel.shape[0] // 2, kernel.shape[1] // 2
    return full[top : top + x.shape[0], left : left + x.shape[1]]


def naive_halved(x: np.ndarray) -> np.ndarray:
    return naive_conv2(x, np.full((2, 2), 0.25))[::2, ::2]


def naive_gmsd(a: Tensor, b: Tensor) -> float:
    """Eq. 2 to 6 as the authors' GMSD.m orders them."""
    dx = np.array([[1, 0, -1]] * 3) / 3
    magnitudes = []
    for image in (a, b):
        y = naive_halved(levels(image) @ [0.299, 0.587, 0.114])
        magnitudes.append(np.sqrt(naive_conv2(y, dx) ** 2 + naive_conv2(y, dx.T) ** 2))
    m1, m2 = magnitudes
    return float(((2 * m1 * m2 + 170) / (m1**2 + m2**2 + 170)).std(ddof=1))


def naive_haarpsi(a: Tensor, b: Tensor) -> float:
    """Eq. 9 to 14 with the authors' constants, orientation by orientation."""
    matrix = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    planes = [[naive_halved(levels(x) @ row) for row in matrix] for x in (a, b)]

    def alike(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (2 * x * y + 30) / (x**2 + y**2 + 30)

    def haar(y: np.ndarray, scale: int, turned: bool) -> np.ndarray:
        kernel = np.full((2**scale, 2**scale), 2.0**-scale)
        kernel[: 2 ** (scale - 1)] *= -1
        return np.abs(naive_conv2(y, kernel.T if turned else kernel))

    similarities, weights = [], []
    for turned in (False, True):
        scales = [[haar(p[0], scale, turned) for scale in (1, 2, 3)] for p in planes]
        (fine_a, middle_a, coarse_a), (fine_b, middle_b, coarse_b) = scales
        similarities.append((alike(fine_a, fine_b) + alike(middle_a, middle_b)) / 2)
        weights.append(np.maximum(coarse_a, coarse_b))
    chroma = [[np.abs(naive_conv2(c, np.full((2, 2), 0.25))) for c in p[1:]] for p in planes]
    similarities.append((alike(chroma[0][0], chroma[1][0]) + alike(chroma[0][1], chroma[1][1])) / 2)
    weights.append((weights[0] + weights[1]) / 2)
    squashed = 1 / (1 + np.exp(-4.2 * np.array(similarities)))
    mean = (squashed * np.array(weights)).sum() / np.array(weights).sum()
    return float((np.log(mean / (1 - mean)) / 4.2) ** 2)


@pytest.mark.parametrize("size", [(40, 56), (41, 57), (64, 31), (16, 16), (3, 2)])
def test_gmsd_is_what_its_authors_code_gives(size: tuple[int, int]) -> None:
    a, b = pair(*size, seed=sum(size))
    assert float(gmsd(a, b, border=0)) == pytest.approx(naive_gmsd(a, b), abs=1e-10)


@pytest.mark.parametrize("size", [(40, 56), (41, 57), (64, 31), (16, 16), (9, 8)])
def test_haarpsi_is_what_its_authors_code_gives(size: tuple[int, int]) -> None:
    a, b = pair(*size, seed=sum(size))
    assert float(haarpsi(a, b, border=0)) == pytest.approx(naive_haarpsi(a, b), abs=1e-10)


def test_ms_ssim_agrees_with_torchmetrics_and_scikit_image() -> None:
    a, b = pair(192, 208)
    y_a, y_b = luma(a), luma(b)
    # torchmetrics gives the four finer scales; in the coarsest it counts mirrored edges too,
    # which the paper does not, so scikit-image gives that one
    finer = multiscale_structural_similarity_index_measure(
        y_a[:, None], y_b[:, None], data_range=255.0, betas=(*SCALE_WEIGHTS[:4], 0.0)
    )
    coarse_a, coarse_b = (avg_pool2d(y, 16)[0].numpy() for y in (y_a, y_b))
    coarse = structural_similarity(
        coarse_a,
        coarse_b,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
    )
    expected = float(finer) * coarse ** SCALE_WEIGHTS[4]
    assert float(ms_ssim(a, b, border=0)) == pytest.approx(expected, abs=1e-7)
    whole = multiscale_structural_similarity_index_measure(
        y_a[:, None], y_b[:, None], data_range=255.0
    )
    assert float(ms_ssim(a, b, border=0)) == pytest.approx(float(whole), abs=5e-3)


def test_ms_ssim_takes_161_pixels_and_no_less() -> None:
    a, b = pair(169, 170)
    assert 0 < float(ms_ssim(a, b)) < 1
    with pytest.raises(InputError, match="give more than 160 pixels a side"):
        ms_ssim(a[..., :168, :], b[..., :168, :])


def test_inverted_pictures_have_no_ms_ssim() -> None:
    a, _ = pair(176, 176)
    assert float(ms_ssim(a, 1 - a)) == 0


@pytest.mark.parametrize("measure", MEASURES)
def test_equal_pictures_score_best(measure) -> None:
    a, b = pair(170, 171)
    best = 0.0 if measure is gmsd else 1.0
    assert float(measure(a, a)) == pytest.approx(best, abs=1e-9)
    slightly, badly = float(measure(a, a + 0.1 * (b - a))), float(measure(a, b))
    assert abs(slightly - best) < abs(badly - best)


@given(st.integers(9, 40), st.integers(9, 40), st.integers(1, 3))
@settings(max_examples=15)
def test_a_batch_scores_as_its_pictures_do(height: int, width: int, batch: int) -> None:
    a, b = pair(height, width, seed=1, batch=batch)
    for measure in (gmsd, haarpsi):
        together = measure(a, b)
        alone = torch.cat([measure(a[i : i + 1], b[i : i + 1]) for i in range(batch)])
        assert together.shape == (batch,)
        assert together.dtype == torch.float64
        assert torch.allclose(together, alone, atol=1e-12)
        assert torch.allclose(together, measure(b, a), atol=1e-12)
        assert (together >= 0).all() and (together <= 1 + 1e-12).all()


def test_ms_ssim_of_a_batch_is_that_of_its_pictures() -> None:
    a, b = pair(170, 181, batch=2)
    alone = torch.cat([ms_ssim(a[i : i + 1], b[i : i + 1]) for i in range(2)])
    assert torch.allclose(ms_ssim(a, b), alone, atol=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_border_hides_damage_at_the_edge(measure) -> None:
    a, _ = pair(180, 180)
    b = a.clone()
    b[..., :4] = 0
    best = 0.0 if measure is gmsd else 1.0
    assert float(measure(a, b, border=4)) == pytest.approx(best, abs=1e-9)
    assert float(measure(a, b, border=3)) != pytest.approx(best, abs=1e-6)


def test_black_pictures_and_single_pixels_have_figures() -> None:
    black = torch.zeros(1, 3, 20, 20)
    assert haarpsi(black, black).tolist() == [1]
    assert gmsd(black, black).tolist() == [0]
    assert gmsd(black[..., :1, :1], black[..., :1, :1] + 1, border=0).tolist() == [0]
    assert math.isfinite(haarpsi(black[..., :1, :1], black[..., :1, :1] + 1, border=0))


@pytest.mark.parametrize("measure", MEASURES)
def test_pictures_of_different_sizes_are_refused(measure) -> None:
    a, _ = pair(170, 170)
    with pytest.raises(InputError, match="give equal sizes"):
        measure(a, a[..., 1:])
    with pytest.raises(InputError, match="border: 85 leaves nothing"):
        measure(a, a, border=85)
