"""Small faults that tools write into COCO's files, mended where the meaning is certain."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from linvit.checks import some

__all__ = ["mend_categories", "mend_ids", "mend_polygons"]

Record = dict[str, Any]

LARGEST = 1 << 53
"""Ids are below it, so that any program that reads JSON knows them exactly."""


def mend_ids(path: Path, content: dict[str, list[Record]]) -> None:
    """Bring ids to whole numbers: ``"7"`` and ``7.0`` are 7, names are numbered, annotations without one get one.

    Raises:
        ValueError: A record has no id, or one that is none; the message names the file and the record.
    """
    numbers: dict[str, dict[Any, int]] = {}
    for part in ("images", "categories"):
        named = _all_names(content[part])
        for place, record in enumerate(content[part]):
            found = place + 1 if named else _whole(record.get("id"))
            if found is None:
                raise _improper(path, place, part, "id", record)
            if named:
                numbers.setdefault(part, {}).setdefault(record["id"], found)
                found = numbers[part][record["id"]]
            record["id"] = found
        if named:
            warnings.warn(f"{path}: the ids of {part} are names: numbered in their order, in results too", stacklevel=4)
    last = 0
    for place, record in enumerate(content["annotations"]):
        for name, part in (("image_id", "images"), ("category_id", "categories")):
            value = record.get(name)
            known = numbers.get(part)
            found = _whole(value) if known is None else known.get(value) if isinstance(value, str) else None
            if found is None:
                raise _improper(path, place, "annotations", name, record)
            record[name] = found
        if record.get("id") is not None:
            found = _whole(record["id"])
            if found is None:
                raise _improper(path, place, "annotations", "id", record)
            record["id"] = found
            last = max(last, found)
    for record in content["annotations"]:
        if record.get("id") is None:
            last += 1
            record["id"] = last


def _whole(value: Any) -> int | None:
    """Return the whole number that an id means, None where it means none."""
    if type(value) is int:
        return value if abs(value) < LARGEST else None
    if isinstance(value, float) and value.is_integer() and abs(value) < LARGEST:
        return int(value)
    if isinstance(value, str) and len(value) < 20 and value.strip().isdecimal():
        return _whole(int(value))
    return None


def _all_names(records: list[Record]) -> bool:
    """Say whether all ids are text, and not all of it numbers."""
    ids = [record.get("id") for record in records]
    return all(isinstance(each, str) for each in ids) and any(_whole(each) is None for each in ids)


def _improper(path: Path, place: int, part: str, name: str, record: Record) -> ValueError:
    found = f"it is {record[name]!r}, and must be a whole number" if record.get(name) is not None else "it is missing"
    return ValueError(f"{path}: record {place} of {part} has no proper {name!r}: {found}")


def mend_categories(path: Path, content: dict[str, list[Record]]) -> None:
    """Drop an unused category that only heads the others, as Roboflow writes one; join two of one name.

    Two of one name are one where at most one is used, or their supercategories are the same; else they stay.
    """
    used = Counter(each["category_id"] for each in content["annotations"])
    above = {each["supercategory"] for each in content["categories"] if each["id"] and _is_text(each, "supercategory")}
    kept = [
        each
        for each in content["categories"]
        if each["id"] != 0 or used[0] or each["name"] not in above or each.get("supercategory") == each["name"]
    ]
    first: dict[str, Record] = {}
    moved: dict[int, int] = {}
    categories = []
    for each in sorted(kept, key=lambda each: not used[each["id"]]):  # the used ones come first
        other = first.setdefault(each["name"], each)
        alike = not used[each["id"]] or other.get("supercategory") == each.get("supercategory")
        if other is not each and alike:
            moved[each["id"]] = other["id"]
        else:
            categories.append(each)
    content["categories"] = [each for each in kept if any(each is one for one in categories)]
    joined = {old: new for old, new in moved.items() if used[old]}
    if joined:
        names = {each["id"]: each["name"] for each in categories}
        twice = some(f"{names[new]} ({new}, {old})" for old, new in joined.items())
        warnings.warn(f"{path}: categories that are there twice are taken as one: {twice}", stacklevel=3)
        for each in content["annotations"]:
            each["category_id"] = joined.get(each["category_id"], each["category_id"])


def _is_text(record: Record, name: str) -> bool:
    return isinstance(record.get(name), str)


def mend_polygons(content: dict[str, list[Record]]) -> None:
    """Drop polygons of one or two corners, which enclose nothing, where an annotation has whole ones besides."""
    for each in content["annotations"]:
        polygons = each.get("segmentation")
        if isinstance(polygons, list) and any(isinstance(one, list) and len(one) in (2, 4) for one in polygons):
            whole = [one for one in polygons if not (isinstance(one, list) and len(one) in (2, 4))]
            if whole:
                each["segmentation"] = whole
