"""Masks of semantic segmentation: how they are read, and what their values and colours mean."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from linvit.checks import some
from linvit.data.images import UnreadableImage, why_unreadable

__all__ = ["IGNORED", "MaskCode", "MaskFiles", "load_mask"]

IGNORED = 255
"""Target of the pixels that count for nothing; classes are below it."""

_VALUES = 1 << 16


class MaskFiles:
    """Masks as image files.

    Args:
        paths: Their paths.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def subset(self, places: Sequence[int]) -> "MaskFiles":
        """Return some of them."""
        return MaskFiles([self.paths[place] for place in places])

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return what messages call a mask."""
        return self.paths[index]

    def load(self, index: int) -> np.ndarray:
        """Read a mask; see :func:`load_mask`."""
        return load_mask(self.paths[index])


def load_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the values of a mask as they are stored: gray values, the numbers of a palette, or colours.

    Args:
        path: An image file.

    Returns:
        ``[H, W]`` integers; of a picture whose channels differ, ``[H, W, 3]``, its colours. Of a JPEG, whose values are
        blurred, the gray values.

    Raises:
        UnreadableImage: The file is missing, a folder, empty, truncated or no image.
        ValueError: Its values are no whole numbers.
    """
    try:
        with Image.open(path) as file:
            image: Image.Image = file.convert("L") if file.format == "JPEG" else file
            values = np.asarray(image)
            bands = image.getbands()
    except Exception as error:  # On damaged files Pillow's decoders raise almost anything.
        empty = os.path.isfile(path) and not os.path.getsize(path)
        raise UnreadableImage(f"cannot read mask {path}: {why_unreadable(error, empty)}", path) from error
    if values.ndim == 3:
        colors = values[..., : len([band for band in bands if band != "A"])]
        values = colors[..., 0] if (colors == colors[..., :1]).all() else colors
        if values.ndim == 3 and bands[:3] != ("R", "G", "B"):
            raise ValueError(f"mask {path} is a picture of {'/'.join(bands)}; a mask has one channel, or R/G/B")
    if values.dtype.kind == "f":
        raise ValueError(f"mask {path} holds floating-point values; a mask holds whole numbers")
    return values.astype(np.int64)


def is_jpeg(path: str | os.PathLike[str]) -> bool:
    """Say whether a file is a JPEG, whatever its name."""
    try:
        with open(path, "rb") as file:
            return file.read(3) == b"\xff\xd8\xff"
    except OSError:
        return False


class MaskCode:
    """What the values of masks mean: maps them to targets, which are class numbers and IGNORED.

    Args:
        num_classes: Number of classes.
        values: Value of each class, in order; None for 0, 1, 2, ...
        ignore: Values that count for nothing; those that are in ``values`` are classes all the same.
        reduce_zero_label: 0 counts for nothing and the classes start at 1, as in ADE20K.
        colors: Colour of each class, red, green and blue, in masks that are coloured pictures.
        void: Colours that count for nothing.

    Raises:
        ValueError: The settings contradict each other, or there are too many classes.
    """

    def __init__(
        self,
        num_classes: int,
        values: Sequence[int] | None = None,
        ignore: Iterable[int] = (IGNORED,),
        reduce_zero_label: bool = False,
        colors: Sequence[Sequence[int]] | None = None,
        void: Sequence[Sequence[int]] = (),
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
        self.colors = None if colors is None else [list(color) for color in colors]
        self.void = [list(color) for color in void]
        if self.colors is not None:
            if len(self.colors) != num_classes:
                raise ValueError(f"colors must name one for each of {num_classes} classes, not {len(self.colors)}")
            known = _packed(np.array(self.colors + self.void))
            order = np.argsort(known)
            self._colors, self._targets = known[order], np.r_[:num_classes, [IGNORED] * len(self.void)][order]

    def config(self) -> dict[str, Any]:
        """Return what a saved model must know to make the same code."""
        colored = {} if self.colors is None else {"colors": self.colors, "void": self.void}
        return {"values": self.values, "ignore": self.ignore} | colored

    @classmethod
    def saved(cls, num_classes: int, config: dict[str, Any]) -> "MaskCode":
        """Return the code that a saved model knows; other entries of ``config`` are passed over."""
        names = ("values", "ignore", "colors", "void")
        return cls(num_classes, **{name: config[name] for name in names if name in config})

    def encode(self, mask: np.ndarray, path: str) -> np.ndarray:
        """Map a mask to its targets ``[H, W]``, bytes; of a JPEG of two classes, values from 128 on are the second.

        Raises:
            ValueError: It has a value or a colour that is no class and not ignored; the message names the file and
                what was found.
        """
        if mask.ndim == 3:
            return self._encode_colors(mask, path)
        if is_jpeg(path):
            if len(self.values) == 2:
                return (mask >= 128).astype(np.uint8)
            raise ValueError(
                f"mask {path} is a JPEG, whose values are blurred: save masks of {len(self.values)} classes as PNG"
            )
        targets = self._table[np.clip(mask, 0, _VALUES - 1)]
        wrong = (targets < 0) | (mask < 0) | (mask >= _VALUES)
        if wrong.any():
            found = ", ".join(map(str, np.unique(mask[wrong])[:5]))
            raise ValueError(
                f"mask {path} has the values {found}: classes are {_ranges(self.values)}, "
                f"ignored {_ranges(self.ignore) or 'none'} (see classes, values, ignore, reduce_zero_label)"
            )
        return targets.astype(np.uint8)

    def _encode_colors(self, mask: np.ndarray, path: str) -> np.ndarray:
        if self.colors is None:
            raise ValueError(
                f"mask {path} is a colour picture: name the colours by --data.palette FILE (lines of name,r,g,b), or "
                "put class_dict.csv or label_colors.txt into the data's folder"
            )
        found = _packed(mask)
        places = np.searchsorted(self._colors, found).clip(max=len(self._colors) - 1)
        wrong = self._colors[places] != found
        if wrong.any():
            colors = some(map(str, np.unique(mask[wrong], axis=0)[:3].tolist()))
            raise ValueError(
                f"mask {path} has the colours {colors}, which are none of the palette's {len(self._colors)}, such as "
                f"{self.colors[0]}"
            )
        return self._targets[places].astype(np.uint8)


def _packed(colors: np.ndarray) -> np.ndarray:
    """Make one number of red, green and blue."""
    return (colors.astype(np.int64) * (1 << 16, 1 << 8, 1)).sum(axis=-1)


def _ranges(values: Sequence[int]) -> str:
    """Say "0 to 10" where values rise one by one, and list them otherwise."""
    if len(values) > 2 and list(values) == list(range(values[0], values[0] + len(values))):
        return f"{values[0]} to {values[-1]}"
    return some(map(str, values), 10)
