"""The regression behind BRISQUE, read from each of the layouts in which it is published.

Support vectors and their weights come as

- libsvm's text (`allmodel` of the authors' release), with svm-scale's range file beside it;
- OpenCV's YAML (`brisque_model_live.yml`), with `brisque_range_live.yml` beside it;
- a `.pth` or `.safetensors` of `sv_coef` and `sv`, as piq and pyiqa publish the authors' model.

The files are read as data: no code in them runs, and nothing but these layouts is guessed at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from addsr.errors import ModelError

FEATURES = 36
MAX_BYTES = 64 * 2**20
"""Largest text that is parsed; the published ones are below 1 MiB."""

# The authors' release: `allmodel` and `allrange`, trained on the whole LIVE database. Files that
# hold the support vectors alone belong to it.
_GAMMA, _RHO, _COUNT = 0.05, -153.591, 774
# fmt: off
_LOW = (
    0.338, 0.017204, 0.236, -0.123884, 0.000155, 0.001122, 0.244, -0.123586, 0.000152, 0.000975,
    0.249, -0.135687, 0.000174, 0.000913, 0.258, -0.143408, 0.000179, 0.000888, 0.471, 0.012809,
    0.218, -0.094876, 1.5e-5, 0.001272, 0.222, -0.115772, 1.6e-5, 0.001374, 0.227, -0.117188,
    3e-5, 0.001122, 0.228, -0.12243, 2.8e-5, 0.001118,
)
_HIGH = (
    10, 0.806612, 1.642, 0.20293, 0.712298, 0.470257, 1.641, 0.179083, 0.710456, 0.470984,
    1.555, 0.100858, 0.684173, 0.534174, 1.561, 0.100486, 0.685696, 0.536508, 3.264, 0.703171,
    1.046, 0.187459, 0.442057, 0.40803, 1.042, 0.162604, 0.444362, 0.40243, 0.996, 0.098323,
    0.531903, 0.369589, 0.99, 0.098658, 0.530092, 0.370399,
)
# fmt: on

_NUMBER = r"[-+]?[\d.]+(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class BrisqueModel:
    """A support vector regression with a radial kernel over 36 features, float64 on the CPU."""

    vectors: Tensor
    """Support vectors `(n, 36)`, scaled as the features are."""
    weights: Tensor
    """Their weights `(n,)`."""
    gamma: float
    """The kernel is exp(-gamma d^2)."""
    rho: float
    """What is taken off the sum."""
    low: Tensor
    high: Tensor
    """The features' range `(36,)` in training, which is scaled to -1..1."""
    convention: Literal["matlab", "opencv"] = "matlab"
    """Whose features it was trained with (`brisque_features`); OpenCV also clamps to 0..100."""

    def __post_init__(self) -> None:
        count = len(self.weights)
        shapes = [tuple(x.shape) for x in (self.vectors, self.weights, self.low, self.high)]
        if shapes != [(count, FEATURES), (count,), (FEATURES,), (FEATURES,)] or not count:
            raise ModelError(
                f"BRISQUE model: vectors {shapes[0]}, weights {shapes[1]}, range {shapes[2]} to "
                f"{shapes[3]} must be (n, 36), (n,), (36,) and (36,); give a published model"
            )
        numbers = torch.cat([self.vectors.flatten(), self.weights, self.low, self.high])
        scalars = torch.tensor([self.gamma, self.rho])
        if not numbers.isfinite().all() or not scalars.isfinite().all():
            raise ModelError("BRISQUE model: holds values that are no numbers; fetch it again")
        if self.gamma <= 0 or not (self.low < self.high).all():
            raise ModelError(
                f"BRISQUE model: gamma {self.gamma} must be positive and every feature's lowest "
                "value below its highest; fetch it again"
            )

    def predict(self, features: Tensor) -> Tensor:
        """Scores `(B,)` of features `(B, 36)`, lower is better."""
        scaled = 2 * (features - self.low) / (self.high - self.low) - 1
        square = (scaled[:, None] - self.vectors).square().sum(-1)  # (B, n)
        score = torch.exp(-self.gamma * square) @ self.weights - self.rho
        return score.clamp(0, 100) if self.convention == "opencv" else score


