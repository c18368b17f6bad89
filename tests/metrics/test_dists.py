from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from addsr.errors import InputError, ModelError
from addsr.metrics.dists import Dists, L2Pool, load_dists

STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # numbers of convolutions
WIDTHS = (64, 128, 256, 512, 512)
CHANNELS = (3, *WIDTHS)


def backbone_weights(seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    previous = 3
    for numbers, width in zip(STAGES, WIDTHS, strict=True):
        for number in numbers:
            deviation = (2 / (previous * 9)) ** 0.5
            weights[f"features.{number}.weight"] = (
                torch.randn(width, previous, 3, 3, generator=draw) * deviation
            )
            weights[f"features.{number}.bias"] = torch.randn(width, generator=draw) * 0.1
            previous = width
    return weights


def own_weights(seed: int = 1) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {n: torch.rand(1, sum(CHANNELS), 1, 1, generator=draw) for n in ("alpha", "beta")}


def picture(height: int, width: int, seed: int = 0, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def naive_pool(x: np.ndarray) -> np.ndarray:
    """sqrt(g * x^2) at every second pixel of `(C, H, W)`, pixel by pixel."""
    hann = np.hanning(5)[1:-1]
    window = np.outer(hann, hann) / np.outer(hann, hann).sum()
    padded = np.pad(x**2, ((0, 0), (1, 1), (1, 1)))
    rows, columns = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
    out = np.zeros((x.shape[0], rows, columns))
    for i in range(rows):
        for j in range(columns):
            around = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            out[:, i, j] = np.sqrt((around * window).sum((1, 2)) + 1e-12)
    return out


def naive_maps(image: Tensor, weights: dict[str, Tensor]) -> list[np.ndarray]:
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1)
        for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    maps = [image[0].double().numpy()]
    x = (image.double() - mean) / std
    for stage, numbers in enumerate(STAGES):
        if stage:
            x = torch.from_numpy(naive_pool(x[0].numpy()))[None]
        for number in numbers:
            weight, bias = (weights[f"features.{number}.{p}"].double() for p in ("weight", "bias"))
            x = F.conv2d(x, weight, bias, padding=1).clamp_min(0)
        maps.append(x[0].numpy())
    return maps


def naive_dists(a: Tensor, b: Tensor, weights: dict[str, Tensor]) -> float:
    """1 less the weighted sum of l and s, channel by channel."""
    maps = [naive_maps(x, weights) for x in (a, b)]
    alpha, beta = (weights[name].double().numpy().ravel() for name in ("alpha", "beta"))
    total = alpha.sum() + beta.sum()
    c1 = c2 = 1e-6
    likeness, channel = 0.0, 0
    for x_map, y_map in zip(*maps, strict=True):
        for x, y in zip(x_map, y_map, strict=True):
            covariance = ((x - x.mean()) * (y - y.mean())).mean()
            texture = (2 * x.mean() * y.mean() + c1) / (x.mean() ** 2 + y.mean() ** 2 + c1)
            structure = (2 * covariance + c2) / (x.var() + y.var() + c2)
            likeness += (alpha[channel] * texture + beta[channel] * structure) / total
            channel += 1
    return 1 - likeness


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return {**backbone_weights(), **own_weights()}


@pytest.fixture(scope="module")
def model(weights: dict[str, Tensor]) -> Dists:
    return Dists(weights)


def test_it_computes_the_equations_of_the_paper(weights: dict[str, Tensor]) -> None:
    a, b = picture(33, 22), picture(33, 22, 1)
    figure = Dists(weights).double()(a, b)
    assert float(figure) == pytest.approx(
        naive_dists(a, b, weights), abs=1e-8
    )  # its constants are fp32


def test_single_precision_is_enough(model: Dists, weights: dict[str, Tensor]) -> None:
    a = picture(24, 35)
    b = (a + 0.05 * picture(24, 35, 1)).clamp(0, 1)
    figure = model(a, b)
    assert figure.dtype == torch.float64 and figure.shape == (1,)
    assert float(figure) == pytest.approx(naive_dists(a, b, weights), rel=1e-4)


def test_it_agrees_with_torchmetrics_and_the_published_alpha_and_beta(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = importlib.util.find_spec("torchmetrics")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("torchmetrics is not installed")
    root = Path(spec.submodule_search_locations[0])
    published = root / "functional" / "image" / "dists_models" / "weights.pt"
    if not published.is_file():
        pytest.skip("this torchmetrics carries no weights of DISTS")
    import torchmetrics.functional.image.dists as theirs

    weights = backbone_weights()
    layers: list[nn.Module] = []
    for stage, numbers in enumerate(STAGES):
        layers += [nn.MaxPool2d(2)] if stage else []
        for number in numbers:
            outputs, inputs = weights[f"features.{number}.weight"].shape[:2]
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    features = nn.Sequential(*layers)
    features.load_state_dict({k.removeprefix("features."): v for k, v in weights.items()})
    monkeypatch.setattr(theirs, "_TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr(
        theirs, "vgg16", lambda weights: SimpleNamespace(features=features), raising=False
    )
    monkeypatch.setattr(theirs, "VGG16_Weights", SimpleNamespace(DEFAULT=None), raising=False)
    oracle = theirs.DISTSNetwork().eval()
    torch.save(weights, tmp_path / "vgg16.pth")
    ours = load_dists(tmp_path / "vgg16.pth", published)
    a, b = picture(48, 40, batch=2), picture(48, 40, 1, batch=2)
    assert torch.allclose(ours(a, b), oracle(a, b).double(), atol=2e-6)


def test_pooling_is_the_weighted_root_mean_square() -> None:
    x = torch.randn(2, 3, 9, 6)
    expected = np.stack([naive_pool(one.double().numpy()) for one in x])
    assert np.abs(L2Pool()(x).numpy() - expected).max() < 1e-6


def test_equal_pictures_score_zero(model: Dists) -> None:
    a = picture(40, 31, batch=2)
    assert model(a, a).abs().max() < 1e-12


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 2))
@settings(max_examples=6)
def test_any_size_scores_the_same_both_ways_round_and_in_a_batch(
    model: Dists, height: int, width: int, batch: int
) -> None:
    a, b = picture(height, width, 1, batch), picture(height, width, 2, batch)
    together = model(a, b)
    assert together.shape == (batch,) and bool(((together > 0) & (together < 2)).all())
    assert torch.allclose(together, model(b, a), atol=1e-9)
    alone = torch.cat([model(a[i : i + 1], b[i : i + 1]) for i in range(batch)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_texture_drawn_anew_scores_better_than_texture_lost(model: Dists) -> None:
    base = torch.full((1, 3, 64, 64), 0.5)
    grain, other = (0.2 * (picture(64, 64, seed) - 0.5) for seed in (1, 2))
    anew = float(model(base + grain, base + other))
    lost = float(model(base + grain, base))
    assert anew < lost


def test_wrong_pictures_are_refused(model: Dists) -> None:
    with pytest.raises(InputError, match="differs from a's"):
        model(picture(20, 20), picture(20, 21))
    with pytest.raises(InputError, match="no picture"):
        model(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), picture(8, 8))


def test_missing_unknown_and_misshapen_entries_are_named(weights: dict[str, Tensor]) -> None:
    wrong = {k: v for k, v in weights.items() if k not in ("beta", "features.28.bias")}
    with pytest.raises(
        ModelError, match=r"lacks features\.28\.bias, beta and holds unexpected gamma; give"
    ):
        Dists({**wrong, "gamma": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"alpha is \(1475,\) and not \(1, 1475, 1, 1\)"):
        Dists({**weights, "alpha": torch.zeros(1475)})


def test_a_file_without_alpha_and_beta_names_both(tmp_path: Path) -> None:
    torch.save(backbone_weights(), tmp_path / "vgg16.pth")
    with pytest.raises(ModelError, match=r"vgg16\.pth: lacks alpha, beta; give"):
        load_dists(tmp_path / "vgg16.pth")


def test_one_file_may_hold_the_whole_module(
    model: Dists, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    state = {**own_weights(), "mean": torch.zeros(1), "std": torch.zeros(1)}
    state["stage2.4.filter"] = torch.zeros(64, 1, 3, 3)
    for name, value in backbone_weights().items():
        _, number, part = name.split(".")
        stage = next(i for i, numbers in enumerate(STAGES, 1) if int(number) in numbers)
        state[f"stage{stage}.{number}.{part}"] = value
    torch.save(state, tmp_path / "whole.pth")
    a, b = picture(30, 30), picture(30, 30, 1)
    assert torch.equal(load_dists(tmp_path / "whole.pth")(a, b), model(a, b))
