"""Which classes masks show and how: names, values and colours, from settings, from files that tools write, or known."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from linvit.checks import some
from linvit.data.parts import lines_of, normalised

__all__ = ["CITYSCAPES", "VOC", "Legend", "read_legend", "read_palette"]

Color = tuple[int, int, int]

CLASS_FILES = ("classes.txt", "class_names.txt", "objectInfo150.txt")
"""Files in a data set's folder that name its classes; the last is ADE20K's, a table with the names at its end."""

PALETTE_FILES = ("class_dict.csv", "label_colors.txt", "labelmap.txt")
"""Files in a data set's folder that name its classes and their colours."""

VALUE_FILE = "_classes.csv"
"""Roboflow's: mask value and class name, in the folder of a part."""

NO_CLASS = ("void", "ignore", "ignored", "unlabeled", "unlabelled", "__ignore__")
"""Names of colours that count for nothing."""


@dataclass(frozen=True)
class Legend:
    """What masks show.

    Attributes:
        names: The classes in order.
        values: Mask value of each; None for 0, 1, 2, ...
        colors: Colour of each in coloured masks, red, green and blue; None where masks are not coloured.
        void: Colours that count for nothing.
        ignore: Values that count for nothing, besides 255.
    """

    names: list[str]
    values: list[int] | None = None
    colors: list[Color] | None = None
    void: tuple[Color, ...] = ()
    ignore: tuple[int, ...] = ()

    def choose(self, names: Sequence[str], source: str) -> "Legend":
        """Return the legend of some of the classes by name, the others counting for nothing; or other names for all.

        Raises:
            ValueError: There is neither a class of each name, nor are there as many.
        """
        if list(names) == self.names:
            return self
        if self.colors is None:
            return replace(self, names=list(names)) if len(names) == len(self.names) else Legend(list(names))
        if len(names) == len(self.names) and not set(names) & set(self.names):
            return replace(self, names=list(names))
        places = [self.names.index(name) for name in names if name in self.names]
        if len(places) < len(names):
            wrong = some([name for name in names if name not in self.names])
            raise ValueError(f"classes has {wrong}, which {source} has no colour for; it has {some(self.names, 12)}")
        others = [color for place, color in enumerate(self.colors) if place not in places]
        colors = [self.colors[place] for place in places]
        return replace(self, names=list(names), colors=colors, void=(*self.void, *others))


# fmt: off
_CITYSCAPES = [
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
]
_VOC = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table",
    "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv/monitor",
]
# fmt: on

CITYSCAPES = {
    "labelIds": Legend(
        _CITYSCAPES,
        [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33],
        ignore=(0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30),
    ),
    "labelTrainIds": Legend(_CITYSCAPES),
}
"""The 19 classes that Cityscapes counts (Cordts et al., 2016), by the values of its two kinds of masks."""

VOC = Legend(_VOC)
"""Pascal VOC's 20 classes and the background."""