def load_brisque(path: str | Path, range_path: str | Path | None = None) -> BrisqueModel:
    """The model in `path`; the layout is told by the content.

    `range_path` is the range file of a text or YAML model; None looks beside the model for its
    name with `range` for `model` (`allrange`, `brisque_range_live.yml`). The authors' own
    `allmodel` is known and needs none.

    Raises:
        ModelError: a file is missing, damaged, of an unknown layout, or no radial regression.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(
            f"{path}: no BRISQUE model there; give allmodel, brisque_model_live.yml or "
            "brisque_svm_weights.pth"
        )
    try:
        with path.open("rb") as file:
            start = file.read(64)
        # a zip or a pickle, as torch.save writes them
        if path.suffix == ".safetensors" or start.startswith((b"PK", b"\x80")):
            return _from_tensors(path)
        beside = path.with_name(path.name.replace("model", "range"))
        found = Path(range_path) if range_path else beside if beside != path else None
        if start.startswith(b"svm_type"):
            return _from_libsvm(path, found, needs_range=range_path is not None)
        if start.startswith(b"%YAML"):
            return _from_opencv(path, found)
    except (OSError, ValueError, IndexError, OverflowError, RuntimeError) as error:
        raise ModelError(f"{path}: is no whole BRISQUE model ({error}); fetch it again") from error
    raise ModelError(
        f"{path}: a BRISQUE model of unknown layout, it begins with {start[:16]!r}; give libsvm's "
        "text (allmodel), OpenCV's YAML (brisque_model_live.yml), or a .pth or .safetensors with "
        "sv and sv_coef"
    )


def _from_libsvm(path: Path, range_path: Path | None, needs_range: bool) -> BrisqueModel:
    """svm-train's text: lines of `name value`, `SV`, then `weight 1:x 2:x ...` for each vector."""
    head, mark, body = _text(path).partition("\nSV\n")
    fields = dict(line.split(maxsplit=1) for line in head.splitlines() if " " in line)
    kinds = fields.get("svm_type"), fields.get("kernel_type")
    if not mark or kinds[0] not in {"epsilon_svr", "nu_svr"} or kinds[1] != "rbf":
        raise ModelError(
            f"{path}: svm_type {kinds[0]} with kernel_type {kinds[1]} is not what BRISQUE is made "
            "of; give a regression (epsilon_svr) with a radial kernel (rbf)"
        )
    missing = [name for name in ("gamma", "rho", "total_sv") if name not in fields]
    if missing:
        raise ModelError(f"{path}: lacks {', '.join(missing)}; fetch it again")
    rows = [line.split() for line in body.splitlines() if line.strip()]
    count = int(fields["total_sv"])
    if len(rows) != count:
        raise ModelError(f"{path}: holds {len(rows)} of {count} support vectors; fetch it again")
    vectors = torch.zeros(count, FEATURES, dtype=torch.float64)
    for i, (_, *entries) in enumerate(rows):
        for entry in entries:
            index, _, value = entry.partition(":")
            if not 1 <= int(index) <= FEATURES:
                raise ModelError(f"{path}: feature {index}; BRISQUE has {FEATURES} features")
            vectors[i, int(index) - 1] = float(value)
    weights = torch.tensor([float(row[0]) for row in rows], dtype=torch.float64)
    gamma, rho = float(fields["gamma"]), float(fields["rho"])
    if range_path is not None and (needs_range or range_path.is_file()):
        low, high = _range_of_svm_scale(range_path)
    elif (gamma, rho, count) == (_GAMMA, _RHO, _COUNT):
        low, high = _published_range()
    else:
        raise ModelError(
            f"{path}: the range of its features is not known; put svm-scale's range file beside it "
            "under the model's name with 'range' for 'model', or name it"
        )
    return BrisqueModel(vectors, weights, gamma, rho, low, high)


def _range_of_svm_scale(path: Path) -> tuple[Tensor, Tensor]:
    """`x`, the scaled limits, then a line of `index lowest highest` for each feature."""
    lines = [line.split() for line in _text(path).splitlines() if line.strip()]
    if lines[:1] != [["x"]] or [float(v) for v in lines[1]] != [-1, 1]:
        raise ModelError(
            f"{path}: is no range file of svm-scale with limits -1 and 1 ('x', '-1 1', then 36 "
            "lines of index, lowest, highest)"
        )
    if [int(line[0]) for line in lines[2:]] != list(range(1, FEATURES + 1)):
        raise ModelError(
            f"{path}: holds the ranges of {len(lines) - 2} features and not of 1 to {FEATURES}; "
            "give the file that belongs to the model"
        )
    table = torch.tensor([[float(v) for v in line[1:3]] for line in lines[2:]], dtype=torch.float64)
    return table[:, 0], table[:, 1]


