"""Boxes of a whole data set in a few arrays, which loading processes share where they would copy a million objects."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from linvit.data.coco import CocoFile, Record

__all__ = ["BoxTable", "Packed"]

LEAST_SIDE = 1.0
"""A box whose part inside the image is less than this many pixels wide or high teaches nothing."""


class BoxTable:
    """What is to be learned from each image: boxes cut to the image, without crowd regions and what lies outside.

    Args:
        file: The annotations.
        labels: Label of each category's id.
        masks: Keep the segmentations, too.

    Attributes:
        left_out: Annotations of which less than a pixel is inside their image.
    """

    def __init__(self, file: CocoFile, labels: dict[int, int], masks: bool) -> None:
        images = file.content["images"]
        places = {image["id"]: place for place, image in enumerate(images)}
        kept = [each for each in file.content["annotations"] if not each.get("iscrowd")]
        owners = np.array([places[each["image_id"]] for each in kept], dtype=np.int64)
        boxes = np.array([each["bbox"] for each in kept], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        known = [(image.get("width") or np.inf, image.get("height") or np.inf) for image in images]
        # Only where both are known is a box cut.
        sizes = np.array([size if np.inf not in size else (np.inf, np.inf) for size in known]).reshape(-1, 2)[owners]
        cut = np.isfinite(sizes).all(axis=1)[:, None]
        boxes = np.where(cut, np.clip(boxes, 0, np.tile(sizes, 2)), boxes)
        inside = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) >= LEAST_SIDE
        self.left_out = [kept[place]["id"] for place in np.flatnonzero(~inside)]
        order = np.flatnonzero(inside)[np.argsort(owners[inside], kind="stable")]
        self._boxes = boxes[order].astype(np.float32)
        self._labels = np.array([labels[kept[place]["category_id"]] for place in order], dtype=np.int64)
        self._ends = np.cumsum(np.bincount(owners[order], minlength=len(images)))
        self._ids = np.array([kept[place]["id"] for place in order], dtype=np.int64)
        self._shapes = Packed(kept[place] for place in order) if masks else None

    def count(self, place: int) -> int:
        """Return how many boxes an image has."""
        rows = self._rows(place)
        return rows.stop - rows.start

    def of(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the boxes ``[N, 4]`` (left, top, right, bottom in pixels) and labels ``[N]`` of an image."""
        rows = self._rows(place)
        return self._boxes[rows], self._labels[rows]

    def segmentations(self, place: int) -> list[tuple[int, Any]]:
        """Return the id and the segmentation of each of an image's annotations."""
        assert self._shapes is not None
        rows = self._rows(place)
        return [(int(self._ids[row]), self._shapes[row]) for row in range(rows.start, rows.stop)]

    def _rows(self, place: int) -> slice:
        return slice(int(self._ends[place - 1]) if place else 0, int(self._ends[place]))


class Packed:
    """Segmentations as JSON, one after the other in one array."""

    def __init__(self, annotations: Iterable[Record]) -> None:
        texts = [json.dumps(each.get("segmentation")).encode() for each in annotations]
        self._ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(texts), dtype=np.uint8)

    def __getitem__(self, row: int) -> Any:
        begin = int(self._ends[row - 1]) if row else 0
        return json.loads(self._bytes[begin : int(self._ends[row])].tobytes())
