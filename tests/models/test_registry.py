"""A model says what it allows, and refuses the rest in one sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from addsr.diffusion.schedule import LEVELS
from addsr.errors import ModelError, OptionError
from addsr.image.tiling import smallest_tile
from addsr.models.registry import COMPACT, MODELS, info_for_file
from addsr.nets import CompactNet


def test_defaults_are_among_what_is_allowed() -> None:
    for name, info in MODELS.items():
        assert info.name == name
        assert info.default_steps in info.steps and set(info.steps) <= set(LEVELS)
        assert 0 <= info.default_fidelity <= 1
        assert info.default_color in ("wavelet", "adain", "none")
        assert info.best_tile >= smallest_tile(info.halo, info.blend, info.multiple)
        assert info.check_steps(None) == info.default_steps
        assert info.check_fidelity(None) == info.default_fidelity


def test_the_steps_are_those_of_the_schedule() -> None:
    assert COMPACT.steps == tuple(LEVELS)


def test_compact_states_what_its_network_is() -> None:
    assert (COMPACT.scale, COMPACT.multiple) == (CompactNet.scale, CompactNet.multiple)


def test_wrong_steps_and_fidelity_name_the_allowed() -> None:
    with pytest.raises(OptionError, match="steps: 3 is not possible with compact; use 1, 2, 4"):
        COMPACT.check_steps(3)
    for value in (-0.1, 1.5, float("nan")):
        with pytest.raises(OptionError, match=r"fidelity: .* is outside of 0 to 1"):
            COMPACT.check_fidelity(value)


def test_a_model_without_the_knob_refuses_the_flag_in_one_sentence() -> None:
    plain = replace(COMPACT, name="plain", fidelity_drives=None)
    assert plain.check_fidelity(None) == plain.default_fidelity
    with pytest.raises(OptionError) as caught:
        plain.check_fidelity(0.5)
    assert str(caught.value) == "fidelity: model plain has no fidelity knob; leave --fidelity out"


def test_a_file_may_change_its_own_facts_and_nothing_else() -> None:
    own = '{"steps": [1], "default_steps": 1, "fidelity_drives": null, "halo": 0}'
    info = info_for_file("a.safetensors", {"kind": "compact", "info": own}, 1.5)
    assert info.steps == (1,) and info.fidelity_drives is None and info.size_mb == 1.5
    assert info.halo == COMPACT.halo and info.licence == "not stated"


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ('{"steps": [3], "default_steps": 3}', r"steps = \[3\] .* some of \(1, 2, 4\)"),
        ('{"steps": []}', r"steps = \[\] is not allowed"),
        ('{"steps": 4}', "steps = 4 is not allowed"),
        ('{"steps": [true]}', r"steps = \[True\] is not allowed"),
        ('{"steps": [2, 4]}', r"default_steps = 1 .* one of the steps \[2, 4\]"),
        ('{"default_steps": "1"}', "default_steps = '1' is not allowed"),
        ('{"default_color": "pink"}', "default_color = 'pink' .* one of wavelet, adain, none"),
        ('{"default_fidelity": 1.5}', "default_fidelity = 1.5 .* a number from 0 to 1"),
        ('{"default_fidelity": NaN}', "default_fidelity = nan is not allowed"),
        ('{"default_fidelity": "1"}', "default_fidelity = '1' is not allowed"),
        ('{"fidelity_drives": 1}', "fidelity_drives = 1 .* a text, or null"),
        ("[1]", r"info = \[1\] .* a table of fields"),
        ("[]", r"info = \[\] is not allowed"),
        ("{", "its info entry is no JSON"),
    ],
)
def test_a_file_with_facts_that_cannot_be_names_them(own: str, message: str) -> None:
    with pytest.raises(ModelError, match=rf"^a\.safetensors: .*{message}"):
        info_for_file("a.safetensors", {"kind": "compact", "info": own}, 1.0)


def test_a_wider_network_is_planned_with_more_memory() -> None:
    wide = {"kind": "compact", "config": {"decoder_widths": [192, 128, 128]}}
    info = info_for_file("wide", wide, 1.0)
    assert info.tile_bytes_per_pixel == 2 * COMPACT.tile_bytes_per_pixel
    for widths in (["a", "b", "c"], [10**400] * 3, [True, 1, 1]):
        odd = {"kind": "compact", "config": {"decoder_widths": widths}}
        assert info_for_file("odd", odd, 1.0).tile_bytes_per_pixel == COMPACT.tile_bytes_per_pixel


@pytest.mark.parametrize(
    "metadata", [{"kind": "discriminator"}, {}, {"kind": "compact", "info": "x"}]
)
def test_files_that_cannot_upscale_are_refused(metadata: dict[str, str]) -> None:
    with pytest.raises(ModelError, match=r"^a\.safetensors: "):
        info_for_file("a.safetensors", metadata, 1.0)