def read_legend(folders: Sequence[Path], palette: str | None) -> tuple[Legend, str] | None:
    """Read the legend of a data set: a palette that is given, or the first file of classes in its folders.

    Args:
        folders: Where files of classes may lie; a palette may be named from the first on.
        palette: The file that is given.

    Returns:
        The legend and the file; None where there is no such file.

    Raises:
        OSError: The palette is missing.
        ValueError: A file is no list of classes.
    """
    if palette is not None:
        path = next((each for each in (Path(palette), folders[0] / palette) if each.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"there is no palette {palette}")
        return _checked(read_palette(path), path), str(path)
    readers = dict.fromkeys(CLASS_FILES, _class_list) | dict.fromkeys(PALETTE_FILES, read_palette)
    readers[VALUE_FILE] = _values
    places = [(folder / name, reader) for folder in folders for name, reader in readers.items()]
    return next(((_checked(reader(path), path), str(path)) for path, reader in places if path.is_file()), None)


def _checked(legend: Legend, path: Path) -> Legend:
    if not 2 <= len(legend.names) < 256:
        raise ValueError(f"{path} names {len(legend.names)} classes, and must name 2 to 255")
    for what, found in (("class", legend.names), ("value", legend.values or [])):
        if twice := next((each for each, count in Counter(found).items() if count > 1), None):
            raise ValueError(f"{path} has the {what} {twice!r} twice, and they must differ")
    return legend


def _class_list(path: Path) -> Legend:
    lines = [line for _, line in lines_of(path)]
    if lines and "\t" in lines[0]:  # a table with a heading; of several words for a class the first will do
        lines = [line.split("\t")[-1].split(",")[0].strip() for line in lines[1:]]
    return Legend(lines)


def _values(path: Path) -> Legend:
    rows = [line for _, line in lines_of(path)][1:]
    pairs = [[cell.strip() for cell in row.split(",", 1)] for row in rows]
    if not pairs or not all(len(pair) == 2 and pair[0].isdecimal() and len(pair[0]) < 5 for pair in pairs):
        raise ValueError(f"{path} must have a heading and lines of a pixel value, a comma and a class")
    return Legend([name for _, name in pairs], [int(value) for value, _ in pairs])


def read_palette(path: Path) -> Legend:
    """Read names and colours of classes.

    A line holds a name and three numbers from 0 to 255, in either order, parted by commas, blanks or colons
    (``class_dict.csv``, CamVid's ``label_colors.txt``, CVAT's ``labelmap.txt``); or the file is a JSON object of names
    and lists of three numbers. A heading and lines that begin with # are passed over. Colours that are called void,
    ignore or unlabeled count for nothing.

    Raises:
        OSError: There is no such file.
        ValueError: It is none of these, or a name or a colour is there twice; the message names file and line.
    """
    rows = _json_rows(path) if path.suffix.lower() == ".json" else _text_rows(path)
    named: dict[str, Color] = {}
    for where, name, color in rows:
        if name in named:
            raise ValueError(f"{where} has the class {name!r} a second time")
        if color in named.values():
            other = next(known for known, its in named.items() if its == color)
            raise ValueError(f"{where} gives {name!r} the colour {color}, which is that of {other!r}: they must differ")
        named[name] = color
    if not named:
        raise ValueError(f"{path} has no class: a line must hold a name and three numbers from 0 to 255")
    void = {name for name in named if normalised(name) in NO_CLASS}
    names = [name for name in named if name not in void]
    return Legend(names, None, [named[name] for name in names], tuple(named[name] for name in sorted(void)))


def _text_rows(path: Path) -> list[tuple[str, str, Color]]:
    rows: list[tuple[str, str, Color]] = []
    columns: list[int] = []
    for number, line in lines_of(path):
        if line.startswith(("#", "//")):
            continue
        words = _words(line)
        heading = [word.lower() for word in words]
        if not rows and not columns and {"r", "g", "b"} <= {*heading}:
            columns = [heading.index(color) for color in "rgb"]
            continue
        found = _color(words, columns)
        if found is not None:
            rows.append((f"{path}, line {number}", *found))
        elif rows or columns or any(word.isdecimal() for word in words):  # a heading has no numbers
            raise ValueError(
                f"{path}, line {number} is {line[:60]!r}, and must hold a name and three numbers from 0 to 255"
            )
    return rows


def _words(line: str) -> list[str]:
    if ":" in line:  # name:r,g,b:parts:actions
        name, color, *_ = line.split(":")
        return [name, *color.split(",")]
    return [word.strip() for word in (next(csv.reader([line])) if line.count(",") >= 3 else line.split())]


def _color(words: list[str], columns: list[int]) -> tuple[str, Color] | None:
    """Return name and colour of a line: the columns that a heading says, or the numbers at its beginning or end."""
    if not columns:
        front = all(word.isdecimal() for word in words[:3])
        columns = [0, 1, 2] if front else [len(words) - 3, len(words) - 2, len(words) - 1]
    if len(words) < 4 or max(columns) >= len(words):
        return None
    values = [words[column].strip() for column in columns]
    others = [word for column, word in enumerate(words) if column not in columns and word]
    names = [word for word in others if not word.isdecimal()] or others
    if not names or not all(value.isdecimal() and len(value) < 4 and int(value) < 256 for value in values):
        return None
    return " ".join(names), (int(values[0]), int(values[1]), int(values[2]))


def _json_rows(path: Path) -> list[tuple[str, str, Color]]:
    try:
        found = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    rows: list[tuple[str, str, Color]] = []
    for name, color in found.items() if isinstance(found, dict) else ():
        whole = isinstance(color, list) and len(color) == 3 and all(type(each) is int for each in color)
        if not whole or not all(0 <= each < 256 for each in color):
            raise ValueError(
                f"{path}: {name!r} is {str(color)[:40]}, and must be a list of three numbers from 0 to 255"
            )
        rows.append((str(path), name, (color[0], color[1], color[2])))
    return rows
