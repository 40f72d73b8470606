"""Use a trained classifier: evaluate it on a data set, predict single images. Device and precision are chosen here."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassConfusionMatrix
from torchvision.transforms import CenterCrop, Compose, FiveCrop, TenCrop

from linvit.heads import DenseModel
from linvit.inference.base import PRECISIONS, check_precision, find_device

__all__ = ["Classifier", "Evaluation"]


@dataclass
class Evaluation:
    """What an evaluation found; accuracies are shares of 1."""

    images: int
    top1: float
    top5: float
    loss: float
    calibration_error: float  # expected, over 15 bins of confidence
    confusion: Tensor  # [C, C] counts, true classes down
    top: Tensor  # [images, at most 5] classes, the most likely first
    seconds: float
    unreadable: list[str] = field(default_factory=list)


class Classifier:
    """A model with its preprocessing, on a device, in a precision, ready for images.

    Args:
        model: A model made by timm.
        device: "auto" takes the accelerator that torch finds, or else the CPU; or any of torch's device names.
        precision: "float32", or "bfloat16" / "float16" for autocast.
        img_size: Height and width to resize to, in pixels; None takes what the model was trained on.
        crop_pct: Share of the shorter side that the centre crop keeps; None takes the model's.
        crops: 1 for the centre crop, 5 for it and the corners, 10 for these and their mirror images; what is evaluated
            is the mean of the class probabilities.
        corruption: Changes an image after it was cropped.

    Raises:
        ValueError: There is no such device, precision or number of crops, or the model is no classifier.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str = "auto",
        precision: str = "float32",
        img_size: int | None = None,
        crop_pct: float | None = None,
        crops: int = 1,
        corruption: Callable[[Image.Image], Image.Image] | None = None,
    ):
        if isinstance(model, DenseModel):
            raise ValueError(f"this needs a classifier, and the model is one to {model.task}")
        check_precision(precision)
        if img_size is not None and img_size < 1:
            raise ValueError(f"img_size must be at least 1 pixel, got {img_size}")
        if crop_pct is not None and not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct must be above 0, up to 1, got {crop_pct}")
        self.device = find_device(device)
        self.precision = precision
        # Channels-last is the fastest layout of these models on CPUs and GPUs alike.
        self.model = model.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        config = resolve_model_data_config(model)
        if img_size is not None:
            config["input_size"] = (config["input_size"][0], img_size, img_size)
        if crop_pct is not None:
            config["crop_pct"] = crop_pct
        self.input_config: dict[str, Any] = config
        self.transform: Callable[[Image.Image], Tensor] = _transform(config, crops, corruption)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Map preprocessed images to float32 logits ``[B, num_classes]`` on the device.

        Args:
            images: ``[B, 3, H, W]``, or ``[B, crops, 3, H, W]``.
        """
        if images.ndim == 5:
            each = self.logits(images.flatten(0, 1)).log_softmax(dim=1).unflatten(0, images.shape[:2])
            return each.logsumexp(dim=1) - math.log(images.shape[1])
        images = images.to(self.device, memory_format=torch.channels_last)
        dtype = PRECISIONS[self.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32):
            return self.model(images).float()

    def predict(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the class probabilities ``[len(images), num_classes]`` of RGB images of any size, on the CPU."""
        return self.logits(torch.stack([self.transform(image) for image in images])).softmax(dim=1).cpu()

    def evaluate(self, batches: Iterable[dict[str, Any]]) -> Evaluation:
        """Measure accuracy and loss over batches of :func:`linvit.data.collate`.

        Raises:
            ValueError: Not one image could be read.
        """
        num_classes = int(self.model.num_classes)  # type: ignore[arg-type]
        top1 = MulticlassAccuracy(num_classes, average="micro").to(self.device)
        top5 = MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro").to(self.device)
        confusion = MulticlassConfusionMatrix(num_classes).to(self.device)
        calibration = MulticlassCalibrationError(num_classes, n_bins=15).to(self.device)
        top: list[Tensor] = []
        loss = MeanMetric().to(self.device)
        unreadable: list[str] = []
        images = 0
        start = time.perf_counter()
        for batch in batches:
            unreadable += batch["unreadable"]
            if batch["image"] is None:
                continue
            target = batch["target"].to(self.device)
            logits = self.logits(batch["image"])
            for metric in (top1, top5, confusion):
                metric.update(logits, target)
            calibration.update(logits.softmax(dim=1), target)
            top.append(logits.topk(min(5, num_classes)).indices.cpu())
            loss.update(cross_entropy(logits, target), weight=len(target))
            images += len(target)
        if images == 0:
            raise ValueError(f"none of the {len(unreadable)} images could be read")
        return Evaluation(
            images=images,
            top1=top1.compute().item(),
            top5=top5.compute().item(),
            loss=loss.compute().item(),
            calibration_error=calibration.compute().item(),
            confusion=confusion.compute().cpu(),
            top=torch.cat(top),
            seconds=time.perf_counter() - start,
            unreadable=unreadable,
        )


def _transform(config: dict[str, Any], crops: int, corruption: Callable[[Image.Image], Image.Image] | None) -> Any:
    """Return timm's transform, with other crops in place of the centre's and a corruption after them."""
    if crops not in (1, 5, 10):
        raise ValueError(f"crops must be 1, 5 or 10, not {crops!r}")
    if crops > 1 and config["crop_pct"] >= 1:
        raise ValueError(f"{crops} crops need a crop_pct below 1: at {config['crop_pct']} they are all the same")
    whole: Any = create_transform(**config)
    if crops == 1 and corruption is None:
        return whole
    cut = next(index for index, step in enumerate(whole.transforms) if isinstance(step, CenterCrop))
    resize, finish = (
        Compose(whole.transforms[:cut]),
        Compose([*filter(None, [corruption]), *whole.transforms[cut + 1 :]]),
    )
    if crops == 1:
        return Compose([resize, whole.transforms[cut], finish])
    take = (FiveCrop if crops == 5 else TenCrop)(config["input_size"][1:])
    return lambda image: torch.stack([finish(crop) for crop in take(resize(image))])
