"""Golden fixtures, each output of each, through the script that checks other sets of them too."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
NAMES = sorted(file.stem for file in GOLDEN.glob("*.safetensors"))


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    spec = importlib.util.spec_from_file_location("addsr_parity", HERE / "parity.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_our_modules_give_the_published_numbers(parity: ModuleType, name: str) -> None:
    results, left = parity.run(parity.Fixture(GOLDEN, name))
    assert results
    assert [result for result in results if not result.is_right] == []
    assert {output.split("_")[0] for output in left} <= {"niqe"}  # needs a file of others


def test_a_wrong_number_is_found(
    parity: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(GOLDEN / "stablesr_schedule.json", tmp_path)
    tensors = load_file(GOLDEN / "stablesr_schedule.safetensors")
    tensors["output/v_mid/x0"][0, 0, 0, 0] += 0.01
    tensors["output/of_the_future"] = torch.zeros(1)
    save_file(tensors, tmp_path / "stablesr_schedule.safetensors")
    assert parity.main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line.split()[0] for line in lines if "FAIL" in line]
    assert failed == ["v_mid/x0", "of_the_future"]
    assert lines[-1].endswith("2 wrong, 0 not checked")


def test_fixtures_of_other_systems_are_listed_and_do_no_harm(
    parity: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parity.main([str(tmp_path)]) == 2
    for name in ("stablesr_schedule.json", "stablesr_schedule.safetensors"):
        shutil.copy(GOLDEN / name, tmp_path)
    (tmp_path / "other_net.json").write_text(json.dumps({"fixture": "other_net"}))
    save_file({"output/x": torch.zeros(1)}, tmp_path / "other_net.safetensors")
    assert parity.main([str(tmp_path)]) == 0
    assert "not covered yet: other_net" in capsys.readouterr().out
    assert parity.main([str(tmp_path), "--only", "metrics"]) == 2
