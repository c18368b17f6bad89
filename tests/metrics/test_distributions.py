from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from addsr.errors import InputError
from addsr.metrics.distributions import (
    Moments,
    Reservoir,
    frechet_distance,
    kernel_distance,
    laplacian_patches,
    pyramid_levels,
    sliced_wasserstein,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vectors(count: int, width: int, seed: int = 0) -> Tensor:
    """Correlated vectors with a mean of their own."""
    draw = generator(seed)
    mix = torch.randn(width, width, generator=draw, dtype=torch.float64)
    shift = torch.randn(width, generator=draw, dtype=torch.float64)
    return torch.randn(count, width, generator=draw, dtype=torch.float64) @ mix + shift


def moments(features: Tensor) -> Moments:
    found = Moments()
    found.add(features)
    return found


def gaussian(mean: Tensor, covariance: Tensor, count: int = 1000) -> Moments:
    return Moments(count, mean.double(), covariance.double() * (count - 1))


# Moments


@given(st.lists(st.integers(0, 7), min_size=2, max_size=8), st.integers(1, 5))
@settings(max_examples=20)
def test_moments_of_parts_are_those_of_the_whole(sizes: list[int], width: int) -> None:
    features = vectors(sum(sizes), width)
    whole, parts, merged = moments(features), Moments(), Moments()
    for part in features.split(sizes):
        parts.add(part)
        merged.merge(moments(part))
    for found in (parts, merged):
        assert found.count == len(features)
        if found.count:
            assert torch.allclose(found.mean, whole.mean, atol=1e-12)
            assert torch.allclose(found.scatter, whole.scatter, atol=1e-10)


def test_moments_are_those_of_numpy() -> None:
    features = vectors(50, 4)
    found = moments(features)
    assert np.allclose(found.mean.numpy(), features.numpy().mean(0))
    assert np.allclose(found.covariance.numpy(), np.cov(features.numpy(), rowvar=False))


def test_moments_far_from_zero_lose_no_digits() -> None:
    features = vectors(4000, 3)
    far = Moments()
    for part in (features + 1e7).split(100):
        far.add(part)
    assert torch.allclose(far.covariance, moments(features).covariance, rtol=1e-6)


def test_merging_leaves_the_other_moments_as_they_were() -> None:
    first, second = moments(vectors(9, 2)), Moments()
    second.merge(first)
    second.add(vectors(9, 2, 1))
    assert torch.equal(first.mean, vectors(9, 2).mean(0))


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (torch.zeros(4), r"features: \(4,\)"),
        (torch.tensor([[1.0, math.nan]]), "all finite: False"),
        (torch.zeros(3, 5), "width 5 differs from 2"),
    ],
)
def test_features_that_fit_nothing_are_refused(features: Tensor, words: str) -> None:
    found = moments(vectors(5, 2))
    with pytest.raises(InputError, match=words):
        found.add(features)


def test_one_vector_has_no_covariance() -> None:
    with pytest.raises(InputError, match="1 vectors have no covariance"):
        frechet_distance(moments(vectors(1, 2)), moments(vectors(5, 2)))


# Fréchet distance


def test_gaussians_with_diagonal_covariance_have_the_closed_form() -> None:
    mean_a, mean_b = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, -1.0])
    sigma_a, sigma_b = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 0.5, 1.0])
    expected = (mean_a - mean_b).square().sum() + (sigma_a - sigma_b).square().sum()
    a = gaussian(mean_a, torch.diag(sigma_a**2))
    b = gaussian(mean_b, torch.diag(sigma_b**2))
    assert frechet_distance(a, b) == pytest.approx(float(expected), abs=1e-12)


