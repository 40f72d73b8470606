"""Use a trained detector: evaluate it on a data set, find what is on images."""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import pil_to_tensor

from linvit.checkpoints import class_names
from linvit.checks import require
from linvit.data.coco import Record, encode_mask
from linvit.data.detection_sets import DetectionSet, collate_detection, eval_detection_set
from linvit.data.digit_scenes import DigitScenes
from linvit.data.parts import HELD_OUT
from linvit.heads.detection import DetectionModel
from linvit.inference.base import Evaluation, Prediction, Predictor, Prepared
from linvit.inference.coco import CocoMetrics, coco_metrics, coco_results

__all__ = ["DetectionEvaluation", "DetectionPrediction", "DetectionPredictor"]

JUDGES = ("backbone", "head", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor")
"""Parts of torchvision's detectors whose outputs are looked at: what comes after them drops what is not finite."""


@dataclass
class DetectionEvaluation(Evaluation):
    """What an evaluation found."""

    boxes: CocoMetrics
    masks: CocoMetrics | None  # of Mask R-CNN
    results: list[Record]  # in COCO's format for results

    def metrics(self) -> dict[str, Any]:
        """Return average precisions by name, ``mask_`` before those of masks."""
        found = {**self.boxes.overall, "ap_by_class": self.boxes.by_class}
        if self.masks:
            found |= {f"mask_{name}": value for name, value in self.masks.overall.items()}
            found["mask_ap_by_class"] = self.masks.by_class
        return found


@dataclass(frozen=True)
class DetectionPrediction(Prediction):
    """What was found on an image, best first.

    Attributes:
        boxes: ``[N, 4]``: left, top, right, bottom in pixels of the image.
        labels: ``[N]`` class numbers.
        scores: ``[N]``, from 0 to 1.
        masks: ``[N, H, W]`` bool, of Mask R-CNN.
        classes: Names of all classes.
        size: Height and width of the image.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor | None
    classes: Sequence[str]
    size: tuple[int, int]

    def detections(self) -> list[dict[str, Any]]:
        """Return detections in the words of COCO's results: bbox is left, top, width, height in pixels."""
        made = []
        for i, (left, top, right, bottom) in enumerate(self.boxes.tolist()):
            label = int(self.labels[i])
            record = {"class": self.classes[label], "index": label, "score": float(self.scores[i])}
            record["bbox"] = [left, top, right - left, bottom - top]
            if self.masks is not None:
                record["segmentation"] = encode_mask(self.masks[i].numpy())
            made.append(record)
        return made

    def record(self) -> dict[str, Any]:
        """Return the size of the image and the detections."""
        return {"width": self.size[1], "height": self.size[0], "detections": self.detections()}

    def row(self) -> dict[str, str]:
        """Return how many there are of each class, and the best."""
        counts = Counter(self.classes[label] for label in self.labels.tolist())
        found = ", ".join(f"{count} x {name}" for name, count in counts.most_common()) or "nothing"
        best = f"{self.classes[int(self.labels[0])]} {float(self.scores[0]):.1%}" if len(self.labels) else "-"
        return {"found": found, "best": best}

    @property
    def columns(self) -> list[str]:
        """Name the columns; the box is in pixels."""
        return ["class", "index", "score", "left", "top", "width", "height"]

    def csv_rows(self) -> list[list[Any]]:
        """Return a row for each detection."""
        return [
            [each["class"], each["index"], f"{each['score']:.6g}", *(f"{value:.2f}" for value in each["bbox"])]
            for each in self.detections()
        ]

    def results(self, image_id: int, name: str, categories: Mapping[str, int] | None = None) -> list[Record]:
        """Return the detections in COCO's format for results, with the image's name.

        Args:
            image_id: The image's id.
            name: Its name.
            categories: Ids of the classes by name, of which those that are not there are left out; None counts from 1.
        """
        if categories is None:
            categories = {each: number for number, each in enumerate(self.classes, 1)}
        made = []
        for each in self.detections():
            del each["index"]
            if each["class"] in categories:
                made.append({"image_id": image_id, "file_name": name, "category_id": categories[each["class"]], **each})
        return made

    def picture(self, image: Image.Image) -> Image.Image:
        """Draw boxes, classes, scores and masks onto the image."""
        from linvit.inference.pictures.boxes import Detection, draw_detections

        masks = [None] * len(self.boxes) if self.masks is None else self.masks.numpy()
        rows = zip(self.boxes.tolist(), self.labels.tolist(), self.scores.tolist(), masks, strict=True)
        return draw_detections(
            image, [Detection(box, self.classes[label], label, score, mask) for box, label, score, mask in rows]
        )


class DetectionPredictor(Predictor[DetectionPrediction, DetectionEvaluation]):
    """A detector on a device, in a precision, ready for images.

    Args:
        model: A model made by :mod:`linvit.heads.detection`.
        device: As for :class:`linvit.inference.base.Predictor`.
        precision: As there.
        img_size: Pixels that an image's shorter side is brought to, and the bound of the longer one in proportion; None
            takes what the model was trained for.
        min_score: Predictions leave out what scores less.

    Raises:
        ValueError: There is no such device or precision, the model is no detector, or its weights are not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str = "auto",
        precision: str = "float32",
        img_size: int | None = None,
        min_score: float = 0.5,
    ) -> None:
        if not isinstance(model, DetectionModel):
            raise ValueError(f"this needs a detector, and the model is a {type(model).__name__}")
        require(0 <= min_score <= 1, "min_score", min_score, "from 0 to 1")
        super().__init__(model, device, precision, img_size)
        self.min_score = min_score
        parts = dict(self.model.detector.named_modules())
        self._judges: list[nn.Module] = [parts[name] for name in JUDGES if name in parts]
        if img_size is not None:
            self.model.resize_to(img_size)

    def examples(self) -> list[tuple[str, Image.Image]]:
        """Return the first twelve held-out digit scenes."""
        return [(f"held-out scene {i}", scene.image) for i, scene in enumerate(DigitScenes(train=False)[:12])]

    def prepare(self, image: Image.Image) -> Prepared:
        """Take the bytes of an image; the network resizes and normalises them."""
        return Prepared(pil_to_tensor(image))

    def _outputs(self, images: Sequence[Tensor], size: tuple[int, int] | None = None) -> list[dict[str, Tensor]]:
        """Return what is found on images ``[3, H, W]`` of bytes, best first; boxes and masks in their pixels."""
        with contextlib.ExitStack() as hooks:
            for part in self._judges:
                hooks.callback(part.register_forward_hook(self._check_part).remove)
            return self.model([image.to(self.device) for image in images])

    def _check_part(self, module: nn.Module, args: Any, outputs: Any) -> None:
        """Check tensors: what is not finite scores nothing, and would look like an image with nothing on it."""
        for each in tree_leaves(outputs):
            self._check_outputs(each)

    def predict_batch(self, images: Sequence[Prepared]) -> list[DetectionPrediction]:
        """Return what is found on images with at least the score that is asked for."""
        predictions = []
        for image, found in zip(images, self.outputs([image.pixels for image in images]), strict=True):
            keep = found["scores"] >= self.min_score
            kept = {name: value[keep].cpu() for name, value in found.items()}
            height, width = image.pixels.shape[-2:]
            predictions.append(
                DetectionPrediction(
                    kept["boxes"],
                    kept["labels"],
                    kept["scores"],
                    kept.get("masks"),
                    classes=self.classes,
                    size=(height, width),
                )
            )
        return predictions

    def load(
        self,
        data: str,
        split: str | None = None,
        batch_size: int | None = None,
        workers: int = 0,
        strict: bool = False,
        share: float = HELD_OUT,
    ) -> DataLoader[Any]:
        """Open data to evaluate on, as the base class says: a folder in COCO's layout, or ``digit-scenes``."""
        dataset = eval_detection_set(data, split, class_names(self.model), strict, self.model.has_masks, share)
        return DataLoader(dataset, batch_size or self.batch_size, num_workers=workers, collate_fn=collate_detection)

    def _counts(self, loader: DataLoader[Any]) -> "_Counts":
        return _Counts(self, loader.dataset)


class _Counts:
    """Results of batches, compared with the truth at the end."""

    def __init__(self, predictor: DetectionPredictor, dataset: Any) -> None:
        self.predictor = predictor
        self.dataset: DetectionSet = dataset
        self.results: list[Record] = []
        self.seen: list[int] = []

    def add(self, batch: dict[str, Any]) -> None:
        """Search a batch of :func:`linvit.data.detection_sets.collate_detection`."""
        for found, target in zip(self.predictor.outputs(batch["image"]), batch["target"], strict=True):
            self.seen.append(target["image_id"])
            self.results += coco_results(found, target["image_id"], self.dataset)

    def result(self, images: int, seconds: float) -> DetectionEvaluation:
        truth = self.dataset.truth
        return DetectionEvaluation(
            images=images,
            seconds=seconds,
            boxes=coco_metrics(truth, self.results, self.seen),
            masks=coco_metrics(truth, self.results, self.seen, "segm") if self.predictor.model.has_masks else None,
            results=self.results,
        )
