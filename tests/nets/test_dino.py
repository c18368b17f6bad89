"""DINO's transformers against those of transformers, and what is made of their tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from addsr.errors import InputError, ModelError, OptionError
from addsr.models.convert_dino import convert_vit
from addsr.nets.dino import (
    DINO_S16,
    DINOV2_S14,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ClassToken,
    TokenMaps,
    Vit,
    VitConfig,
    imagenet,
)

SMALL = VitConfig(width=24, depth=4, heads=3, patch=4, side=16, hidden=40)


def small_vit(seed: int = 0, config: VitConfig = SMALL) -> Vit:
    torch.manual_seed(seed)
    vit = Vit(config)
    for parameter in vit.parameters():  # nothing at 0 or 1, so that nothing can be forgotten
        torch.nn.init.normal_(parameter, std=0.2)
    return vit.eval()


def published(kind: str):
    """A tiny network of transformers with random numbers everywhere, and its name in files."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    shape = {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "layer_norm_eps": 1e-6,
        "attn_implementation": "sdpa",
    }
    if kind == "dino":
        config = transformers.ViTConfig(
            image_size=16, patch_size=4, intermediate_size=40, hidden_act="gelu", **shape
        )
        net = transformers.ViTModel(config)
    else:
        config = transformers.Dinov2Config(image_size=28, patch_size=14, mlp_ratio=2, **shape)
        net = transformers.Dinov2Model(config)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net.eval(), net.config.image_size


@pytest.mark.parametrize("kind", ["dino", "dinov2"])
def test_tokens_are_those_of_transformers(kind: str) -> None:
    net, side = published(kind)
    config, state = convert_vit(net.state_dict(), heads=3)
    vit = Vit(config)
    vit.load_state_dict(state)
    picture = torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = net(picture).last_hidden_state
        torch.testing.assert_close(vit(picture), expected, atol=2e-5, rtol=1e-4)
    assert config.has_layer_scale == (kind == "dinov2")


@pytest.mark.parametrize("kind", ["dino", "dinov2"])
def test_the_names_of_older_files_are_read_too(kind: str) -> None:
    net, _ = published(kind)
    old = {}
    for name, tensor in net.state_dict().items():
        name = name.replace("layers.", "encoder.layer.") if name.startswith("layers.") else name
        for ours, theirs in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
            name = name.replace(f"attention.{ours}", f"attention.attention.{theirs}")
        name = name.replace("attention.o_proj", "attention.output.dense")
        if kind == "dino":
            name = name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
        old[name] = tensor
    assert set(old) != set(net.state_dict())
    _, expected = convert_vit(net.state_dict(), heads=3)
    _, state = convert_vit(old, heads=3)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[k], expected[k]) for k in state)


@pytest.mark.parametrize(
    ("config", "count"), [(DINO_S16, 21_665_664), (DINOV2_S14, 22_056_192)], ids=["v1", "v2"]
)
def test_published_sizes_have_their_number_of_weights(config: VitConfig, count: int) -> None:
    with torch.device("meta"):
        vit = Vit(config)
    assert sum(p.numel() for p in vit.parameters()) == count


def test_a_state_dict_of_our_own_says_its_shape() -> None:
    config = VitConfig(128, 2, 2, 4, 12, 72, has_layer_scale=True)
    state = small_vit(config=config).state_dict()
    found, _ = convert_vit({**state, "mask_token": torch.zeros(1, 128)})
    assert found == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.mlp.fc2.bias"), "1 tensors missing .blocks.1.mlp.fc2.bias"),
        (lambda s: s.update({"head.weight": torch.zeros(2)}), "1 unknown .head.weight"),
        (lambda s: s.update({"register_tokens": torch.zeros(2)}), "register tokens"),
        (lambda s: s.update(pos_embed=torch.zeros(1, 16, 128)), "15 positions are no square"),
        (lambda s: s.pop("patch_embed.proj.weight"), "unknown layout"),
    ],
)
def test_another_layout_is_refused(change, message: str) -> None:
    state = dict(small_vit(config=VitConfig(128, 2, 2, 4, 12, 72)).state_dict())
    change(state)
    with pytest.raises(ModelError, match=message):
        convert_vit(state)


def test_unusual_heads_have_to_be_stated() -> None:
    with pytest.raises(ModelError, match="state heads"):
        convert_vit(small_vit().state_dict())


def test_maps_are_tokens_with_the_class_token_added() -> None:
    vit, picture = small_vit(), torch.rand(2, 3, 40, 24)
    maps = TokenMaps(vit, (0, 2))(picture)
    x = F.adaptive_avg_pool2d(picture, 16)
    x = torch.stack([(x[:, c] - IMAGENET_MEAN[c]) / IMAGENET_STD[c] for c in range(3)], 1)
    tokens = [vit.embed(x)]
    for block in vit.blocks:
        tokens.append(block(tokens[-1]))
    for got, expected in zip(maps, (tokens[1], tokens[3], tokens[0]), strict=True):
        torch.testing.assert_close(got, (expected[:, 1:] + expected[:, :1]).mT)


def test_gradients_reach_the_picture_and_no_weight() -> None:
    extractor = TokenMaps(small_vit(), (1,)).train()
    assert not extractor.vit.training
    picture = torch.rand(1, 3, 20, 20, requires_grad=True)
    sum(m.square().sum() for m in extractor(picture)).backward()
    assert picture.grad is not None and float(picture.grad.abs().min()) > 0
    assert all(p.grad is None for p in extractor.parameters())


def test_the_class_token_is_normalised_unless_told_otherwise() -> None:
    vit, picture = small_vit(), torch.rand(2, 3, 16, 16, requires_grad=True)
    token = ClassToken(vit)(picture)
    assert token.shape == (2, 24) and not token.requires_grad
    torch.testing.assert_close(token, vit(imagenet(picture))[:, 0])
    torch.testing.assert_close(ClassToken(vit, is_normalised=False)(picture), vit(picture)[:, 0])


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(InputError, match=r"give \(B, 3, 16, 16\)"):
        small_vit()(torch.zeros(1, 3, 20, 20))
    with pytest.raises(OptionError, match="hooks"):
        TokenMaps(small_vit(), (4,))
    with pytest.raises(OptionError, match="side: 20"):
        VitConfig(side=20, patch=16)
    with pytest.raises(OptionError, match="width: 10"):
        VitConfig(width=10, heads=3)
