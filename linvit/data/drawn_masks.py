"""Masks drawn from COCO's polygons and run-length encodings."""

from collections.abc import Sequence

import numpy as np

from linvit.data.box_table import Packed
from linvit.data.coco import CocoFile, decode_mask
from linvit.data.images import UnreadableImage, image_size
from linvit.data.masks import IGNORED
from linvit.data.parts import some

__all__ = ["DrawnMasks"]

BACKGROUND = "background"


class DrawnMasks:
    """The annotations of each image drawn into one mask; where they overlap, the smaller lies on top.

    What is not annotated is background: value 0, and a class of its own before the categories, unless one of them is
    called so.

    Args:
        file: The annotations.

    Attributes:
        classes: Class names in the order of the values.

    Raises:
        ValueError: An annotation has no polygons and no run-length encoding.
    """

    def __init__(self, file: CocoFile) -> None:
        file.check_masks()
        self.classes = [BACKGROUND, *(name for name in file.classes if name != BACKGROUND)]
        labels = {number: self.classes.index(name) for name, number in file.category_ids().items()}
        places = {image["id"]: place for place, image in enumerate(file.content["images"])}
        rows = sorted(
            (places[each["image_id"]], -abs(each["bbox"][2] * each["bbox"][3]), number)
            for number, each in enumerate(file.content["annotations"])
        )
        annotations = [file.content["annotations"][number] for _, _, number in rows]
        self._path = file.path
        self._names = file.image_paths()
        self._sizes = [(image.get("width"), image.get("height")) for image in file.content["images"]]
        self._ids = np.array([each["id"] for each in annotations], dtype=np.int64)
        self._labels = np.array([labels[each["category_id"]] for each in annotations], dtype=np.int64)
        self._values = list(range(len(self.classes)))
        self._ends = np.cumsum(np.bincount([row[0] for row in rows], minlength=len(places)).astype(np.int64))
        self._shapes = Packed(annotations)
        self._chosen: Sequence[int] = range(len(places))

    def subset(self, places: Sequence[int]) -> "DrawnMasks":
        """Return the masks of some of the images, which share what is drawn."""
        made = object.__new__(DrawnMasks)
        vars(made).update(vars(self) | {"_chosen": [self._chosen[place] for place in places]})
        return made

    def call(self, classes: Sequence[str], values: Sequence[int]) -> None:
        """Give the classes of these names these values; what is not annotated counts for nothing without a background.

        Raises:
            ValueError: The annotations have a category that is none of them.
        """
        known = dict(zip(classes, values, strict=True))
        unknown = [name for name in self.classes[1:] if name not in known]
        if unknown:
            raise ValueError(f"{self._path} has categories that are none of the known classes: {some(unknown)}")
        self._values = [known.get(name, IGNORED) for name in self.classes]

    def __len__(self) -> int:
        return len(self._chosen)

    def name(self, index: int) -> str:
        """Return what messages call a mask."""
        return f"of {self._names[self._chosen[index]]} in {self._path}"

    def load(self, index: int) -> np.ndarray:
        """Draw a mask ``[H, W]``.

        Raises:
            UnreadableImage: The annotations do not say the image's size, nor does the image.
            ValueError: An annotation cannot be drawn.
        """
        place = self._chosen[index]
        width, height = self._sizes[place]
        if width is None or height is None:
            size = image_size(self._names[place])
            if size is None:
                raise UnreadableImage(
                    f"cannot read image {self._names[place]}, whose size is needed", self._names[place]
                )
            width, height = size
        mask = np.full((int(height), int(width)), self._values[0], dtype=np.int64)
        for row in range(int(self._ends[place - 1]) if place else 0, int(self._ends[place])):
            try:
                mask[decode_mask(self._shapes[row], int(height), int(width))] = self._values[self._labels[row]]
            except ValueError as error:
                raise ValueError(f"{self._path}: annotation {self._ids[row]}: {error}") from error
        return mask
