"""Checks of the fixtures `ram_*`, which `parity.py` runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from addsr.models.convert_ram import ConvertedRam, convert_ram, our_name
from addsr.models.tags import TagList
from addsr.nets.ram import LoraConfig, Ram, add_lora

Got = tuple[str, Tensor]


def _filled(converted: ConvertedRam, lora: LoraConfig | None = None) -> Ram:
    net = Ram(converted.config)
    if lora is not None:
        add_lora(net, lora)
    net.load_state_dict({**converted.state, **converted.lora}, strict=True)
    return net.eval().requires_grad_(False)


def ram_dape(fixture: Any) -> Iterator[Got]:
    facts = fixture.facts["config"]
    lora = LoraConfig(facts["lora"]["rank"], facts["lora"]["alpha"])
    options: dict[str, Any] = {
        "heads": facts["tag_head"]["num_attention_heads"],
        "side": facts["swin"]["image_size"],
        "lora": lora,
    }
    weights = fixture.weights()
    image = fixture.group("input")["image"]
    tags = TagList(tuple(facts["tags"]), tuple(facts["thresholds"]))

    merged = convert_ram(weights, **options)
    embeds, logits = _filled(merged)(image)
    yield "embeds", embeds
    yield "logits", logits
    yield "targets", tags.targets(logits).float()
    # texts are compared here, where tensors alone are
    expected = fixture.facts["tags_out"]
    assert [tags.join(found) for found in tags.decode(logits)] == expected, expected
    for name in fixture.group("output/merged_weight"):
        ours = our_name(name)
        assert ours is not None, name
        yield f"merged_weight/{name}", merged.state[ours]

    apart = convert_ram(weights, merge=False, **options)
    embeds, logits = _filled(apart, lora)(image)
    yield "embeds_unmerged", embeds
    yield "logits_unmerged", logits

    plain = {k: v for k, v in weights.items() if "lora_" not in k}
    embeds, logits = _filled(convert_ram(plain, **options))(image)
    yield "embeds_without_lora", embeds
    yield "logits_without_lora", logits

    shared = fixture.weights("weight_tag_encoder_lora")
    if shared:
        both = convert_ram(weights, shared, **options)
        yield "logits_with_tag_encoder_lora", _filled(both)(image).logits


def ram_threshold(fixture: Any) -> Iterator[Got]:
    facts = fixture.facts
    logits = fixture.group("input")["logits"]
    tags = TagList(tuple(facts["config"]["tags"]), tuple(facts["config"]["thresholds"]))
    yield "class_threshold", torch.tensor(tags.thresholds)
    yield "targets", tags.targets(logits).float()
    assert [tags.join(found) for found in tags.decode(logits)] == facts["strings"]
    left_out = TagList(tags.tags, tags.thresholds, frozenset(facts["delete_tag_index"]))
    found = [left_out.join(one) for one in left_out.decode(logits)]
    assert found == facts["strings_with_deleted"]


CHECKS: Mapping[str, Callable[[Any], Iterator[Got]]] = {
    check.__name__: check for check in (ram_dape, ram_threshold)
}
