"""Published tiny decoders under our names: none lost, none left, none guessed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from addsr.errors import ModelError
from addsr.models.convert_tiny import check_name, convert_tiny, is_tiny
from addsr.nets.tiny_decoder import TinyDecoder, TinyDecoderConfig

pytest.importorskip("diffusers", reason="the diffusion extra is not installed")
State = dict[str, Tensor]
SHAPE = TinyDecoderConfig(8, (2, 1, 1))


@pytest.fixture()
def ours() -> State:
    return TinyDecoder(SHAPE).state_dict()


@pytest.fixture()
def alone(ours: State) -> State:
    """As taesd_decoder.pth has it: a clamp comes first and counts as a layer."""
    state = {}
    for name, tensor in ours.items():
        _, _, place, rest = name.split(".", 3)
        state[f"{int(place) + 1}.{rest}"] = tensor
    return state


def test_the_decoder_alone_is_renamed(alone: State, ours: State) -> None:
    found = convert_tiny(alone)
    assert found.config == SHAPE and not found.left_out
    assert found.state.keys() == ours.keys()
    assert all(torch.equal(found.state[k], v) for k, v in ours.items())


def test_the_published_names_are_those() -> None:
    with torch.device("meta"):
        state = {k.split(".", 2)[2]: v for k, v in TinyDecoder().state_dict().items()}
    convs = [k for k in state if k.endswith("weight") and ".conv." not in k]
    # after the shift by one: 1, 7, 12, 17 and 19 of taesd's sequence
    assert convs == ["0.weight", "6.weight", "11.weight", "16.weight", "18.weight"]
    assert "6.bias" not in state and "18.bias" in state


def test_the_encoder_beside_it_is_left_out_and_told(ours: State) -> None:
    found = convert_tiny({**ours, "encoder.layers.0.weight": torch.zeros(8, 3, 3, 3)})
    assert found.left_out == ("encoder.layers.0.weight",) and found.state.keys() == ours.keys()


def test_other_networks_are_not_taken_for_it(alone: State) -> None:
    assert is_tiny(alone)
    assert not is_tiny({"1.weight": torch.zeros(8, 4, 3, 3)})
    assert not is_tiny({"1.weight": torch.zeros(8, 4), "3.conv.0.weight": torch.zeros(8, 8)})
    assert not is_tiny({"encoder.layers.0.weight": torch.zeros(8, 3, 3, 3)})
    with pytest.raises(ModelError, match="no tiny decoder"):
        convert_tiny({"weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("7.conv.2.weight", r"1 tensors missing \(decoder\.layers\.6\.conv\.2\.weight\)"),
        ("1.bias", r"1 tensors missing \(decoder\.layers\.0\.bias\)"),
    ],
)
def test_a_missing_tensor_is_named(alone: State, name: str, message: str) -> None:
    del alone[name]
    with pytest.raises(ModelError, match=message):
        convert_tiny(alone)


@pytest.mark.parametrize("name", ["0.weight", "99999.weight", "head.weight", "encoder.x"])
def test_an_unknown_tensor_is_named(alone: State, name: str) -> None:
    alone[name] = torch.zeros(1)
    with pytest.raises(ModelError, match=rf"1 unknown tensors \({name}\)"):
        convert_tiny(alone)


def test_a_sequence_with_one_layer_more_is_refused(alone: State) -> None:
    alone["40.weight"] = torch.zeros(3, 8, 3, 3)
    with pytest.raises(ModelError, match="tiny decoder"):
        convert_tiny(alone)


def test_decoders_for_other_latents_are_refused(alone: State) -> None:
    alone["1.weight"] = torch.zeros(8, 16, 3, 3)
    with pytest.raises(ModelError, match="for latents of 16 channels; Stable Diffusion 2's have 4"):
        convert_tiny(alone)
    with pytest.raises(ModelError, match="Stable Diffusion XL; give taesd_decoder"):
        check_name(Path("folder/taesdxl_decoder.pth"))
    check_name(Path("taesdxl/taesd_decoder.pth"))