@given(st.integers(1, 12), st.integers(2, 40), st.integers(0, 99))
@settings(max_examples=20)
def test_it_agrees_with_the_matrix_square_root_of_scipy(width: int, count: int, seed: int) -> None:
    a, b = vectors(count + width, width, seed), vectors(count + width + 3, width, seed + 1)
    c_a, c_b = (np.atleast_2d(np.cov(x.numpy(), rowvar=False)) for x in (a, b))
    root = scipy.linalg.sqrtm(c_a @ c_b)
    gap = a.numpy().mean(0) - b.numpy().mean(0)
    expected = gap @ gap + np.trace(c_a + c_b - 2 * root.real)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_it_agrees_with_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    a, b = vectors(200, 8), vectors(150, 8, 1)

    class Given(torch.nn.Module):
        num_features = 8

        def forward(self, x: Tensor) -> Tensor:
            return x

    oracle = fid.FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    oracle.update(a, real=True)
    oracle.update(b, real=False)
    expected = float(oracle.compute())
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-6)


def test_equal_sets_are_at_no_distance_and_the_order_does_not_matter() -> None:
    a, b = moments(vectors(300, 20)), moments(vectors(300, 20, 1))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)


def test_fewer_vectors_than_dimensions_still_give_a_distance() -> None:
    few = moments(vectors(10, 30))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert math.isfinite(frechet_distance(few, moments(vectors(10, 30, 1))))


def test_features_of_different_networks_are_refused() -> None:
    with pytest.raises(InputError, match="width 3 against a's 2"):
        frechet_distance(moments(vectors(9, 2)), moments(vectors(9, 3)))
    with pytest.raises(InputError, match="no sets of equally long vectors"):
        kernel_distance(
            vectors(9, 2), vectors(9, 3), subsets=1, subset_size=2, generator=generator()
        )


# Kernel distance


def naive_kid(x: np.ndarray, y: np.ndarray) -> float:
    """Eq. 4 of Bińkowski et al., pair by pair."""
    m, d = x.shape

    def k(u: np.ndarray, v: np.ndarray) -> float:
        return float((u @ v / d + 1) ** 3)

    within = sum(k(x[i], x[j]) + k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (
        m * (m - 1)
    )
    across = sum(k(x[i], y[j]) for i in range(m) for j in range(m)) / m**2
    return within - 2 * across


def test_one_subset_of_everything_is_the_unbiased_estimate() -> None:
    a, b = vectors(20, 5), vectors(20, 5, 1)
    mean, deviation = kernel_distance(a, b, subsets=3, subset_size=20, generator=generator())
    assert mean == pytest.approx(naive_kid(a.numpy(), b.numpy()), rel=1e-10)
    assert deviation == pytest.approx(0, abs=1e-9 * abs(mean))


def test_kernel_distance_agrees_with_torchmetrics() -> None:
    kid = pytest.importorskip("torchmetrics.image.kid")
    a, b = vectors(40, 6), vectors(40, 6, 1)
    expected = kid.poly_mmd(a, b, degree=3, gamma=None, coef=1.0)
    mean, _ = kernel_distance(a, b, subsets=1, subset_size=40, generator=generator())
    assert mean == pytest.approx(float(expected), rel=1e-9)


def test_sets_of_one_distribution_are_at_no_distance_on_average() -> None:
    draw = generator(5)
    a, b = (torch.randn(2000, 4, generator=draw) for _ in range(2))
    mean, deviation = kernel_distance(a, b, subsets=50, subset_size=200, generator=draw)
    assert abs(mean) < deviation / 2
    far, _ = kernel_distance(a, b + 1, subsets=50, subset_size=200, generator=draw)
    assert far > 10 * deviation


def test_the_generator_alone_decides_the_subsets() -> None:
    a, b = vectors(60, 4), vectors(70, 4, 1)

    def figures(seed: int) -> tuple[float, float]:
        return kernel_distance(a, b, subsets=5, subset_size=30, generator=generator(seed))

    assert figures(1) == figures(1) != figures(2)


@pytest.mark.parametrize(("subsets", "size"), [(1, 1), (1, 21), (0, 10)])
def test_impossible_subsets_are_refused(subsets: int, size: int) -> None:
    with pytest.raises(InputError, match=f"subset_size: {size} .* give 2 to 20"):
        kernel_distance(
            vectors(20, 2), vectors(30, 2), subsets=subsets, subset_size=size,
            generator=generator(),
        )  # fmt: skip


# Reservoir


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=30)
def test_the_sample_does_not_depend_on_how_rows_come(
    sizes: list[int], capacity: int, seed: int
) -> None:
    rows = torch.arange(sum(sizes)).float()[:, None].repeat(1, 2)
    at_once, in_parts = (Reservoir(capacity, generator(seed)) for _ in range(2))
    at_once.add(rows)
    for part in rows.split(sizes):
        in_parts.add(part)
    assert torch.equal(at_once.rows, in_parts.rows)
    kept = at_once.rows[:, 0].tolist()
    assert len(kept) == len(set(kept)) == min(capacity, sum(sizes))
    assert set(kept) <= set(range(sum(sizes)))


