"""Figures that compare or describe pixels: PSNR, SSIM, agreement with the input, sharpness.

Every function takes float pictures `(B, 3, H, W)` in [0, 1] on any device, computes in float64
where the device has it, and gives one figure per picture, `(B,)`. Luma is Y of BT.601 in 16..235
on the 0..255 scale, as the super-resolution literature measures it (MATLAB's `rgb2ycbcr`),
never rounded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.errors import InputError


def luma(image: Tensor) -> Tensor:
    """Y of BT.601 `(B, H, W)` in 16..235 of a picture `(B, 3, H, W)` in [0, 1]; not rounded."""
    check_picture("image", image)
    red, green, blue = precise(image).unbind(1)
    return 16 + 65.481 * red + 128.553 * green + 24.966 * blue


def psnr_y(a: Tensor, b: Tensor, border: int = 4) -> Tensor:
    """Peak signal-to-noise ratio of the lumas in dB, higher is closer; infinite if they are equal.

    `border` pixels are left out on every side, where networks see padding; peak is 255.

    Raises:
        InputError: shapes differ, or nothing is left inside the border.
    """
    y_a, y_b = _luma_pair(a, b, border)
    return -10 * torch.log10((y_a - y_b).square().mean((-2, -1)) / 255**2)


def ssim_y(a: Tensor, b: Tensor, border: int = 4) -> Tensor:
    """Structural similarity of the lumas, -1..1, higher is closer; 1 if they are equal.

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity",
    eq. 13, with its 11x11 Gaussian of sigma 1.5, K1 = .01, K2 = .03 and L = 255; only windows
    that lie inside the picture (less `border`) count.

    Raises:
        InputError: shapes differ, or no 11x11 window fits inside the border.
    """
    y_a, y_b = _luma_pair(a, b, border)
    if min(y_a.shape[-2:]) < 11:
        raise InputError(
            f"size: {a.shape[-1]}x{a.shape[-2]} leaves no 11x11 window inside a border of "
            f"{border}; give a larger picture or a smaller border"
        )
    moments = torch.stack([y_a, y_b, y_a * y_a, y_b * y_b, y_a * y_b], dim=1)  # (B, 5, H, W)
    kernel = gaussian(11, 1.5).to(moments)
    mu_a, mu_b, aa, bb, ab = _separable(moments, kernel).unbind(1)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mu_a * mu_b + c1) * (2 * (ab - mu_a * mu_b) + c2)
    scale = (mu_a**2 + mu_b**2 + c1) * (aa - mu_a**2 + bb - mu_b**2 + c2)
    return (likeness / scale).mean((-2, -1))


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
    y = luma(image)[:, None]
    if min(y.shape[-2:]) < 2:
        raise InputError(
            f"size: {y.shape[-1]}x{y.shape[-2]} is too small for a gradient; give 2x2 or more"
        )
    smooth, difference = y.new_tensor([1.0, 2.0, 1.0]) / 4, y.new_tensor([-1.0, 0.0, 1.0]) / 2
    y = F.pad(y, (1, 1, 1, 1), mode="reflect")
    across = F.conv2d(F.conv2d(y, smooth.view(1, 1, 3, 1)), difference.view(1, 1, 1, 3))
    down = F.conv2d(F.conv2d(y, smooth.view(1, 1, 1, 3)), difference.view(1, 1, 3, 1))
    return torch.hypot(across, down).mean((-3, -2, -1))


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


def _separable(x: Tensor, kernel: Tensor) -> Tensor:
    """`x` filtered with `kernel` along its last two axes, windows inside the picture only."""
    shape = x.shape
    x = x.reshape(-1, 1, *shape[-2:])
    x = F.conv2d(F.conv2d(x, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return x.reshape(*shape[:-2], *x.shape[-2:])


def _luma_pair(a: Tensor, b: Tensor, border: int) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape:
        raise InputError(f"b: {tuple(b.shape)} differs from a's {tuple(a.shape)}; give equal sizes")
    y_a, y_b = luma(a), luma(b)
    if border < 0 or min(y_a.shape[-2:]) <= 2 * border:
        raise InputError(
            f"border: {border} leaves nothing of {a.shape[-1]}x{a.shape[-2]}; "
            "give 0 or more, under half of the shorter side"
        )
    inside = slice(border, -border if border else None)
    return y_a[:, inside, inside], y_b[:, inside, inside]
