"""Facts about every metric, stated once: what it means, which way is better, what it needs.

Tables, reports and pages take titles, directions and explanations from here; how a metric is
computed stands in the module it comes from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from addsr.errors import OptionError

Better = Literal["higher", "lower", "one", "none"]
"""Which way is better; one: the nearer to 1 the better; none: it describes and does not judge."""
Aspect = Literal["fidelity", "realism", "consistency", "description"]
Need = Literal["hr", "lr"]


@dataclass(frozen=True)
class Metric:
    """One column of a report."""

    name: str
    title: str
    better: Better
    aspect: Aspect
    range: str
    """Possible values, such as `0..inf`; `typ.` where values beyond them are only unusual."""
    note: str
    """What it measures and how, and the paper."""
    unit: str = ""
    digits: int = 3
    needs: tuple[Need, ...] = ()
    """What it compares a result with: the reference (`hr`), the input (`lr`), or nothing."""
    scope: Literal["image", "set"] = "image"
    """A figure for every picture, or one for all results of a dataset together."""
    verified: bool = True
    """Whether tests hold our figures to published or independent ones."""
    default: bool = False
    """Whether it is measured unless others are asked for."""


_ALL = (
    Metric(
        "psnr-y", "PSNR-Y", "higher", "fidelity", "0..inf",
        "peak signal-to-noise ratio of the lumas, peak 255",
        unit="dB", digits=2, needs=("hr",), default=True,
    ),
    Metric(
        "ssim-y", "SSIM-Y", "higher", "fidelity", "-1..1",
        "structural similarity of the lumas, 11x11 Gaussian windows (Wang et al. 2004)",
        needs=("hr",), default=True,
    ),
    Metric(
        "psnr-rgb", "PSNR-RGB", "higher", "fidelity", "0..inf",
        "peak signal-to-noise ratio over red, green and blue",
        unit="dB", digits=2, needs=("hr",),
    ),
    Metric(
        "ms-ssim", "MS-SSIM", "higher", "fidelity", "0..1",
        "structural similarity of the lumas at five scales (Wang et al. 2003)", needs=("hr",),
    ),
    Metric(
        "gmsd", "GMSD", "lower", "fidelity", "0..1 typ. 0..0.35",
        "deviation of the similarity of luma gradients (Xue et al. 2014)", needs=("hr",),
    ),
    Metric(
        "haarpsi", "HaarPSI", "higher", "fidelity", "0..1",
        "similarity of Haar wavelet coefficients (Reisenhofer et al. 2018)",
        needs=("hr",), default=True,
    ),
    Metric(
        "lpips-alex", "LPIPS (Alex)", "lower", "fidelity", "0..inf typ. 0..1",
        "distance of AlexNet's activations, version 0.1 (Zhang et al. 2018)",
        needs=("hr",), default=True,
    ),
    Metric(
        "lpips-vgg", "LPIPS (VGG)", "lower", "fidelity", "0..inf typ. 0..1",
        "distance of VGG16's activations, version 0.1 (Zhang et al. 2018)", needs=("hr",),
    ),
    Metric(
        "dists", "DISTS", "lower", "fidelity", "0..1",
        "structure and texture similarity of VGG16's activations (Ding et al. 2020), "
        "pictures at their own size", needs=("hr",), default=True,
    ),
    Metric(
        "lr-psnr", "LR-PSNR", "higher", "consistency", "0..inf",
        "luma PSNR of the result, averaged over each input pixel, against the input; "
        "beyond 35 dB it says that noise of the input was kept",
        unit="dB", digits=2, needs=("lr",), default=True,
    ),
    Metric(
        "niqe", "NIQE", "lower", "realism", "0..inf typ. 2..12",
        "distance from the statistics of clean photos (Mittal et al. 2012) with the published "
        "model, luma of BT.601 rounded, as in MATLAB and BasicSR; noise is rewarded as detail is",
        digits=2, default=True,
    ),
    Metric(
        "niqe-yiq", "NIQE (YIQ)", "lower", "realism", "0..inf typ. 2..12",
        "NIQE with luma in 0..255, as IQA-PyTorch measures it unless told otherwise", digits=2,
    ),
    Metric(
        "niqe-addsr", "NIQE (addsr)", "lower", "realism", "0..inf typ. 2..12",
        "NIQE with a model fitted to clean photos by this project: to rank methods where the "
        "published file is not at hand; not comparable with published figures",
        digits=2, default=True,
    ),
    Metric(
        "piqe", "PIQE", "lower", "realism", "0..100",
        "share of visibly blocked, blurred and noisy blocks (Venkatanath et al. 2015), "
        "as in MATLAB; jumps when a picture was stored with losses",
        digits=1, default=True,
    ),
    Metric(
        "brisque", "BRISQUE", "lower", "realism", "typ. 0..100",
        "regression on natural scene statistics (Mittal et al. 2012)", digits=1,
    ),
    Metric(
        "musiq", "MUSIQ", "higher", "realism", "0..100",
        "multi-scale transformer trained on KonIQ-10k (Ke et al. 2021), by IQA-PyTorch",
        digits=2, verified=False,
    ),
    Metric(
        "maniqa", "MANIQA", "higher", "realism", "0..1",
        "vision transformer trained on PIPAL (Yang et al. 2022), by IQA-PyTorch", verified=False,
    ),
    Metric(
        "clipiqa", "CLIP-IQA", "higher", "realism", "0..1",
        "CLIP's choice between good and bad photo (Wang et al. 2023), by IQA-PyTorch or "
        "torchmetrics", verified=False,
    ),
    Metric(
        "swd", "SWD", "lower", "realism", "0..inf",
        "sliced Wasserstein distance of 7x7 patches of Laplacian pyramids between results and "
        "references, mean of the levels (Karras et al. 2018, section 5)",
        needs=("hr",), scope="set", digits=4, default=True,
    ),
    Metric(
        "fd-phi", "FD-phi", "lower", "realism", "0..inf",
        "Fréchet distance of results and references in the features of phi', a net of this "
        "project that no loss uses; not comparable with FID",
        needs=("hr",), scope="set", digits=3, default=True,
    ),
    Metric(
        "kid-phi", "KID-phi", "lower", "realism", "around 0..inf",
        "kernel distance of results and references in the features of phi'",
        needs=("hr",), scope="set", digits=4,
    ),
    Metric(
        "fid", "FID", "lower", "realism", "0..inf",
        "Fréchet distance in the features of Inception v3 (Heusel et al. 2017), by IQA-PyTorch or "
        "torchmetrics; thousands of pictures are needed for a stable figure",
        needs=("hr",), scope="set", digits=2, verified=False,
    ),
    Metric(
        "spectrum", "Spectrum error", "lower", "description", "0..inf",
        "mean difference of the radial luma spectra of result and reference",
        unit="dB", digits=2, needs=("hr",), default=True,
    ),
    Metric(
        "laplacian-flat", "Laplacian, flat", "one", "description", "0..inf",
        "energy of the Laplacian against the reference's where that one is flat: over 1 is noise",
        needs=("hr",), digits=2,
    ),
    Metric(
        "laplacian-edge", "Laplacian, edges", "one", "description", "0..inf",
        "energy of the Laplacian against the reference's at its edges: under 1 is blur",
        needs=("hr",), digits=2,
    ),
    Metric(
        "laplacian-texture", "Laplacian, texture", "one", "description", "0..inf",
        "energy of the Laplacian against the reference's in its texture: under 1 is smoothed",
        needs=("hr",), digits=2,
    ),
    Metric(
        "gradient", "Gradient ratio", "one", "description", "0..inf",
        "mean Sobel gradient of the luma divided by the reference's: over 1 is sharper or noisier",
        needs=("hr",), digits=2, default=True,
    ),
    Metric(
        "gradient-levels", "Gradient", "none", "description", "0..inf",
        "mean Sobel gradient of the luma in levels per pixel", digits=2,
    ),
    Metric(
        "hf", "High frequencies", "none", "description", "0..100",
        "share of the luma's spectral energy above a quarter of Nyquist",
        unit="%", digits=2, default=True,
    ),
)  # fmt: skip

CATALOG: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""Every metric by name, in the order of columns."""


def choose_metrics(names: Iterable[str]) -> list[Metric]:
    """The metrics called so, in the order of the catalog; `default` and `all` stand for groups.

    Raises:
        OptionError: an unknown name, or none at all.
    """
    wanted: set[str] = set()
    for name in (name.strip().lower() for name in names):
        if name == "all":
            wanted |= set(CATALOG)
        elif name == "default":
            wanted |= {metric.name for metric in CATALOG.values() if metric.default}
        elif name in CATALOG:
            wanted.add(name)
        elif name:
            raise OptionError(
                f"metrics: {name!r} is unknown; use default, all or some of {', '.join(CATALOG)}"
            )
    if not wanted:
        raise OptionError("metrics: none are named; give some, or leave --metrics out")
    return [metric for metric in CATALOG.values() if metric.name in wanted]
