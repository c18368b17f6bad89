from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate

from addsr.errors import InputError
from addsr.metrics.pixel import luma
from addsr.metrics.spectrum import laplacian_energy, radial_spectrum, spectrum_error


def noise(height: int, width: int, seed: int = 0, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, height, width, generator=generator, dtype=torch.float64)


def gray(y: Tensor) -> Tensor:
    return y.expand(1, 3, *y.shape[-2:])


def soft(height: int, width: int, seed: int = 0) -> Tensor:
    small = noise(height // 8 + 2, width // 8 + 2, seed)
    return interpolate(small, size=(height, width), mode="bicubic").clamp(0, 1)


def naive_spectrum(y: np.ndarray, rings: int) -> list[float]:
    """The mean power in each ring, frequency by frequency."""
    height, width = y.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    mean = (y * window).sum() / window.sum()
    power = np.abs(np.fft.fft2((y - mean) * window)) ** 2 / (window**2).sum()
    found: list[list[float]] = [[] for _ in range(rings)]
    for i in range(height):
        for j in range(width):
            down, across = min(i, height - i) / height, min(j, width - j) / width
            place = 2 * rings * math.hypot(down, across)
            if place <= rings + 1e-9:
                found[min(int(place + 1e-9), rings - 1)].append(power[i, j])
    return [float(np.mean(values)) for values in found]


@pytest.mark.parametrize(("size", "rings"), [((24, 30), 12), ((70, 81), 32), ((7, 5), 2)])
def test_the_spectrum_agrees_with_the_definition(size: tuple[int, int], rings: int) -> None:
    image = noise(*size)
    expected = naive_spectrum(luma(image)[0].numpy(), rings)
    assert radial_spectrum(image)[0].tolist() == pytest.approx(expected, rel=1e-9)


def test_white_noise_has_its_variance_in_every_ring() -> None:
    image = gray(0.5 + 0.1 * torch.randn(256, 192, generator=torch.Generator().manual_seed(0)))
    power = radial_spectrum(image)
    assert power.shape == (1, 32)
    assert power[0, 2:].tolist() == pytest.approx([(0.1 * 219) ** 2] * 30, rel=0.3)
    assert float(power.mean()) == pytest.approx((0.1 * 219) ** 2, rel=0.05)


def test_a_wave_stands_in_the_ring_of_its_frequency() -> None:
    x = torch.arange(128, dtype=torch.float64)
    image = gray((0.5 + 0.3 * torch.sin(2 * math.pi * x * 0.195)).expand(128, 128))
    power = radial_spectrum(image)
    assert int(power.argmax()) == int(0.195 * 64)
    assert float(power[0, :10].max()) < 1e-3 * float(power.max())
    assert torch.allclose(radial_spectrum(image), radial_spectrum(image.transpose(2, 3)))


def test_the_spectrum_error_is_the_change_in_decibels() -> None:
    hr = noise(72, 80)
    assert float(spectrum_error(hr, hr)) == 0
    weaker = 0.5 + (hr - 0.5) / 10**0.15  # 3 dB everywhere
    assert float(spectrum_error(weaker, hr)) == pytest.approx(3, abs=1e-3)
    assert float(spectrum_error(hr, weaker)) == pytest.approx(3, abs=1e-3)


def test_blur_and_noise_both_raise_the_spectrum_error() -> None:
    hr = (0.5 * soft(72, 72) + 0.5 * noise(72, 72)).clamp(0, 1)
    blurred = torch.nn.functional.avg_pool2d(hr, 3, stride=1, padding=1)
    noisy = hr + 0.5 * noise(72, 72, 1)
    assert float(spectrum_error(blurred, hr)) > 3
    assert float(spectrum_error(noisy, hr)) > 0.5


def test_flat_pictures_have_a_finite_spectrum_error() -> None:
    flat = torch.full((1, 3, 32, 32), 0.5)
    assert float(spectrum_error(flat, flat)) == 0
    assert math.isfinite(spectrum_error(flat, noise(32, 32)))


@given(st.integers(4, 90), st.integers(4, 90))
def test_every_ring_of_any_size_holds_a_frequency(height: int, width: int) -> None:
    power = radial_spectrum(noise(height, width, batch=2))
    assert power.shape == (2, min(32, min(height, width) // 2))
    assert power.isfinite().all()


def test_laplacian_energy_tells_the_three_places_apart() -> None:
    hr = torch.full((1, 3, 96, 144), 0.3, dtype=torch.float64)
    hr += 0.002 * noise(96, 144)  # the flat third has a little grain
    hr[..., 48:96] = torch.where(torch.arange(48) % 12 < 6, 0.2, 0.8).double()  # edges
    hr[..., 96:] = 0.3 + 0.4 * noise(96, 48, 1)  # texture
    sr = hr.clone()
    sr[..., :48] = 0.3 + 2 * (sr[..., :48] - 0.3)
    sr[..., 96:] = 0.5 + 0.5 * (sr[..., 96:] - 0.5)
    ratio = {name: float(value) for name, value in laplacian_energy(sr, hr).items()}
    assert list(ratio) == ["flat", "edge", "texture"]
    assert ratio["flat"] == pytest.approx(4, rel=0.05)
    assert ratio["edge"] == pytest.approx(1, rel=0.05)
    assert ratio["texture"] == pytest.approx(0.25, rel=0.2)


def test_the_reference_has_the_energy_of_itself() -> None:
    hr = (0.7 * soft(80, 80) + 0.3 * noise(80, 80)).clamp(0, 1)
    hr[..., :30] = 0.5 + 0.001 * noise(80, 30)
    assert [float(v) for v in laplacian_energy(hr, hr).values()] == pytest.approx([1, 1, 1])


def test_places_that_the_reference_lacks_have_no_figure() -> None:
    texture = laplacian_energy(noise(64, 64), noise(64, 64, 1))
    assert texture["flat"].isnan().all() and texture["texture"].isfinite().all()
    flat = laplacian_energy(noise(64, 64), torch.full((1, 3, 64, 64), 0.5))
    assert all(value.isnan().all() for value in flat.values())


def test_a_batch_scores_as_its_pictures_do() -> None:
    sr, hr = noise(50, 61, batch=2), noise(50, 61, 1, batch=2)
    for i in range(2):
        one_sr, one_hr = sr[i : i + 1], hr[i : i + 1]
        assert torch.allclose(spectrum_error(sr, hr)[i : i + 1], spectrum_error(one_sr, one_hr))
        together, alone = laplacian_energy(sr, hr), laplacian_energy(one_sr, one_hr)
        for name in together:
            assert torch.allclose(together[name][i : i + 1], alone[name], equal_nan=True)


def test_too_small_pictures_are_refused() -> None:
    with pytest.raises(InputError, match="give 4x4 or more"):
        radial_spectrum(noise(3, 9))
    with pytest.raises(InputError, match="leaves no 3x3 window"):
        laplacian_energy(noise(10, 20), noise(10, 20))
    with pytest.raises(InputError, match="give equal sizes"):
        spectrum_error(noise(20, 20), noise(20, 21))
