"""The Lightning data module for detection: every setting of a training run that is about images and boxes."""

import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torchvision.transforms import v2

from linvit.checks import require
from linvit.data.coco import find_annotations, read_coco
from linvit.data.detection_sets import (
    CocoDetection,
    DetectionSet,
    DigitDetection,
    collate_detection,
    eval_detection_set,
)
from linvit.data.digit_scenes import DIGITS
from linvit.data.loading import cores
from linvit.data.module import VisionData

__all__ = ["DetectionData"]

DIGITS_SIZE = 96


class DetectionData(VisionData):
    """Images with boxes (and masks) in COCO's layout, or the embedded digit scenes.

    Crowd regions and boxes outside of their image are left out of training; evaluation treats them as COCO's tools do.

    Args:
        root: Folder with annotations/instances_train.json and instances_val.json, and the images in train and val, in
            images/train and images/val, or in images; null: the embedded digit scenes.
        size: Pixels that the shorter side is brought to in evaluation; null: 800, or 96 for the digit scenes.
        max_size: Most pixels of the longer side then, in training and evaluation.
        train_sizes: Pixels for the shorter side in training, of which each image gets one at random; null: size.
        batch_size: Images per batch and device.
        workers: Processes that load images, 0 for the main one; null: one per core, 16 at most.
        strict: Stop at the first unreadable image.
        hflip: Probability of mirroring a training image left to right; null: 0.5 for folders, 0 for digit scenes.
        photometric: Change brightness, contrast, saturation and hue of training images at random.
        keep_empty: Train on images without boxes, too.
        masks: Load masks; training sets it for the models that learn them.
        seed: Decides the order of the training images and their augmentation; ``linvit train`` gives it its own.

    Raises:
        ValueError: A setting outside its range; later, a folder that does not have the layout, or damaged annotations.
    """

    collate = staticmethod(collate_detection)

    def __init__(
        self,
        root: str | None = None,
        size: int | None = None,
        max_size: int = 1333,
        train_sizes: Sequence[int] | None = None,
        batch_size: int = 16,
        workers: int | None = None,
        strict: bool = False,
        hflip: float | None = None,
        photometric: bool = False,
        keep_empty: bool = False,
        masks: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if size is None:
            size = DIGITS_SIZE if root is None else 800
        if hflip is None:
            hflip = 0.0 if root is None else 0.5
        train_sizes = [size] if train_sizes is None else list(train_sizes)
        require(1 <= size <= max_size, "size", size, f"from 1 to max_size ({max_size})")
        fits = bool(train_sizes) and all(1 <= each <= max_size for each in train_sizes)
        require(fits, "train_sizes", train_sizes, f"one or more numbers from 1 to max_size ({max_size})")
        require(batch_size >= 1, "batch_size", batch_size, "at least 1")
        require(workers is None or workers >= 0, "workers", workers, "0 or more")
        require(0 <= hflip <= 1, "hflip", hflip, "between 0 and 1")
        require(seed >= 0, "seed", seed, "0 or more")
        self.root = root
        self.seed = seed
        self.size = size
        self.max_size = max_size
        self.batch_size = batch_size
        self.workers = min(16, cores()) if workers is None else workers
        self.strict = strict
        self.keep_empty = keep_empty
        self.masks = masks
        changes: list[Any] = [
            v2.RandomHorizontalFlip(hflip),
            v2.RandomShortestSize(train_sizes, max_size, antialias=True),
        ]
        if photometric:
            changes.append(v2.RandomPhotometricDistort())
        self.train_transform = v2.Compose(changes)

    def input_config(self) -> dict[str, Any]:
        """Return what a model sees."""
        return {"size": self.size, "max_size": self.max_size}

    @cached_property
    def classes(self) -> list[str]:
        """Class names in the order of the labels."""
        return list(DIGITS) if self.root is None else self.train_set.classes

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @cached_property
    def train_set(self) -> DetectionSet:
        """The training images, augmented; ValueError where they do not fill one batch."""
        made: DetectionSet
        if self.root is None:
            made = DigitDetection(True, self.train_transform, self.masks)
        else:
            file = read_coco(find_annotations(Path(self.root), "train"))
            made = CocoDetection(file, None, True, self.train_transform, self.strict, self.masks, self.keep_empty)
            if made.left_out:
                warnings.warn(
                    f"{file.path}: {len(made.left_out)} of {len(file.content['annotations'])} boxes have less than a "
                    f"pixel inside their image and are left out of training, such as annotation {made.left_out[0]}",
                    stacklevel=2,
                )
        allowed = f"at most {len(made)}, the number of training images"
        require(self.batch_size <= len(made), "batch_size", self.batch_size, allowed)
        return made

    @cached_property
    def val_set(self) -> DetectionSet:
        """The held-out images as they are."""
        if self.root is None:
            return DigitDetection(False)
        return eval_detection_set(self.root, "val", self.classes, self.strict, self.masks)

    def setup(self, stage: str | None = None) -> None:
        """Read the annotations now, so that what is wrong with them is reported before anything starts."""
        _ = self.val_set
        if stage in (None, "fit"):
            _ = self.train_set
