"""Distances between sets of pictures: Fréchet and kernel distance of features, sliced Wasserstein.

Sets may be larger than memory: `Moments` keeps sums, `Reservoir` a uniform sample of bounded size.
All three distances fall as results come to look like the references *as a set*; none says that a
single picture is right. Compare figures only between sets of the same size and the same features:
small sets score worse.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.errors import InputError

from .pixel import check_picture

PATCH = 7
"""Side of the patches that `laplacian_patches` draws; 3 * 7 * 7 = 147 numbers each."""
SMALLEST_LEVEL = 16
"""Shortest side of a pyramid's coarsest level."""


class Moments:
    """Count, mean and covariance of feature vectors that are added bit by bit.

    `mean` `(d,)` and `scatter` `(d, d)`, the sum of outer products around the mean, are float64 on
    the CPU. Vectors or other moments added in any order and grouping give the same values but for
    rounding (the update of Chan, Golub and LeVeque, 1983).
    """

    def __init__(
        self, count: int = 0, mean: Tensor | None = None, scatter: Tensor | None = None
    ) -> None:
        self.count = count
        self.mean = torch.zeros(0, dtype=torch.float64) if mean is None else mean
        self.scatter = torch.zeros(0, 0, dtype=torch.float64) if scatter is None else scatter

    def add(self, features: Tensor) -> None:
        """Takes in vectors `(n, d)`.

        Raises:
            InputError: another shape or width, or values that are not finite.
        """
        if features.dim() != 2 or not features.isfinite().all():
            raise InputError(
                f"features: {tuple(features.shape)}, all finite: "
                f"{bool(features.isfinite().all())}; give finite vectors (n, d)"
            )
        features = features.detach().cpu().double()
        if len(features):
            mean = features.mean(0)
            around = features - mean
            self.merge(Moments(len(features), mean, around.T @ around))

    def merge(self, other: Moments) -> None:
        """Takes in what `other` has taken in.

        Raises:
            InputError: the vectors differ in width.
        """
        if not other.count:
            return
        if not self.count:
            self.count, self.mean = other.count, other.mean.clone()
            self.scatter = other.scatter.clone()
            return
        if self.mean.shape != other.mean.shape:
            raise InputError(
                f"features: width {len(other.mean)} differs from {len(self.mean)} of those before; "
                "give features of one network"
            )
        count = self.count + other.count
        gap = other.mean - self.mean
        self.mean = self.mean + gap * (other.count / count)
        spread = torch.outer(gap, gap) * (self.count * other.count / count)
        self.scatter = self.scatter + other.scatter + spread
        self.count = count

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance `(d, d)`.

        Raises:
            InputError: less than two vectors were added.
        """
        if self.count < 2:
            raise InputError(f"features: {self.count} vectors have no covariance; give two or more")
        return self.scatter / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Fréchet distance of two Gaussians with these moments; >= 0, lower is closer.

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
    Equilibrium" (2017), eq. 6: |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)). With fewer
    vectors than dimensions it is still defined, but large even between halves of one set.

    Raises:
        InputError: less than two vectors in a set, or sets of different width.
    """
    root_a, root_b = _root(a.covariance), _root(b.covariance)
    if root_a.shape != root_b.shape:
        raise InputError(
            f"b: features of width {len(root_b)} against a's {len(root_a)}; "
            "give features of one network"
        )
    # The trace of (C_a C_b)^(1/2) is the sum of the singular values of the product of the roots.
    # Taking them directly keeps twice the digits of roots of the eigenvalues of C_a C_b.
    cross = torch.linalg.svdvals(root_a @ root_b).sum()
    traces = a.covariance.trace() + b.covariance.trace()
    distance = (a.mean - b.mean).square().sum() + traces - 2 * cross
    return max(0.0, float(distance))


