from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from addsr.errors import InputError, ModelError, OptionError
from addsr.metrics.lpips import Lpips, load_lpips

# The architectures as the papers' tables give them, apart from the code under test:
# number of the convolution -> (in, out, kernel, stride, padding)
ALEX = {
    0: (3, 64, 11, 4, 2),
    3: (64, 192, 5, 1, 2),
    6: (192, 384, 3, 1, 1),
    8: (384, 256, 3, 1, 1),
    10: (256, 256, 3, 1, 1),
}
VGG = {
    0: (3, 64, 3, 1, 1),
    2: (64, 64, 3, 1, 1),
    5: (64, 128, 3, 1, 1),
    7: (128, 128, 3, 1, 1),
    10: (128, 256, 3, 1, 1),
    12: (256, 256, 3, 1, 1),
    14: (256, 256, 3, 1, 1),
    17: (256, 512, 3, 1, 1),
    19: (512, 512, 3, 1, 1),
    21: (512, 512, 3, 1, 1),
    24: (512, 512, 3, 1, 1),
    26: (512, 512, 3, 1, 1),
    28: (512, 512, 3, 1, 1),
}
CONVOLUTIONS = {"alex": ALEX, "vgg": VGG}
POOLS = {"alex": {2: 3, 5: 3}, "vgg": {4: 2, 9: 2, 16: 2, 23: 2}}  # number -> window, stride 2
TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}
HEAD_WIDTHS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


def backbone_weights(net: str, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for number, (inputs, outputs, kernel, _, _) in CONVOLUTIONS[net].items():
        fan_in = inputs * kernel * kernel
        shape = (outputs, inputs, kernel, kernel)
        weights[f"features.{number}.weight"] = (
            torch.randn(shape, generator=draw) * (2 / fan_in) ** 0.5
        )
        weights[f"features.{number}.bias"] = torch.randn(outputs, generator=draw) * 0.1
    return weights


def head_weights(net: str, seed: int = 1) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        f"lin{k}.model.1.weight": torch.rand(1, width, 1, 1, generator=draw)
        for k, width in enumerate(HEAD_WIDTHS[net])
    }


def picture(height: int, width: int, seed: int = 0, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def naive_maps(x: Tensor, weights: dict[str, Tensor], net: str) -> list[np.ndarray]:
    maps = []
    for number in range(TAPS[net][-1] + 1):
        if number in CONVOLUTIONS[net]:
            _, _, _, stride, padding = CONVOLUTIONS[net][number]
            weight, bias = (weights[f"features.{number}.{part}"] for part in ("weight", "bias"))
            x = F.conv2d(x, weight.double(), bias.double(), stride, padding)
        elif number in POOLS[net]:
            x = F.max_pool2d(x, POOLS[net][number], 2)
        else:
            x = x.clamp_min(0)
        if number in TAPS[net]:
            maps.append(x[0].numpy())
    return maps


def naive_lpips(a: Tensor, b: Tensor, weights: dict[str, Tensor], net: str) -> float:
    """Eq. 1 for one pair, place by place."""
    shift, scale = (
        torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1)
        for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450])
    )
    maps = [naive_maps((2 * x.double() - 1 - shift) / scale, weights, net) for x in (a, b)]
    total = 0.0
    for layer, (y, y0) in enumerate(zip(*maps, strict=True)):
        head = weights[f"lin{layer}.model.1.weight"].double().numpy().ravel()
        figures = []
        for row in range(y.shape[1]):
            for column in range(y.shape[2]):
                u, u0 = y[:, row, column], y0[:, row, column]
                u = u / (np.sqrt((u**2).sum()) + 1e-10)
                u0 = u0 / (np.sqrt((u0**2).sum()) + 1e-10)
                figures.append((head * (u - u0) ** 2).sum())
        total += float(np.mean(figures))
    return total


