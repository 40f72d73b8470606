"""Semantic segmentation as a Lightning module: Semantic FPN or UPerNet on any backbone of linvit or timm."""

from typing import Any

import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from linvit.checks import require, some
from linvit.data.masks import IGNORED
from linvit.heads.segmentation import DecoderName, Segmenter
from linvit.inference.iou import segmentation_metrics
from linvit.tasks.base import VisionTask, agreed

__all__ = ["SegmentationTask"]


class SegmentationTask(VisionTask):
    """Trains and validates a network that gives every pixel a class.

    Batches are dictionaries: ``image [B, 3, h, w]`` float (None: skipped), ``target [B, H, W]`` int64, where 255 counts
    for nothing, and ``unreadable``, the paths of files that could not be read. In validation ``h x w`` may differ
    from ``H x W``: the logits are resized.

    Logs ``val/loss``, ``val/miou``, ``val/macc`` and ``val/aacc`` (shares from 0 to 1; see
    :func:`linvit.inference.iou.segmentation_metrics`) beside what VisionTask logs.

    Args:
        num_classes: Number of classes of the data.
        name: Decoder: fpn (Semantic FPN) or upernet.
        backbone: Any model that timm knows, or the run folder of a classifier.
        pretrained: Start the backbone from the published weights or those of its run folder (true), from those of a
            checkpoint file or run folder (its path), or from none.
        backbone_args: More arguments of the backbone, such as drop_path_rate.
        decoder_args: More arguments of the decoder, such as pyramid_channels (fpn) or decoder_channels (upernet).
        window: Side in pixels of the windows that images are predicted in; null predicts them as a whole.
        stride: Distance in pixels between windows; null: two thirds of the window.
        channels_last: Lay out convolutions with the channels last.
        **kwargs: The optimizer, its schedule and the average, as for VisionTask.

    Attributes:
        confusion: ``[num_classes, num_classes]`` pixels (true, predicted) of the last validation; None before it.

    Raises:
        ValueError: An argument is outside its range or does not suit the model, or ``backbone`` is none.
    """

    model: Segmenter

    def __init__(
        self,
        num_classes: int,
        name: DecoderName = "fpn",
        backbone: str = "care_s0",
        pretrained: bool | str = False,
        backbone_args: dict[str, Any] | None = None,
        decoder_args: dict[str, Any] | None = None,
        window: int | None = None,
        stride: int | None = None,
        channels_last: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.metrics = {"miou": "mIoU", "macc": "mAcc", "aacc": "aAcc", "loss": "loss"}
        require(num_classes <= IGNORED, "num_classes", num_classes, f"at most {IGNORED}")
        self.model = Segmenter(
            num_classes, name, backbone, backbone_args, decoder_args, window, stride, pretrained=pretrained
        )
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.val_loss = MeanMetric()
        self.val_confusion = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORED, validate_args=False)
        self.confusion: Tensor | None = None

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits ``[B, num_classes, H, W]`` of images ``[B, 3, H, W]``."""
        return self.model(self._laid_out(image))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> STEP_OUTPUT:
        """Return the loss of a batch."""
        self.unreadable.update(dict.fromkeys(batch["unreadable"]))
        if batch["image"] is None:
            return None
        if self.hparams["name"] == "upernet" and len(batch["image"]) == 1:
            raise ValueError("upernet's batch norm needs more than one image at a time: raise --data.batch_size to 2")
        loss = _pixel_loss(self(batch["image"]), batch["target"])
        self.log_training(loss, len(batch["image"]))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add a batch to the metrics."""
        self.unreadable.update(dict.fromkeys(batch["unreadable"]))
        if batch["image"] is None:
            return
        target = batch["target"]
        logits = self.model.predict(self._laid_out(batch["image"]), target.shape[1:])
        self.val_loss.update(_pixel_loss(logits, target), weight=(target != IGNORED).sum())
        self.val_confusion.update(logits.argmax(dim=1), target)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole validation."""
        if not agreed(self.trainer, self.val_confusion.update_called):
            raise ValueError(f"none of the validation images can be read with its mask, {some(self.unreadable, 3)}")
        self.confusion = self.val_confusion.compute()
        metrics = segmentation_metrics(self.confusion)
        for key in ("miou", "macc", "aacc"):
            self.log(f"val/{key}", getattr(metrics, key), prog_bar=key == "miou")
        self.log("val/loss", self.val_loss.compute())
        self.val_loss.reset()
        self.val_confusion.reset()

    def _laid_out(self, image: Tensor) -> Tensor:
        return image.contiguous(memory_format=torch.channels_last) if self.hparams["channels_last"] else image


def _pixel_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy over the pixels that count; 0 where none does."""
    total = F.cross_entropy(logits.float(), target, ignore_index=IGNORED, reduction="sum")
    return total / (target != IGNORED).sum().clamp(min=1)
