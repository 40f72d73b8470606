"""Use a trained segmentation network: evaluate it on masks, give every pixel of images its class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassConfusionMatrix

from linvit.checkpoints import class_names
from linvit.checks import require
from linvit.data.digit_scenes import DigitScenes
from linvit.data.joint import eval_transform, image_transform
from linvit.data.mask_datasets import collate_masks, eval_masks
from linvit.data.masks import IGNORED, MaskCode
from linvit.data.parts import HELD_OUT
from linvit.heads import DenseModel
from linvit.inference.base import Evaluation, Prediction, Predictor, Prepared
from linvit.inference.iou import SegmentationMetrics, segmentation_metrics

__all__ = ["SegmentationEvaluation", "SegmentationPrediction", "SegmentationPredictor"]


@dataclass
class SegmentationEvaluation(Evaluation):
    """What an evaluation found."""

    pixels: SegmentationMetrics
    confusion: Tensor  # [C, C] pixels, true classes down

    def metrics(self) -> dict[str, Any]:
        """Return the metrics by name."""
        return {name: getattr(self.pixels, name) for name in ("miou", "macc", "aacc")}


@dataclass(frozen=True)
class SegmentationPrediction(Prediction):
    """The class of each pixel of an image.

    Attributes:
        mask: ``[H, W]`` bytes, class numbers.
        classes: Names of all classes.
        values: What a mask file says for each class.
        colours: Red, green and blue of each class, where the data give them.
    """

    mask: np.ndarray
    classes: Sequence[str]
    values: Sequence[int]
    colours: Sequence[Sequence[int]] | None = None

    def shares(self) -> list[dict[str, Any]]:
        """Return the classes that are there with their share of the pixels, the largest first."""
        shares = np.bincount(self.mask.ravel(), minlength=len(self.classes)) / self.mask.size
        order = [index for index in np.argsort(-shares, kind="stable") if shares[index]]
        return [{"class": self.classes[i], "share": float(shares[i])} for i in order]

    def legend(self) -> list[dict[str, Any]]:
        """Return :meth:`shares` with the colour of each class in pictures, as ``#rrggbb``."""
        from linvit.inference.pictures.masks import palette_of

        colours = dict(zip(self.classes, palette_of(self.classes, self.colours).tolist(), strict=True))
        return [each | {"colour": "#{:02x}{:02x}{:02x}".format(*colours[each["class"]])} for each in self.shares()]

    def record(self) -> dict[str, Any]:
        """Return the size of the image and the share of each class."""
        height, width = self.mask.shape
        return {"width": width, "height": height, "classes": self.shares()}

    def row(self) -> dict[str, str]:
        """Return the size and the shares of the largest classes."""
        shares = ", ".join(f"{each['class']} {each['share']:.1%}" for each in self.shares()[:5])
        return {"size": f"{self.mask.shape[1]}x{self.mask.shape[0]}", "share of the pixels": shares}

    @property
    def columns(self) -> list[str]:
        """Name the columns."""
        return ["class", "share"]

    def csv_rows(self) -> list[list[Any]]:
        """Return a row for each class that is there."""
        return [[each["class"], f"{each['share']:.6g}"] for each in self.shares()]

    def picture(self, image: Image.Image) -> Image.Image:
        """Draw the image beside the same with its classes laid over it, and a legend."""
        from linvit.inference.pictures.masks import draw_overlay

        return draw_overlay(image, self.mask, self.classes, self.colours)

    def mask_picture(self) -> Image.Image:
        """Return the mask as a picture that holds the values of a mask file and shows the classes as colours."""
        from linvit.inference.pictures.masks import mask_picture

        return mask_picture(self.mask, self.values, self.classes, self.colours)


