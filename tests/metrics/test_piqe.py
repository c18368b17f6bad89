from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch import Tensor
from torch.nn.functional import interpolate

from addsr.errors import InputError
from addsr.metrics.piqe import piqe


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Soft blobs with some fine texture on one half, rounded to 8-bit levels."""
    generator = torch.Generator().manual_seed(seed)
    image = interpolate(
        torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=generator), size=(height, width)
    )
    image[..., : width // 2] += 0.1 * torch.rand(1, 3, height, width // 2, generator=generator)
    return (image.clamp(0, 1) * 255).round() / 255


def naive_piqe(image: Tensor) -> float:
    """The definition, block by block in numpy."""
    rgb = image[0].numpy()
    gray = np.float32(0.299) * rgb[0] + np.float32(0.587) * rgb[1] + np.float32(0.114) * rgb[2]
    gray = np.round(255 * gray / gray.max()).astype(np.float64)
    gray = np.pad(gray, [(0, -n % 16) for n in gray.shape], mode="symmetric")
    taps = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
    taps /= taps.sum()

    def smooth(x: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(x, taps, 0, mode="nearest"), taps, 1, mode="nearest")

    mean = smooth(gray)
    normalized = (gray - mean) / (np.sqrt(np.abs(smooth(gray**2) - mean**2)) + 1)
    total, active = 0.0, 0
    for top in range(0, gray.shape[0], 16):
        for left in range(0, gray.shape[1], 16):
            block = normalized[top : top + 16, left : left + 16]
            variance = block.var(ddof=1)
            if variance <= 0.1:
                continue
            active += 1
            rims = (block[0], block[-1], block[:, 0], block[:, -1])
            pieces = [rim[i : i + 6].std(ddof=1) for rim in rims for i in range(11)]
            if min(pieces) < 0.1:
                total += 1 - variance
            surround = np.delete(np.delete(block, 7, 1), 8, 1)
            ratio = block[:, 7:9].std(ddof=1) / surround.std(ddof=1)
            sigma = np.sqrt(variance)
            if sigma > 2 * abs(sigma - ratio) / max(sigma, ratio):
                total += variance
    return 100 * (total + 1) / (active + 1)


@pytest.mark.parametrize("size", [(64, 64), (80, 112), (50, 71), (16, 16), (5, 3)])
def test_piqe_agrees_with_the_definition_block_by_block(size: tuple[int, int]) -> None:
    image = picture(*size, seed=sum(size))
    assert float(piqe(image)) == pytest.approx(naive_piqe(image), rel=1e-6)


def test_a_batch_scores_as_its_pictures_do() -> None:
    first, second = picture(64, 80, 1), picture(64, 80, 2) * 0.5
    together = piqe(torch.cat([first, second]))
    assert together.tolist() == pytest.approx([float(piqe(first)), float(piqe(second))])


def test_pictures_without_a_lively_block_score_worst() -> None:
    assert piqe(torch.zeros(1, 3, 40, 40)).tolist() == [100]
    assert piqe(torch.full((1, 3, 40, 40), 0.4)).tolist() == [100]


def test_blocking_raises_piqe() -> None:
    generator = torch.Generator().manual_seed(0)
    texture = torch.rand(1, 3, 128, 128, generator=generator)
    blocky = texture.clone()
    blocky[..., ::16, :] = 0.5
    blocky[..., 1::16, :] = 0.5
    blocky[..., 15::16, :] = 0.5
    assert float(piqe(blocky)) != pytest.approx(float(piqe(texture)), abs=1)


def test_gray_tensors_are_refused() -> None:
    with pytest.raises(InputError, match="is no picture"):
        piqe(torch.zeros(1, 1, 32, 32))
