"""StableSR's own layers in and around diffusers' networks; numbers are checked in test_parity."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from addsr.errors import DependencyError, InputError, ModelError
from addsr.nets.stablesr import (
    CfwConfig,
    EncoderConfig,
    FeatureWrapping,
    Guide,
    GuidedUnet,
    SftConfig,
    SftLayer,
    SftLayers,
    TimeAwareEncoder,
    UnetConfig,
    VaeConfig,
    WrappedVae,
    build_unet,
    build_vae,
)
from addsr.nets.stablesr.sft import places_of

WIDTHS = (32, 32, 64, 64)
ENCODER = EncoderConfig(widths=WIDTHS, time_channels=32, features=32)
UNET = UnetConfig(widths=WIDTHS, head_channels=16, context=48)
SFT = SftConfig(widths=WIDTHS, features=32)


@pytest.fixture(autouse=True)
def untrained() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return build_unet(UNET).eval()


@pytest.fixture(scope="module")
def vae() -> nn.Module:
    return build_vae(VaeConfig(widths=WIDTHS)).eval()


def inputs(batch: int = 1, height: int = 16, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    z = torch.randn(batch, 4, height, width)
    return z, torch.randint(0, 1000, (batch,)), torch.randn(batch, 7, 48)


def run(unet: Any, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
    return unet(z, t, encoder_hidden_states=context).sample


def scrambled(net: nn.Module) -> nn.Module:
    """`net` without its zeros of initialisation."""
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.05)
    return net.eval()


def test_published_sizes_are_the_defaults() -> None:
    def size(net: nn.Module) -> int:
        return sum(parameter.numel() for parameter in net.parameters())

    with torch.device("meta"):
        encoder, layers, unet = TimeAwareEncoder(), SftLayers(), build_unet()
        assert size(encoder) == 52_494_080
        assert size(encoder.time) == 1_312_768
        assert size(encoder.conv_in) + size(encoder.grids) == 32_419_072
        assert size(encoder.middle) == 11_544_576
        assert size(encoder.outputs) == 7_217_664
        assert size(layers) == 53_020_160
        assert len(layers) == 22
        assert len(layers.state_dict()) == 176
        assert size(unet) == 865_910_724
        assert size(FeatureWrapping()) == 44_393_728
        assert size(build_vae()) == 34_163_592 + 49_490_179 + 72 + 20
        assert places_of(unet) == layers.config.places


def test_features_come_at_four_grids_and_differ_by_timestep() -> None:
    encoder = scrambled(TimeAwareEncoder(ENCODER))
    z = torch.randn(2, 4, 16, 24)
    early, late = encoder(z, torch.tensor([999, 999])), encoder(z, torch.tensor([10, 999]))
    assert [tuple(f.shape) for f in early] == [(2, 32, 16 >> i, 24 >> i) for i in range(4)]
    for a, b in zip(early, late, strict=True):
        assert not torch.allclose(a[0], b[0])
        torch.testing.assert_close(a[1], b[1])


def test_a_latent_the_strides_do_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match=r"20x16 .* multiple of 8"):
        TimeAwareEncoder(ENCODER)(torch.zeros(1, 4, 16, 20), torch.tensor([0]))


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (EncoderConfig, {"widths": (33,), "attention": (True,)}),
        (EncoderConfig, {"attention": (True,)}),
        (EncoderConfig, {"heads": 7}),
        (EncoderConfig, {"features": 8}),
        (EncoderConfig, {"time_channels": 3}),
        (SftConfig, {"widths": ()}),
        (SftConfig, {"hidden": 0}),
        (CfwConfig, {"widths": (8,)}),
        (CfwConfig, {"growth": 0}),
    ],
)
def test_impossible_shapes_are_refused(config: type, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=list(wrong)[0]):  # noqa: RUF015
        config(**wrong)


def test_layers_that_do_nothing_leave_the_unet_bit_for_bit(unet: nn.Module) -> None:
    layers = SftLayers(SFT)
    for layer in layers.values():
        assert isinstance(layer, SftLayer)
        layer.norm = nn.Identity()  # type: ignore[assignment]
        for conv in (layer.gamma, layer.beta):
            conv.weight.zero_()
            conv.bias.zero_()  # type: ignore[union-attr]
    given = inputs()
    plain = run(unet, *given)
    features = TimeAwareEncoder(ENCODER)(given[0], given[1])
    with Guide(unet, layers) as guide, guide.using(features):
        assert torch.equal(run(unet, *given), plain)


def test_modulation_changes_the_output_and_detaching_gives_the_plain_one_back(
    unet: nn.Module,
) -> None:
    given = inputs(2)
    plain = run(unet, *given)
    features = TimeAwareEncoder(ENCODER)(given[0], given[1])
    with Guide(unet, SftLayers(SFT)) as guide:
        with guide.using(features):
            assert not torch.allclose(run(unet, *given), plain, atol=1e-3)
        with pytest.raises(InputError, match="no features to follow"):
            run(unet, *given)
    assert torch.equal(run(unet, *given), plain)


def test_features_of_another_grid_are_refused(unet: nn.Module) -> None:
    features = TimeAwareEncoder(ENCODER)(torch.zeros(1, 4, 24, 16), torch.tensor([0]))
    with (
        Guide(unet, SftLayers(SFT)) as guide,
        guide.using(features),
        pytest.raises(InputError, match="do not fit a map"),
    ):
        run(unet, *inputs(1, 16, 16))


def test_layers_are_attached_once_and_to_their_own_unet_only(unet: nn.Module) -> None:
    with Guide(unet, SftLayers(SFT)), pytest.raises(ModelError, match="already"):
        Guide(unet, SftLayers(SFT))
    with pytest.raises(ModelError, match="do not fit this U-Net"):
        Guide(unet, SftLayers(SftConfig(widths=(32, 64, 64, 64), features=32)))
    Guide(unet, SftLayers(SFT)).detach()


def test_both_branches_of_guidance_share_one_run_of_the_encoder(unet: nn.Module) -> None:
    z_t, t, positive = inputs(2, 16, 24)
    z_lr, negative = torch.randn_like(z_t), torch.randn_like(positive)
    net = GuidedUnet(unet, scrambled(TimeAwareEncoder(ENCODER)), SftLayers(SFT))  # type: ignore[arg-type]
    calls: list[int] = []
    handle = net.encoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        toward, without = net(z_t, t, z_lr, positive), net(z_t, t, z_lr, negative)
        calls.clear()
        got = net(z_t, t, z_lr, positive, negative, 2.5)
        assert len(calls) == 1
        torch.testing.assert_close(got, without + 2.5 * (toward - without), atol=1e-4, rtol=1e-4)
        assert torch.equal(net(z_t, t, z_lr, positive, negative, 1.0), toward)
        # one prompt serves a whole batch
        torch.testing.assert_close(
            net(z_t, t, z_lr, positive[:1]), net(z_t, t, z_lr, positive[:1].expand(2, -1, -1))
        )
        with pytest.raises(InputError, match="differ in shape"):
            net(z_t, t, z_lr[..., :16], positive)
    finally:
        handle.remove()
        net.guide.detach()


def test_without_feature_wrapping_the_decoder_is_the_plain_one_at_no_cost(vae: Any) -> None:
    image, latent = torch.rand(1, 3, 48, 64) * 2 - 1, torch.randn(1, 4, 6, 8)
    plain, moments = vae.decode(latent).sample, vae.encode(image).latent_dist.parameters
    wrapping = FeatureWrapping(CfwConfig(widths=WIDTHS[1:-1])).eval()
    calls: list[int] = []
    for fusion in wrapping.fusions:
        fusion.register_forward_hook(lambda *_: calls.append(1))
    with WrappedVae(vae, wrapping) as wrapped:
        got, taps = wrapped.encode(image)
        assert torch.equal(got, moments)
        assert [tuple(tap.shape) for tap in taps] == [(1, 32, 24, 32), (1, 64, 12, 16)]
        assert torch.equal(wrapped.decode(latent, taps, 0.0), plain)
        assert torch.equal(wrapped.decode(latent), plain)
        assert calls == []
        half, whole = wrapped.decode(latent, taps, 0.5), wrapped.decode(latent, taps, 1.0)
        assert calls == [1] * 4
        assert not torch.allclose(half, plain, atol=1e-4)
        assert not torch.allclose(half, whole, atol=1e-4)
        # the VAE itself is not changed meanwhile
        assert torch.equal(vae.decode(latent).sample, plain)
        with pytest.raises(InputError, match="do not fit decoder features"):
            wrapped.decode(torch.randn(1, 4, 8, 8), taps, 1.0)
        with pytest.raises(InputError, match="1 given for 2"):
            wrapped.decode(latent, taps[:1], 1.0)
        assert torch.equal(vae.decode(latent).sample, plain)
    assert not any(module._forward_hooks for module in vae.modules())


def test_wrapping_for_another_vae_is_refused(vae: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"made for widths \(256, 512\)"):
        WrappedVae(vae, FeatureWrapping())


def test_a_missing_diffusers_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(DependencyError, match=r"pip install 'addsr\[diffusion\]'"):
        build_unet(UNET)


def test_a_diffusers_that_cannot_be_loaded_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise RuntimeError(f"Failed to import {name}:\noperator torchvision::nms")

    monkeypatch.setitem(sys.modules, "diffusers", Broken("diffusers"))
    with pytest.raises(DependencyError, match=r"\(operator torchvision::nms\).*uninstall torchvis"):
        build_vae()
