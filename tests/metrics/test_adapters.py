"""Adapters against stand-ins for the packages, which are not needed for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from addsr.errors import DependencyError, InputError
from addsr.metrics.adapters import ADAPTERS, Adapter, clipiqa, fid, maniqa, musiq


def picture(seed: int = 0, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, 20, 24, generator=torch.Generator().manual_seed(seed))


PACKAGES = ("pyiqa", "torchmetrics", "torchmetrics.multimodal", "torchmetrics.image.fid", "piq",
            "transformers", "torch_fidelity", "torchvision")  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports of these packages fail, whatever this machine has."""
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]


@pytest.fixture()
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def put(name: str, **content: Any) -> None:
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)

    return put


@pytest.fixture()
def pyiqa(install: Callable[..., None]) -> list[tuple[str, str]]:
    """A stand-in whose metric is the mean; gives the names and devices it was asked for."""
    asked: list[tuple[str, str]] = []

    def create_metric(name: str, device: str) -> Callable[..., Tensor]:
        asked.append((name, device))
        return lambda x: x.mean().view(1, 1) * 100

    install("pyiqa", create_metric=create_metric, __version__="0.1.16")
    return asked


def test_no_figure_of_another_package_counts_as_verified() -> None:
    assert set(ADAPTERS) == {"fid", "musiq", "maniqa", "clipiqa"}
    assert not any(adapter.verified for adapter in ADAPTERS.values())
    assert {a.name for a in ADAPTERS.values() if a.is_of_set} == {"fid"}
    assert [a.higher_is_better for a in (musiq, maniqa, clipiqa, fid)] == [True, True, True, False]


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
def test_without_a_package_it_says_what_to_install(adapter: Adapter) -> None:
    missing = adapter.missing()
    assert missing is not None and adapter.source() is None
    assert missing.startswith(f"{adapter.name}: package pyiqa is not installed (`pip install pyiqa")
    with pytest.raises(DependencyError, match="pip install pyiqa"):
        adapter.load()


def test_every_route_is_named_with_the_part_it_lacks(install: Callable[..., None]) -> None:
    install("torchmetrics")
    missing = fid.missing()
    assert missing is not None and "pip install pyiqa" in missing
    assert "package torch_fidelity is not installed (`pip install torchmetrics torch-fid" in missing


def test_a_package_that_cannot_be_imported_gives_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyiqa.py").write_text("raise RuntimeError('torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pyiqa")
    assert "package pyiqa cannot be imported (torchvision::nms does not" in str(musiq.missing())


def test_a_package_that_lacks_a_part_of_its_own_names_the_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyiqa.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pyiqa")
    assert "package not_there_at_all, which pyiqa needs, is not installed" in str(musiq.missing())


@pytest.mark.parametrize(
    ("adapter", "name"), [(musiq, "musiq"), (maniqa, "maniqa-pipal"), (clipiqa, "clipiqa")]
)
def test_pictures_are_scored_one_by_one(
    pyiqa: list[tuple[str, str]], adapter: Adapter, name: str
) -> None:
    assert adapter.missing() is None and adapter.source() == "pyiqa 0.1.16"
    score = adapter.load("cpu")
    assert pyiqa == [(name, "cpu")]
    image = picture(batch=3)
    figures = score(image)
    assert figures.dtype == torch.float64
    assert figures.tolist() == pytest.approx((image.mean((1, 2, 3)) * 100).tolist(), rel=1e-6)
    with pytest.raises(InputError, match="no picture"):
        score(image[0])


def test_chance_in_a_package_is_the_same_each_time_and_ours_is_left_alone(
    install: Callable[..., None],
) -> None:
    def draw(_: Tensor) -> Tensor:
        return torch.rand(1) + float(np.random.rand())

    install("pyiqa", create_metric=lambda _name, device: draw)
    score = maniqa.load()
    torch.manual_seed(7)
    np.random.seed(7)
    first = score(picture(batch=2))
    assert first[0] == first[1]
    np.random.seed(8)
    assert torch.equal(score(picture(batch=2)), first)
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(1))


def test_a_package_that_fails_is_told_with_the_likely_cause(install: Callable[..., None]) -> None:
    def fail(_name: str, device: str) -> None:
        raise OSError("no route to host")

    install("pyiqa", create_metric=fail)
    with pytest.raises(DependencyError, match=r"pyiqa cannot make it \(no route to host\); it fet"):
        musiq.load()


class FakeClip:
    def __init__(self, model_name_or_path: str) -> None:
        assert model_name_or_path == "clip_iqa"
        self.figures: list[float] = []

    def to(self, device: str) -> FakeClip:
        return self

    def reset(self) -> None:
        self.figures = []

    def update(self, image: Tensor) -> None:
        self.figures.append(float(image.mean()))

    def compute(self) -> Tensor:
        return torch.tensor(self.figures).squeeze()


def test_clipiqa_comes_from_torchmetrics_where_there_is_no_pyiqa(
    install: Callable[..., None],
) -> None:
    for name in ("torchmetrics", "piq", "transformers"):
        install(name)
    install("torchmetrics.multimodal", CLIPImageQualityAssessment=FakeClip)
    assert clipiqa.source() == "torchmetrics ?"
    image = picture(batch=2)
    expected = image.mean((1, 2, 3)).tolist()
    assert clipiqa.load()(image).tolist() == pytest.approx(expected, rel=1e-6)


class FakeInception:
    def __init__(self, feature: int, normalize: bool) -> None:
        assert feature == 2048 and normalize
        self.sums = {True: 0.0, False: 0.0}

    def to(self, device: str) -> FakeInception:
        return self

    def update(self, image: Tensor, real: bool) -> None:
        self.sums[real] += float(image.mean())

    def compute(self) -> Tensor:
        return torch.tensor(self.sums[True] - self.sums[False])


def test_fid_by_torchmetrics_takes_pictures_as_they_come(install: Callable[..., None]) -> None:
    for name in ("torchmetrics", "torch_fidelity"):
        install(name)
    install("torchmetrics.image.fid", FrechetInceptionDistance=FakeInception)
    score = fid.load()
    for _ in range(2):  # nothing stays from the first time
        figure = score(iter([torch.zeros(1, 3, 8, 8)]), iter([torch.ones(1, 3, 8, 8)] * 2))
        assert figure == pytest.approx(2)


def test_fid_by_pyiqa_gets_folders_of_lossless_files(install: Callable[..., None]) -> None:
    seen: dict[str, list[np.ndarray[Any, Any]]] = {}

    def compare(results: str, references: str) -> float:
        for folder in (results, references):
            files = sorted(Path(folder).iterdir())
            seen[Path(folder).name] = [np.asarray(Image.open(file)) for file in files]
        return 12.5

    install("pyiqa", create_metric=lambda _name, device: compare)

    def pictures(seed: int) -> Iterator[Tensor]:
        yield picture(seed, batch=2)
        yield picture(seed + 1)

    assert fid.load()(pictures(0), pictures(5)) == 12.5
    assert [len(seen[name]) for name in ("results", "references")] == [3, 3]
    expected = (picture(6)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(seen["references"][2], expected)


def test_fid_of_less_than_two_pictures_is_refused(install: Callable[..., None]) -> None:
    install("pyiqa", create_metric=lambda _name, device: SimpleNamespace())
    with pytest.raises(InputError, match="1 in a set"):
        fid.load()([picture()], [picture(), picture()])