def test_every_row_is_kept_equally_often() -> None:
    rows, draw = torch.arange(20).float()[:, None], generator()
    seen = torch.zeros(20)
    for _ in range(2000):
        sample = Reservoir(5, draw)
        sample.add(rows[:7])
        sample.add(rows[7:])
        seen[sample.rows[:, 0].long()] += 1
    # 500 each are expected, with a deviation of 19
    assert (seen - 500).abs().max() < 80


def test_a_reservoir_refuses_rows_of_another_width_and_no_capacity() -> None:
    sample = Reservoir(3, generator())
    assert sample.rows.shape == (0, 0)
    sample.add(torch.zeros(2, 4))
    with pytest.raises(InputError, match=r"\(2, 5\) after rows of 4"):
        sample.add(torch.zeros(2, 5))
    with pytest.raises(InputError, match="capacity: 0"):
        Reservoir(0, generator())


# Patches and sliced Wasserstein


def picture(height: int, width: int, seed: int = 0, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=generator(seed))


KERNEL = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256


def naive_pyramid(image: np.ndarray, levels: int) -> list[np.ndarray]:
    """Burt and Adelson's pyramid of `(3, H, W)`, mirrored edges."""

    def smooth(x: np.ndarray) -> np.ndarray:
        return np.stack([scipy.ndimage.convolve(c, KERNEL, mode="mirror") for c in x])

    found = []
    for _ in range(levels - 1):
        smaller = smooth(image)[:, ::2, ::2]
        spread = np.zeros_like(image)
        spread[:, ::2, ::2] = smaller
        found.append(image - 4 * smooth(spread))
        image = smaller
    return [*found, image]


@given(st.integers(32, 70), st.integers(32, 70))
@settings(max_examples=10)
def test_patches_are_cut_from_the_pyramid(height: int, width: int) -> None:
    image = picture(height, width)
    pyramid = naive_pyramid(image[0].double().numpy(), 2)
    levels = laplacian_patches(image, levels=2, count=5, generator=generator(1))
    for level, patches in zip(pyramid, levels, strict=True):
        assert patches.shape == (5, 147) and patches.dtype == torch.float32
        windows = np.lib.stride_tricks.sliding_window_view(level, (3, 7, 7))[0].reshape(-1, 147)
        for patch in patches.numpy():
            assert np.abs(windows - patch).max(1).min() < 1e-6


def test_places_repeat_with_the_generator_and_reach_every_corner() -> None:
    image = picture(16, 17)
    windows = image[0].unfold(1, 7, 1).unfold(2, 7, 1).permute(1, 2, 0, 3, 4).reshape(-1, 147)
    (patches,) = laplacian_patches(image, levels=1, count=2000, generator=generator())
    (again,) = laplacian_patches(image, levels=1, count=2000, generator=generator())
    assert torch.equal(patches, again)
    assert len(patches.unique(dim=0)) == len(windows) == 110


