"""phi' from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from addsr.errors import ModelError
from addsr.models import phi
from addsr.models.files import save_weights
from addsr.models.phi import has_phi, load_phi
from addsr.nets import FeatureNet, FeatureNetConfig

TINY = FeatureNetConfig(widths=(4, 6, 8))


def write(path: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    state = {k: v.half() for k, v in FeatureNet(TINY).state_dict().items()}
    save_weights(path, state, {"kind": "features", "config": TINY.to_dict(), **changes})
    return path


def test_the_net_in_a_file_is_rebuilt_frozen_and_in_fp32(tmp_path: Path) -> None:
    net = load_phi(write(tmp_path / "phi.safetensors"))
    assert net.config == TINY and not net.training
    torch.manual_seed(0)
    expected = FeatureNet(TINY).state_dict()
    for name, value in net.named_parameters():
        assert not value.requires_grad and torch.equal(value, expected[name].half().float())


def test_the_packaged_weights_are_taken_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phi, "embedded", lambda name: tmp_path / f"{name}.safetensors")
    assert not has_phi()
    with pytest.raises(ModelError, match=r"missing from this installation.*give the path"):
        load_phi()
    write(tmp_path / "phi.safetensors")
    assert has_phi() and load_phi().config == TINY


def test_this_package_tells_degradations_apart() -> None:
    net = load_phi()
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.interpolate(x, size=(128, 128), mode="bicubic").clamp(0, 1)
    noise = torch.randn(smooth.shape, generator=torch.Generator().manual_seed(2))
    grey = smooth.mean(dim=1, keepdim=True).expand_as(smooth)
    plain, noisy, grey_one = (
        net(picture)[0][0] for picture in (smooth, (smooth + 0.08 * noise).clamp(0, 1), grey)
    )
    assert noisy[1] > plain[1] + 0.3, "the second strength is that of noise"
    assert grey_one[5] > plain[5] + 0.3, "the sixth is that of a blend with grey"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "compact"}, "kind 'compact', which give no features"),
        ({"config": {"widths": [4, 6, 10]}}, "the weights do not fit"),
        ({"config": {"widths": "wide"}}, "config of kind 'features' is not understood"),
    ],
)
def test_other_weights_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = write(tmp_path / "odd.safetensors", **changes)
    with pytest.raises(ModelError, match=rf"odd\.safetensors: .*{words}"):
        load_phi(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights file there"):
        load_phi(tmp_path / "none.safetensors")
