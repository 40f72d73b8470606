"""COCO's annotation files: found, read, and checked record by record before anything uses them."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["CocoFile", "decode_mask", "encode_mask", "find_annotations", "read_coco"]

Record = dict[str, Any]


@dataclass(frozen=True)
class CocoFile:
    """An annotation file whose records fit together.

    Attributes:
        path: The file.
        content: What it holds, unchanged: ``images``, ``annotations``, ``categories``.
        images: Where the image files lie.
        classes: Category names in the order of their ids.
    """

    path: Path
    content: dict[str, list[Record]]
    images: Path

    @property
    def classes(self) -> list[str]:
        return [each["name"] for each in sorted(self.content["categories"], key=lambda each: each["id"])]

    def category_ids(self) -> dict[str, int]:
        """Map category names to their ids."""
        return {each["name"]: each["id"] for each in self.content["categories"]}

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

    def annotations_by_image(self) -> dict[int, list[Record]]:
        """Map every image's id to its annotations."""
        found: dict[int, list[Record]] = {each["id"]: [] for each in self.content["images"]}
        for each in self.content["annotations"]:
            found[each["image_id"]].append(each)
        return found


def find_annotations(root: Path, split: str) -> Path:
    """Find ``annotations/instances_SPLIT.json`` in a folder; a year may follow SPLIT, as in COCO's own names.

    Raises:
        FileNotFoundError: It is not there; the message says what is.
    """
    folder = root / "annotations"
    if not root.is_dir():
        raise FileNotFoundError(f"data folder {root} does not exist")
    found = sorted(folder.glob(f"instances_{split}.json")) or sorted(folder.glob(f"instances_{split}[0-9]*.json"))
    if not found:
        there = ", ".join(sorted(path.name for path in folder.glob("*.json"))) or "none"
        raise FileNotFoundError(f"{root} lacks annotations/instances_{split}.json; annotation files there: {there}")
    return found[-1]


def read_coco(path: Path) -> CocoFile:
    """Read an annotation file and check that its records fit together.

    The images lie in a folder named like the file's split (``train`` of ``instances_train.json``) or ``images/train``
    beside ``annotations``, or in ``images`` or the root itself.

    Raises:
        OSError: There is no such file.
        ValueError: The file is damaged, or a record is: the message names both.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON, it may be cut off: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no COCO annotation file: it holds no object with images, annotations, categories")
    for part in ("images", "annotations", "categories"):
        if not isinstance(content.get(part), list):
            raise ValueError(f"{path} is no COCO annotation file: it has no list {part!r}")
    if not content["images"] or not content["categories"]:
        raise ValueError(f"{path} has {len(content['images'])} images and {len(content['categories'])} categories")
    images = _ids(path, "images", content["images"], {"file_name": str})
    for each in content["images"]:
        for side in ("width", "height"):
            value = each.get(side)
            if value is not None and not (_is_finite(value) and value >= 1):
                raise ValueError(f"{path}: image {each['id']} has a {side} of {value!r}, not a number of pixels")
    categories = _ids(path, "categories", content["categories"], {"name": str})
    names = [each["name"] for each in content["categories"]]
    _unique(path, "category name", names)
    _ids(path, "annotations", content["annotations"], {"image_id": int, "category_id": int, "bbox": list})
    for each in content["annotations"]:
        where = f"{path}: annotation {each['id']}"
        if each["image_id"] not in images:
            raise ValueError(f"{where} is of image {each['image_id']}, which is not among the images")
        if each["category_id"] not in categories:
            raise ValueError(f"{where} is of category {each['category_id']}, which is not among the categories")
        if len(each["bbox"]) != 4 or not all(_is_finite(value) for value in each["bbox"]):
            raise ValueError(f"{where} has a bbox {each['bbox']}, not 4 numbers: left, top, width, height")
        if each.get("iscrowd") not in (None, 0, 1):
            raise ValueError(f"{where} has iscrowd {each['iscrowd']!r}, not 0 or 1")
        if each.get("area") is not None and not _is_finite(each["area"]):
            raise ValueError(f"{where} has an area of {each['area']!r}, not a number of pixels")
    return CocoFile(path, content, _image_folder(path, content["images"][0]["file_name"]))


def _image_folder(path: Path, example: str) -> Path:
    root, split = path.parent.parent, path.stem.removeprefix("instances_")
    places = [root / split, root / "images" / split, root / "images", root]
    return next((place for place in places if (place / example).is_file()), next(filter(Path.is_dir, places)))


def _ids(path: Path, part: str, records: list[Record], fields: dict[str, type]) -> set[int]:
    """Check that every record has its fields and an id of its own; return the ids."""
    for place, record in enumerate(records):
        wrong = record if not isinstance(record, dict) else _wrong_field(record, {"id": int} | fields)
        if wrong is not None:
            raise ValueError(f"{path}: record {place} of {part} {_said(wrong)}")
    ids = [record["id"] for record in records]
    _unique(path, f"id among {part}:", ids)
    return set(ids)


def _wrong_field(record: Record, fields: dict[str, type]) -> str | None:
    for name, kind in fields.items():
        if not isinstance(record.get(name), kind) or isinstance(record[name], bool):
            return name
    return None


def _said(wrong: Any) -> str:
    return f"has no proper {wrong!r}" if isinstance(wrong, str) else "is no object"


def _unique(path: Path, what: str, values: Iterable[Any]) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{path} has a duplicate {what} {value}")
        seen.add(value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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
