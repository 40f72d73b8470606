"""COCO's annotation files: read, mended where the meaning is certain, and checked before anything uses them."""

import gc
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linvit.data.coco_faults import mend_categories, mend_ids, mend_polygons
from linvit.data.image_files import find_image_files, image_folder
from linvit.data.parts import ALL

__all__ = ["CocoFile", "Record", "decode_mask", "encode_mask", "read_coco", "read_names"]

Record = dict[str, Any]


@dataclass(frozen=True)
class CocoFile:
    """Annotations whose records fit together, in COCO's words, from whatever layout.

    Attributes:
        path: The file or folder that they come from.
        content: ``images``, ``annotations``, ``categories``.
        images: Where the image files lie.
        upright: Boxes are in the pixels of the upright image (see EXIF orientation), whatever the sizes say.
        part: Which part of the data set it is, in words.
    """

    path: Path
    content: dict[str, list[Record]]
    images: Path
    upright: bool = False
    part: str = ALL

    @property
    def classes(self) -> list[str]:
        """Category names in the order of their ids."""
        return [each["name"] for each in sorted(self.content["categories"], key=lambda each: each["id"])]

    def category_ids(self) -> dict[str, int]:
        """Map category names to their ids."""
        return {each["name"]: each["id"] for each in self.content["categories"]}

    def image_paths(self) -> list[str]:
        """Return the path of each image."""
        return [str(self.images / each["file_name"]) for each in self.content["images"]]

    def subset(self, chosen: Iterable[bool]) -> "CocoFile":
        """Return the annotations of some of the images."""
        images = [image for image, taken in zip(self.content["images"], chosen, strict=True) if taken]
        ids = {image["id"] for image in images}
        annotations = [each for each in self.content["annotations"] if each["image_id"] in ids]
        content = {"images": images, "annotations": annotations, "categories": self.content["categories"]}
        return CocoFile(self.path, content, self.images, self.upright, self.part)

    def check_masks(self) -> None:
        """Check that every annotation has what looks like a mask, before anything takes long.

        Raises:
            ValueError: One has none; the message names the file and the annotation.
        """
        for each in self.content["annotations"]:
            if not _is_segmentation(each.get("segmentation")):
                raise ValueError(
                    f"{self.path}: annotation {each['id']}: the segmentation is neither polygons nor a run-length "
                    "encoding, and masks are asked for"
                )


def read_coco(path: Path, images: Path | None = None) -> CocoFile:
    """Read an annotation file and check that its records fit together.

    Small faults that tools write are mended where the meaning is certain: a byte order mark, ids that are text or
    ``1.0``, annotations without ids, file names of another machine, polygons of less than three corners beside whole
    ones, a category that is there twice, an unused category that only heads the others.

    Args:
        path: The file.
        images: The folder of the images; None looks for it where tools put it.

    Raises:
        OSError: There is no such file.
        ValueError: The file is damaged, or a record is: the message names both.
    """
    content = _parse(path)
    _check_fields(path, content)
    mend_ids(path, content)
    _check_records(path, content)
    mend_categories(path, content)
    mend_polygons(content)
    _unique(path, "category name", [each["name"] for each in content["categories"]])
    names = [each["file_name"] for each in content["images"]]
    folder = images or image_folder(path, names)
    for image, name in zip(content["images"], find_image_files(path, folder, names), strict=True):
        image["file_name"] = name
    return CocoFile(path, content, folder)


def read_names(path: Path) -> tuple[list[tuple[str, int]], dict[str, int]]:
    """Return the images of an annotation file, name and id, and the ids of its categories by name.

    Nothing else of it is looked at, and neither images nor annotations need be there.

    Raises:
        OSError: There is no such file.
        ValueError: It is damaged: the message names the record.
    """
    content = _parse(path, ("images", "categories"))
    content["annotations"] = []
    _check_fields(path, content)
    mend_ids(path, content)
    for part in ("images", "categories"):
        _ids(path, part, content[part])
    mend_categories(path, content)
    images = [(each["file_name"], each["id"]) for each in content["images"]]
    return images, {each["name"]: each["id"] for each in content["categories"]}