def test_a_batch_gives_patches_of_each_picture() -> None:
    image = picture(16, 16, batch=3) * 0.01 + torch.arange(3).view(3, 1, 1, 1)
    (patches,) = laplacian_patches(image, levels=1, count=4, generator=generator())
    assert patches.mean(1).floor().tolist() == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize(
    ("height", "width", "levels"), [(15, 99, 0), (16, 16, 1), (31, 40, 2), (512, 600, 6)]
)
def test_the_coarsest_level_keeps_16_pixels(height: int, width: int, levels: int) -> None:
    assert pyramid_levels(height, width) == levels
    image = torch.zeros(1, 3, height, width)
    if levels:
        laplacian_patches(image, levels=levels, count=1, generator=generator())
    with pytest.raises(InputError, match=f"{width}x{height}; give 1 to {levels} levels"):
        laplacian_patches(image, levels=levels + 1, count=1, generator=generator())


def naive_swd(a: np.ndarray, b: np.ndarray, directions: np.ndarray) -> float:
    def normalise(x: np.ndarray) -> np.ndarray:
        x = x.reshape(-1, 3, 49)
        x = x - x.mean((0, 2), keepdims=True)
        return (x / x.std((0, 2), keepdims=True)).reshape(-1, 147)

    a, b = normalise(a), normalise(b)
    figures = []
    for direction in directions:
        direction = direction / np.linalg.norm(direction)
        figures.append(np.abs(np.sort(a @ direction) - np.sort(b @ direction)).mean())
    return float(np.mean(figures))


def test_distance_is_that_of_sorted_projections() -> None:
    a, b = torch.rand(40, 147), torch.rand(40, 147).square()
    directions = torch.randn(100, 147, generator=generator(3)).double().numpy()
    (figure,) = sliced_wasserstein([a], [b], projections=100, generator=generator(3))
    assert figure == pytest.approx(
        naive_swd(a.double().numpy(), b.double().numpy(), directions), rel=1e-5
    )


def test_equal_sets_in_another_order_are_at_no_distance() -> None:
    a = torch.rand(50, 147)
    assert sliced_wasserstein([a], [a.flip(0)], generator=generator()) == [
        pytest.approx(0, abs=1e-6)
    ]


def test_brightness_and_contrast_do_not_count() -> None:
    a = torch.rand(50, 147)
    (figure,) = sliced_wasserstein([a], [0.3 * a + 0.2], generator=generator())
    assert figure == pytest.approx(0, abs=1e-5)


def test_a_flat_colour_gives_a_figure() -> None:
    flat = torch.full((20, 147), 0.5)
    (figure,) = sliced_wasserstein([torch.rand(20, 147)], [flat], generator=generator())
    assert math.isfinite(figure) and figure > 0
    assert sliced_wasserstein([flat], [flat], generator=generator()) == [0]


def test_the_larger_set_is_thinned() -> None:
    draw = generator()
    a, b = (torch.rand(n, 147, generator=draw) for n in (4000, 1000))
    (figure,) = sliced_wasserstein([a], [b], projections=64, generator=draw)
    assert figure < 2 / math.sqrt(1000)


def test_blur_shows_at_the_finest_level_only() -> None:
    image = picture(128, 128, batch=4)
    blurred = torch.nn.functional.avg_pool2d(image, 3, stride=1, padding=1)
    sets = [
        laplacian_patches(x, levels=3, count=2000, generator=generator(1)) for x in (image, blurred)
    ]
    fine, _, coarse = sliced_wasserstein(*sets, projections=128, generator=generator(2))
    assert fine > 2 * coarse > 0


def test_sets_that_do_not_belong_together_are_refused() -> None:
    a = torch.rand(5, 147)
    for other in ([], [a, a], [a[:0]]):
        with pytest.raises(InputError, match="same number of levels, none empty"):
            sliced_wasserstein([a], other, generator=generator())
    with pytest.raises(InputError, match="rows differ in length"):
        sliced_wasserstein([a], [a[:, :144]], generator=generator())
