"""Object detection as a Lightning module: torchvision's detectors on linear backbones, measured as COCO does."""

from typing import Any

import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from linvit.checks import some
from linvit.data.coco import Record
from linvit.data.detection_sets import DetectionSet
from linvit.heads.detection import DetectionModel, DetectorName
from linvit.inference.coco import BOX_METRICS, MASK_METRICS, coco_metrics, coco_results
from linvit.tasks.base import VisionTask


class DetectionTask(VisionTask):
    """Trains and validates a detector.

    Batches are dictionaries of lists: ``image``, tensors ``[3, H, W]`` of bytes; ``target``, dictionaries with
    ``image_id``, ``boxes``, ``labels`` and maybe ``masks``; and ``unreadable``, paths of files that could not be read.
    The data module's ``val_set`` is a :class:`linvit.data.detection_sets.DetectionSet`.

    Logs what VisionTask logs, each loss of the detector as ``train/loss_NAME`` (mean over the epoch, or over the rest
    of one that was resumed within), and COCO's average precisions as ``val/ap``, ``val/ap50``, ... (and
    ``val/mask_ap``, ...), where there is something to find.

    Args:
        num_classes: Number of classes of the data.
        name: The detector.
        backbone: Model by timm's name.
        pretrained: Start the backbone from the published weights (true), from those of a classifier's checkpoint file
            or run folder (its path), or from none.
        backbone_args: More arguments of the backbone, such as drop_path_rate.
        size: Pixels that the shorter side is brought to in validation; training sets it to data.size.
        max_size: Most pixels of the longer side then; training sets it to data.max_size.
        anchor_size: Side in pixels of the smallest anchor; it doubles from level to level of the pyramid.
        channels: Channels of the feature pyramid.
        detector_args: More arguments of torchvision's detector, such as nms_thresh.
        freeze_norm: Keep the statistics of the backbone's batch norms, as suits pretrained ones in small batches.
        lr: Highest learning rate.
        warmup_epochs: Epochs over which the learning rate rises; at most half of the training is used for it.
        **kwargs: As for VisionTask.

    Raises:
        ValueError: An argument is outside its range, or the model cannot be built.
    """

    model: DetectionModel

    def __init__(
        self,
        num_classes: int,
        name: DetectorName = "retinanet",
        backbone: str = "care_s0",
        pretrained: bool | str = False,
        backbone_args: dict[str, Any] | None = None,
        size: int = 800,
        max_size: int = 1333,
        anchor_size: float = 32,
        channels: int = 256,
        detector_args: dict[str, Any] | None = None,
        freeze_norm: bool = False,
        lr: float = 1e-4,
        warmup_epochs: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(lr=lr, warmup_epochs=warmup_epochs, **kwargs)
        self.model = DetectionModel(
            num_classes,
            name,
            backbone,
            backbone_args,
            size,
            max_size,
            anchor_size,
            channels,
            detector_args,
            pretrained,
        )
        self.model.to(memory_format=torch.channels_last)
        self.metrics = (MASK_METRICS if self.model.has_masks else {}) | BOX_METRICS
        self._results: list[Record] = []
        self._seen: list[int] = []
        self.train()

    def train(self, mode: bool = True) -> "DetectionTask":
        """Switch to training, in which frozen norms stay as they are."""
        super().train(mode)
        if mode and self.hparams["freeze_norm"]:
            for module in self.model.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> STEP_OUTPUT:
        """Return the loss of a batch: the sum of the detector's."""
        self.unreadable.update(dict.fromkeys(batch["unreadable"]))
        images: list[Tensor] = batch["image"]
        losses: dict[str, Tensor] = self.model(images, batch["target"])
        names = {f"train/{name if name.startswith('loss') else f'loss_{name}'}": each for name, each in losses.items()}
        self.log_dict(names, on_step=False, on_epoch=True, batch_size=len(images), sync_dist=True)
        loss = torch.stack([each.float() for each in losses.values()]).sum()
        self.log_training(loss, len(images))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Note what is found on a batch."""
        self.unreadable.update(dict.fromkeys(batch["unreadable"]))
        if not batch["image"]:
            return
        dataset = self._validated_on()
        for found, target in zip(self.model(batch["image"]), batch["target"], strict=True):
            self._seen.append(target["image_id"])
            self._results += coco_results(found, target["image_id"], dataset)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole validation."""
        results, seen = self._gathered()
        self._results, self._seen = [], []
        if not seen:
            raise ValueError(f"none of the validation images can be read, {some(self.unreadable, 3)}")
        truth = self._validated_on().truth
        for kind, names in (("bbox", BOX_METRICS), ("segm", MASK_METRICS)):
            if not names.keys() <= self.metrics.keys():
                continue
            counted = coco_metrics(truth, results, seen, kind).overall  # type: ignore[arg-type]
            for name, value in zip(names, counted.values(), strict=True):
                if value is not None:
                    self.log(f"val/{name}", value, prog_bar=name == next(iter(self.metrics)))

    def _validated_on(self) -> DetectionSet:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        return data.val_set

    def _gathered(self) -> tuple[list[Record], set[int]]:
        """Return the results and images of all devices; one that several had counts once."""
        parts: list[Any] = [(self._results, self._seen)]
        if self.trainer.world_size > 1:
            parts *= self.trainer.world_size
            torch.distributed.all_gather_object(parts, (self._results, self._seen))
        results: list[Record] = []
        seen: set[int] = set()
        for found, images in parts:
            results += [each for each in found if each["image_id"] not in seen]
            seen |= set(images)
        return results, seen
