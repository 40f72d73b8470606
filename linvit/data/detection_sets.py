"""Detection data sets: COCO's layout and the embedded digit scenes, to train on and to count metrics from."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import to_image

from linvit.data.box_layouts import boxes_to_evaluate
from linvit.data.box_table import BoxTable
from linvit.data.coco import CocoFile, Record, decode_mask, encode_mask
from linvit.data.digit_scenes import NAME, DigitScenes, check_part
from linvit.data.images import UnreadableImage, load_image, load_image_of, read_or_next
from linvit.data.parts import HELD_OUT

__all__ = ["CocoDetection", "DetectionSet", "DigitDetection", "collate_detection", "eval_detection_set"]

Transform = Callable[[dict[str, Any]], dict[str, Any]]


class ImageRecord(NamedTuple):
    """An image of an annotation file: its place there, its id, its file, width and height as far as they are said."""

    place: int
    image_id: int
    file_name: str
    size: tuple[int | None, int | None]


class DetectionSample(TypedDict):
    """One item: ``image [3, H, W]`` of bytes (None: cannot be read and nothing replaces it), and what is on it."""

    image: Tensor | None
    target: dict[str, Any]
    unreadable: list[str]


class DetectionBatch(TypedDict):
    """A batch: images of any size, the target of each, and the files left out."""

    image: list[Tensor]
    target: list[dict[str, Any]]
    unreadable: list[str]


class DetectionSet(Dataset[DetectionSample], ABC):
    """Images with boxes.

    A target holds ``image_id``, ``boxes [N, 4]`` (left, top, right, bottom in pixels), ``labels [N]`` and, where they
    are asked for, ``masks [N, H, W]``. Crowd regions are not among them, nor boxes of which less than a pixel is inside
    the image.

    Attributes:
        classes: Names of the classes; a label is an index into them.
        part: Which part of a data set it is, in words.
        transform: Changes an item before it is given out.
        masks: Whether targets hold masks.
    """

    classes: list[str]
    part: str
    transform: Transform | None
    masks: bool

    @property
    @abstractmethod
    def truth(self) -> dict[str, list[Record]]:
        """All that is annotated, in COCO's format, for evaluation."""

    @abstractmethod
    def category_id(self, label: int) -> int:
        """Return the category of a label in ``truth``."""

    @abstractmethod
    def __len__(self) -> int: ...

    def _sample(self, image: Image.Image, image_id: int, boxes: Any, labels: Any, masks: Any) -> DetectionSample:
        size = (image.height, image.width)
        item: dict[str, Any] = {
            "image": to_image(image),
            "boxes": tv_tensors.BoundingBoxes(  # type: ignore[call-overload]
                torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4), format="XYXY", canvas_size=size
            ),
            "labels": torch.as_tensor(labels, dtype=torch.int64),
        }
        if self.masks:
            item["masks"] = tv_tensors.Mask(torch.as_tensor(np.asarray(masks), dtype=torch.uint8).reshape(-1, *size))
        if self.transform is not None:
            item = self.transform(item)
        plain: dict[str, Any] = {name: value.as_subclass(Tensor) for name, value in item.items()}
        return DetectionSample(image=plain.pop("image"), target={"image_id": image_id} | plain, unreadable=[])


class CocoDetection(DetectionSet):
    """Images annotated in COCO's format.

    An unreadable image, or one that is not of the size that the annotation file says, raises if ``strict``. Otherwise
    its path is noted, and the next readable one stands in for it (training) or its ``image`` is None (evaluation).

    Args:
        file: The annotations.
        classes: Class names in the order of the labels; by default those of the file.
        train: Leave out images without boxes, and replace those that cannot be read.
        transform: Changes an item before it is given out.
        strict: Raise on an unreadable image.
        masks: Have masks in the targets.
        keep_empty: Train on images without boxes, too.

    Attributes:
        left_out: Annotations that training leaves out because less than a pixel of them is inside the image.

    Raises:
        ValueError: The file has categories that are none of the classes, nothing to train on, or no masks though they
            are asked for.
    """

    def __init__(
        self,
        file: CocoFile,
        classes: list[str] | None = None,
        train: bool = False,
        transform: Transform | None = None,
        strict: bool = False,
        masks: bool = False,
        keep_empty: bool = False,
    ) -> None:
        if masks:
            file.check_masks()
        self.path = file.path
        self.part = file.part
        self.classes = file.classes if classes is None else classes
        self.transform = transform
        self.strict = strict
        self.masks = masks
        self.train = train
        self.upright = file.upright
        ids = file.category_ids()
        unknown = [name for name in ids if name not in self.classes]
        if unknown:
            raise ValueError(f"{file.path} has categories that are none of the known classes: {', '.join(unknown)}")
        self._category_ids = [ids.get(name, -1) for name in self.classes]
        labels = {ids[name]: label for label, name in enumerate(self.classes) if name in ids}
        self._boxes = BoxTable(file, labels, masks)
        self.left_out = self._boxes.left_out
        self._folder = file.images
        self._truth = None if train else file.content  # millions of records, which only an evaluation needs
        empty_too = keep_empty or not train
        self.images = [
            ImageRecord(place, image["id"], image["file_name"], (image.get("width"), image.get("height")))
            for place, image in enumerate(file.content["images"])
            if empty_too or self._boxes.count(place)
        ]
        if not self.images:
            raise ValueError(f"{file.path} has no image with a box to train on")

    @property
    def truth(self) -> dict[str, list[Record]]:
        """What the annotation file holds; an evaluation's set alone keeps it."""
        assert self._truth is not None, "a training set does not keep its truth"
        return self._truth

    def category_id(self, label: int) -> int:
        """Return the id that the annotation file gives a class; -1 for one that it does not have."""
        return self._category_ids[label]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> DetectionSample:
        found, unreadable = read_or_next(self._read, index, len(self), self.strict, replace=self.train)
        if found is None:
            return DetectionSample(image=None, target={}, unreadable=unreadable)
        image, record = found
        boxes, labels = self._boxes.of(record.place)
        masks = self._masks(record, image) if self.masks else None
        sample = self._sample(image, record.image_id, boxes, labels, masks)
        return DetectionSample(image=sample["image"], target=sample["target"], unreadable=unreadable)

    def _read(self, index: int) -> tuple[Image.Image, ImageRecord]:
        record = self.images[index]
        path = self._folder / record.file_name
        said = record.size
        image = load_image(path) if self.upright else load_image_of(path, said)
        if None not in said and image.size != said:
            raise UnreadableImage(
                f"cannot use image {path}: it is {image.width}x{image.height} pixels, {self.path} says "
                f"{said[0]}x{said[1]}",
                path,
            )
        return image, record

    def _masks(self, record: ImageRecord, image: Image.Image) -> list[np.ndarray]:
        made = []
        for annotation, segmentation in self._boxes.segmentations(record.place):
            try:
                made.append(decode_mask(segmentation, image.height, image.width))
            except ValueError as error:
                raise ValueError(f"{self.path}: annotation {annotation}: {error}") from error
        return made


