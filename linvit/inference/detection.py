"""Use a trained detector: evaluate it on a data set, search single images. Device and precision are chosen here."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

from linvit.data.coco import Record
from linvit.data.detection_sets import DetectionSet
from linvit.heads.detection import DetectionModel
from linvit.inference.base import PRECISIONS, check_precision, find_device
from linvit.inference.coco import CocoFigures, coco_figures, coco_results

__all__ = ["DetectionEvaluation", "Detector"]


@dataclass
class DetectionEvaluation:
    """What an evaluation found."""

    images: int
    boxes: CocoFigures
    masks: CocoFigures | None  # of Mask R-CNN
    results: list[Record]  # in COCO's format for results
    seconds: float
    unreadable: list[str] = field(default_factory=list)


class Detector:
    """A detector on a device, in a precision, ready for images.

    Args:
        model: A model made by :mod:`linvit.heads.detection`.
        device: "auto" takes the accelerator that torch finds, or else the CPU; or any of torch's device names.
        precision: "float32", or "bfloat16" / "float16" for autocast.
        img_size: Pixels that an image's shorter side is brought to, and the bound of the longer one in proportion; None
            takes what the model was trained for.

    Raises:
        ValueError: There is no such device or precision, or the model is no detector.
    """

    def __init__(
        self, model: nn.Module, device: str = "auto", precision: str = "float32", img_size: int | None = None
    ) -> None:
        if not isinstance(model, DetectionModel):
            raise ValueError(f"this needs a detector, and the model is a {type(model).__name__}")
        check_precision(precision)
        if img_size is not None and img_size < 1:
            raise ValueError(f"img_size must be at least 1 pixel, got {img_size}")
        self.device = find_device(device)
        self.precision = precision
        self.model: Any = model.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if img_size is not None:
            self.model.resize_to(img_size)

    @torch.inference_mode()
    def search(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Return what is found on images ``[3, H, W]`` of bytes, best first; boxes and masks in their pixels."""
        dtype = PRECISIONS[self.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32):
            return self.model([image.to(self.device) for image in images])

    def predict(self, image: Image.Image, min_score: float = 0.0) -> dict[str, Tensor]:
        """Return what is found on an RGB image with at least this score, on the CPU."""
        found = self.search([pil_to_tensor(image)])[0]
        keep = found["scores"] >= min_score
        return {name: value[keep].cpu() for name, value in found.items()}

    def evaluate(self, batches: Iterable[dict[str, Any]], dataset: DetectionSet) -> DetectionEvaluation:
        """Count COCO's figures over batches of :func:`linvit.data.detection_sets.collate_detection` from a data set.

        Raises:
            ValueError: Not one image could be read.
        """
        results: list[Record] = []
        seen: list[int] = []
        unreadable: list[str] = []
        start = time.perf_counter()
        for batch in batches:
            unreadable += batch["unreadable"]
            if not batch["image"]:
                continue
            for found, target in zip(self.search(batch["image"]), batch["target"], strict=True):
                seen.append(target["image_id"])
                results += coco_results(found, target["image_id"], dataset)
        seconds = time.perf_counter() - start
        if not seen:
            raise ValueError(f"none of the {len(unreadable)} images could be read")
        return DetectionEvaluation(
            images=len(seen),
            boxes=coco_figures(dataset.truth, results, seen),
            masks=coco_figures(dataset.truth, results, seen, "segm") if self.model.has_masks else None,
            results=results,
            seconds=seconds,
            unreadable=unreadable,
        )