def _parse(path: Path, parts: Sequence[str] = ("images", "annotations", "categories")) -> dict[str, list[Record]]:
    try:
        with _no_collection():
            content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON, it may be cut off: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no COCO annotation file: it holds no object with images, annotations, categories")
    for part in parts:
        if not isinstance(content.get(part), list):
            raise ValueError(f"{path} is no COCO annotation file: it has no list {part!r}")
    if not content["images"] or not content["categories"]:
        raise ValueError(f"{path} has {len(content['images'])} images and {len(content['categories'])} categories")
    return {part: content[part] for part in parts}


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from searching millions of new objects for cycles, of which JSON has none: twice as fast."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_FIELDS: dict[str, dict[str, type]] = {
    "images": {"file_name": str},
    "categories": {"name": str},
    "annotations": {"bbox": list},
}


def _check_fields(path: Path, content: dict[str, list[Record]]) -> None:
    """Check that records are objects with the fields that are no ids."""
    for part, fields in _FIELDS.items():
        for place, record in enumerate(content[part]):
            if not isinstance(record, dict):
                raise ValueError(f"{path}: record {place} of {part} is no object")
            for name, kind in fields.items():
                if not isinstance(record.get(name), kind):
                    raise ValueError(f"{path}: record {place} of {part} has no proper {name!r}")


def _check_records(path: Path, content: dict[str, list[Record]]) -> None:
    images = _ids(path, "images", content["images"])
    for each in content["images"]:
        for side in ("width", "height"):
            value = each.get(side)
            if value is not None and not (_is_finite(value) and value >= 1):
                raise ValueError(f"{path}: image {each['id']} has a {side} of {value!r}, not a number of pixels")
    categories = _ids(path, "categories", content["categories"])
    _ids(path, "annotations", content["annotations"])
    for each in content["annotations"]:
        where = f"{path}: annotation {each['id']}"
        if each["image_id"] not in images:
            raise ValueError(f"{where} is of image {each['image_id']}, which is not among the images")
        if each["category_id"] not in categories:
            raise ValueError(f"{where} is of category {each['category_id']}, which is not among the categories")
        if len(each["bbox"]) != 4 or not all(map(_is_finite, each["bbox"])):
            raise ValueError(f"{where} has a bbox {each['bbox']}, not 4 numbers: left, top, width, height")
        crowd = each.get("iscrowd")
        if crowd is not None and (not isinstance(crowd, int) or crowd not in (0, 1)):
            raise ValueError(f"{where} has iscrowd {crowd!r}, not 0 or 1")
        if each.get("area") is not None and not _is_finite(each["area"]):
            raise ValueError(f"{where} has an area of {each['area']!r}, not a number of pixels")


def _ids(path: Path, part: str, records: list[Record]) -> set[int]:
    """Check that every record has an id of its own; return the ids."""
    ids = [record["id"] for record in records]
    _unique(path, f"id among {part}:", ids)
    return set(ids)


def _unique(path: Path, what: str, values: Iterable[Any]) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{path} has a duplicate {what} {value}")
        seen.add(value)


def _is_finite(value: Any) -> bool:
    """Say whether a value is a number that float32 holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30 and math.isfinite(value)


def _is_segmentation(value: Any) -> bool:
    if isinstance(value, dict):
        return {"size", "counts"} <= value.keys()
    return isinstance(value, list) and bool(value) and all(isinstance(each, list) and len(each) >= 6 for each in value)


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Return the mask ``[height, width]`` bool of COCO's polygons, or of a compressed or uncompressed RLE.

    Raises:
        ValueError: It is none of these.
    """
    from faster_coco_eval import mask as codec

    try:
        if isinstance(segmentation, list):
            rle = codec.merge(codec.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            rle = codec.frPyObjects(segmentation, height, width)
        else:
            rle = segmentation
        mask = codec.decode(rle).astype(bool)
    except Exception as error:  # the codec is written in C++ and raises almost anything
        raise ValueError(f"the segmentation is neither polygons nor a run-length encoding: {error}") from error
    if mask.shape != (height, width):
        raise ValueError(f"the segmentation is for {mask.shape} pixels, the image has {(height, width)}")
    return mask


def encode_mask(mask: np.ndarray) -> Record:
    """Return the compressed RLE of a mask ``[H, W]``, as JSON knows it."""
    from faster_coco_eval import mask as codec

    rle = codec.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = rle["counts"]
    return {"size": list(map(int, rle["size"])), "counts": counts if isinstance(counts, str) else counts.decode()}
