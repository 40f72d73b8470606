"""mIoU, mAcc and aAcc against a count pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from linvit.data.masks import IGNORED
from linvit.inference.iou import segmentation_metrics


def counted(predicted: np.ndarray, true: np.ndarray, classes: int) -> tuple[float, float, float, list[float]]:
    """Look at every pixel, and at every class by itself."""
    hits, either, there = [0] * classes, [0] * classes, [0] * classes
    for guess, truth in zip(predicted.flat, true.flat, strict=True):
        if truth == IGNORED:
            continue
        there[truth] += 1
        either[truth] += 1
        if guess == truth:
            hits[truth] += 1
        else:
            either[guess] += 1
    iou = [hit / size if size else math.nan for hit, size in zip(hits, either, strict=True)]
    acc = [hit / size for hit, size in zip(hits, there, strict=True) if size]
    known = [value for value in iou if not math.isnan(value)]
    return sum(known) / len(known), sum(acc) / len(acc), sum(hits) / sum(there), iou


@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_a_count_pixel_by_pixel(seed: int) -> None:
    random, classes = np.random.default_rng(seed), 7
    shape = (3, 11, 13)
    true = random.choice([0, 1, 2, 3, 4, IGNORED], shape, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1])  # 5 and 6 are not there
    guess = np.where(random.random(shape) < 0.6, true, random.integers(0, 6, shape))  # 6 is not predicted either
    guess[guess == IGNORED] = 5
    metric = MulticlassConfusionMatrix(classes, ignore_index=IGNORED)
    for one, other in zip(torch.from_numpy(guess), torch.from_numpy(true), strict=True):
        metric.update(one[None], other[None])
    found = segmentation_metrics(metric.compute())
    miou, macc, aacc, iou = counted(guess, true, classes)
    assert (found.miou, found.macc, found.aacc) == pytest.approx((miou, macc, aacc), abs=1e-12)
    assert found.iou.tolist() == pytest.approx(iou, nan_ok=True)
    assert found.iou[5] == 0, "predicted, never true: it counts against the mean"
    assert math.isnan(found.iou[6]), "neither predicted nor true: it does not count"
    assert found.pixels.tolist() == [int((true == index).sum()) for index in range(classes)]


def test_masks_that_are_ignored_as_a_whole_are_an_error() -> None:
    with pytest.raises(ValueError, match="no pixel counts"):
        segmentation_metrics(torch.zeros(3, 3))
