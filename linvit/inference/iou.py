"""The metrics of semantic segmentation, from the counts of a confusion matrix."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SegmentationMetrics", "segmentation_metrics"]


@dataclass(frozen=True)
class SegmentationMetrics:
    """Shares from 0 to 1; NaN for what there is no pixel of.

    Attributes:
        miou: Mean of ``iou`` over the classes that are there, in truth or in predictions.
        macc: Mean of ``acc`` over the classes that are there in truth.
        aacc: Share of all pixels that are predicted right.
        iou: Per class, ``[C]``: pixels that are it and predicted as it, over those that are either.
        acc: Per class, ``[C]``: share of its pixels that are predicted as it.
        pixels: Per class, ``[C]``: its pixels.
    """

    miou: float
    macc: float
    aacc: float
    iou: Tensor
    acc: Tensor
    pixels: Tensor


def segmentation_metrics(confusion: Tensor) -> SegmentationMetrics:
    """Compute the metrics from ``[C, C]`` counts of pixels, true classes down and predicted ones across.

    Raises:
        ValueError: Not one pixel was counted.
    """
    counts = confusion.double().cpu()
    if not counts.sum():
        raise ValueError("no pixel counts: all of every mask is ignored")
    right, true, predicted = counts.diag(), counts.sum(dim=1), counts.sum(dim=0)
    iou = right / (true + predicted - right)
    acc = right / true
    return SegmentationMetrics(
        miou=iou.nanmean().item(),
        macc=acc.nanmean().item(),
        aacc=(right.sum() / counts.sum()).item(),
        iou=iou,
        acc=acc,
        pixels=true.to(torch.int64),
    )
