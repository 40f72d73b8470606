"""Use a trained classifier: evaluate it on a data set, say what is in images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from timm.data import resolve_input_data_config
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassConfusionMatrix
from torchvision.transforms import CenterCrop, Compose, FiveCrop, TenCrop

from linvit.checkpoints import class_names
from linvit.checks import require
from linvit.data.datasets import Mnist5k, collate
from linvit.data.parts import HELD_OUT
from linvit.data.preprocessing import transform_for
from linvit.data.sources import Kind, eval_dataset
from linvit.heads import DenseModel
from linvit.inference.base import Evaluation, Prediction, Predictor, Prepared

__all__ = ["ClassificationEvaluation", "ClassificationPrediction", "ClassificationPredictor"]


@dataclass
class ClassificationEvaluation(Evaluation):
    """What an evaluation found; accuracies are shares of 1."""

    top1: float
    top5: float
    loss: float
    calibration_error: float  # expected, over 15 bins of confidence
    confusion: Tensor  # [C, C] counts, true classes down
    top: Tensor  # [images, at most 5] classes, the most likely first

    def metrics(self) -> dict[str, Any]:
        """Return the metrics by name."""
        return {name: getattr(self, name) for name in ("top1", "top5", "loss", "calibration_error")}


@dataclass(frozen=True)
class ClassificationPrediction(Prediction):
    """The most likely classes of an image.

    Attributes:
        probabilities: Of all classes, ``[C]``, on the CPU.
        classes: Their names.
        most: How many of them :meth:`top` names.
    """

    probabilities: Tensor
    classes: Sequence[str]
    most: int = 5

    def top(self) -> list[dict[str, Any]]:
        """Return the most likely classes, best first: class, index, probability."""
        found = self.probabilities.topk(min(self.most, len(self.classes)))
        return [
            {"class": self.classes[index], "index": index, "probability": probability}
            for index, probability in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        ]

    def record(self) -> dict[str, Any]:
        """Return the most likely classes."""
        return {"top": self.top()}

    def row(self) -> dict[str, str]:
        """Return a cell for each of them."""
        return {f"{i}.": f"{each['class']} {each['probability']:.1%}" for i, each in enumerate(self.top(), 1)}

    @property
    def columns(self) -> list[str]:
        """Name the columns: class_1, probability_1, class_2 and so on."""
        count = min(self.most, len(self.classes))
        return [f"{what}_{i}" for i in range(1, count + 1) for what in ("class", "probability")]

    def csv_rows(self) -> list[list[Any]]:
        """Return one row: the most likely classes, each with its probability."""
        return [[cell for each in self.top() for cell in (each["class"], f"{each['probability']:.6g}")]]

    def picture(self, image: Image.Image) -> Image.Image:
        """Draw the image with its classes beside it."""
        from linvit.inference.pictures.classes import ClassPicture, draw_classes

        top = self.top()
        return draw_classes(ClassPicture(image, [t["class"] for t in top], [t["probability"] for t in top]))


class ClassificationPredictor(Predictor[ClassificationPrediction, ClassificationEvaluation]):
    """A classifier with its preprocessing, on a device, in a precision, ready for images.

    Args:
        model: A model made by timm.
        device: As for :class:`linvit.inference.base.Predictor`.
        precision: As there.
        img_size: Height and width to resize to, in pixels; None takes what the model was trained on.
        crop_pct: Share of the shorter side that the centre crop keeps; None takes the model's.
        top: How many classes a prediction names.
        crops: 1 for the centre crop, 5 for it and the corners, 10 for these and their mirror images; what counts is the
            mean of the class probabilities.
        corruption: Changes an image after it was cropped.

    Attributes:
        input_config: What the model sees, under timm's names.
        transform: Its preprocessing.

    Raises:
        ValueError: There is no such device, precision or number of crops, the model is no classifier, or its weights
            are not finite.
    """

    batch_size = 64

    def __init__(
        self,
        model: nn.Module,
        device: str = "auto",
        precision: str = "float32",
        img_size: int | None = None,
        crop_pct: float | None = None,
        top: int = 5,
        crops: int = 1,
        corruption: Callable[[Image.Image], Image.Image] | None = None,
    ):
        if isinstance(model, DenseModel):
            raise ValueError(f"this needs a classifier, and the model is one to {model.task}")
        if getattr(model, "num_classes", None) == 0:
            raise ValueError(
                "the model has no classes, it is a backbone: judge it with linvit eval --knn or --linear, or train it "
                "on with linvit train --model.pretrained"
            )
        require(crop_pct is None or 0 < crop_pct <= 1, "crop_pct", crop_pct, "above 0, up to 1")
        require(top >= 1, "top", top, "1 or more")
        super().__init__(model, device, precision, img_size)
        config = resolve_input_data_config(model)
        if img_size is not None:
            config["input_size"] = (config["input_size"][0], img_size, img_size)
        if crop_pct is not None:
            config["crop_pct"] = crop_pct
        self.input_config: dict[str, Any] = config
        self.transform: Callable[[Image.Image], Tensor] = _transform(config, crops, corruption)
        self.top = top

    def examples(self) -> list[tuple[str, Image.Image]]:
        """Return every 84th test digit: they are sorted by class, so all ten classes are among them."""
        digits = Mnist5k(train=False)
        return [(f"test digit {i}, a {digits[i]['target']}", digits[i]["image"]) for i in range(0, len(digits), 84)]

    def prepare(self, image: Image.Image) -> Prepared:
        """Resize, crop and normalise an image."""
        return Prepared(self.transform(image))

    def _outputs(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Map ``[B, 3, H, W]``, or ``[B, crops, 3, H, W]``, to float32 logits ``[B, num_classes]``."""
        if images.ndim == 5:
            each = self._outputs(images.flatten(0, 1)).log_softmax(dim=1).unflatten(0, images.shape[:2])
            return each.logsumexp(dim=1) - math.log(images.shape[1])
        logits = self.model(images.to(self.device, memory_format=torch.channels_last)).float()
        self._check_outputs(logits)
        return logits

    def predict_batch(self, images: Sequence[Prepared]) -> list[ClassificationPrediction]:
        """Return the class probabilities of images."""
        probabilities = self.outputs(torch.stack([each.pixels for each in images])).softmax(dim=1).cpu()
        return [ClassificationPrediction(each, self.classes, self.top) for each in probabilities]

    def load(
        self,
        data: str,
        split: str | None = None,
        batch_size: int | None = None,
        workers: int = 0,
        strict: bool = False,
        share: float = HELD_OUT,
        source: Kind = "auto",
    ) -> DataLoader[Any]:
        """Open data to evaluate on, as the base class says.

        Args:
            data: A folder of class folders, ``mnist5k``, shards, or a data set of Hugging Face.
            split: As the base class says, of folders and the digits; of all else the held-out part is taken.
            batch_size: Images at a time.
            workers: Processes that load images.
            strict: Raise on an unreadable image instead of leaving it out.
            share: Share of each class that training held out, where the data have no held-out part.
            source: What ``data`` names; see :func:`linvit.data.sources.eval_dataset`.
        """
        names = class_names(self.model)
        if self.model.num_classes != 1000 and not self.model.pretrained_cfg.get("label_names"):
            names = self._names_of(data, source)  # a bare checkpoint has no names
        dataset = eval_dataset(data, names, self.transform, strict, source, split, share)
        return DataLoader(dataset, batch_size or self.batch_size, num_workers=workers, collate_fn=collate)

    def _names_of(self, data: str, source: Kind) -> list[str]:
        names = eval_dataset(data, source=source).classes
        if len(names) != self.model.num_classes:
            raise ValueError(
                f"the checkpoint has {self.model.num_classes} classes without names, {data} has {len(names)}: "
                "give its run folder"
            )
        return names

    def _counts(self, loader: DataLoader[Any]) -> "_Counts":
        return _Counts(self)


