"""Digit scenes: handwritten digits on canvases, with boxes, masks and classes, to detect and segment.

The digits are those of MNIST-5k (:class:`linvit.data.Mnist5k`), so nothing is downloaded. Scene ``i`` is the same at
every visit, on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from PIL import Image

from linvit.checks import require
from linvit.data.datasets import DIGITS, Mnist5k

__all__ = ["DIGITS", "NAME", "SEMANTIC_CLASSES", "DigitScenes", "Scene", "check_part"]

NAME = "digit-scenes"
"""What the commands call this data."""

SEMANTIC_CLASSES = ["background", *DIGITS]
"""Names of the values of a semantic mask."""

SCENES = {True: 2000, False: 200}  # to train on, held out
INK = 96  # a pixel of a digit brighter than this (of 255) belongs to its mask
SCALES = (0.7, 1.6)  # times 28 pixels
TRIES = 20


@dataclass(frozen=True)
class Scene:
    """A canvas and what is on it.

    Attributes:
        image: ``H x W`` in mode RGB.
        boxes: ``[N, 4]`` float32, left, top, right, bottom of the digits in pixels; they may overlap.
        labels: ``[N]`` int64, the digits.
        masks: ``[N, H, W]`` bool, their strokes; no two overlap.
    """

    image: Image.Image
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray

    def semantic(self) -> np.ndarray:
        """Return ``[H, W]`` uint8: 0 where no digit is, or else 1 + the digit; indices into SEMANTIC_CLASSES."""
        return ((self.labels[:, None, None] + 1) * self.masks).sum(axis=0).astype(np.uint8)


def check_part(split: str | None) -> None:
    """Raise a ValueError unless there is such a part; None is the held-out one."""
    if split not in (None, "train", "val"):
        raise ValueError(f"{NAME} has no part {split!r}; its parts: train, val")


class DigitScenes(Sequence[Scene]):
    """Scenes of one to ``most`` digits, of any size and colour, on dark noise.

    Args:
        train: 2,000 scenes of the digits to train on, rather than 200 of the held-out ones.
        size: Height and width of a canvas in pixels.
        most: Most digits on a canvas; fewer where there is no room.

    Raises:
        ValueError: A canvas is too small for a digit, or ``most`` below 1.
    """

    classes = DIGITS

    def __init__(self, train: bool, size: tuple[int, int] = (96, 96), most: int = 4) -> None:
        least = round(28 * SCALES[1])
        require(min(size) >= least, "size", size, f"{least} pixels or more on both sides")
        require(most >= 1, "most", most, "1 or more")
        self.size = size
        self.most = most
        self.train = train
        self._digits = Mnist5k(train)

    def __len__(self) -> int:
        return SCENES[self.train]

    @overload
    def __getitem__(self, index: int) -> Scene: ...

    @overload
    def __getitem__(self, index: slice) -> list[Scene]: ...

    def __getitem__(self, index: int | slice) -> Scene | list[Scene]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        # RandomState's numbers are the same in every version of NumPy; a Generator's need not be.
        random = np.random.RandomState([self.train, index % len(self)])
        canvas = random.uniform(0, 50, (*self.size, 3))
        owner = np.full(self.size, -1)
        labels: list[int] = []
        for _ in range(random.randint(1, self.most + 1)):
            chosen = random.randint(len(self._digits))
            ink = self._scaled(chosen, random.uniform(*SCALES))
            colour = random.uniform(130, 255, 3)
            place = self._place(ink > INK, owner, random)
            if place is None:
                continue
            window = canvas[place]
            alpha = ink[..., None] / 255
            window[:] = window * (1 - alpha) + colour * alpha
            owner[place][ink > INK] = len(labels)
            labels.append(int(self._digits.targets[chosen]))
        masks = owner == np.arange(len(labels))[:, None, None]
        boxes = np.array([_box(mask) for mask in masks], dtype=np.float32)
        return Scene(Image.fromarray(canvas.round().astype(np.uint8)), boxes, np.array(labels, np.int64), masks)

    def _scaled(self, index: int, scale: float) -> np.ndarray:
        side = round(28 * scale)
        return np.asarray(Image.fromarray(self._digits.images[index]).resize((side, side), Image.Resampling.BILINEAR))

    def _place(self, mask: np.ndarray, owner: np.ndarray, random: np.random.RandomState) -> tuple[slice, slice] | None:
        """Find a window where the digit covers no other; None where none is found."""
        height, width = mask.shape
        for _ in range(TRIES):
            top, left = random.randint(self.size[0] - height + 1), random.randint(self.size[1] - width + 1)
            place = slice(top, top + height), slice(left, left + width)
            if (owner[place][mask] < 0).all():
                return place
        return None


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
