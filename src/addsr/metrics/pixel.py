"""Figures that compare or describe pixels: PSNR, SSIM, agreement with the input, sharpness.

Every function takes float pictures `(B, 3, H, W)` in [0, 1] on any device, computes in float64
where the device has it, and gives one figure per picture, `(B,)`. Luma is Y of BT.601 in 16..235
on the 0..255 scale, as the super-resolution literature measures it (MATLAB's `rgb2ycbcr`),
never rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.errors import InputError, OptionError

Luma = Literal["bt601", "yiq"]
"""Which gray: Y of BT.601 in 16..235, or the same weights over the full range 0..255 (Y of YIQ)."""


def luma(image: Tensor, convention: Luma = "bt601") -> Tensor:
    """Luma `(B, H, W)` of a picture `(B, 3, H, W)` in [0, 1], not rounded.

    `bt601` lies in 16..235 (MATLAB's `rgb2ycbcr`), `yiq` in 0..255 (its `rgb2gray`, less the
    rounding).

    Raises:
        OptionError: another convention.
    """
    check_picture("image", image)
    red, green, blue = precise(image).unbind(1)
    if convention == "bt601":
        return 16 + 65.481 * red + 128.553 * green + 24.966 * blue
    if convention == "yiq":
        return 255 * (0.299 * red + 0.587 * green + 0.114 * blue)
    raise OptionError(f"luma: {convention!r} is unknown; give 'bt601' or 'yiq'")


def psnr_rgb(a: Tensor, b: Tensor, border: int = 4) -> Tensor:
    """Peak signal-to-noise ratio of all three channels in dB, higher is closer; infinite if equal.

    One mean square error over red, green and blue, 2 to 3 dB below `psnr_y` on photos because
    colour noise counts. `border` pixels are left out on every side.

    Raises:
        InputError: shapes differ, or nothing is left inside the border.
    """
    a, b = crop_pair(a, b, border)
    return -10 * torch.log10((a - b).square().mean((-3, -2, -1)))


def psnr_y(a: Tensor, b: Tensor, border: int = 4) -> Tensor:
    """Peak signal-to-noise ratio of the lumas in dB, higher is closer; infinite if they are equal.

    `border` pixels are left out on every side, where networks see padding; peak is 255.

    Raises:
        InputError: shapes differ, or nothing is left inside the border.
    """
    y_a, y_b = luma_pair(a, b, border)
    return -10 * torch.log10((y_a - y_b).square().mean((-2, -1)) / 255**2)


def ssim_y(a: Tensor, b: Tensor, border: int = 4) -> Tensor:
    """Structural similarity of the lumas, -1..1, higher is closer; 1 if they are equal.

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity",
    eq. 13, with its 11x11 Gaussian of sigma 1.5, K1 = .01, K2 = .03 and L = 255; only windows
    that lie inside the picture (less `border`) count.

    Raises:
        InputError: shapes differ, or no 11x11 window fits inside the border.
    """
    y_a, y_b = luma_pair(a, b, border)
    if min(y_a.shape[-2:]) < 11:
        raise InputError(
            f"size: {a.shape[-1]}x{a.shape[-2]} leaves no 11x11 window inside a border of "
            f"{border}; give a larger picture or a smaller border"
        )
    brightness, structure = ssim_maps(y_a, y_b)
    return (brightness * structure).mean((-2, -1))


def ssim_maps(y_a: Tensor, y_b: Tensor) -> tuple[Tensor, Tensor]:
    """The two factors of SSIM, `(B, H - 10, W - 10)` each, of lumas `(B, H, W)` in 0..255.

    The first compares the windows' means (eq. 6), the second their contrast and structure
    (eq. 9 and 10 with C3 = C2 / 2).
    """
    moments = torch.stack([y_a, y_b, y_a * y_a, y_b * y_b, y_a * y_b], dim=1)  # (B, 5, H, W)
    mu_a, mu_b, aa, bb, ab = filter_both(moments, gaussian(11, 1.5).tolist()).unbind(1)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    square_a, square_b, product = mu_a.square(), mu_b.square(), mu_a * mu_b
    brightness = (2 * product + c1) / (square_a + square_b + c1)
    structure = (2 * (ab - product) + c2) / (aa - square_a + bb - square_b + c2)
    return brightness, structure


def lr_psnr(sr: Tensor, lr: Tensor) -> Tensor:
    """How well a result agrees with its input: luma PSNR in dB after shrinking, higher is closer.

    `sr` is averaged over the area of each input pixel and compared with `lr` without a border.
    A result that invents brightness or moves edges loses; so does one that removes the noise of
    a bad input, so values over 35 dB are not a goal of their own.

    Raises:
        InputError: `sr` is not a whole multiple of `lr` in size.
    """
    check_picture("sr", sr)
    check_picture("lr", lr)
    height, width = lr.shape[-2:]
    factor = sr.shape[-2] // height
    if factor < 1 or sr.shape[-2:] != (height * factor, width * factor):
        raise InputError(
            f"sr: {sr.shape[-1]}x{sr.shape[-2]} is no whole multiple of the input's "
            f"{width}x{height}; resize it to the input's size times the scale"
        )
    return psnr_y(F.avg_pool2d(precise(sr), factor), lr, border=0)


def gradient(image: Tensor) -> Tensor:
    """Mean magnitude of the luma's Sobel gradient in levels per pixel, >= 0; higher is sharper.

    Divide by the reference's figure: over 1 the result is sharper (or noisier) than the original.
    """
    across, down = sobel(luma(image))
    return torch.hypot(across, down).mean((-2, -1))


def sobel(y: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel's slopes of a luma `(B, H, W)` across and down, in levels per pixel, sizes kept.

    Raises:
        InputError: smaller than 2x2.
    """
    if min(y.shape[-2:]) < 2:
        raise InputError(
            f"size: {y.shape[-1]}x{y.shape[-2]} is too small for a gradient; give 2x2 or more"
        )
    smooth, difference = (0.25, 0.5, 0.25), (-0.5, 0.0, 0.5)
    y = F.pad(y[:, None], (1, 1, 1, 1), mode="reflect")[:, 0]
    across = filter_axis(filter_axis(y, smooth, -2), difference, -1)
    down = filter_axis(filter_axis(y, smooth, -1), difference, -2)
    return across, down


