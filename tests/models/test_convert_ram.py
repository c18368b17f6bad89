"""Published tensors of RAM and DAPE under our names: none lost, none left, none guessed."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from addsr.errors import ModelError
from addsr.models.convert_ram import convert_ram, has_updates, has_weights, our_name
from addsr.nets.ram import LoraConfig, Ram, add_lora

State = dict[str, Tensor]
HEAD = "tagging_head.encoder.layer.0.crossattention.self.query"
SHARED = HEAD.replace("tagging_head", "tag_encoder")


def test_shape_is_deduced_and_text_modules_and_tables_are_left_out(ram_state: State) -> None:
    converted = convert_ram(ram_state)
    swin, head = converted.config.swin, converted.config.head
    assert (swin.side, swin.patch, swin.width, swin.window) == (32, 4, 8, 4)
    assert (swin.depths, swin.heads, swin.mlp_ratio) == ((2, 2), (2, 4), 4.0)
    assert (head.tokens, head.width, head.inner, head.layers) == (12, 8, 16, 2)
    assert (converted.config.tags, converted.config.label_width) == (6, 10)
    starts = {name.split(".")[0] for name in converted.ignored}
    assert starts == {"tag_encoder", "text_decoder", "visual_encoder"}
    assert len(converted.state) + len(converted.ignored) == len(ram_state)
    assert (converted.merged, converted.lora) == (0, {})
    Ram(converted.config).load_state_dict(converted.state, strict=True)


def test_older_name_of_the_tag_head_is_known(ram_state: State) -> None:
    older = {k.replace("tagging_head.", "vision_multi."): v for k, v in ram_state.items()}
    assert convert_ram(older).state.keys() == convert_ram(ram_state).state.keys()


def test_updates_are_merged_into_queries_and_values_alone(
    ram_state: State, dape_state: State
) -> None:
    plain, merged = convert_ram(ram_state), convert_ram(ram_state, dape_state)
    changed = {k for k, v in merged.state.items() if not torch.equal(v, plain.state[k])}
    assert merged.merged == len(changed) == 8
    name = "visual_encoder.layers.1.blocks.0.attn.qkv"
    change = merged.state["swin.stages.1.0.qkv.weight"] - plain.state["swin.stages.1.0.qkv.weight"]
    down, up = dape_state[f"{name}.lora_A"], dape_state[f"{name}.lora_B"]
    torch.testing.assert_close(change[:16], up[:16] @ down[:8] / 8)
    assert not change[16:32].any()
    torch.testing.assert_close(change[32:], up[16:] @ down[8:] / 8)


def test_updates_can_stay_apart(ram_state: State, dape_state: State) -> None:
    image = torch.randn(1, 3, 32, 32)
    results = []
    for merge in (True, False):
        converted = convert_ram(ram_state, dape_state, merge=merge)
        net = Ram(converted.config)
        if not merge:
            add_lora(net)
        net.load_state_dict({**converted.state, **converted.lora}, strict=True)
        with torch.no_grad():
            results.append(net.eval()(image).logits)
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


def test_trained_updates_of_the_tag_encoder_are_added_to_the_matrices_it_shares(
    ram_state: State, dape_state: State
) -> None:
    trained = dict(dape_state)
    trained[f"{SHARED}.lora_B"] = torch.randn(8, 8)
    before = convert_ram(ram_state, dape_state).state["head.layers.0.query.weight"]
    after = convert_ram(ram_state, trained).state["head.layers.0.query.weight"]
    added = trained[f"{SHARED}.lora_B"] @ trained[f"{SHARED}.lora_A"] / 8
    torch.testing.assert_close(after - before, added, rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match=r"encoder has an update of head\.layers\.0\.query too"):
        convert_ram(ram_state, trained, merge=False)
    # only the layers that the head has count
    trained[SHARED.replace("layer.0", "layer.7") + ".lora_A"] = torch.ones(8, 8)
    assert torch.equal(convert_ram(ram_state, trained).state["head.layers.0.query.weight"], after)


def test_updates_in_the_same_file_as_the_weights_count(ram_state: State, dape_state: State) -> None:
    both = convert_ram({**ram_state, **dape_state})
    apart = convert_ram(ram_state, dape_state)
    assert both.merged == 8
    assert all(torch.equal(v, apart.state[k]) for k, v in both.state.items())


def test_half_precision_is_merged_in_single_and_kept(ram_state: State, dape_state: State) -> None:
    half = convert_ram({k: v.half() for k, v in ram_state.items()}, dape_state)
    assert {v.dtype for v in half.state.values()} == {torch.float16}


def test_dape_alone_is_refused_and_the_way_out_named(dape_state: State) -> None:
    with pytest.raises(ModelError, match=r"give ram_swin_large_14m\.pth with DAPE\.pth"):
        convert_ram(dape_state)


def without(state: State, name: str) -> State:
    assert name in state
    return {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: {**s, "visual_encoder.surprise": s["fc.bias"]}, r"1 unknown tensors \(visual_"),
        (lambda s: without(s, "fc.bias"), r"1 tensors missing \(score\.bias\)"),
        (lambda s: without(s, "label_embed"), "label_embed is missing"),
        (lambda s: {**s, "fc.weight": torch.zeros(1, 9)}, r"score\.weight is \(1, 9\), not \(1, 8"),
        (lambda s: {**s, "visual_encoder.layers.0.blocks.2.norm1.bias": s["fc.bias"]}, "missing"),
        (lambda s: {"a": torch.zeros(1)}, r"1 unknown tensors \(a\)"),
        (lambda s: {**s, "temp": s["fc.bias"]}, r"1 unknown tensors \(temp\).*out with --force"),
        (lambda s: {}, "no layout of RAM"),
        (
            lambda s: {**s, "visual_encoder.patch_embed.proj.weight": torch.zeros(8, 12)},
            "unknown layout",
        ),
        (
            lambda s: {
                **s,
                "visual_encoder.layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(
                    25, 2
                ),
            },
            r"bias_table is|unknown layout",
        ),
    ],
)
def test_other_layouts_of_weights_are_refused(ram_state: State, spoil: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        convert_ram(spoil(ram_state))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: without(s, f"{HEAD}.lora_A"), r"1 low-rank updates missing \(head\.layers\.0"),
        (lambda s: {**s, f"{HEAD}.lora_B": torch.zeros(8, 4)}, r"is \(8, 4\), not \(8, 8\)"),
        (lambda s: without(s, f"{SHARED}.lora_A"), "1 updates missing"),
        (lambda s: {**s, "fc.bias": torch.zeros(1)}, "does not hold low-rank updates alone"),
        (lambda s: {}, "does not hold low-rank updates alone"),
        (
            lambda s: {**s, "visual_encoder.x.lora_A": torch.zeros(1)},
            r"1 unknown tensors \(visual_enc",
        ),
        (
            lambda s: {k: v for k, v in s.items() if not k.startswith("visual_encoder.")},
            "8 low-rank updates missing",
        ),
    ],
)
def test_other_layouts_of_updates_are_refused(
    ram_state: State, dape_state: State, spoil: Any, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        convert_ram(ram_state, spoil(dape_state))


def test_modules_besides_are_left_out_on_demand_and_told(
    ram_state: State, caplog: pytest.LogCaptureFixture
) -> None:
    more = {**ram_state, "temp": torch.zeros(1)}
    with caplog.at_level(logging.WARNING, "addsr"):
        assert "temp" in convert_ram(more, leaves_out_unknown=True).ignored
    assert "1 unknown tensors (temp) are left out" in caplog.text
    for wrong in ({**more, "fc.x": torch.zeros(1)}, {"temp": torch.zeros(1)}):
        with pytest.raises(ModelError, match="unknown"):
            convert_ram(wrong, leaves_out_unknown=True)


def test_updates_of_another_rank_are_refused(ram_state: State, dape_state: State) -> None:
    with pytest.raises(ModelError, match="lora_A is"):
        convert_ram(ram_state, dape_state, lora=LoraConfig(rank=4))


def test_files_are_told_apart_by_their_names(ram_state: State, dape_state: State) -> None:
    assert has_weights(ram_state) and not has_updates(ram_state)
    assert has_updates(dape_state) and not has_weights(dape_state)
    assert our_name("visual_encoder.layers.0.attn_mask") is None
    assert our_name("fc.weight") == "score.weight"
