"""YOLO's annotations: a text file for each image, a line for each box, in COCO's words."""

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from reprlib import Repr
from typing import Any

import yaml

from linvit.checks import some
from linvit.data.coco import CocoFile, Record
from linvit.data.image_files import IMAGE_FOLDERS
from linvit.data.images import image_size, images_below
from linvit.data.loading import progress
from linvit.data.parts import ALL, PARTS, lines_of, normalised, part_named, subfolders

__all__ = ["find_yolo", "read_yolo"]

NAME_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels", "names.txt")
"""Files with a class name per line, as exports without ``data.yaml`` have them."""

BEYOND = 1.1
"""Shares of the image's size above it are pixels or mistakes; a little beyond 1 is rounding."""


def find_yolo(root: Path) -> dict[str, Callable[[Path | None], CocoFile]]:
    """Find the parts that ``data.yaml`` names, or else images in ``images`` and text files in ``labels``.

    Raises:
        ValueError: ``data.yaml`` is damaged, or does not name what it should.
    """
    if root.is_file():
        return _described(root) if root.suffix.lower() in (".yaml", ".yml") and _settings(root) else {}
    if not root.is_dir():
        return {}
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in (".yaml", ".yml"))
    for path in sorted(files, key=lambda path: path.stem not in ("data", "dataset")):
        if _settings(path):
            return _described(path)
    listed = {part_named(path.stem): path for path in root.glob("*.txt") if part_named(path.stem)}
    names = _names_beside(root)
    if listed and (root / "obj.data").is_file():
        return {part: partial(_read, root, [path], names) for part, path in listed.items() if part}
    return {part: partial(_read, root, [folder], names) for part, folder in _image_folders(root).items()}


def read_yolo(labels: Path, root: Path, images: Path | None = None) -> CocoFile:
    """Read the text files of a folder.

    Args:
        labels: The folder.
        root: The data set's folder, where the class names are.
        images: The folder of the images; None: ``images`` in place of ``labels`` in its path, or the same folder.
    """
    mirrored = Path(*("images" if part == "labels" else part for part in labels.parts))
    files = [path for path in root.iterdir() if path.suffix.lower() in (".yaml", ".yml") and _settings(path)]
    names = _names(files[0], _settings(files[0])) if files else _names_beside(root)
    return _read(root, [mirrored if mirrored.is_dir() else labels], names, images, labels)


def _image_folders(root: Path) -> dict[str, Path]:
    """Find the folders of images that have text files beside them, by parts."""
    inside = {normalised(folder.name): folder for folder in subfolders(root)}
    images = next((inside[name] for name in IMAGE_FOLDERS if name in inside), None)
    found: dict[str, Path] = {}
    if images is not None and "labels" in inside and _has_text(inside["labels"]):
        for folder in subfolders(images):
            if part := part_named(folder.name):
                found.setdefault(part, folder)
        return found or {ALL: images}
    for folder in inside.values():
        part = part_named(folder.name)
        below = {normalised(each.name): each for each in subfolders(folder)}
        if part and "images" in below and "labels" in below and _has_text(below["labels"]):
            found.setdefault(part, below["images"])
    return found


def _has_text(folder: Path) -> bool:
    return any(name.lower().endswith(".txt") for _, _, names in os.walk(folder) for name in names)


