"""The maker of the packaged NIQE model (benchmarks/fit_niqe.py)."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from addsr.metrics.niqe import fit_niqe, load_niqe_params
from addsr.metrics.pictures import picture_files, read_picture

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fit_niqe.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fit_niqe", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(generator.integers(0, 256, (192, 192, 3), dtype=np.uint8)).save(
            folder / f"{i:02}.png"
        )
    return folder


def test_the_script_fits_a_model_and_says_to_what(
    script: ModuleType, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "model.npz"
    script.main([str(photos), "-o", str(output)])
    params = load_niqe_params(output)
    expected = fit_niqe(read_picture(file) for file in picture_files(photos).values())
    assert torch.allclose(params.mean, expected.mean, rtol=1e-9)
    assert torch.allclose(params.covariance, expected.covariance, rtol=1e-6, atol=1e-12)
    content = b"".join(file.read_bytes() for file in sorted(photos.iterdir()))
    assert hashlib.sha256(content).hexdigest() in params.provenance
    assert "12 crops of freely licensed photos (photos;" in params.provenance
