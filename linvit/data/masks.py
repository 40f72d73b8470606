"""Masks of semantic segmentation: where they lie beside the images, how they are read, and what their values mean."""

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from linvit.checks import require
from linvit.data.images import UnreadableImage, images_below, why_unreadable

__all__ = ["IGNORED", "SPLITS", "MaskCode", "class_list", "find_pairs", "has_split", "load_mask"]

IGNORED = 255
"""Target of the pixels that count for nothing; classes are below it."""

SPLITS = {"train": ("training", "train"), "val": ("validation", "val"), "test": ("test", "testing")}
"""Names of the folders of each part of a data set."""

MASK_FOLDERS = ("annotations", "masks", "labels")
"""Names of the folder that holds the masks, beside ``images``."""

CLASS_FILES = ("classes.txt", "objectInfo150.txt")
"""Files in a data set's folder that name its classes; the second is ADE20K's, a table with the names at its end."""

_VALUES = 1 << 16


def find_pairs(root: str | os.PathLike[str], split: str) -> list[tuple[str, str]]:
    """Find the images of a part of a data set, and the mask of each.

    ``root`` holds ``images/PART`` and ``masks/PART``, or ``PART/images`` and ``PART/masks`` (``annotations`` and
    ``labels`` are masks, too), to any depth. A mask has its image's name but for the ending. Masks without an image
    are left out with a warning.

    Args:
        root: The folder of the data set.
        split: "train", "val" or "test"; "all" for a ``root`` that holds ``images`` and ``masks`` without parts.

    Returns:
        Paths of images and masks, sorted.

    Raises:
        FileNotFoundError: ``root`` is missing or has no such folders, or an image has no mask.
        NotADirectoryError: ``root`` is a file.
        ValueError: There is no image, or two files have one name but for the ending.
    """
    require(split in (*SPLITS, "all"), "split", split, f"one of {', '.join(SPLITS)}")
    images, masks = _folders(Path(root), split)
    mask_of, image_of = _by_name(masks), _by_name(images)
    if not image_of:
        raise ValueError(f"{images} holds no image")
    lonely = [path for key, path in image_of.items() if key not in mask_of]
    if lonely:
        raise FileNotFoundError(f"{len(lonely)} of {len(image_of)} images have no mask in {masks}: {_some(lonely)}")
    unused = [path for key, path in mask_of.items() if key not in image_of]
    if unused:
        warnings.warn(f"{len(unused)} masks have no image in {images}: {_some(unused)}", stacklevel=2)
    return [(path, mask_of[key]) for key, path in image_of.items()]


def has_split(root: str | os.PathLike[str], split: str) -> bool:
    """Say whether a data set has a part."""
    return any(images.is_dir() and masks.is_dir() for images, masks in _candidates(Path(root), split))


