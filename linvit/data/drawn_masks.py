"""Masks drawn from COCO's polygons and run-length encodings."""

from collections.abc import Sequence

import numpy as np

from linvit.checks import some
from linvit.data.box_table import Packed
from linvit.data.coco import CocoFile, decode_mask
from linvit.data.images import UnreadableImage, image_size, load_image
from linvit.data.masks import IGNORED

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
            UnreadableImage: The image cannot be read, or is of another size than the annotations say.
            ValueError: An annotation cannot be drawn.
        """
        place = self._chosen[index]
        width, height = self._size(place)
        mask = np.full((height, width), self._values[0], dtype=np.int64)
        for row in range(int(self._ends[place - 1]) if place else 0, int(self._ends[place])):
            try:
                mask[decode_mask(self._shapes[row], height, width)] = self._values[self._labels[row]]
            except ValueError as error:
                raise ValueError(f"{self._path}: annotation {self._ids[row]}: {error}") from error
        return mask

    def _size(self, place: int) -> tuple[int, int]:
        """Return width and height of an image: as the annotations say them, stored or turned upright."""
        path = self._names[place]
        stored, upright = (image_size(path, upright=turned) for turned in (False, True))
        if stored is None or upright is None:
            load_image(path)  # says why
            raise UnreadableImage(f"cannot read image {path}", path)
        said = self._sizes[place]
        found = next((size for size in (stored, upright) if None in said or size == said), None)
        if found is None:
            raise UnreadableImage(
                f"cannot use image {path}: it is {stored[0]}x{stored[1]} pixels, {self._path} says {said[0]}x{said[1]}",
                path,
            )
        return found