def kernel_distance(
    a: Tensor, b: Tensor, *, subsets: int = 100, subset_size: int = 1000, generator: torch.Generator
) -> tuple[float, float]:
    """Kernel distance (KID) of features `(n, d)` and `(m, d)`: mean and deviation over subsets.

    Around 0 for sets of one distribution (the estimate is unbiased, so it may be negative), lower
    is closer. Bińkowski et al., "Demystifying MMD GANs" (2018), eq. 4: squared maximum mean
    discrepancy with the kernel (x.y / d + 1)^3, of subsets drawn without replacement; the
    deviation is that of the subsets, not of their mean.

    Raises:
        InputError: widths differ, or `subset_size` is under 2 or over the smaller set.
    """
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise InputError(
            f"features: {tuple(a.shape)} and {tuple(b.shape)} are no sets of equally long vectors; "
            "give (n, d) and (m, d) of one network"
        )
    smaller = min(len(a), len(b))
    if not 2 <= subset_size <= smaller or subsets < 1:
        raise InputError(
            f"subset_size: {subset_size} (subsets: {subsets}) is not possible with sets of "
            f"{len(a)} and {len(b)}; give 2 to {smaller}, and one subset or more"
        )
    a, b = a.detach().cpu(), b.detach().cpu()
    figures = torch.stack(
        [
            _squared_discrepancy(
                a[torch.randperm(len(a), generator=generator)[:subset_size]].double(),
                b[torch.randperm(len(b), generator=generator)[:subset_size]].double(),
            )
            for _ in range(subsets)
        ]
    )
    return float(figures.mean()), float(figures.std(correction=0))


class Reservoir:
    """A uniform sample of at most `capacity` of the rows added, whatever their number.

    Vitter's algorithm R (1985): row i takes the place of a random kept one with probability
    capacity / i. The same rows in the same order and a generator in the same state give the same
    sample, however the rows are cut into batches.
    """

    def __init__(self, capacity: int, generator: torch.Generator) -> None:
        if capacity < 1:
            raise InputError(f"capacity: {capacity} keeps nothing; give 1 or more")
        self.capacity, self.generator, self.seen = capacity, generator, 0
        self._kept: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """The sample `(n, d)`, n at most `capacity`; float32 on the CPU."""
        if self._kept is None:
            return torch.zeros(0, 0)
        return self._kept[: self.seen]

    def add(self, rows: Tensor) -> None:
        """Takes in `(n, d)`.

        Raises:
            InputError: another width than that of the rows before.
        """
        rows = rows.detach().cpu().float()
        if self._kept is None:
            self._kept = rows.new_empty(self.capacity, rows.shape[1])
        if rows.shape[1:] != self._kept.shape[1:]:
            raise InputError(
                f"rows: {tuple(rows.shape)} after rows of {self._kept.shape[1]} numbers; "
                "give rows of one width"
            )
        place = torch.arange(self.seen, self.seen + len(rows))
        draw = torch.rand(len(rows), generator=self.generator, dtype=torch.float64)
        slot = torch.where(place < self.capacity, place, (draw * (place + 1)).long())
        taken = slot < self.capacity
        # of several rows for one slot the last stays, as if they had come one by one
        last = torch.full((self.capacity,), -1)
        last.scatter_reduce_(0, slot[taken], torch.arange(len(rows))[taken], "amax")
        changed = last >= 0
        self._kept[changed] = rows[last[changed]]
        self.seen += len(rows)


def pyramid_levels(height: int, width: int) -> int:
    """How many levels `laplacian_patches` can make of such a picture; 0 if a side is under 16.

    For a set of mixed sizes take that of the smallest, so that level k means the same in all.
    """
    levels, side = 0, min(height, width)
    while side >= SMALLEST_LEVEL:
        levels, side = levels + 1, (side + 1) // 2
    return levels


def laplacian_patches(
    image: Tensor, *, levels: int, count: int = 128, generator: torch.Generator
) -> list[Tensor]:
    """Random 7x7 patches of each level of a Laplacian pyramid: per level `(B * count, 147)`.

    Finest level first; the last one is the low-pass rest. `image` is `(B, 3, H, W)` in [0, 1]; a
    row is a patch's red, green and blue plane, float32 on the CPU. Places are drawn with
    replacement; with generators in the same state they are the same in pictures of the same size.
    Karras et al., "Progressive Growing of GANs for Improved Quality, Stability, and Variation"
    (2018), section 5.

    Raises:
        InputError: no picture, or too small for so many levels.
    """
    check_picture("image", image)
    possible = pyramid_levels(*image.shape[-2:])
    if not 1 <= levels <= possible or count < 1:
        raise InputError(
            f"levels: {levels} (count: {count}) is not possible for "
            f"{image.shape[-1]}x{image.shape[-2]}; give 1 to {possible} levels "
            f"(the coarsest keeps {SMALLEST_LEVEL} pixels) and one patch or more"
        )
    current = image.detach().cpu().float()
    found: list[Tensor] = []
    for _ in range(levels - 1):
        coarser = _shrink(current)
        found.append(_draw(current - _enlarge(coarser, *current.shape[-2:]), count, generator))
        current = coarser
    return [*found, _draw(current, count, generator)]


