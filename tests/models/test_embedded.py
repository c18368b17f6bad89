"""The weights that ship do what the model card says of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from addsr.image.resize import resize
from addsr.metrics.pictures import read_picture
from addsr.metrics.pixel import gradient, lr_psnr
from addsr.models.files import load_weights
from addsr.models.hub import Model, embedded, load_model
from addsr.upscaler import Upscaler

pytestmark = pytest.mark.skipif(
    not embedded("compact").is_file(), reason="no weights are embedded in this tree"
)
EXAMPLE = Path(__file__).parents[2] / "examples" / "cat.jpg"


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("compact")


@pytest.fixture(scope="module")
def eye() -> Tensor:
    """The 64x64 around the cat's eye."""
    return read_picture(EXAMPLE)[..., 24:88, 64:128].contiguous()


def run(model: Model, lr: Tensor, **options: object) -> Tensor:
    return Upscaler(model, dtype="fp32", device="cpu", **options)(lr)  # type: ignore[arg-type]


def test_the_file_says_what_it_is_and_keeps_its_budget() -> None:
    path = Path(str(embedded("compact")))
    assert path.stat().st_size <= 50e6
    state, metadata = load_weights(path)
    assert metadata["licence"] == "Apache-2.0" and metadata["run"] and metadata["step"]
    assert all(value.dtype == torch.float16 for value in state.values())


def test_more_fidelity_agrees_better_with_the_input(model: Model, eye: Tensor) -> None:
    agreement = [
        float(lr_psnr(run(model, eye, fidelity=f, color="none"), eye))
        for f in (0, 0.25, 0.5, 0.75, 1)
    ]
    assert agreement == sorted(agreement)
    assert agreement[-1] > agreement[0] + 0.5


def test_less_fidelity_is_sharper_and_all_of_it_sharper_than_bicubic(
    model: Model, eye: Tensor
) -> None:
    soft = float(gradient(resize(eye, (256, 256), "bicubic")))
    sharp = [float(gradient(run(model, eye, fidelity=f))) for f in (0.0, 0.5, 1.0)]
    assert sharp[0] > sharp[1] > sharp[2] > 1.05 * soft


def test_every_number_of_steps_gives_a_picture_of_its_own(model: Model, eye: Tensor) -> None:
    one, two, four = (run(model, eye, steps=n) for n in (1, 2, 4))
    # a clean crop changes less than the validation pictures do (2 and 3 levels)
    assert float((two - one).abs().mean()) > 0.5 / 255
    assert float((four - one).abs().mean()) > 1 / 255
    for picture in (one, two, four):
        assert float(lr_psnr(picture, eye)) > 28


def test_colours_stay_those_of_the_input(model: Model, eye: Tensor) -> None:
    result = run(model, eye)
    means = torch.stack([picture.mean(dim=(0, 2, 3)) for picture in (eye, result)])
    assert float((means[0] - means[1]).abs().max()) < 1.5 / 255


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4])
def test_tilings_of_a_photo_agree_within_what_the_card_states(model: Model, steps: int) -> None:
    lr = read_picture(EXAMPLE)
    whole = run(model, lr, steps=steps, tile=288)
    for tile in (80, 112):
        difference = (run(model, lr, steps=steps, tile=tile) - whole).abs()
        assert float(difference.mean()) <= 1 / 255
        assert float(difference[..., 64:-64, 64:-64].max()) <= 24 / 255
