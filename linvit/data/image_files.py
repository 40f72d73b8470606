"""Where the images lie that an annotation file names, perhaps by the names that they have on another machine."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from linvit.data.images import images_below
from linvit.data.parts import NameIndex, normalised, part_named, subset_names

__all__ = ["data_root", "find_image_files", "image_folder"]

ANNOTATION_FOLDERS = ("annotations", "annotation", "labels", "json")
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "data")

_TRIED = 50


def data_root(path: Path) -> Path:
    """Return the folder of the data set that an annotation file belongs to."""
    return path.parent.parent if normalised(path.parent.name) in ANNOTATION_FOLDERS else path.parent


def image_folder(path: Path, names: Sequence[str]) -> Path:
    """Find the folder that file names in an annotation file start from.

    It is named like the file's part (``train2017`` of ``instances_train2017.json``), alone or in ``images``, or is
    ``images``, the folder of the file, or the root: the one that has most of the files.

    Args:
        path: The annotation file.
        names: The file names in it.
    """
    root = data_root(path)
    subset = normalised(path.stem.removeprefix("instances_"))
    part = part_named(path.stem)
    wanted = [subset, *(subset_names(part) if part else subset_names("all"))]
    inside = _folders(root)
    image_folders = [inside[name] for name in IMAGE_FOLDERS if name in inside]
    places = [inside[name] for name in wanted if name in inside]
    for folder in image_folders:
        below = _folders(folder)
        places += [below[name] for name in wanted if name in below]
    places += [*image_folders, path.parent, root]
    sample = names[:: max(1, len(names) // _TRIED)]
    hits = [sum(_is_file(place, name) for name in sample) for place in places]
    if not any(hits):  # another machine's names
        hits = [sum(NameIndex(place).find(name) is not None for name in sample[:5]) for place in places]
    return places[hits.index(max(hits))]


def _folders(root: Path) -> dict[str, Path]:
    entries = sorted((entry for entry in os.scandir(root) if entry.is_dir()), key=lambda entry: entry.name)
    return {normalised(entry.name): root / entry.name for entry in entries} if root.is_dir() else {}


def find_image_files(path: Path, folder: Path, names: Sequence[str]) -> list[str]:
    """Find the files that an annotation file names.

    Names that lead nowhere (backslashes, percent signs, another machine's folders, another case) are looked for by
    their last part in that folder and below it, not in those of other parts; one line says how many were found so. What
    cannot be found keeps its name.

    Args:
        path: The annotation file.
        folder: Where the names start.
        names: The names.

    Returns:
        The names that lead to the files, from ``folder`` on.
    """
    known = {os.path.relpath(image, folder) for image in images_below(folder)}
    index = NameIndex(folder)
    found, example, count = [], "", 0
    for name in names:
        if name not in known and not _is_file(folder, name):
            other = index.find(name, folder) or index.find(unquote(name), folder)
            if other is not None:
                count += 1
                example = example or f"{name!r} = {other}"
                name = os.path.relpath(other, folder)
        found.append(name)
    if count:
        were = "file name was" if count == 1 else "file names were"
        warnings.warn(f"{path}: {count:,} {were} found by the last part, such as {example}", stacklevel=3)
    return found


def _is_file(folder: Path, name: str) -> bool:
    try:
        return (folder / name).is_file()
    except (OSError, ValueError):  # too long, or a zero byte
        return False
