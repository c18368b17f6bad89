"""phi': training of the evaluation-only feature net (no loss of any other task uses it)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.errors import ConfigError
from addsr.nets import FeatureNet, FeatureNetConfig, tuples

from .config import FeaturesConfig, Recipe
from .task import Batch, Task


class FeaturesTask(Task):
    """Two jobs on crops of HR: name the degradation, and find the other crop of the same picture.

    Degradations are drawn here, on the crop itself, with known strengths: blur, noise, contrast
    of edges (sharpening), quantisation, down-and-up sampling and grey blend. Seeing which way up a
    picture is, a usual third job, cannot be learnt here: pictures come turned at random.
    """

    name = "features"

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        self.config: FeaturesConfig = recipe.task
        try:
            config = FeatureNetConfig(**tuples(recipe.net))
        except TypeError as error:
            raise ConfigError(f"[net]: {error}; fields are those of FeatureNetConfig") from error
        self.net = FeatureNet(config)
        self.trained_net = self.track("net", self.net, recipe.optim)
        self.loss = self.compiled(self._loss)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        size = batch.hr.shape[-1] // 2
        a, strength_a = self._degrade(self._crop(batch.hr, size))
        b, strength_b = self._degrade(self._crop(batch.hr, size))
        figures = self.loss(torch.cat([a, b]), torch.cat([strength_a, strength_b]))
        figures[0].backward()
        norm = self.trained_net.step()
        names = ("loss", "degradation", "contrast", "pair_accuracy")
        return {**{k: v.detach() for k, v in zip(names, figures, strict=True)}, "grad_norm": norm}

    def _loss(self, views: Tensor, strength: Tensor) -> Any:
        c, n = self.config, len(views) // 2
        predicted, embedding = self.net(views.to(self._dtype()))
        # squares and not magnitudes: half the strengths are zero, and so would every median be
        degradation = F.mse_loss(predicted.float(), strength)
        similarity = embedding[:n].float() @ embedding[n:].float().T / c.temperature
        same = torch.arange(n, device=views.device)
        contrast = (F.cross_entropy(similarity, same) + F.cross_entropy(similarity.T, same)) / 2
        loss = c.degradation_weight * degradation + c.contrast_weight * contrast
        accuracy = (similarity.argmax(dim=1) == same).float().mean()
        return loss, degradation, contrast, accuracy

    def _dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype

    def _crop(self, x: Tensor, size: int) -> Tensor:
        top, left = (self.rand(2) * (x.shape[-1] - size + 1)).long().tolist()
        return x[..., top : top + size, left : left + size]

    def _degrade(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(degraded, strengths (B, 6))`, each strength uniform in [0, 1] and half of them zero."""
        n = len(x)
        active = (self.rand(n, 6) < 0.5).float()
        s = self.rand(n, 6) * active
        blur, noise, sharpen, levels, resample, grey = (v.view(-1, 1, 1, 1) for v in s.unbind(1))
        soft = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
        small = F.avg_pool2d(x, 4)
        coarse = F.interpolate(small, scale_factor=4.0, mode="bilinear", align_corners=False)
        y = x + blur * (soft - x)
        y = y + resample * (coarse - y)
        y = y + sharpen * (x - soft)
        y = y + noise * 0.1 * self.randn_like(y)
        y = y + grey * (y.mean(dim=1, keepdim=True) - y)
        step = 1 / 255 + levels * 0.1
        y = torch.where(levels > 0, (y / step).round() * step, y)
        return y.clamp(0, 1), s

    @torch.no_grad()
    def validate(self, pairs: list[Batch]) -> tuple[dict[str, float], Tensor | None]:
        """Mean error of the named degradation strengths on validation pictures."""
        if not pairs:
            return {}, None
        net = self.net.eval()
        errors = []
        for pair in pairs:
            degraded, strength = self._degrade(self._crop(pair.hr.to(self.device), 128))
            errors.append((net(degraded.to(self._dtype()))[0].float() - strength).abs().mean())
        net.train()
        return {"degradation_error": float(torch.stack(errors).mean())}, None

    def flops_per_sample(self) -> float:
        macs, side, previous = 0, self.recipe.data.crop_px // 2, 3
        for i, width in enumerate(self.net.config.widths):
            side = side if i == 0 else -(-side // 2)
            macs += side * side * 9 * width * (previous + width)
            previous = width
        return 2 * 3 * 2 * macs  # two views, forward and backward