@pytest.fixture(scope="module", params=["alex", "vgg"])
def net(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def weights(net: str) -> dict[str, Tensor]:
    return {**backbone_weights(net), **head_weights(net)}


@pytest.fixture(scope="module")
def model(net: str, weights: dict[str, Tensor]) -> Lpips:
    return Lpips(weights, net)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def alex() -> Lpips:
    return Lpips({**backbone_weights("alex"), **head_weights("alex")}, "alex")


def test_it_computes_the_equation_of_the_paper(net: str, weights: dict[str, Tensor]) -> None:
    model = Lpips(weights, net).double()  # type: ignore[arg-type]
    a, b = picture(37, 50), picture(37, 50, 1)
    assert float(model(a, b)) == pytest.approx(naive_lpips(a, b, weights, net), rel=1e-9)


def test_single_precision_is_enough(model: Lpips, net: str, weights: dict[str, Tensor]) -> None:
    a = picture(40, 33)
    b = (a + 0.05 * picture(40, 33, 1)).clamp(0, 1)
    figure = model(a, b)
    assert figure.dtype == torch.float64 and figure.shape == (1,)
    assert float(figure) == pytest.approx(naive_lpips(a, b, weights, net), rel=1e-4)


def published(name: str) -> Path:
    """A file of weights inside the installed torchmetrics."""
    spec = importlib.util.find_spec("torchmetrics")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("torchmetrics is not installed")
    path = Path(spec.submodule_search_locations[0], "functional", "image", name)
    if not path.is_file():
        pytest.skip(f"this torchmetrics carries no {name}")
    return path


def sequential(net: str, weights: dict[str, Tensor]) -> nn.Sequential:
    """What torchvision calls `features`, as torchmetrics takes it apart."""
    layers: list[nn.Module] = []
    for number in range(TAPS[net][-1] + 1):
        if number in CONVOLUTIONS[net]:
            inputs, outputs, kernel, stride, padding = CONVOLUTIONS[net][number]
            layers.append(nn.Conv2d(inputs, outputs, kernel, stride, padding))
        elif number in POOLS[net]:
            layers.append(nn.MaxPool2d(POOLS[net][number], 2))
        else:
            layers.append(nn.ReLU())
    stack = nn.Sequential(*layers)
    stack.load_state_dict({k.removeprefix("features."): v for k, v in weights.items()})
    return stack


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_it_agrees_with_torchmetrics_and_the_published_heads(
    net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = published(f"lpips_models/{net}.pth")
    backbone = backbone_weights(net)
    import torchmetrics.functional.image.lpips as theirs

    monkeypatch.setattr(
        theirs, "_get_tv_model_features", lambda *_a, **_k: sequential(net, backbone)
    )
    oracle = theirs._LPIPS(net=net, pretrained=True, model_path=str(heads)).eval()
    save_file(backbone, tmp_path / "backbone.safetensors")
    ours = load_lpips(tmp_path / "backbone.safetensors", heads, net)  # type: ignore[arg-type]
    a, b = picture(64, 48, batch=2), picture(64, 48, 1, batch=2)
    with torch.no_grad():
        expected = oracle(a, b, normalize=True).flatten().double()
    assert torch.allclose(ours(a, b), expected, rtol=1e-5)


def test_equal_pictures_score_zero(model: Lpips) -> None:
    a = picture(40, 40, batch=2)
    assert model(a, a).tolist() == [0, 0]


@given(st.integers(31, 70), st.integers(31, 70), st.integers(1, 2))
@settings(max_examples=8)
def test_any_size_scores_the_same_both_ways_round_and_in_a_batch(
    alex: Lpips, height: int, width: int, batch: int
) -> None:
    a, b = picture(height, width, 1, batch), picture(height, width, 2, batch)
    together = alex(a, b)
    assert together.shape == (batch,) and bool((together > 0).all())
    assert torch.equal(together, alex(b, a))
    alone = torch.cat([alex(a[i : i + 1], b[i : i + 1]) for i in range(batch)])
    assert torch.allclose(together, alone, rtol=1e-4)


def test_more_damage_scores_worse(model: Lpips) -> None:
    a, noise = picture(48, 48), picture(48, 48, 1) - 0.5
    figures = [float(model(a, (a + s * noise).clamp(0, 1))) for s in (0.05, 0.2, 0.8)]
    assert figures == sorted(figures)


def test_wrong_pictures_are_refused(model: Lpips, net: str) -> None:
    side = {"alex": 31, "vgg": 16}[net]
    model(picture(side, side), picture(side, side, 1))
    with pytest.raises(InputError, match=f"40x{side - 1} is too small .* {side} or more"):
        model(picture(side - 1, 40), picture(side - 1, 40))
    with pytest.raises(InputError, match="differs from a's"):
        model(picture(40, 40), picture(40, 41))
    with pytest.raises(InputError, match="no picture"):
        model(picture(40, 40)[:, :1], picture(40, 40)[:, :1])


def test_missing_and_unknown_entries_are_named() -> None:
    weights = {**backbone_weights("alex"), **head_weights("alex")}
    del weights["features.6.bias"], weights["lin4.model.1.weight"]
    weights["features.30.weight"] = torch.zeros(1)
    with pytest.raises(
        ModelError,
        match=r"lacks features\.6\.bias, lin4\.model.* unexpected features\.30\.weight; give",
    ):
        Lpips(weights, "alex")


def test_heads_of_the_other_network_are_told_by_their_shape() -> None:
    weights = {**backbone_weights("alex"), **head_weights("vgg")}
    with pytest.raises(ModelError, match=r"lin1\.model\.1\.weight is \(1, 128, 1, 1\) and not"):
        Lpips(weights, "alex")


def test_another_network_is_refused() -> None:
    with pytest.raises(OptionError, match="net: 'squeeze'"):
        Lpips({}, "squeeze")  # type: ignore[arg-type]


def test_the_classifier_may_be_in_the_file_as_torchvision_and_timm_store_it(alex: Lpips) -> None:
    extra = {"classifier.1.weight": torch.zeros(2, 2), "head.fc.bias": torch.zeros(1),
             "pre_logits.fc1.weight": torch.zeros(1)}  # fmt: skip
    model = Lpips({**backbone_weights("alex"), **head_weights("alex"), **extra}, "alex")
    a, b = picture(40, 40), picture(40, 40, 1)
    assert torch.equal(model(a, b), alex(a, b))


def whole_module(net: str) -> dict[str, Tensor]:
    """The names that saving the authors' whole module gives."""
    ends = TAPS[net]
    state: dict[str, Tensor] = {
        "scaling_layer.shift": torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1),
        "scaling_layer.scale": torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1),
    }
    for name, value in backbone_weights(net).items():
        _, number, part = name.split(".")
        part_of = next(i for i, end in enumerate(ends) if int(number) <= end)
        state[f"net.slice{part_of + 1}.{number}.{part}"] = value
    for name, value in head_weights(net).items():
        state[name] = value
        state[name.replace("lin", "lins.", 1)] = value
    return state