def high_frequency_share(image: Tensor) -> Tensor:
    """Percent of the luma's spectral energy above a quarter of Nyquist, 0..100; higher is finer.

    The mean is taken off and a Hann window laid over the picture, so that neither brightness nor
    the jump between opposite edges counts. The half plane of `rfft2` is summed, which counts
    energy along the vertical axis once and all other twice: not rotation-proof, but the figures
    this project compares with are made so.
    """
    y = luma(image)
    y = y - y.mean((-2, -1), keepdim=True)
    height, width = y.shape[-2:]
    hann = {
        n: torch.hann_window(n, periodic=False, dtype=y.dtype, device=y.device)
        for n in (height, width)
    }
    energy = torch.fft.rfft2(y * hann[height][:, None] * hann[width]).abs().square()
    down = torch.fft.fftfreq(height, dtype=y.dtype, device=y.device)
    across = torch.fft.rfftfreq(width, dtype=y.dtype, device=y.device)
    is_high = torch.hypot(down[:, None], across) > 0.125  # cycles per pixel; Nyquist is 0.5
    total = energy.sum((-2, -1))
    share = 100 * (energy * is_high).sum((-2, -1)) / total
    return torch.where(total > 1e-12, share, torch.zeros_like(share))  # a flat picture has none


def check_picture(name: str, image: Tensor) -> None:
    """Raises InputError unless `image` is a float tensor `(B, 3, H, W)` with pixels."""
    if image.dim() != 4 or image.shape[1] != 3 or not image.is_floating_point():
        raise InputError(
            f"{name}: {image.dtype} {tuple(image.shape)} is no picture; "
            "give a float tensor (B, 3, H, W) in [0, 1]"
        )
    if image.numel() == 0:
        raise InputError(f"{name}: {tuple(image.shape)} has no pixels; give at least one")


def precise(x: Tensor) -> Tensor:
    """`x` in float64, or in float32 on Apple's GPU, which has no float64."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def gaussian(size: int, sigma: float) -> Tensor:
    """A Gaussian `(size,)` in float64 around the middle tap, sum 1."""
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    taps = torch.exp(-place.square() / (2 * sigma**2))
    return taps / taps.sum()


def filter_axis(x: Tensor, taps: Sequence[float], axis: int) -> Tensor:
    """`x` correlated with `taps` along one axis, windows inside only: `len(taps) - 1` shorter.

    A sum of shifted copies: torch's convolution has no fast path for float64 on a CPU, and this
    took a quarter of its time for a 7x7 Gaussian.
    """
    size = x.shape[axis] - len(taps) + 1
    out = x.narrow(axis, 0, size) * taps[0]
    for i, tap in enumerate(taps[1:], 1):
        if tap:
            out.add_(x.narrow(axis, i, size), alpha=tap)
    return out


def filter_both(x: Tensor, taps: Sequence[float]) -> Tensor:
    """`x` filtered with `taps` along its last two axes, windows inside the picture only."""
    return filter_axis(filter_axis(x, taps, -1), taps, -2)


def crop_pair(a: Tensor, b: Tensor, border: int) -> tuple[Tensor, Tensor]:
    """Both pictures in float64 less `border` pixels on every side.

    Raises:
        InputError: not pictures, shapes differ, or nothing is left inside the border.
    """
    check_picture("a", a)
    check_picture("b", b)
    if a.shape != b.shape:
        raise InputError(f"b: {tuple(b.shape)} differs from a's {tuple(a.shape)}; give equal sizes")
    if border < 0 or min(a.shape[-2:]) <= 2 * border:
        raise InputError(
            f"border: {border} leaves nothing of {a.shape[-1]}x{a.shape[-2]}; "
            "give 0 or more, under half of the shorter side"
        )
    inside = slice(border, -border if border else None)
    return precise(a[..., inside, inside]), precise(b[..., inside, inside])


def luma_pair(
    a: Tensor, b: Tensor, border: int, convention: Luma = "bt601"
) -> tuple[Tensor, Tensor]:
    """The lumas `(B, H, W)` of both pictures less `border` pixels on every side (`crop_pair`)."""
    a, b = crop_pair(a, b, border)
    return luma(a, convention), luma(b, convention)