class DigitDetection(DetectionSet):
    """Digit scenes (:mod:`linvit.data.digit_scenes`).

    Args:
        train: The scenes to train on rather than the held-out ones.
        transform: Changes an item before it is given out.
        masks: Have masks in the targets.
    """

    def __init__(self, train: bool, transform: Transform | None = None, masks: bool = False) -> None:
        self.scenes = DigitScenes(train)
        self.part = "train" if train else "val"
        self.classes = list(self.scenes.classes)
        self.transform = transform
        self.masks = masks

    @cached_property
    def truth(self) -> dict[str, list[Record]]:  # type: ignore[override]
        """The scenes' boxes and masks; an image's id is its index."""
        images: list[Record] = []
        annotations: list[Record] = []
        for index in range(len(self)):
            scene = self.scenes[index]
            images.append({"id": index, "width": scene.image.width, "height": scene.image.height})
            for box, label, mask in zip(scene.boxes.tolist(), scene.labels.tolist(), scene.masks, strict=True):
                left, top, right, bottom = box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index,
                        "category_id": self.category_id(label),
                        "bbox": [left, top, right - left, bottom - top],
                        "area": int(mask.sum()),
                        "iscrowd": 0,
                        "segmentation": encode_mask(mask),
                    }
                )
        categories = [{"id": self.category_id(label), "name": name} for label, name in enumerate(self.classes)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def category_id(self, label: int) -> int:
        """Return the label plus one, as COCO counts from 1."""
        return label + 1

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> DetectionSample:
        scene = self.scenes[index]
        return self._sample(scene.image, index, scene.boxes, scene.labels, scene.masks)


def collate_detection(samples: list[DetectionSample]) -> DetectionBatch:
    """Make a batch of samples, leaving out those without an image."""
    readable = [sample for sample in samples if sample["image"] is not None]
    return DetectionBatch(
        image=[sample["image"] for sample in readable if sample["image"] is not None],
        target=[sample["target"] for sample in readable],
        unreadable=[path for sample in samples for path in sample["unreadable"]],
    )


def eval_detection_set(
    data: str,
    split: str | None,
    classes: list[str],
    strict: bool = False,
    masks: bool = False,
    share: float = HELD_OUT,
) -> DetectionSet:
    """Open the data set that an evaluation names.

    Args:
        data: ``digit-scenes``, or a folder in one of the layouts of :data:`linvit.data.box_layouts.LAYOUTS`.
        split: The part of the folder: train, val, test or all; None for the held-out part, or all where there are no
            parts.
        classes: The model's class names in the order of its labels.
        strict: Raise on an unreadable image instead of leaving it out.
        masks: Check that there are masks to compare with.
        share: Share of the images that training held out, where there is no held-out part.

    Raises:
        OSError: The folder or the part is missing.
        ValueError: The annotations are damaged, lack masks, or have categories that the model does not know.
    """
    if data != NAME:
        file = boxes_to_evaluate(data, split, share)
        if masks:
            file.check_masks()
        return CocoDetection(file, classes, strict=strict)
    check_part(split)
    digits = DigitDetection(train=split == "train")
    if digits.classes != classes:
        raise ValueError(f"{NAME} has the classes {', '.join(digits.classes)}, the model has {', '.join(classes[:10])}")
    return digits
