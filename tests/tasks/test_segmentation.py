"""The segmentation task: it learns, its loss leaves out what is ignored, its number of classes is bounded."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassConfusionMatrix

from linvit.data import SegmentationData
from linvit.data.masks import IGNORED
from linvit.inference.iou import segmentation_metrics
from linvit.tasks import SegmentationTask

SMALL: dict[str, Any] = {
    "backbone_args": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 32), "layer_scale_init_value": 0.5},
    "decoder_args": {"pyramid_channels": 32, "segmentation_channels": 32, "dropout": 0.0},
}


def test_a_few_updates_learn_eight_of_the_embedded_scenes() -> None:
    torch.manual_seed(0)
    task = SegmentationTask(11, **SMALL).train()
    task.log_training = lambda *args: None  # type: ignore[method-assign]
    data = SegmentationData(batch_size=8, workers=0, photometric=0.0, scale=(1.0, 1.0))
    batch = next(iter(data.train_dataloader()))
    optimizer = torch.optim.AdamW(task.parameters(), 5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        task.training_step(batch, 0).backward()  # type: ignore[arg-type,union-attr]
        optimizer.step()
    confusion = MulticlassConfusionMatrix(11, ignore_index=IGNORED)
    with torch.no_grad():
        confusion.update(task.eval()(batch["image"]).argmax(1), batch["target"])
    assert segmentation_metrics(confusion.compute()).miou > 0.6


def test_loss_is_the_mean_over_the_pixels_that_count() -> None:
    task = SegmentationTask(3, **SMALL).eval()
    task.log_training = lambda *args: None  # type: ignore[method-assign]
    target = torch.randint(3, (2, 64, 64))
    target[0, :50] = IGNORED
    batch: dict[str, Any] = {"image": torch.randn(2, 3, 64, 64), "target": target, "unreadable": []}
    loss: Any = task.training_step(batch, 0)
    logits = task(batch["image"])
    counts = target != IGNORED
    expected = cross_entropy(logits.permute(0, 2, 3, 1)[counts], target[counts])
    torch.testing.assert_close(loss, expected)


def test_a_batch_without_a_pixel_that_counts_has_no_loss_and_no_gradient() -> None:
    task = SegmentationTask(3, **SMALL)
    task.log_training = lambda *args: None  # type: ignore[method-assign]
    batch = {"image": torch.randn(2, 3, 64, 64), "target": torch.full((2, 64, 64), IGNORED), "unreadable": []}
    loss: Any = task.training_step(batch, 0)
    assert float(loss.detach()) == 0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in task.parameters())


@pytest.mark.parametrize("num_classes", [1, 256])
def test_the_number_of_classes_is_bounded(num_classes: int) -> None:
    with pytest.raises(ValueError, match=f"num_classes must be at .*, not {num_classes}"):
        SegmentationTask(num_classes, **SMALL)
