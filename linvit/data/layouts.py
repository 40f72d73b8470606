"""How tools lay out data sets: a list of layouts for each task is tried in order, and the first that fits is read.

A new layout is one function that finds its parts in a folder, and one line in its task's list
(:data:`linvit.data.box_layouts.LAYOUTS`, :data:`linvit.data.mask_layouts.LAYOUTS`).
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from linvit.checks import some
from linvit.data.parts import ALL, PARTS, only_folder, subfolders

__all__ = ["Found", "Layout", "find_layout", "part_to_evaluate", "parts_to_train"]

Part = TypeVar("Part")


@dataclass(frozen=True)
class Layout(Generic[Part]):
    """One way to lay out a data set.

    Attributes:
        name: What people call it.
        example: Where its files lie, for messages and documentation.
        find: Returns the parts in a folder by their names ("train", "val", "test"; "all" for a whole without parts);
            none where the folder is not laid out so. It reads no more than it must: a part reads the rest.
    """

    name: str
    example: str
    find: Callable[[Path], dict[str, Part]]


@dataclass(frozen=True)
class Found(Generic[Part]):
    """A data set whose layout was recognised.

    Attributes:
        root: The folder.
        layout: Name of the layout.
        parts: Its parts by name.
    """

    root: Path
    layout: str
    parts: dict[str, Part]

    def __getitem__(self, name: str) -> Part:
        if name not in self.parts:
            raise FileNotFoundError(
                f"{self.root} has no part {name!r}, read as {self.layout}; its parts: {', '.join(self.parts)}"
            )
        return self.parts[name]


def find_layout(root: Path, layouts: Sequence[Layout[Part]], what: str) -> Found[Part]:
    """Recognise the layout of a data set; the one folder in a folder is looked into.

    Args:
        root: The folder, or a file where a layout has one that says all.
        layouts: What is tried, in this order.
        what: What is looked for, for the message.

    Raises:
        OSError: ``root`` is missing, or has none of the layouts; the message names them.
        ValueError: It has one of them, and is damaged.
    """
    place: Path | None = root
    while place is not None:
        for layout in layouts:
            if parts := layout.find(place):
                order = [*PARTS, ALL]
                return Found(place, layout.name, {name: parts[name] for name in order if name in parts})
        place = only_folder(place)  # raises where root is missing, or a file that no layout knows
    expected = "; ".join(f"{layout.example} ({layout.name})" for layout in layouts)
    has = some([path.name for path in subfolders(root)])
    raise FileNotFoundError(f"{root} has no {what} in a layout that is known: {expected}. Its folders: {has}")


def parts_to_train(found: Found[Part]) -> tuple[str, str | None]:
    """Choose the part to learn from, and the one to hold out; None where that is to be split off.

    Raises:
        FileNotFoundError: There is nothing to learn from.
    """
    train = next((name for name in ("train", ALL) if name in found.parts), "train")
    _ = found[train]
    return train, next((name for name in ("val", "test") if name in found.parts), None)


def part_to_evaluate(found: Found[Part], split: str | None) -> tuple[str, bool | None]:
    """Choose what an evaluation means.

    Args:
        found: The data set.
        split: The part that is asked for; None for what is held out, or all of a data set without parts.

    Returns:
        The name of the part; and of a data set that has no held-out part whether to take what training holds out of it
        (True), what it learns from (False), or all (None).

    Raises:
        FileNotFoundError: There is no such part.
    """
    if split is None:
        has = next((name for name in ("val", "test", ALL) if name in found.parts), None)
        if has == ALL:
            warnings.warn(
                f"{found.root} has no parts: all of it is evaluated, also what a run on it learned from; --split val "
                "takes what training holds out of it",
                stacklevel=3,
            )
        return (has, None) if has else ("train", True)
    if split in ("train", "val") and ("val" not in found.parts and "test" not in found.parts):
        return parts_to_train(found)[0], split == "val"
    _ = found[split]
    return split, None
