"""The parts of learning features: student and teacher, which levels of theirs are compared, what is explained."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from linvit.heads.features import Level, features, levels, width
from linvit.tasks.distillation import Onlooker

__all__ = ["Explained", "FeatureTeacher", "Student", "paired", "pooled"]


class Student(nn.Module):
    """A backbone, and a linear projector from each of its features to those of its teacher.

    Args:
        backbone: A timm model without classes.
        pairs: Level of the backbone and level of the teacher, for each map that is compared.
        summary: How many pooled features the teacher has.
    """

    def __init__(self, backbone: Any, pairs: Sequence[tuple[Level, Level]], summary: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.indices = [ours.index for ours, _ in pairs]
        self.summary = nn.Linear(width(backbone), summary)
        self.maps = nn.ModuleList(nn.Conv2d(ours.channels, theirs.channels, 1) for ours, theirs in pairs)

    def forward(self, image: Tensor, sizes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return what the teacher is said to see: pooled features ``[B, C]``, then maps ``[B, C, h, w]``.

        Args:
            image: ``[B, 3, H, W]``.
            sizes: Height and width of the teacher's maps; a finer one of the student's is brought to them.
        """
        summary, maps = features(self.backbone, image, self.indices)
        said = [
            project(pooled(x, [min(pair) for pair in zip(x.shape[2:], size, strict=True)]))
            for project, x, size in zip(self.maps, maps, sizes, strict=True)
        ]
        return [self.summary(summary), *said]

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that the backbone exempts from weight decay."""
        return {f"backbone.{name}" for name in getattr(self.backbone, "no_weight_decay", set)()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's activations in the backward pass instead of keeping them."""
        self.backbone.set_grad_checkpointing(enable)


class FeatureTeacher(Onlooker):
    """A frozen model that says its pooled features and its maps."""

    def __init__(self, model: nn.Module, indices: list[int], size: int | None) -> None:
        super().__init__(model, size)
        self._indices = indices

    @torch.no_grad()
    def __call__(self, image: Tensor) -> list[Tensor]:
        """Return pooled features ``[B, C]``, then maps ``[B, C, h, w]``, of the student's images; float32."""
        summary, maps = features(self.model, self.view(image), self._indices, norm=True)
        return [summary.float(), *(x.float() for x in maps)]


class Explained(Metric):
    """Share of the variance of targets with mean 0 that is explained, for several at a time.

    Args:
        count: How many targets there are.
    """

    full_state_update = False
    error: Tensor
    total: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        for name in ("error", "total"):
            self.add_state(name, torch.zeros(count, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, said: list[Tensor], targets: list[Tensor]) -> None:
        """Add a batch."""
        for index, (x, y) in enumerate(zip(said, targets, strict=True)):
            self.error[index] += (x.float() - y).square().sum()
            self.total[index] += y.square().sum()

    def compute(self) -> Tensor:
        """Return the shares ``[count]``."""
        return (1 - self.error / self.total.clamp(min=1e-12)).float()


def paired(student: Any, teacher: Any) -> list[tuple[Level, Level]]:
    """Pair the student's levels with the teacher's, from fine to coarse.

    A level goes with the one whose stride is nearest, the coarser of two; where one of the models has a single stride
    (ViT), its evenly spaced blocks go with the other's levels one by one, the last with the last.
    """
    ours, theirs = levels(student), levels(teacher)
    if _is_pyramid(student) and _is_pyramid(teacher):
        return [(level, min(theirs, key=partial(_distance, level))) for level in ours]
    if _is_pyramid(teacher):
        ours = levels(student, len(theirs))
    theirs = levels(teacher, len(ours))
    count = min(len(ours), len(theirs))
    return list(zip(ours[-count:], theirs[-count:], strict=True))


def pooled(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bring a map ``[B, C, H, W]`` to a smaller height and width by the means of its parts."""
    height, width = size
    return x if x.shape[2:] == (height, width) else F.adaptive_avg_pool2d(x, (height, width))


def _is_pyramid(model: Any) -> bool:
    return len({info["reduction"] for info in model.feature_info}) > 1


def _distance(ours: Level, theirs: Level) -> tuple[float, int]:
    return abs(math.log2(theirs.stride / ours.stride)), -theirs.stride