class _Counts:
    """Accuracies and losses of batches."""

    def __init__(self, predictor: ClassificationPredictor) -> None:
        self.predictor = predictor
        num_classes = int(predictor.model.num_classes)
        self.kept = min(5, num_classes)
        self.top1 = MulticlassAccuracy(num_classes, average="micro").to(predictor.device)
        self.top5 = MulticlassAccuracy(num_classes, top_k=self.kept, average="micro").to(predictor.device)
        self.confusion = MulticlassConfusionMatrix(num_classes).to(predictor.device)
        self.calibration = MulticlassCalibrationError(num_classes, n_bins=15).to(predictor.device)
        self.loss = MeanMetric().to(predictor.device)
        self.top: list[Tensor] = []

    def add(self, batch: dict[str, Any]) -> None:
        """Count a batch of :func:`linvit.data.collate`."""
        target = batch["target"].to(self.predictor.device)
        logits = self.predictor.outputs(batch["image"])
        for metric in (self.top1, self.top5, self.confusion):
            metric.update(logits, target)
        self.calibration.update(logits.softmax(dim=1), target)
        self.loss.update(cross_entropy(logits, target), weight=len(target))
        self.top.append(logits.topk(self.kept).indices.cpu())

    def result(self, images: int, seconds: float) -> ClassificationEvaluation:
        return ClassificationEvaluation(
            images=images,
            seconds=seconds,
            top1=self.top1.compute().item(),
            top5=self.top5.compute().item(),
            loss=self.loss.compute().item(),
            calibration_error=self.calibration.compute().item(),
            confusion=self.confusion.compute().cpu(),
            top=torch.cat(self.top),
        )


def _transform(config: dict[str, Any], crops: int, corruption: Callable[[Image.Image], Image.Image] | None) -> Any:
    """Return timm's transform, with other crops in place of the centre's and a corruption after them."""
    if crops not in (1, 5, 10):
        raise ValueError(f"crops must be 1, 5 or 10, not {crops!r}")
    if crops > 1 and config["crop_pct"] >= 1:
        raise ValueError(f"{crops} crops need a crop_pct below 1: at {config['crop_pct']} they are all the same")
    whole: Any = transform_for(config)
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