class SegmentationPredictor(Predictor[SegmentationPrediction, SegmentationEvaluation]):
    """A segmentation network with its preprocessing, on a device, in a precision, ready for images.

    Args:
        model: A :class:`linvit.heads.segmentation.Segmenter` that was saved and loaded.
        device: As for :class:`linvit.inference.base.Predictor`.
        precision: As there.
        img_size: Length in pixels to bring the shorter side of images to; None takes the model's own setting.
        window: Side of the windows that images are predicted in, 0 for none; None takes the model's own setting.
        stride: Distance between windows; None: the model's own, or two thirds of a window that is given.

    Attributes:
        code: What the values of masks mean.
        input_config: ``short_side``, ``mean`` and ``std``.

    Raises:
        ValueError: There is no such device or precision, a setting is outside its range, or the weights are not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str = "auto",
        precision: str = "float32",
        img_size: int | None = None,
        window: int | None = None,
        stride: int | None = None,
    ) -> None:
        if not isinstance(model, DenseModel) or model.task != "segment":
            raise ValueError(f"this needs a segmentation network, and the model is a {type(model).__name__}")
        super().__init__(model, device, precision, img_size)
        if window is not None or stride is not None:
            self.model.set_window(self.model.window if window is None else window or None, stride)
        known = model.pretrained_cfg
        self.code = MaskCode.saved(model.num_classes, known)
        self.input_config: dict[str, Any] = {
            "short_side": img_size or known["short_side"],
            "mean": known["mean"],
            "std": known["std"],
        }
        self.transform = image_transform(**self.input_config)

    def examples(self) -> list[tuple[str, Image.Image]]:
        """Return the first twelve held-out digit scenes."""
        return [(f"held-out scene {i}", scene.image) for i, scene in enumerate(DigitScenes(train=False)[:12])]

    def prepare(self, image: Image.Image) -> Prepared:
        """Resize and normalise an image."""
        return Prepared(self.transform(image), (image.height, image.width))

    def _outputs(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Map ``[B, 3, h, w]`` to the class of each pixel ``[B, H, W]`` of a size, by default that of the images."""
        images = images.to(self.device, memory_format=torch.channels_last)
        logits = self.model.predict(images, images.shape[2:] if size is None else size)
        self._check_outputs(logits)
        return logits.argmax(dim=1)

    def predict_batch(self, images: Sequence[Prepared]) -> list[SegmentationPrediction]:
        """Return the class of each pixel of images."""
        masks = self.outputs(torch.stack([each.pixels for each in images]), images[0].size).to(torch.uint8).cpu()
        return [
            SegmentationPrediction(mask, self.classes, self.code.values, self.code.colors) for mask in masks.numpy()
        ]

    def load(
        self,
        data: str,
        split: str | None = None,
        batch_size: int | None = None,
        workers: int = 0,
        strict: bool = False,
        share: float = HELD_OUT,
    ) -> DataLoader[Any]:
        """Open data to evaluate on, as the base class says: a folder of images and masks, or ``digit-scenes``."""
        require(batch_size in (None, 1), "batch_size", batch_size, "1: images to segment are of different sizes")
        transform = eval_transform(**self.input_config)
        names = class_names(self.model)
        dataset = eval_masks(data, split, names, self.code, transform, strict, share)
        return DataLoader(dataset, 1, num_workers=workers, collate_fn=collate_masks)

    def _counts(self, loader: DataLoader[Any]) -> "_Counts":
        return _Counts(self)


class _Counts:
    """The confusion of pixels, over batches."""

    def __init__(self, predictor: SegmentationPredictor) -> None:
        self.predictor = predictor
        self.confusion = MulticlassConfusionMatrix(predictor.model.num_classes, ignore_index=IGNORED)
        self.confusion.to(predictor.device)

    def add(self, batch: dict[str, Any]) -> None:
        """Count a batch of :func:`linvit.data.mask_datasets.collate_masks`."""
        target = batch["target"].to(self.predictor.device)
        self.confusion.update(self.predictor.outputs(batch["image"], tuple(target.shape[1:])), target)

    def result(self, images: int, seconds: float) -> SegmentationEvaluation:
        counts = self.confusion.compute().cpu()
        return SegmentationEvaluation(images, seconds, segmentation_metrics(counts), counts)
