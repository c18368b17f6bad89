"""DISTS, deep image structure and texture similarity: tolerant of texture that is drawn anew.

Ding, Ma, Wang and Simoncelli, "Image Quality Assessment: Unifying Structure and Texture
Similarity" (2020). The weights are not part of this package: torchvision's VGG16, and the authors'
alpha and beta.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import check_pair, pick, read_joined, shapes, vgg16
from .pixel import precise

_IGNORED = re.compile(r"(classifier|pre_logits|head)\..+|stage\d\.\d+\.filter|mean|std")
_C1 = _C2 = 1e-6


class L2Pool(nn.Module):
    """Half the size, each pixel the root of the Hann-weighted mean square around it.

    The paper's pooling, sqrt(g * x^2): without the aliasing of max pooling. The window g is the
    inside of a Hann window of 5, 3x3; outside are zeros.
    """

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        hann = torch.hann_window(5, periodic=False)[1:-1]
        window = hann[:, None] * hann
        self.register_buffer("window", window / window.sum(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C, ceil(H/2), ceil(W/2))`, >= 0."""
        kernel = self.window.expand(x.shape[1], 1, 3, 3)
        mean = F.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1])
        return (mean + 1e-12).sqrt_()


class Dists(nn.Module):
    """DISTS of picture pairs, from tensors with the published names.

    `weights` holds `features.N.weight` and `features.N.bias` of VGG16 and `alpha` and `beta`
    `(1, 1475, 1, 1)`, or the names of a whole saved DISTS module (`stageS.N.weight`).

    Raises:
        ModelError: entries are missing, unknown or of the wrong shape.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Mapping[str, Tensor], source: str = "weights") -> None:
        super().__init__()
        self.backbone = vgg16([L2Pool() for _ in range(4)])
        self.channels = (3, *self.backbone.channels)  # the picture itself is the first map
        shape = (1, sum(self.channels), 1, 1)
        named = {
            re.sub(r"^stage\d\.(\d+)\.(weight|bias)$", r"features.\1.\2", name): value
            for name, value in weights.items()
        }
        picked = pick(
            named, {**shapes(self.backbone), "alpha": shape, "beta": shape}, _IGNORED, source
        )
        alpha, beta = picked.pop("alpha").flatten(), picked.pop("beta").flatten()
        self.alpha, self.beta = nn.Parameter(alpha), nn.Parameter(beta)
        self.backbone.load_state_dict(picked)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """DISTS `(B,)` in float64 of pictures `(B, 3, H, W)` in [0, 1]; 0..1, lower is closer.

        D of the paper: 1 less the weighted mean, over the picture's and VGG16's channels, of the
        likeness l of means (texture) and s of variances and covariance (structure). 0 for equal
        pictures, 0.1 to 0.3 for results of super-resolution. Pictures are compared at their size,
        as IQA-PyTorch and the super-resolution papers do; the authors' own script first shrinks
        the shorter side to 256. Only maps of one layer are held at a
        time, 1.3 GB per megapixel.

        Raises:
            InputError: sizes differ.
        """
        check_pair(a, b, smallest_side=1)
        alpha, beta = precise(self.alpha), precise(self.beta)
        sum_of_weights = alpha.sum() + beta.sum()
        likeness = alpha.new_zeros(len(a))
        parts = zip(alpha.split(self.channels), beta.split(self.channels), strict=True)
        maps = zip(self._maps(a), self._maps(b), strict=True)
        for (map_a, map_b), (texture, structure) in zip(maps, parts, strict=True):
            means, correlations = _compare(map_a, map_b)  # (B, C) each
            likeness = likeness + means @ texture + correlations @ structure
        return 1 - likeness / sum_of_weights

    def _maps(self, image: Tensor) -> Iterator[Tensor]:
        image = image.to(self.mean)
        yield image
        yield from self.backbone.maps((image - self.mean) / self.std)


def load_dists(backbone_path: str | Path, weights_path: str | Path | None = None) -> Dists:
    """DISTS from torchvision's VGG16 and the authors' file of alpha and beta.

    Without `weights_path` the first file must hold both, as a saved DISTS module does.

    Raises:
        ModelError: a file is missing, damaged, or not one of these.
    """
    return Dists(*read_joined(backbone_path, weights_path))


def _compare(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's l and s `(B, C)` of maps `(B, C, H, W)`."""
    mean_a, mean_b = a.mean((2, 3), keepdim=True), b.mean((2, 3), keepdim=True)
    a, b = a - mean_a, b - mean_b
    variance_a, variance_b = (precise(x.square().mean((2, 3))) for x in (a, b))
    covariance = precise((a * b).mean((2, 3)))
    m_a, m_b = precise(mean_a[..., 0, 0]), precise(mean_b[..., 0, 0])
    means = (2 * m_a * m_b + _C1) / (m_a.square() + m_b.square() + _C1)
    return means, (2 * covariance + _C2) / (variance_a + variance_b + _C2)
