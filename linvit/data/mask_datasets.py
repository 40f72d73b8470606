"""Data sets of images with masks, and how they make batches."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from linvit.data import digit_scenes
from linvit.data.digit_scenes import DigitScenes
from linvit.data.drawn_masks import DrawnMasks
from linvit.data.images import load_image_of, read_or_next
from linvit.data.joint import JointTransform
from linvit.data.mask_layouts import MaskPart, masks_to_evaluate
from linvit.data.masks import MaskCode
from linvit.data.parts import HELD_OUT

__all__ = ["DigitMasks", "MaskFolder", "MaskSample", "collate_masks", "eval_masks"]


class MaskSample(TypedDict):
    """An image ``[3, h, w]`` and its targets ``[H, W]``; ``image`` is None where a file cannot be read."""

    image: Tensor | None
    target: Tensor
    unreadable: list[str]


class MaskBatch(TypedDict):
    """A batch: ``image [B, 3, h, w]`` (None when nothing was readable), ``target [B, H, W]``, files left out."""

    image: Tensor | None
    target: Tensor
    unreadable: list[str]


class MaskFolder(Dataset[MaskSample]):
    """Images and their masks.

    An unreadable image or mask raises if ``strict``; otherwise it is noted in the sample, and the next readable pair
    stands in for it (training), or the sample has no image (evaluation).

    Args:
        files: The images and their masks.
        code: What the values of the masks mean.
        transform: Turns an image and its targets into what a sample holds.
        strict: Raise on an unreadable file.
        replace_unreadable: Put the next readable pair in the place of an unreadable one.
    """

    def __init__(
        self,
        files: MaskPart,
        code: MaskCode,
        transform: JointTransform,
        strict: bool = False,
        replace_unreadable: bool = False,
    ) -> None:
        self.files = files
        self.part = files.part
        self.code = code
        self.transform = transform
        self.strict = strict
        self.replace_unreadable = replace_unreadable

    def __len__(self) -> int:
        return len(self.files.images)

    def __getitem__(self, index: int) -> MaskSample:
        found, unreadable = read_or_next(self._read, index, len(self), self.strict, self.replace_unreadable)
        if found is None:
            return MaskSample(image=None, target=torch.empty(0), unreadable=unreadable)
        image, target = self.transform(*found)
        return MaskSample(image=image, target=target, unreadable=unreadable)

    def _read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        path, masks = self.files.images[index], self.files.masks
        mask = masks.load(index)
        height, width = mask.shape[:2]
        image = load_image_of(path, (width, height))
        if image.size != (width, height):
            raise ValueError(
                f"mask {masks.name(index)} has {width}x{height} pixels, its image {path} {image.width}x{image.height}"
            )
        return image, self.code.encode(mask, masks.name(index))


class DigitMasks(Dataset[MaskSample]):
    """The embedded digit scenes (:class:`linvit.data.digit_scenes.DigitScenes`) with their semantic masks.

    Args:
        train: The scenes to train on rather than the held-out ones.
        transform: Turns an image and its targets into what a sample holds.
    """

    def __init__(self, train: bool, transform: JointTransform) -> None:
        self.scenes = DigitScenes(train)
        self.part = "train" if train else "val"
        self.transform = transform

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> MaskSample:
        scene = self.scenes[index]
        image, target = self.transform(scene.image, scene.semantic())
        return MaskSample(image=image, target=target, unreadable=[])


def eval_masks(
    data: str,
    split: str | None,
    classes: Sequence[str],
    code: MaskCode,
    transform: JointTransform,
    strict: bool = False,
    share: float = HELD_OUT,
) -> MaskFolder | DigitMasks:
    """Open the data set that an evaluation names.

    Args:
        data: "digit-scenes" for the 200 embedded held-out scenes, or a folder in one of the layouts of
            :data:`linvit.data.mask_layouts.LAYOUTS`.
        split: The part of the folder: train, val, test or all; None for the held-out part, or all where there are no
            parts.
        classes: The model's class names.
        code: What the values of the masks mean.
        transform: Turns an image and its targets into what a sample holds.
        strict: Raise on an unreadable file instead of leaving it out.
        share: Share of the images that training held out, where there is no held-out part.

    Raises:
        OSError: The folder or the part is missing, or an image has no mask.
        ValueError: The data has other classes than the model.
    """
    if data != digit_scenes.NAME:
        files = masks_to_evaluate(data, split, share)
        if isinstance(files.masks, DrawnMasks):
            files.masks.call(classes, code.values)
        return MaskFolder(files, code, transform, strict)
    if list(classes) != digit_scenes.SEMANTIC_CLASSES:
        raise ValueError(f"{data} has the classes background and the ten digits, but the model's are {list(classes)}")
    digit_scenes.check_part(split)
    return DigitMasks(train=split == "train", transform=transform)


def collate_masks(samples: list[MaskSample]) -> MaskBatch:
    """Stack samples of one size into a batch, leaving out those without an image."""
    readable = [(sample["image"], sample["target"]) for sample in samples if sample["image"] is not None]
    return MaskBatch(
        image=torch.stack([image for image, _ in readable]) if readable else None,
        target=torch.stack([target for _, target in readable]) if readable else torch.empty(0, dtype=torch.int64),
        unreadable=[path for sample in samples for path in sample["unreadable"]],
    )
