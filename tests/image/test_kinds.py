"""Whatever comes in becomes one picture; whatever goes out is what came in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from addsr.errors import InputError
from addsr.image.kinds import Source, accept
from addsr.image.sinks import PilSink
from addsr.image.writing import write_image

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def _through(image: Any, bits: int | None = None) -> Any:
    """Straight from the source into its sink, in two bands."""
    source = accept(image)
    results = []
    for picture in source.pictures:
        rows = picture.rgb
        if picture.alpha is not None:
            rows = torch.cat([rows, picture.alpha], dim=1)
        sink = source.sink(picture, *picture.size, bits)
        for band in rows.split(4, dim=-2):
            sink.write(band)
        results.append(sink.result())
    return source.join(results)


@pytest.mark.parametrize("channels", [0, 1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.float16])
def test_arrays_come_back_as_they_were(channels: int, dtype: type) -> None:
    shape = (6, 9) if channels == 0 else (6, 9, channels)
    values = np.random.default_rng(1).random(shape)
    if np.issubdtype(dtype, np.integer):
        values = values * np.iinfo(dtype).max
    array = values.astype(dtype)
    back = _through(array)
    assert back.dtype == array.dtype and back.shape == array.shape
    np.testing.assert_allclose(back.astype(float), array.astype(float), rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_batches_of_tensors_come_back_as_they_were(channels: int, dtype: torch.dtype) -> None:
    x = torch.rand(2, channels, 6, 9)
    x = (x * 255).round().byte() if dtype == torch.uint8 else x.to(dtype)
    back = _through(x)
    assert back.dtype == x.dtype and back.shape == x.shape
    torch.testing.assert_close(back.float(), x.float(), atol=4e-3, rtol=0)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_pil_images_keep_their_mode(mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    back = _through(image)
    assert back.mode == mode
    np.testing.assert_array_equal(np.asarray(back), np.asarray(image))


@pytest.mark.parametrize(
    ("mode", "becomes"),
    [("1", "L"), ("P", "RGB"), ("CMYK", "RGB"), ("YCbCr", "RGB"), ("HSV", "RGB"), ("LAB", "RGB")],
)
def test_other_modes_become_the_nearest_plain_one(mode: str, becomes: str) -> None:
    image = Image.fromarray(RGB)
    image = Image.new("LAB", (9, 6)) if mode == "LAB" else image.convert(mode)
    assert _through(image).mode == becomes


def test_a_palette_with_a_transparent_colour_becomes_rgba(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 1), 1)
    image.save(tmp_path / "p.png", transparency=1)
    back = _through(tmp_path / "p.png")
    assert back.mode == "RGBA"
    assert back.getpixel((1, 1))[3] == 0 and back.getpixel((0, 0)) == (255, 0, 0, 255)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_keeps_its_fine_steps(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / f"g{suffix}")
    picture = accept(tmp_path / f"g{suffix}").pictures[0]
    np.testing.assert_allclose(picture.rgb[0, 0].numpy(), values / 65535, atol=1e-6)
    assert picture.layout == "L"


def test_sixteen_bits_that_end_as_eight_are_told(caplog: pytest.LogCaptureFixture) -> None:
    deep = np.full((6, 9, 3), 300, np.uint16)
    assert _through(deep).dtype == np.uint16
    grey = _through(Image.fromarray(deep[:, :, 0]))
    assert grey.mode == "I;16" and grey.getpixel((0, 0)) == 300
    _through(Image.fromarray(RGB))
    assert caplog.messages == []
    picture = accept(deep).pictures[0]  # on its way into a file, as the upscaler sends it there
    Source([picture], "path", None, 1).sink(picture, 6, 9)
    assert caplog.messages == ["image: has 16 bits per channel; the result has 8, dithered"]


def test_a_dither_keeps_the_mean_the_whole_steps_and_the_seed() -> None:
    def dithered(value: float, seed: int, bands: int) -> np.ndarray:
        sink = PilSink("RGB", 64, 50, None, seed)
        for rows in torch.full((1, 3, 64, 50), value).split(bands, dim=-2):
            sink.write(rows)
        return np.asarray(sink.result()).astype(float)

    fine = dithered(100.3 / 255, 1, 64)
    assert set(np.unique(fine)) == {100.0, 101.0} and abs(float(fine.mean()) - 100.3) < 0.02
    np.testing.assert_array_equal(fine, dithered(100.3 / 255, 1, 7))
    assert (fine != dithered(100.3 / 255, 2, 64)).any()
    for whole in (0, 7, 255):
        assert (dithered(whole / 255, 1, 64) == whole).all()


def test_a_palette_of_greys_becomes_grey_and_one_of_colours_does_not() -> None:
    grey = Image.fromarray(RGB).convert("L").convert("RGB").quantize(64)
    assert _through(grey).mode == "L"
    assert _through(Image.fromarray(RGB).quantize(64)).mode == "RGB"


def test_float_files_are_read_in_their_own_range(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "f.tif")
    np.testing.assert_allclose(accept(tmp_path / "f.tif").pictures[0].rgb[0, 0], values, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (RGB.astype(np.float32), "run from .* must lie in .*divide 8-bit values by 255"),
        (np.full((4, 4, 3), np.nan, np.float32), "holds NaN or infinity; look where"),
        (torch.tensor([0.5, float("inf")]).view(1, 1, 1, 2), "holds NaN or infinity"),
        (
            RGB.astype(np.float32) / 127.5 - 1,
            r"must lie in \[0, 1\] \(\(x \+ 1\) / 2 for values in",
        ),
        (
            RGB.astype(np.int64),
            r"array of int64 cannot be used; give uint8.*astype\(np.uint8\) does",
        ),
        (RGB > 127, r"array of bool cannot be used.*astype\(np.float32\) makes 0 and 1"),
        (torch.ones(1, 3, 4, 4, dtype=torch.bool), r"tensor.float\(\) makes 0 and 1"),
        (RGB.transpose(2, 0, 1), r"shape \(3, 6, 9\) cannot be used; give \(H, W, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), "has no pixels"),
        (torch.rand(3, 6, 9), "add the batch axis"),
        (torch.rand(1, 5, 6, 9), "give .B, 3, H, W"),
        (torch.rand(1, 3, 6, 9) * 255, "divide 8-bit values"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), "give uint8 or floats"),
        (42, "int cannot be used; give a path"),
    ],
)
def test_unusable_inputs_name_what_is_wrong(image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        accept(image)


def test_a_lazily_opened_truncated_picture_is_told(tmp_path: Path) -> None:
    Image.effect_noise((200, 200), 90).save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:3000])
    with Image.open(tmp_path / "b.jpg") as image, pytest.raises(InputError, match="cut short"):
        accept(image)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 37), st.integers(1, 37),
    st.sampled_from(["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK",
                     "YCbCr", "HSV", "I", "I;16", "F"]),
    st.sampled_from([".png", ".jpg", ".webp", ".tif", ".bmp", ".gif"]),
)  # fmt: skip
def test_every_mode_and_size_becomes_a_file(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, mode: str, suffix: str
) -> None:
    values = np.random.default_rng(height * width).integers(0, 256, (height, width, 4), np.uint8)
    image = Image.fromarray(values)
    for step in {"PA": ["P", "PA"], "La": ["LA", "La"], "I;16": ["I", "I;16"]}.get(mode, [mode]):
        image = image.convert("RGB" if step in ("HSV", "YCbCr", "CMYK") else image.mode)
        image = image.convert("L") if step in ("I", "F", "LA") else image
        image = image.convert(step)
    result = _through(image, 8)
    assert result.size == (width, height)
    path = tmp_path_factory.mktemp("modes") / f"a{suffix}"
    write_image(result, path)
    assert accept(path).pictures[0].size == (height, width)