def load_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the values of a mask as they are stored: gray values, or the colour numbers of a palette.

    Args:
        path: An image file with one channel, or with several equal ones.

    Returns:
        ``[H, W]`` integers.

    Raises:
        UnreadableImage: The file is missing, a folder, empty, truncated or no image.
        ValueError: It is a colour picture.
    """
    try:
        with Image.open(path) as image:
            values = np.asarray(image)
            bands = image.getbands()
    except Exception as error:  # On damaged files Pillow's decoders raise almost anything.
        empty = os.path.isfile(path) and not os.path.getsize(path)
        raise UnreadableImage(f"cannot read mask {path}: {why_unreadable(error, empty)}", path) from error
    if values.ndim == 3:
        colors = values[..., : len([band for band in bands if band != "A"])]
        values = colors[..., 0]
        if (colors != values[..., None]).any():
            raise ValueError(f"mask {path} is a colour picture; a mask has one channel, with a class number per pixel")
    if values.dtype.kind == "f":
        raise ValueError(f"mask {path} holds floating-point values; a mask holds whole numbers")
    return values.astype(np.int64)


class MaskCode:
    """What the values of masks mean: maps them to targets, which are class numbers and IGNORED.

    Args:
        num_classes: Number of classes.
        values: Value of each class, in order; None for 0, 1, 2, ...
        ignore: Values that count for nothing; those that are in ``values`` are classes all the same.
        reduce_zero_label: 0 counts for nothing and the classes start at 1, as in ADE20K.

    Raises:
        ValueError: The settings contradict each other, or there are too many classes.
    """

    def __init__(
        self,
        num_classes: int,
        values: Sequence[int] | None = None,
        ignore: Iterable[int] = (IGNORED,),
        reduce_zero_label: bool = False,
    ) -> None:
        if values is not None and reduce_zero_label:
            raise ValueError("reduce_zero_label is another way to say values: give one of them")
        if not 2 <= num_classes <= IGNORED:
            raise ValueError(f"classes must be from 2 to {IGNORED}, not {num_classes}")
        if values is not None and len(values) != num_classes:
            raise ValueError(f"values must name one mask value for each of {num_classes} classes, not {len(values)}")
        self.values = list(range(num_classes)) if values is None else list(values)
        if reduce_zero_label:
            self.values = [value + 1 for value in self.values]
        self.ignore = sorted({*ignore, *([0] if reduce_zero_label else [])} - set(self.values))
        wrong = [value for value in (*self.values, *self.ignore) if not 0 <= value < _VALUES]
        if wrong or len(set(self.values)) != num_classes:
            raise ValueError(
                f"values and ignore must be different numbers from 0 to {_VALUES - 1}, not {wrong or values}"
            )
        self._table = np.full(_VALUES, -1, dtype=np.int16)
        self._table[self.ignore] = IGNORED
        self._table[self.values] = np.arange(num_classes)

    def encode(self, mask: np.ndarray, path: str) -> np.ndarray:
        """Map a mask to its targets ``[H, W]``, bytes.

        Raises:
            ValueError: It has a value that is no class and not ignored; the message names the file and the values.
        """
        targets = self._table[np.clip(mask, 0, _VALUES - 1)]
        wrong = (targets < 0) | (mask < 0) | (mask >= _VALUES)
        if wrong.any():
            found = ", ".join(map(str, np.unique(mask[wrong])[:5]))
            raise ValueError(
                f"mask {path} has the values {found}: classes are {_ranges(self.values)}, "
                f"ignored {_ranges(self.ignore) or 'none'} (see classes, values, ignore, reduce_zero_label)"
            )
        return targets.astype(np.uint8)


def class_list(root: Path, given: Sequence[str] | int | None) -> list[str]:
    """Return the names of the classes: as given, numbers where only their count is given, or those of a file in root.

    Raises:
        FileNotFoundError: Nothing is given, and the folder names none.
    """
    if isinstance(given, int):
        return [str(number) for number in range(given)]
    if given is not None:
        return list(given)
    for name in CLASS_FILES:
        if (root / name).is_file():
            lines = [line for line in (root / name).read_text(encoding="utf-8").splitlines() if line.strip()]
            if lines and "\t" in lines[0]:  # a table with a heading; of several words for a class the first will do
                lines = [line.split("\t")[-1].split(",")[0] for line in lines[1:]]
            return [line.strip() for line in lines]
    raise FileNotFoundError(
        f"{root} has no {CLASS_FILES[0]} (a class name per line), and classes is not set: give names or their number"
    )


def _folders(root: Path, split: str) -> tuple[Path, Path]:
    if not root.exists():
        raise FileNotFoundError(f"data folder {root} does not exist")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file, not a data folder")
    for images, masks in _candidates(root, split):
        if images.is_dir() and masks.is_dir():
            return images, masks
    part = "" if split == "all" else f"/{SPLITS[split][0]}"
    has = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    raise FileNotFoundError(
        f"{root} lacks images{part} with {f'{part}, '.join(MASK_FOLDERS[:2])}{part} or {MASK_FOLDERS[2]}{part}; "
        f"its folders: {_some(has) or 'none'}"
    )


def _candidates(root: Path, split: str) -> list[tuple[Path, Path]]:
    if split == "all":
        return [(root / "images", root / masks) for masks in MASK_FOLDERS]
    orders = [
        pair
        for part in SPLITS[split]
        for masks in MASK_FOLDERS
        for pair in ((("images", part), (masks, part)), ((part, "images"), (part, masks)))
    ]
    return [(root.joinpath(*images), root.joinpath(*masks)) for images, masks in orders]


def _by_name(folder: Path) -> dict[str, str]:
    """Map the names in a folder, without their endings, to the paths."""
    found: dict[str, str] = {}
    for path in images_below(folder):
        other = found.setdefault(os.path.splitext(os.path.relpath(path, folder))[0], path)
        if other != path:
            raise ValueError(f"{other} and {path} have the same name but for the ending: which goes with which is open")
    return found


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _ranges(values: Sequence[int]) -> str:
    """Say "0 to 10" where values rise one by one, and list them otherwise."""
    if len(values) > 2 and list(values) == list(range(values[0], values[0] + len(values))):
        return f"{values[0]} to {values[-1]}"
    return _some([str(value) for value in values], 10)