def sliced_wasserstein(
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    *,
    projections: int = 512,
    generator: torch.Generator,
) -> list[float]:
    """Sliced Wasserstein distance of two sets of patches, one figure per level; >= 0, lower is
    closer.

    `a` and `b` hold per level the rows `(n, 147)` of all pictures, as `laplacian_patches` gives
    them. Each set is first brought to mean 0 and deviation 1 per colour, so that contrast and
    brightness do not count; then the mean distance of sorted projections on random directions is
    taken (Karras et al. 2018, who print it times 1000). Two samples of one distribution score
    about 1.8 / sqrt(n), not 0. A larger set is thinned at random to the size of the smaller.

    Raises:
        InputError: other numbers of levels, or a level without patches.
    """
    if len(a) != len(b) or not a or any(x.dim() != 2 or not len(x) for x in (*a, *b)):
        raise InputError(
            f"patches: levels of {[tuple(x.shape) for x in a]} and "
            f"{[tuple(x.shape) for x in b]} rows; give the same number of levels, none empty"
        )
    if any(x.shape[1] % 3 or x.shape[1] != y.shape[1] for x, y in zip(a, b, strict=True)):
        raise InputError("patches: rows differ in length or hold no three colours; give (n, 147)")
    return [
        _sliced(_descriptors(x), _descriptors(y), projections, generator)
        for x, y in zip(a, b, strict=True)
    ]


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a covariance; eigenvalues below 0 by rounding count as 0."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def _squared_discrepancy(a: Tensor, b: Tensor) -> Tensor:
    """Unbiased squared MMD of `(m, d)` and `(m, d)` with the cubic kernel."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    k_aa, k_bb = kernel(a, a), kernel(b, b)
    pairs = len(a) * (len(a) - 1)
    within = (k_aa.sum() - k_aa.trace() + k_bb.sum() - k_bb.trace()) / pairs
    return within - 2 * kernel(a, b).mean()


def _shrink(x: Tensor) -> Tensor:
    """Every second pixel of `x` `(B, 3, H, W)` after a 5x5 binomial filter, mirrored edges."""
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), _binomial(1.0), stride=2, groups=3)


def _enlarge(x: Tensor, height: int, width: int) -> Tensor:
    """`x` at twice the size: zeros between its pixels, then the same filter times 4."""
    spread = x.new_zeros(*x.shape[:2], height, width)
    spread[..., ::2, ::2] = x
    return F.conv2d(F.pad(spread, (2, 2, 2, 2), mode="reflect"), _binomial(4.0), groups=3)


def _binomial(total: float) -> Tensor:
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0])
    return (torch.outer(taps, taps) * (total / 256)).expand(3, 1, 5, 5)


def _draw(level: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` random patches of each picture `(B, 3, H, W)`: `(B * count, 147)`."""
    batch, _, height, width = level.shape
    shape = (batch, count, 1, 1)
    top = torch.randint(height - PATCH + 1, shape, generator=generator)
    left = torch.randint(width - PATCH + 1, shape, generator=generator)
    rows = top + torch.arange(PATCH)[:, None]  # (B, count, 7, 1)
    columns = left + torch.arange(PATCH)
    picture = torch.arange(batch).view(batch, 1, 1, 1)
    patches = level.permute(0, 2, 3, 1)[picture, rows, columns]  # (B, count, 7, 7, 3)
    return patches.permute(0, 1, 4, 2, 3).reshape(batch * count, 3 * PATCH * PATCH)


def _descriptors(patches: Tensor) -> Tensor:
    """Patches `(n, 147)` with mean 0 and deviation 1 per colour; a flat colour stays 0."""
    colours = patches.detach().cpu().float().unflatten(1, (3, -1))  # (n, 3, 49)
    deviation, mean = torch.std_mean(colours.double(), dim=(0, 2), correction=0, keepdim=True)
    scale = torch.where(deviation > 1e-7, deviation, torch.ones_like(deviation))
    return ((colours - mean.float()) / scale.float()).flatten(1)


def _sliced(a: Tensor, b: Tensor, projections: int, generator: torch.Generator) -> float:
    size = min(len(a), len(b))
    a, b = (
        x if len(x) == size else x[torch.randperm(len(x), generator=generator)[:size]]
        for x in (a, b)
    )
    directions = torch.randn(projections, a.shape[1], generator=generator)
    directions = F.normalize(directions, dim=1)
    total = 0.0
    for some in directions.split(64):  # bounds the memory: (64, n) at a time
        gap = (some @ a.T).sort(1).values - (some @ b.T).sort(1).values
        total += float(gap.abs().mean(1).double().sum())
    return total / projections
