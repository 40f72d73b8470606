"""Which classes a data set's masks show: as settings say, or else its files, its layout, or the masks themselves."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from linvit.checks import some
from linvit.data.images import UnreadableImage
from linvit.data.legends import CLASS_FILES, Legend, read_legend
from linvit.data.mask_layouts import MaskPart
from linvit.data.masks import MaskFiles, is_jpeg

__all__ = ["legend_of"]

LOOKED_AT = 50
"""Most masks that are read to learn what values they hold."""

BINARY = ["background", "foreground"]


def legend_of(
    root: Path,
    part: MaskPart,
    classes: Sequence[str] | int | None = None,
    palette: str | None = None,
    values_known: bool = False,
) -> Legend:
    """Find out what the masks of a data set show.

    Masks of 0 and 255 alone are two classes, and so are JPEGs, which one line says.

    Args:
        root: The data set's folder.
        part: The part to learn from.
        classes: Names or number of the classes, as settings say; None to find out.
        palette: File of names and colours, as settings say; None to find out.
        values_known: Settings say the values of the classes.

    Raises:
        OSError: The palette is missing, or nothing names the classes.
        ValueError: A file is no list of classes, or classes are named that it has not.
    """
    found = read_legend(_folders(root, part), palette)
    legend, source = found or (part.legend, "the layout")
    if isinstance(classes, int):
        numbers = [str(number) for number in range(classes)]
        legend = legend if legend is not None and len(legend.names) == classes else Legend(numbers)
    elif classes is not None:
        legend = Legend(list(classes)) if legend is None else legend.choose(classes, source)
    elif legend is None:
        legend = Legend(BINARY) if _are_binary(part) else None
    if legend is None:
        raise FileNotFoundError(
            f"{root} has no {CLASS_FILES[0]} (a class name per line), and classes is not set: give names or their "
            f"number; masks looked at have the values {_said(part)}"
        )
    if len(legend.names) == 2 and legend.values is None and not values_known and isinstance(part.masks, MaskFiles):
        jpegs = next((path for path in _sample(part.masks.paths) if is_jpeg(path)), None)
        if jpegs is not None:
            warnings.warn(
                f"masks such as {jpegs} are JPEGs, blurred at their edges: values from 128 on are taken as "
                f"{legend.names[1]}; save masks as PNG",
                stacklevel=3,
            )
        if jpegs is not None or _looked_at(part) <= {0, 255}:
            legend = replace(legend, values=[0, 255])
    return legend


def _folders(root: Path, part: MaskPart) -> list[Path]:
    """Return where a file of classes may lie: in the root, the images' folder, and what is between them."""
    above = [folder for folder in part.where.parents if folder.is_relative_to(root)]
    return list(dict.fromkeys([root, *above[::-1], part.where]))


def _are_binary(part: MaskPart) -> bool:
    if not isinstance(part.masks, MaskFiles):
        return False
    return any(map(is_jpeg, _sample(part.masks.paths))) or _looked_at(part) in ({0, 255}, {0, 1})


def _said(part: MaskPart) -> str:
    return some(map(str, sorted(_looked_at(part))), 12)


def _looked_at(part: MaskPart) -> set[int]:
    """Return the values of some of the masks; -1 for colours."""
    values: set[int] = set()
    for index in _sample(range(len(part.masks))):
        try:
            mask = part.masks.load(index)
        except UnreadableImage:
            continue
        values |= {-1} if mask.ndim == 3 else set(np.unique(mask).tolist())
    return values


def _sample(items: Sequence) -> Sequence:  # type: ignore[type-arg]
    return items[:: max(1, len(items) // LOOKED_AT)]