def test_one_file_may_hold_the_whole_module(alex: Lpips, tmp_path: Path) -> None:
    torch.save({"params": whole_module("alex")}, tmp_path / "whole.pth")
    model = load_lpips(tmp_path / "whole.pth", net="alex")
    a, b = picture(40, 40), picture(40, 40, 1)
    assert torch.equal(model(a, b), alex(a, b))


def test_a_module_of_another_version_is_refused() -> None:
    state = whole_module("alex")
    state["scaling_layer.shift"] = torch.zeros(1, 3, 1, 1)
    with pytest.raises(ModelError, match=r"scaling_layer\.shift = .* is not that of LPIPS v0\.1"):
        Lpips(state, "alex")


@pytest.mark.parametrize("old_format", [False, True])
def test_files_of_torch_are_read(alex: Lpips, tmp_path: Path, old_format: bool) -> None:
    new = not old_format
    torch.save(backbone_weights("alex"), tmp_path / "net.pth", _use_new_zipfile_serialization=new)
    torch.save(head_weights("alex"), tmp_path / "heads.pth", _use_new_zipfile_serialization=new)
    model = load_lpips(tmp_path / "net.pth", tmp_path / "heads.pth", "alex")
    a, b = picture(40, 40), picture(40, 40, 1)
    assert torch.equal(model(a, b), alex(a, b))


UNTOUCHED = Path(tempfile.gettempdir(), "addsr-must-not-exist")


class Evil:
    def __reduce__(self) -> Any:
        return (UNTOUCHED.touch, ())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": 1}, "a in it are no tensors"),
        ([1, 2], "holds list"),
        ({}, "holds dict"),
        ({"features.0.weight": Evil()}, "cannot be read as tensors"),
    ],
)
def test_files_of_something_else_are_refused_and_run_nothing(
    tmp_path: Path, content: object, words: str
) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ModelError, match=rf"odd\.pth: .*{words}"):
        load_lpips(tmp_path / "odd.pth", net="alex")
    assert not UNTOUCHED.exists()


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_missing_and_damaged_files_are_told(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(ModelError, match="no weights file there"):
        load_lpips(path, net="alex")
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ModelError, match=f"{name}: cannot be read as tensors"):
        load_lpips(path, net="alex")


def test_a_digest_in_the_name_must_be_that_of_the_file(tmp_path: Path) -> None:
    torch.save(whole_module("alex"), tmp_path / "plain.pth")
    content = (tmp_path / "plain.pth").read_bytes()
    right = tmp_path / f"whole-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    right.write_bytes(content)
    load_lpips(right, net="alex")
    wrong = tmp_path / "whole-00000000.pth"
    wrong.write_bytes(content)
    with pytest.raises(ModelError, match="and not with 00000000 as its name says; fetch"):
        load_lpips(wrong, net="alex")
