"""Pictures that go through the networks together, and how often they leave the device."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.errors import MemoryLimitError, OptionError
from addsr.pipelines import SeeSRPipeline

pytest.importorskip("diffusers", reason="the diffusion extra is not installed")


class Colours:
    """A tagger that tells pictures apart by their mean colour."""

    def embed(self, image: Tensor) -> Tensor:
        return F.pad(image.mean((2, 3)), (0, 17))[:, None].repeat(1, 5, 1)

    def __call__(self, image: Tensor) -> Any:
        name = f"{float(image.mean()):.3f}"
        return SimpleNamespace(embeds=self.embed(image), tags=[[SimpleNamespace(name=name)]])


def words(text: str) -> Tensor:
    generator = torch.Generator().manual_seed(sum(map(ord, text)))
    return torch.randn(1, 5, 24, generator=generator)


@pytest.fixture(scope="module")
def pipe(make_addsr: Callable[..., Any]) -> Any:
    return make_addsr(tagger=Colours(), text_encoder=words)


def pictures(*sizes: tuple[int, int]) -> list[Tensor]:
    return [
        torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(k)) * (k + 1) / len(sizes)
        for k, size in enumerate(sizes)
    ]


def run(pipe: Any, images: Any, **options: Any) -> Any:
    seeds = [torch.Generator().manual_seed(40 + k) for k in range(len(images))]
    options = {"output_type": "pt", "generator": seeds, "num_inference_steps": 2, **options}
    return pipe(images, **options).images


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])  # one tile, and two
def test_together_gives_what_each_gives_alone(pipe: Any, size: tuple[int, int]) -> None:
    images = pictures(size, size, size)
    wanted = run(pipe, images)
    torch.testing.assert_close(run(pipe, images, picture_batch=2), wanted, rtol=1e-3, atol=1e-4)
    got = run(pipe, images, picture_batch=8, sample_posterior=True, vae_tile=16)
    alone = run(pipe, images, sample_posterior=True, vae_tile=16)
    torch.testing.assert_close(got, alone, rtol=1e-3, atol=1e-3)


def test_guidance_goes_together_too(pipe: Any) -> None:
    seesr = SeeSRPipeline(**{**pipe.components, "config": None})
    images = pictures((8, 8), (8, 8))
    options: dict[str, Any] = {"num_inference_steps": 3, "tile": 32}
    wanted = run(seesr, images, **options)
    got = run(seesr, images, picture_batch=2, **options)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_other_sizes_begin_a_batch_of_their_own(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    encode = pipe._stages.encode
    monkeypatch.setattr(
        pipe._stages, "encode", lambda x, *rest: (counts.append(len(x)), encode(x, *rest))[1]
    )
    images = pictures((8, 8), (8, 8), (8, 9), (8, 8), (8, 8), (8, 8))
    told: list[tuple[int, int]] = []
    results = run(pipe, images, picture_batch=2, progress=lambda *done: told.append(done))
    assert counts == [2, 1, 2, 1]
    assert [tuple(one.shape) for one in results] == [
        (1, 3, 4 * image.shape[2], 4 * image.shape[3]) for image in images
    ]
    assert told == [(n, 12) for n in (2, 4, 5, 6, 8, 10, 11, 12)]


def test_what_does_not_fit_together_goes_one_by_one_with_the_same_noise(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images = pictures((8, 8), (8, 8))
    wanted = run(pipe, images)
    sample = pipe._stages.sample_few

    def tight(z_lr: Tensor, *rest: Any) -> Tensor:
        result = sample(z_lr, *rest)
        if len(z_lr) > 1:
            raise MemoryLimitError("tile: does not fit")
        return result

    monkeypatch.setattr(pipe._stages, "sample_few", tight)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(run(pipe, images, picture_batch=2), wanted)
    assert "2 pictures do not fit together" in caplog.text


def test_a_batch_of_none_is_refused(pipe: Any) -> None:
    with pytest.raises(OptionError, match="picture_batch: 0 is not possible"):
        run(pipe, pictures((8, 8)), picture_batch=0)


# two tiles, and a canvas larger than the result
@pytest.mark.parametrize(("kind", "size"), [("addsr", (8, 12)), ("seesr", (3, 8))])
def test_a_picture_leaves_the_device_once(
    make_addsr: Callable[..., Any],
    kind: str,
    size: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # a device without numbers stands for a GPU: sums of tensors of two devices are refused
    left: list[tuple[int, ...]] = []
    cpu = Tensor.cpu

    def leave(x: Tensor) -> Tensor:
        if not x.is_meta:
            return cpu(x)
        left.append(tuple(x.shape))
        return torch.zeros(x.shape, dtype=x.dtype)

    monkeypatch.setattr(Tensor, "cpu", leave)
    made = make_addsr(None if kind == "addsr" else SeeSRPipeline, tagger=Colours())
    monkeypatch.setattr(made._stages, "_check", lambda *_: None)
    made.to("meta")
    (image,) = pictures(size)
    result = run(made, [image])
    assert left == [tuple(result.shape)] == [(1, 3, 4 * size[0], 4 * size[1])]