def _settings(path: Path) -> dict[str, Any]:
    """Return what a YAML file says if it describes a data set of YOLO's; nothing if it is something else."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        if path.stem in ("data", "dataset"):
            raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
        return {}
    described = isinstance(found, dict) and bool({"train", "val", "valid", "test"} & found.keys())
    return found if described and bool({"names", "nc"} & found.keys()) else {}


def _described(path: Path) -> dict[str, Callable[[Path | None], CocoFile]]:
    settings = _settings(path)
    base = path.parent
    given = settings.get("path")
    if given is not None and not isinstance(given, str):
        raise ValueError(f"{path}: path is {brief(given)}, and must be the data set's folder")
    names = _names(path, settings)
    points = settings.get("kpt_shape") is not None
    parts: dict[str, Callable[[Path | None], CocoFile]] = {}
    for key, value in settings.items():
        part = part_named(key) if isinstance(key, str) and key in sum(PARTS.values(), ()) else None
        if part is None or value in (None, "", []):
            continue
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(each, str) for each in values):
            raise ValueError(
                f"{path}: {key} is {brief(value)}, and must be a folder of images, a list of images, or several"
            )
        places = [place for each in values if (place := _place(base, given, each)) is not None]
        if len(places) == len(values):
            parts[part] = partial(_read, base, places, names, points=points)
        elif part == "train":
            raise FileNotFoundError(f"{path}: {key} is {value!r}, and there is no such folder or file below {base}")
    return parts


def _place(base: Path, given: str | None, value: str) -> Path | None:
    """Find what a value names: from the file's folder, ``path`` in it, or, as Roboflow writes ``../``, the file's."""
    below = value
    while below.startswith(("../", "./", "..\\")):
        below = below.split("/" if "/" in below else "\\", 1)[1]
    starts = ([base / given] if given else []) + [base]
    places = [start / each for start in starts for each in (value, below)]
    pieces = Path(value.replace("\\", "/")).parts
    places += [base.joinpath(*pieces[-count:]) for count in (3, 2, 1)]  # another machine's folders
    return next((place for place in places if place.exists()), None)


def _names(path: Path, settings: dict[str, Any]) -> list[str] | None:
    """Return the class names: a list, or a map of all numbers from 0; or numbers where only their count is given."""
    names, count = settings.get("names"), settings.get("nc")
    if isinstance(names, dict):
        numbers = {int(key) if str(key).isdecimal() else -1: value for key, value in names.items()}
        if sorted(numbers) != list(range(len(names))):
            raise ValueError(
                f"{path}: names has the keys {some(map(str, names))}, and must have all numbers from 0 to "
                f"{len(names) - 1}"
            )
        names = [numbers[number] for number in range(len(names))]
    if names is None and type(count) is int and 0 < count < 100_000:
        return [str(number) for number in range(count)]
    if not isinstance(names, list) or not names or not all(isinstance(each, str | int | float) for each in names):
        raise ValueError(f"{path}: names is {brief(names)}, and must be a list or a map of class names")
    if count is not None and count != len(names):
        raise ValueError(f"{path}: nc is {brief(count)}, and names has {len(names)}: they must agree")
    return _distinct(path, [str(name) for name in names])


def _distinct(path: Path, names: list[str]) -> list[str]:
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise ValueError(f"{path}: names has {twice!r} twice, and they must differ")
    return names


def _names_beside(root: Path) -> list[str] | None:
    found = next((root / name for name in NAME_FILES if (root / name).is_file()), None)
    return None if found is None else _distinct(found, [line for _, line in lines_of(found)])


def _read(
    root: Path,
    places: Sequence[Path],
    names: list[str] | None,
    images: Path | None = None,
    labels: Path | None = None,
    points: bool = False,
) -> CocoFile:
    """Read the text file of each image.

    Args:
        root: The data set's folder.
        places: Folders of images, or lists of images.
        names: Class names; None makes names of the numbers that occur.
        images: Another folder of images.
        labels: The folder of the text files; None: where YOLO looks for them.
        points: After a box, lines hold key points, not corners.
    """
    paths = images_below(images) if images else [path for place in places for path in _images_of(place, root)]
    where = " and ".join(str(place) for place in ([images] if images else places))
    if not paths:
        raise ValueError(f"{where} holds no image")
    found = [_label_of(path, labels, images) for path in paths]
    texts = [path if path.is_file() else None for path in found]
    if not any(texts):
        raise ValueError(f"{where}: none of {len(paths)} images has its text file, such as {found[0]}")
    with ThreadPoolExecutor(8) as pool:
        sizes = list(progress(pool.map(partial(image_size, upright=True), paths), len(paths), "reading sizes"))
    records: list[Record] = []
    annotations: list[Record] = []
    most = -1
    for number, (path, text, size) in enumerate(zip(paths, texts, sizes, strict=True), 1):
        record: Record = {"id": number, "file_name": os.path.relpath(path, root)}
        records.append(record | ({"width": size[0], "height": size[1]} if size else {}))
        for label, box, polygon in _boxes(text, None if names is None else len(names), points) if text and size else ():
            most = max(most, label)
            left, top, right, bottom = (value * size[place % 2] for place, value in enumerate(box))
            each: Record = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": label,
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
            }
            if polygon:
                each["segmentation"] = [[value * size[place % 2] for place, value in enumerate(polygon)]]
            annotations.append(each)
    names = names or [str(label) for label in range(most + 1)]
    if not names:
        raise ValueError(f"{where}: no class names ({', '.join(NAME_FILES)}), and no boxes")
    categories: list[Record] = [{"id": label, "name": name} for label, name in enumerate(names)]
    content = {"images": records, "annotations": annotations, "categories": categories}
    return CocoFile(places[0] if images is None else images, content, root, upright=True)


def _images_of(place: Path, root: Path) -> list[str]:
    if place.is_dir():
        return images_below(place)
    found = []
    for number, line in lines_of(place):
        inner = Path(line.replace("\\", "/"))
        if not inner.suffix or "\0" in line or len(line) > 4096:
            raise ValueError(f"{place}, line {number} is {line[:60]!r}, and must be the path of an image")
        candidates = [place.parent / inner, root / inner, *(root.joinpath(*inner.parts[-n:]) for n in (3, 2, 1))]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            warnings.warn(f"{place}, line {number}: there is no image {line}", stacklevel=2)
        found.append(str(path or candidates[0]))
    return found


def _label_of(image: str, labels: Path | None, images: Path | None) -> Path:
    """Return where the text file of an image is: ``labels`` for the last ``images`` of its path, or beside it."""
    path = Path(image)
    if labels is not None:
        inner = path.relative_to(images) if images else Path(path.name)
        return (labels / inner).with_suffix(".txt")
    pieces = list(path.parts)
    for place in range(len(pieces) - 2, -1, -1):
        if normalised(pieces[place]) in IMAGE_FOLDERS:
            for name in ("labels", "Labels"):
                mirrored = Path(*pieces[:place], name, *pieces[place + 1 :]).with_suffix(".txt")
                if mirrored.is_file():
                    return mirrored
            break
    return path.with_suffix(".txt")


def _boxes(path: Path, classes: int | None, points: bool) -> list[tuple[int, list[float], list[float] | None]]:
    """Read lines of a class and a box (centre, width, height) or a polygon, as shares of the image's size.

    Returns:
        For each line the class, left, top, right, bottom, and the polygon if it is one.

    Raises:
        ValueError: A line is neither; the message names the file and the line.
    """
    found: list[tuple[int, list[float], list[float] | None]] = []
    seen = set()
    for number, line in lines_of(path):
        if line in seen:
            continue
        seen.add(line)
        where = f"{path}, line {number}"
        try:
            values = [float(word) for word in line.split()]
        except ValueError:
            raise ValueError(f"{where} is {line[:60]!r}, and must be a class number and 4 or more numbers") from None
        label, places = values[0], values[1:]
        if len(places) < 4 or not all(map(math.isfinite, values)):
            raise ValueError(f"{where} is {line[:60]!r}, and must be a class number and 4 or more numbers")
        if label != int(label) or label < 0 or (classes is not None and label >= classes) or label > 100_000:
            allowed = f"a whole number from 0 to {classes - 1}" if classes else "a whole number from 0 on"
            raise ValueError(f"{where} has the class {line.split()[0]}, and must have {allowed}")
        polygon = len(places) >= 6 and len(places) % 2 == 0 and not points
        checked = places if polygon else places[:4]
        wrong = next((value for value in checked if not 1 - BEYOND <= value <= BEYOND), None)
        if wrong is not None:
            raise ValueError(f"{where} has {wrong:g}, and must have shares of the image's size, from 0 to 1")
        if polygon:
            xs, ys = places[0::2], places[1::2]
            found.append((int(label), [min(xs), min(ys), max(xs), max(ys)], places))
        else:
            x, y, wide, high = places[:4]
            found.append((int(label), [x - wide / 2, y - high / 2, x + wide / 2, y + high / 2], None))
    return found


def brief(found: Any) -> str:
    """Say what was found: a few lines of YAML that repeat each other may mean more than fits into memory."""
    short = Repr()
    short.maxlevel, short.maxlist, short.maxdict = 2, 4, 4
    return short.repr(found)
