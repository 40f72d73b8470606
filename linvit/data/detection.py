"""The Lightning data module for detection: every setting of a training run that is about images and boxes."""

import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from torchvision.transforms import v2

from linvit.checks import require
from linvit.data.box_layouts import boxes_to_train
from linvit.data.detection_sets import CocoDetection, DetectionSet, DigitDetection, collate_detection
from linvit.data.digit_scenes import DIGITS
from linvit.data.loading import cores
from linvit.data.module import VisionData

__all__ = ["DetectionData"]

DIGITS_SIZE = 96


class DetectionData(VisionData):
    """Images with boxes (and masks) as annotation tools lay them out, or the embedded digit scenes.

    Crowd regions and boxes outside of their image are left out of training; evaluation treats them as COCO's tools do.

    Args:
        root: Folder in the layout of COCO, Roboflow, CVAT, Label Studio, Pascal VOC or YOLO, which is found out; one
            annotation file or data.yaml; null: the embedded digit scenes.
        size: Pixels that the shorter side is brought to in evaluation; null: 800, or 96 for the digit scenes.
        max_size: Most pixels of the longer side then, in training and evaluation.
        train_sizes: Pixels for the shorter side in training, of which each image gets one at random; null: size.
        batch_size: Images per batch and device; null: 16, or fewer where an epoch would have less than 8 updates.
        workers: Processes that load images, 0 for the main one; null: one per core, 16 at most.
        strict: Stop at the first unreadable image.
        hflip: Probability of mirroring a training image left to right; null: 0.5 for folders, 0 for digit scenes.
        photometric: Change brightness, contrast, saturation and hue of training images at random.
        keep_empty: Train on images without boxes, too.
        masks: Load masks; training sets it for the models that learn them.
        seed: Decides the order of the training images and their augmentation; ``linvit train`` gives it its own.
        train_annotations: Another annotation file to learn from, or a folder of them (VOC's, YOLO's), below root.
        train_images: Another folder of the images to learn from.
        val_annotations: Another annotation file or folder to hold out.
        val_images: Another folder of the images to hold out.
        val_share: Share of the images to hold out where there is no such part; copies stay together.

    Raises:
        ValueError: A setting outside its range; later, a folder that does not have the layout, or damaged annotations.
    """

    collate = staticmethod(collate_detection)
    default_batch_size = 16

    def __init__(
        self,
        root: str | None = None,
        size: int | None = None,
        max_size: int = 1333,
        train_sizes: Sequence[int] | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        strict: bool = False,
        hflip: float | None = None,
        photometric: bool = False,
        keep_empty: bool = False,
        masks: bool = False,
        seed: int = 0,
        train_annotations: str | None = None,
        train_images: str | None = None,
        val_annotations: str | None = None,
        val_images: str | None = None,
        val_share: float = 0.2,
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
        self._train_files = (train_annotations, train_images)
        self._val_files = (val_annotations, val_images)
        given = any((*self._train_files, *self._val_files))
        require(root is not None or not given, "root", root, "a folder where annotations or images are named")
        require(0 < val_share < 1, "val_share", val_share, "between 0 and 1")
        require(batch_size is None or batch_size >= 1, "batch_size", batch_size, "at least 1, or null")
        require(workers is None or workers >= 0, "workers", workers, "0 or more")
        require(0 <= hflip <= 1, "hflip", hflip, "between 0 and 1")
        require(seed >= 0, "seed", seed, "0 or more")
        self.root = root
        self.val_share = val_share
        self.seed = seed
        self.size = size
        self.max_size = max_size
        self._batch_size = batch_size
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

    @property
    def train_set(self) -> DetectionSet:
        """The training images, augmented; ValueError where they do not fill one batch."""
        return self._sets[0]

    @property
    def val_set(self) -> DetectionSet:
        """The held-out images as they are."""
        return self._sets[1]

    def setup(self, stage: str | None = None) -> None:
        """Read the annotations now, so that what is wrong with them is reported before anything starts."""
        _ = self._sets

    @cached_property
    def _sets(self) -> tuple[DetectionSet, DetectionSet]:
        train: DetectionSet
        held_out: DetectionSet
        if self.root is None:
            train = DigitDetection(True, self.train_transform, self.masks)
            held_out = DigitDetection(False)
        else:
            learn, hold = boxes_to_train(self.root, self.val_share, self._train_files, self._val_files)
            if self.masks:
                hold.check_masks()
            train = CocoDetection(learn, None, True, self.train_transform, self.strict, self.masks, self.keep_empty)
            held_out = CocoDetection(hold, train.classes, strict=self.strict)
            if train.left_out:
                warnings.warn(
                    f"{learn.path}: {len(train.left_out)} of {len(learn.content['annotations'])} boxes have less than "
                    f"a pixel inside their image and are left out of training, such as annotation {train.left_out[0]}",
                    stacklevel=2,
                )
        self._check_batch_size(len(train))
        return train, held_out
