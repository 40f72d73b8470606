"""Pascal VOC's annotations: an XML file for each image, in COCO's words."""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from linvit.data.coco import CocoFile, Record
from linvit.data.image_files import IMAGE_FOLDERS
from linvit.data.images import image_size, images_below
from linvit.data.parts import ALL, lines_of, normalised, part_named, subfolders

__all__ = ["find_voc", "image_lists", "read_voc"]


def find_voc(root: Path) -> dict[str, Callable[[Path | None], CocoFile]]:
    """Find XML files in ``Annotations``, in folders named like parts, or beside the images.

    ``ImageSets/Main`` says which image belongs to which part of the first.
    """
    if not root.is_dir():
        return {}
    inside = {normalised(folder.name): folder for folder in subfolders(root)}
    years = [folder for name, folder in inside.items() if name.startswith("voc20") or name == "vocdevkit"]
    if len(years) == 1 and len(inside) == 1:
        return find_voc(years[0])
    annotations = next((inside[name] for name in ("annotations", "annotation", "xml", "xmls") if name in inside), None)
    if annotations is not None and _has_xml(annotations):
        lists = image_lists(root, "Main")
        images = next((inside[name] for name in ("jpegimages", *IMAGE_FOLDERS) if name in inside), root)
        if not lists:
            found: dict[str, Callable[[Path | None], CocoFile]] = {}
            for folder in subfolders(annotations):
                own = images / folder.name
                if part := part_named(folder.name):
                    found[part] = partial(_read, folder, root, own if own.is_dir() else images, None)
            return found or {ALL: partial(_read, annotations, root, images, None)}
        return {part: partial(_read, annotations, root, images, names) for part, names in lists.items()}
    parts: dict[str, Callable[[Path | None], CocoFile]] = {}
    for folder in inside.values():
        part = part_named(folder.name)
        if part is not None and part not in parts and _has_xml(folder):
            parts[part] = partial(_read, folder, root, folder, None)
    if not parts and any(path.suffix.lower() == ".xml" for path in root.iterdir()):
        parts[ALL] = partial(_read, root, root, root, None)
    return parts


def read_voc(annotations: Path, root: Path, images: Path | None = None) -> CocoFile:
    """Read all XML files of a folder.

    Args:
        annotations: The folder.
        root: The data set's folder.
        images: The folder of the images; None takes the first that ``root`` has of the usual names.
    """
    inside = {normalised(folder.name): folder for folder in subfolders(root)}
    usual = next((inside[name] for name in IMAGE_FOLDERS if name in inside), annotations)
    return _read(annotations, root, usual, None, images)


def image_lists(root: Path, kind: str) -> dict[str, list[str]]:
    """Read ``ImageSets/KIND/*.txt``: the names of the images of each part.

    ``trainval`` is what is learned from where there is no ``train``; another single list is a whole without parts.

    Raises:
        ValueError: A list is no text.
    """
    folder = root / "ImageSets" / kind
    paths = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    lists = {path.stem: path for path in paths if part_named(path.stem) or path.stem in ("trainval", "default")}
    named = {part_named(stem): path for stem, path in lists.items() if "_" not in stem and part_named(stem)}
    if "train" not in named and "trainval" in lists:
        named["train"] = lists["trainval"]
    if not named and "default" in lists:
        named[ALL] = lists["default"]
    return {part: [line.split()[0] for _, line in lines_of(path)] for part, path in named.items() if part}


def _has_xml(folder: Path) -> bool:
    return any(name.lower().endswith(".xml") for _, _, names in os.walk(folder) for name in names)


def _read(
    annotations: Path, root: Path, usual: Path, names: Sequence[str] | None, images: Path | None = None
) -> CocoFile:
    """Read the XML files of a part, and those of the others for the names of the classes alone.

    Boxes are counted from pixel 1 and hold their last pixel, as VOC's are, unless one of the data set begins at 0.
    """
    folder = images or usual
    files = _xml_below(annotations)
    if names is not None:
        missing = [name for name in names if name not in files]
        if missing:
            raise ValueError(f"{annotations} has no {missing[0]}.xml, which is in a list of {root / 'ImageSets'}")
    objects = {stem: _parse(path) for stem, path in files.items()}
    if not objects:
        raise ValueError(f"{annotations} holds no XML file")
    known = {name for _, _, found in objects.values() for name, _, _ in found}
    if not known:
        raise ValueError(f"{annotations}: no object in any of {len(objects)} XML files")
    categories = {name: number for number, name in enumerate(sorted(known), 1)}
    first = min((value for _, _, found in objects.values() for _, box, _ in found for value in box[:2]), default=1)
    shift = 1 if first >= 1 else 0
    by_stem: dict[str, list[str]] = defaultdict(list)
    for path in images_below(folder):
        by_stem[os.path.splitext(os.path.basename(path))[0]].append(path)
    content: dict[str, list[Record]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
    for number, stem in enumerate(files if names is None else names, 1):
        filename, size, found = objects[stem]
        own = os.path.splitext(os.path.basename(filename or ""))[0]
        candidates = by_stem.get(os.path.basename(stem)) or by_stem.get(own) or [str(folder / (filename or stem))]
        candidates.sort(key=lambda path: os.path.splitext(os.path.relpath(path, folder))[0] != stem)
        size = size or image_size(candidates[0])
        record: Record = {"id": number, "file_name": os.path.relpath(candidates[0], folder)}
        content["images"].append(record | ({"width": size[0], "height": size[1]} if size else {}))
        for name, (left, top, right, bottom), difficult in found:
            wide, high = right - left + shift, bottom - top + shift
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": categories[name],
                    "bbox": [left - shift, top - shift, wide, high],
                    "area": wide * high,
                    "iscrowd": int(difficult),
                }
            )
    return CocoFile(annotations, content, folder)


def _xml_below(folder: Path) -> dict[str, Path]:
    found = {}
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(".xml") and not name.startswith("."):
                path = Path(where, name)
                found[path.relative_to(folder).with_suffix("").as_posix()] = path
    return found


Parsed = tuple[str | None, tuple[int, int] | None, list[tuple[str, list[float], bool]]]


def _parse(path: Path) -> Parsed:
    """Return a file's image name, its size if it says so, and name, box and difficulty of each object."""
    try:
        tree = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path} is no XML, it may be cut off: {error}") from error
    if tree.tag != "annotation":
        raise ValueError(f"{path} is no file of Pascal VOC: its root is <{tree.tag}>, not <annotation>")
    width, height = (_number(path, tree, f"size/{side}", 0) for side in ("width", "height"))
    objects = []
    for place, each in enumerate(tree.iter("object")):
        name = (each.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"{path}: object {place} has no <name>")
        box = [_number(path, each, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        objects.append((name, box, _number(path, each, "difficult", 0) == 1))
    size = (int(width), int(height)) if min(width, height) >= 1 else None
    return tree.findtext("filename"), size, objects


def _number(path: Path, element: Any, name: str, default: float | None = None) -> float:
    text = element.findtext(name)
    if text is None or not text.strip():
        if default is not None:
            return default
        raise ValueError(f"{path}: an object has no <{name.replace('/', '><')}>")
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e9:
        raise ValueError(f"{path}: <{name.split('/')[-1]}> is {text.strip()[:40]!r}, and must be a number of pixels")
    return value
