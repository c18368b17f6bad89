from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.ndimage import correlate
from torch import Tensor

from addsr.errors import InputError, OptionError, OutputError
from addsr.metrics.niqe import (
    NiqeParams,
    _window,
    fit_aggd,
    fit_niqe,
    load_niqe_params,
    niqe,
    normalize,
    save_niqe_params,
)

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
    alpha, left, right = fit_aggd(torch.cat([gauss, laplace]))
    assert alpha.tolist() == pytest.approx([2, 1], abs=0.02)
    assert left.tolist() == pytest.approx([1, 2**0.5], rel=0.02)
    assert right.tolist() == pytest.approx([1, 2**0.5], rel=0.02)


def test_a_side_without_values_has_no_fit() -> None:
    alpha, left, right = fit_aggd(torch.tensor([[1.0, 2.0], [0.0, 0.0]]).double())
    assert alpha.isnan().all() and left.isnan().all()
    assert right.isnan().tolist() == [False, True]


def test_normalized_luma_of_noise_has_mean_zero_and_near_unit_spread() -> None:
    field = 128 + 20 * torch.randn(1, 128, 128, generator=torch.Generator().manual_seed(0)).double()
    normalized, deviation = normalize(field)
    assert abs(float(normalized.mean())) < 0.01
    assert 0.8 < float(normalized.std()) < 1.1
    assert 15 < float(deviation.mean()) < 20


@pytest.mark.parametrize(("edge", "mode"), [("replicate", "nearest"), ("constant", "constant")])
def test_normalizing_agrees_with_scipy(edge: Any, mode: str) -> None:
    y = (255 * torch.rand(1, 20, 31, generator=torch.Generator().manual_seed(0))).double().round()
    place = np.arange(-3, 4)
    window = np.exp(-(place[:, None] ** 2 + place**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    mean = correlate(y[0].numpy(), window, mode=mode)
    power = correlate(y[0].numpy() ** 2, window, mode=mode)
    deviation = np.sqrt(np.abs(power - mean**2))
    normalized, measured = normalize(y, edge)
    assert measured[0].numpy() == pytest.approx(deviation, abs=1e-9)
    assert normalized[0].numpy() == pytest.approx((y[0].numpy() - mean) / (deviation + 1))


def test_the_sign_in_flat_parts_is_that_of_a_sum_tap_by_tap() -> None:
    for level in range(16, 236):
        mean = 0.0
        for weight in _window().flatten().tolist():
            mean += weight * level
        normalized, _ = normalize(torch.full((1, 9, 11), float(level), dtype=torch.float64))
        assert (normalized.sign() == np.sign(level - mean)).all()


def test_the_two_lumas_give_different_figures(plain: NiqeParams) -> None:
    image = noise(200, 200)
    as_usual, full_range = niqe(image, plain), niqe(image, plain, luma="yiq")
    assert torch.equal(as_usual, niqe(image, plain, luma="bt601"))
    assert float(full_range) != pytest.approx(float(as_usual), abs=1e-6)
    with pytest.raises(OptionError, match="luma: 'lab' is unknown"):
        niqe(image, plain, luma="lab")  # type: ignore[arg-type]


def test_a_negative_border_is_refused(plain: NiqeParams) -> None:
    with pytest.raises(OptionError, match="border: -1 is negative"):
        niqe(noise(200, 200), plain, border=-1)


def photos(count: int) -> list[Tensor]:
    """Sharp noise in one half of each picture, softer noise in the other."""
    made = []
    for seed in range(count):
        image = noise(192, 384, seed)
        image[..., 192:] = 0.4 + 0.2 * image[..., 192:]
        made.append(image)
    return made


def test_a_model_is_fitted_to_the_sharp_blocks_alone() -> None:
    params = fit_niqe(photos(12), provenance="noise")
    sharp = fit_niqe([image[..., :192] for image in photos(12)])
    assert params.provenance == "noise"
    assert torch.allclose(params.mean, sharp.mean, rtol=0.02, atol=0.01)
    # half of the pictures' blocks: 4 each
    assert torch.linalg.matrix_rank(params.covariance) == 36
    assert float(niqe(noise(192, 192, 99), params)) < float(niqe(photos(1)[0][..., 192:], params))


def test_a_model_is_the_mean_and_covariance_of_the_features() -> None:
    pictures = torch.cat([noise(96, 96, seed) for seed in range(40)])
    together, one_by_one = fit_niqe([pictures]), fit_niqe(pictures.split(1))
    assert torch.allclose(together.mean, one_by_one.mean, rtol=1e-9)
    assert torch.allclose(together.covariance, one_by_one.covariance, rtol=1e-6, atol=1e-9)
    with pytest.raises(InputError, match="3 sharp blocks of 96x96 are too few"):
        fit_niqe([pictures[:3], noise(50, 500)])


def test_a_fitted_model_is_read_as_it_was_written(tmp_path: Path) -> None:
    params = fit_niqe(noise(96, 96, seed) for seed in range(40))
    params = NiqeParams(params.mean, params.covariance, "made of noise")
    for name in ("a.npz", "b.npz"):
        save_niqe_params(tmp_path / name, params)
    read = load_niqe_params(tmp_path / "a.npz")
    assert torch.equal(read.mean, params.mean)
    assert torch.equal(read.covariance, params.covariance)
    assert read.provenance == "made of noise"
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert arrays["mu_pris_param"].shape == (1, 36)
        assert arrays["gaussian_window"].sum() == pytest.approx(1)


def test_a_model_that_cannot_be_written_leaves_nothing(tmp_path: Path, plain: NiqeParams) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        save_niqe_params(tmp_path / "missing" / "model.npz", plain)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(OutputError, match=r"folder\.npz"):
        save_niqe_params(tmp_path / "folder.npz", plain)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.npz"]


def test_damaged_models_are_refused(tmp_path: Path, plain: NiqeParams) -> None:
    path = tmp_path / "model.npz"
    save_niqe_params(path, plain)
    whole = path.read_bytes()
    for content in (b"", b"no zip", whole[:200], whole[:-30], b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"model\.npz: is no NIQE model"):
            load_niqe_params(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(36))
    with pytest.raises(InputError, match=r"model\.npz: is no NIQE model"):
        load_niqe_params(path)


def test_the_package_has_a_model_of_its_own() -> None:
    params = load_niqe_params()
    assert "freely licensed photos" in params.provenance
    assert params.mean.dtype == params.covariance.dtype == torch.float64
    assert torch.allclose(params.covariance, params.covariance.T)
    assert float(torch.linalg.eigvalsh(params.covariance)[0]) > 0
    assert load_niqe_params(None).provenance == params.provenance


def test_our_own_model_tells_a_photo_from_blur_and_noise(golden: Path) -> None:
    photo = load_file(golden / "metrics.safetensors")["input/1/reference"]
    image = photo.permute(2, 0, 1)[None].float() / 255
    blurred = torch.nn.functional.avg_pool2d(image, 5, stride=1, padding=2)
    noisy = (image + 0.3 * torch.randn(image.shape)).clamp(0, 1)
    params = load_niqe_params()
    assert float(niqe(image, params)) < float(niqe(blurred, params))
    assert float(niqe(image, params)) < float(niqe(noisy, params))
