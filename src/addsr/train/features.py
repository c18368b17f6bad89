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
    """Three jobs on crops of HR and enlarged LR: name the degradation, pair crops, see turns.

    Degradations are drawn here, on the crop itself, with known strengths: blur, noise, contrast
    of edges (sharpening), quantisation, down-and-up sampling and grey blend.
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
        views = [self._degrade(self._crop(batch.hr, size)) for _ in range(2)]
        turns = torch.randint(
            4, (1,), generator=torch.Generator().manual_seed(self.trained_net.updates)
        )
        turn = int(turns)
        turned = torch.rot90(views[0][0], turn, dims=(-2, -1))
        figures = self.loss(
            views[0][0],
            views[1][0],
            turned,
            views[0][1],
            torch.full((len(batch.hr),), turn, device=self.device),
        )
        figures[0].backward()
        norm = self.trained_net.step()
        names = ("loss", "degradation", "contrast", "rotation", "pair_accuracy")
        return {**{k: v.detach() for k, v in zip(names, figures, strict=True)}, "grad_norm": norm}

    def _loss(self, a: Tensor, b: Tensor, turned: Tensor, strength: Tensor, turn: Tensor) -> Any:
        c = self.config
        dtype = next(self.net.parameters()).dtype
        predicted, _, embedding_a = self.net(a.to(dtype))
        _, _, embedding_b = self.net(b.to(dtype))
        _, rotation, _ = self.net(turned.to(dtype))
        degradation = F.l1_loss(predicted.float(), strength)
        similarity = embedding_a.float() @ embedding_b.float().T / c.temperature
        same = torch.arange(len(a), device=a.device)
        contrast = (F.cross_entropy(similarity, same) + F.cross_entropy(similarity.T, same)) / 2
        turn_loss = F.cross_entropy(rotation.float(), turn)
        loss = (
            c.degradation_weight * degradation
            + c.contrast_weight * contrast
            + c.rotation_weight * turn_loss
        )
        accuracy = (similarity.argmax(dim=1) == same).float().mean()
        return loss, degradation, contrast, turn_loss, accuracy

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
        dtype = next(net.parameters()).dtype
        errors = []
        for pair in pairs:
            degraded, strength = self._degrade(self._crop(pair.hr.to(self.device), 128))
            errors.append((net(degraded.to(dtype))[0].float() - strength).abs().mean())
        net.train()
        return {"degradation_error": float(torch.stack(errors).mean())}, None

    def flops_per_sample(self) -> float:
        macs, side, previous = 0, self.recipe.data.crop_px // 2, 3
        for i, width in enumerate(self.net.config.widths):
            side = side if i == 0 else -(-side // 2)
            macs += side * side * 9 * width * (previous + width)
            previous = width
        return 3 * 3 * 2 * macs  # three views, forward and backward
