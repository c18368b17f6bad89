from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from addsr.errors import InputError
from addsr.metrics.niqe import NiqeParams, _fit_aggd, load_niqe_params, mscn, niqe

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics.safetensors"


@pytest.fixture(scope="module")
def published() -> NiqeParams:
    path = os.environ.get("ADDSR_NIQE_PARAMS", "")
    if not path:
        pytest.skip("set ADDSR_NIQE_PARAMS to niqe_pris_params.npz (BasicSR carries it)")
    return load_niqe_params(path)


@pytest.fixture
def plain() -> NiqeParams:
    """A made-up model, for what does not depend on the published one."""
    return NiqeParams(torch.zeros(36, dtype=torch.float64), torch.eye(36, dtype=torch.float64))


def noise(height: int, width: int, seed: int = 0, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kind", "border"), [("reference", 0), ("distorted", 4)])
def test_niqe_gives_the_published_figures(published: NiqeParams, kind: str, border: int) -> None:
    stored = load_file(GOLDEN)
    expected = stored[f"output/niqe_{kind}_crop{border}"]
    for i, figure in enumerate(expected):
        image = stored[f"input/{i}/{kind}"].permute(2, 0, 1)[None].float() / 255
        assert float(niqe(image, published, border)) == pytest.approx(float(figure), abs=5e-3)


def test_a_file_of_the_usual_layout_is_read(tmp_path: Path, plain: NiqeParams) -> None:
    path = tmp_path / "model.npz"
    np.savez(path, mu_pris_param=np.zeros((1, 36)), cov_pris_param=np.eye(36))
    read = load_niqe_params(path)
    assert torch.equal(read.mean, plain.mean)
    assert torch.equal(read.covariance, plain.covariance)


def test_a_wrong_file_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.npz: is no NIQE model"):
        load_niqe_params(tmp_path / "missing.npz")
    np.savez(tmp_path / "other.npz", something=np.zeros(3))
    with pytest.raises(InputError, match=r"other\.npz: is no NIQE model"):
        load_niqe_params(tmp_path / "other.npz")
    np.savez(tmp_path / "small.npz", mu_pris_param=np.zeros(3), cov_pris_param=np.eye(3))
    with pytest.raises(InputError, match=r"must be \(36,\) and \(36, 36\)"):
        load_niqe_params(tmp_path / "small.npz")


def test_a_batch_scores_as_its_pictures_do(plain: NiqeParams) -> None:
    images = noise(200, 210, batch=2)
    together = niqe(images, plain)
    alone = torch.cat([niqe(images[i : i + 1], plain) for i in range(2)])
    assert together.shape == (2,)
    assert torch.allclose(together, alone, rtol=1e-9)


def test_pixels_beyond_whole_blocks_do_not_matter(plain: NiqeParams) -> None:
    small = noise(192, 192)
    large = torch.nn.functional.pad(small, (0, 50, 0, 20), value=0.7)
    assert float(niqe(large, plain)) == pytest.approx(float(niqe(small, plain)), rel=1e-9)


def test_too_small_a_picture_is_refused(plain: NiqeParams) -> None:
    with pytest.raises(InputError, match="150x100 with border 0 holds less than two blocks"):
        niqe(noise(100, 150), plain)


def test_flat_parts_do_not_make_the_figure_undefined(plain: NiqeParams) -> None:
    image = noise(288, 288)
    image[..., :96, :96] = 0.5
    assert torch.isfinite(niqe(image, plain)).all()


def test_the_fitted_shape_finds_a_gaussian_and_a_laplacian() -> None:
    generator = torch.Generator().manual_seed(0)
    gauss = torch.randn(1, 400_000, generator=generator, dtype=torch.float64)
    laplace = torch.empty_like(gauss).exponential_(generator=generator) * gauss.sign()
    alpha, left, right = _fit_aggd(torch.cat([gauss, laplace]))
    assert alpha.tolist() == pytest.approx([2, 1], abs=0.02)
    assert left.tolist() == pytest.approx([2**0.5, 1], rel=0.02)
    assert right.tolist() == pytest.approx([2**0.5, 1], rel=0.02)


def test_normalized_luma_of_noise_has_mean_zero_and_near_unit_spread() -> None:
    field = 128 + 20 * torch.randn(1, 128, 128, generator=torch.Generator().manual_seed(0)).double()
    normalized = mscn(field)
    assert abs(float(normalized.mean())) < 0.01
    assert 0.8 < float(normalized.std()) < 1.1
