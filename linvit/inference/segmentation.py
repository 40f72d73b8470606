"""Use a trained segmentation network: evaluate it on masks, predict single images."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from linvit.checks import require
from linvit.data.joint import image_transform
from linvit.data.masks import IGNORED, MaskCode
from linvit.heads import DenseModel
from linvit.inference.base import PRECISIONS, check_precision, find_device
from linvit.inference.iou import SegmentationFigures, figures_of

__all__ = ["SegmentationEvaluation", "SegmentationPredictor"]


@dataclass
class SegmentationEvaluation:
    """What an evaluation found."""

    images: int
    figures: SegmentationFigures
    confusion: Tensor  # [C, C] pixels, true classes down
    seconds: float
    unreadable: list[str] = field(default_factory=list)


class SegmentationPredictor:
    """A segmentation network with its preprocessing, on a device, in a precision, ready for images.

    Args:
        model: A :class:`linvit.heads.segmentation.Segmenter` that was saved and loaded.
        device: "auto" takes the accelerator that torch finds, or else the CPU; or any of torch's device names.
        precision: "float32", or "bfloat16" / "float16" for autocast.
        short_side: Length in pixels to bring the shorter side of images to; None takes the model's own setting.
        window: Side of the windows that images are predicted in, 0 for none; None takes the model's own setting.
        stride: Distance between windows; None: the model's own, or two thirds of a window that is given.

    Attributes:
        code: What the values of masks mean.
        input_config: ``short_side``, ``mean`` and ``std``.

    Raises:
        ValueError: There is no such device or precision, or a setting is outside its range.
    """

    def __init__(
        self,
        model: DenseModel,
        device: str = "auto",
        precision: str = "float32",
        short_side: int | None = None,
        window: int | None = None,
        stride: int | None = None,
    ) -> None:
        check_precision(precision)
        require(short_side is None or short_side >= 1, "img_size", short_side, "at least 1 pixel")
        self.device = find_device(device)
        self.precision = precision
        self.model: Any = model.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if window is not None or stride is not None:
            self.model.set_window(self.model.window if window is None else window or None, stride)
        known = model.pretrained_cfg
        self.code = MaskCode(model.num_classes, known["values"], known["ignore"])
        self.input_config: dict[str, Any] = {
            "short_side": short_side or known["short_side"],
            "mean": known["mean"],
            "std": known["std"],
        }
        self.transform = image_transform(**self.input_config)

    @torch.inference_mode()
    def classes(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Map preprocessed images ``[B, 3, h, w]`` to the class of each pixel ``[B, H, W]`` of a size."""
        images = images.to(self.device, memory_format=torch.channels_last)
        dtype = PRECISIONS[self.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32):
            return self.model.predict(images, size).argmax(dim=1)

    def predict(self, image: Image.Image) -> np.ndarray:
        """Return the class of each pixel of an RGB image of any size, ``[H, W]`` bytes."""
        found = self.classes(self.transform(image)[None], (image.height, image.width))
        return found[0].to(torch.uint8).cpu().numpy()

    def evaluate(self, batches: Iterable[dict[str, Any]]) -> SegmentationEvaluation:
        """Compare predictions with masks over batches of :func:`linvit.data.mask_datasets.collate_masks`.

        Raises:
            ValueError: Not one image could be read with its mask, or no pixel of them counts.
        """
        confusion = MulticlassConfusionMatrix(self.model.num_classes, ignore_index=IGNORED).to(self.device)
        unreadable: list[str] = []
        images = 0
        start = time.perf_counter()
        for batch in batches:
            unreadable += batch["unreadable"]
            if batch["image"] is None:
                continue
            target = batch["target"].to(self.device)
            confusion.update(self.classes(batch["image"], target.shape[1:]), target)
            images += len(target)
        if images == 0:
            raise ValueError(f"none of the images can be read with its mask, {', '.join(unreadable[:3])}")
        counts = confusion.compute().cpu()
        return SegmentationEvaluation(images, figures_of(counts), counts, time.perf_counter() - start, unreadable)
