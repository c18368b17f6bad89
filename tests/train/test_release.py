"""The file that ships: an average with its facts in the header, loadable by name or path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from addsr.errors import ConfigError
from addsr.models.files import load_weights, save_weights
from addsr.models.hub import load_model
from addsr.nets import CompactConfig, CompactNet
from addsr.train.release import average, main, release

TINY = CompactConfig(
    widths=(32, 32, 32), depths=(1, 1, 1), decoder_widths=(32, 16, 16), decoder_depth=1,
    time_channels=32, lr_channels=8, context_channels=16,
)  # fmt: skip


def trained(path: Path, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    state = {k: v.half() for k, v in CompactNet(TINY).state_dict().items()}
    metadata = {"kind": "compact", "config": TINY.to_dict(), "task": "student", "step": "7"}
    save_weights(path, state, metadata)
    return state


def test_two_trainings_are_mixed_in_the_stated_proportion(tmp_path: Path) -> None:
    a, b = trained(tmp_path / "a.safetensors", 0), trained(tmp_path / "b.safetensors", 1)
    target = tmp_path / "compact.safetensors"
    release(
        [tmp_path / "a.safetensors", tmp_path / "b.safetensors"],
        target,
        weights=[3, 1],
        run="test",
        default_steps=2,
        fidelity=0.7,
    )
    state, metadata = load_weights(target)
    for name in a:
        mean = 0.75 * a[name].float() + 0.25 * b[name].float()
        torch.testing.assert_close(state[name].float(), mean, atol=1e-3, rtol=1e-3)
        assert state[name].dtype == torch.float16
    assert metadata["run"] == "test" and metadata["step"] == "7+7"
    info = load_model(target).info
    assert (info.default_steps, info.default_fidelity, info.default_color) == (2, 0.7, "wavelet")


def test_networks_of_other_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="different networks"):
        average([{"a": torch.zeros(2)}, {"a": torch.zeros(3)}], [1, 1])
    with pytest.raises(ConfigError, match="give 2 numbers"):
        average([{"a": torch.zeros(2)}] * 2, [1])


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "none.safetensors")
    assert main([missing, "-o", str(tmp_path / "o.safetensors"), "--run", "x"]) == 1
    assert "no weights file there" in capsys.readouterr().err
    trained(tmp_path / "a.safetensors", 0)
    output = tmp_path / "o.safetensors"
    assert main([str(tmp_path / "a.safetensors"), "-o", str(output), "--run", "x"]) == 0
    assert output.is_file()