def _from_opencv(path: Path, range_path: Path | None) -> BrisqueModel:
    """What cv::ml::SVM::save writes; only the entries that matter are looked for."""
    text = _text(path)
    kinds = _entry(text, r"svm_?[tT]ype", r"\w+"), _entry(text, "type", r"\w+")
    if kinds[0] not in {"EPS_SVR", "NU_SVR"} or kinds[1] != "RBF":
        raise ModelError(
            f"{path}: svmType {kinds[0]} with kernel {kinds[1]} is not what BRISQUE is made of; "
            "give a regression (EPS_SVR) with a radial kernel (RBF)"
        )
    listed, mark, decision = text.partition("decision_functions:")
    gamma, rho = _entry(text, "gamma", _NUMBER), _entry(decision, "rho", _NUMBER)
    weights = _entry(decision, "alpha", r"\[[^]]*\]")
    if not mark or gamma is None or rho is None or weights is None:
        raise ModelError(f"{path}: lacks gamma, rho or alpha; fetch it again")
    rows = [_numbers(row) for row in re.findall(r"\[[^]]*\]", listed.split("support_vectors:")[-1])]
    order = _entry(decision, "index", r"\[[^]]*\]")
    if order is not None:
        rows = [rows[int(i)] for i in _numbers(order)]
    if range_path is None or not range_path.is_file():
        raise ModelError(
            f"{path}: the range of its features is not known; put brisque_range_live.yml beside it "
            "under the model's name with 'range' for 'model', or name it"
        )
    table = _entry(_text(range_path), "data", r"\[[^]]*\]")
    limits = _numbers(table or "")
    if len(limits) != 2 * FEATURES:
        raise ModelError(
            f"{range_path}: holds {len(limits)} numbers and not {2 * FEATURES}, the lowest and "
            "the highest of each feature; give the file that belongs to the model"
        )
    low, high = torch.tensor(limits, dtype=torch.float64).view(2, FEATURES)
    return BrisqueModel(
        torch.tensor(rows, dtype=torch.float64),
        torch.tensor(_numbers(weights), dtype=torch.float64),
        float(gamma),
        float(rho),
        low,
        high,
        "opencv",
    )


def _from_tensors(path: Path) -> BrisqueModel:
    """`sv_coef` and `sv`, named or as a pair; `gamma`, `rho` and `range` (2, 36) may be there."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: object = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen kinds for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{path}: cannot be read as tensors ({reason}); give a .safetensors file or one of "
            "plain tensors written by torch.save"
        ) from error
    if isinstance(content, tuple | list):
        content = dict(zip(("sv_coef", "sv"), cast("list[object]", content), strict=False))
    entries = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
    found = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    if "sv" not in found or "sv_coef" not in found:
        raise ModelError(
            f"{path}: a BRISQUE model of unknown layout, it holds {sorted(map(str, entries))[:5]}; "
            "give a file with the tensors sv and sv_coef"
        )
    weights, vectors = (found[name].detach().double() for name in ("sv_coef", "sv"))
    low, high = found["range"].double() if "range" in found else _published_range()
    gamma, rho = (
        float(found[name]) if name in found else value
        for name, value in (("gamma", _GAMMA), ("rho", _RHO))
    )
    return BrisqueModel(vectors, weights.flatten(), gamma, rho, low, high)


def _published_range() -> tuple[Tensor, Tensor]:
    return torch.tensor(_LOW, dtype=torch.float64), torch.tensor(_HIGH, dtype=torch.float64)


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(f"{path}: is over {MAX_BYTES >> 20} MiB; that is no BRISQUE model")
    return path.read_text(encoding="utf-8", errors="strict")


def _entry(text: str, name: str, pattern: str) -> str | None:
    """The first value of a YAML entry, in block or flow style."""
    found = re.search(rf"(?:^|[\s{{]){name}:\s*({pattern})", text)
    return found[1] if found else None


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.strip("[] \n").split(",") if number.strip()]
