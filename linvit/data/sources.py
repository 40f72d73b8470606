"""Where classification images come from: folders, the embedded digits, tar shards, Hugging Face data sets.

Every source is opened by index, so that order, augmentation and resuming are the same for all of them.
"""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from linvit.checks import some
from linvit.data.datasets import (
    DIGITS,
    EVAL_FOLDERS,
    ImageFolder,
    ImageSet,
    Mnist5k,
    Transform,
    classes_of,
    find_parts,
    split_folders,
)
from linvit.data.images import load_image
from linvit.data.layouts import part_to_evaluate
from linvit.data.parts import HELD_OUT, fingerprint, held_out
from linvit.data.shards import Shards, are_shards, find_shards, listed_classes

__all__ = ["Kind", "Source", "Table", "column", "eval_dataset", "huggingface_splits", "open_source", "warn_about"]

Kind = Literal["auto", "folder", "shards", "huggingface"]


class Source(ABC):
    """A training part and a held-out part of the same classes.

    Attributes:
        classes: Class names in the order of the targets.
    """

    classes: list[str]

    @abstractmethod
    def train(self, transform: Transform | None, strict: bool) -> Any:
        """Return the training images."""

    @abstractmethod
    def held_out(self, transform: Transform | None, strict: bool) -> Any:
        """Return the held-out images."""


def open_source(kind: Kind, root: str | None, val_share: float, val_root: str | None = None) -> Source:
    """Open data.

    Args:
        kind: What is at ``root``; "auto" finds out.
        root: A folder, a pattern that names shards, or the name of a data set on the Hugging Face hub; None for the
            embedded digits.
        val_share: Share of each class to hold out of folders that have no held-out part.
        val_root: The held-out shards, where ``root`` does not hold them.

    Raises:
        OSError: There is nothing there.
        ValueError: It does not have the layout.
    """
    kind = "folder" if root is None else _kind(kind, root, ("train",))
    if val_root is not None and kind != "shards":
        raise ValueError(f"val_root {val_root!r} is for shards, not for {root or 'the embedded digits'}")
    if root is None:
        return _Embedded()
    if kind == "shards":
        return _ShardSource(root, val_root)
    if kind == "huggingface":
        return _HuggingFace(root)
    return _Folders(Path(root), val_share)


def _kind(given: Kind, root: str, parts: tuple[str, ...]) -> Kind:
    if given != "auto":
        return given
    if (Path(root) / "dataset_dict.json").is_file():
        return "huggingface"
    return "shards" if are_shards(root, parts) else "folder"


class _Embedded(Source):
    classes = DIGITS

    def train(self, transform: Transform | None, strict: bool) -> Mnist5k:
        return Mnist5k(train=True, transform=transform)

    def held_out(self, transform: Transform | None, strict: bool) -> Mnist5k:
        return Mnist5k(train=False, transform=transform)


class _Folders(Source):
    """``train/CLASS/IMAGE`` and ``val/CLASS/IMAGE``, or one of them, or ``CLASS/IMAGE``: then a part is split off."""

    def __init__(self, root: Path, val_share: float) -> None:
        self._train, self._held_out = split_folders(root)
        self._share = val_share
        self.classes = classes_of(self._train, self._held_out)

    def train(self, transform: Transform | None, strict: bool) -> ImageFolder:
        found = ImageFolder(self._train, self.classes, transform, strict, replace_unreadable=True)
        if self._held_out is None:
            found.samples = self._split[0]
        return found

    def held_out(self, transform: Transform | None, strict: bool) -> ImageFolder:
        found = ImageFolder(self._held_out or self._train, self.classes, transform, strict)
        if self._held_out is None:
            found.samples = self._split[1]
        return found

    @cached_property
    def _split(self) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """Split each class by the content of its files: the same whenever it is done, and copies stay together."""
        found = ImageFolder(self._train, self.classes).samples
        chosen = held_out([path for path, _ in found], self._share, [target for _, target in found])
        lonely = {target for _, target in found}
        lonely -= {target for (_, target), taken in zip(found, chosen, strict=True) if taken}
        if lonely:
            name = self.classes[min(lonely)]
            raise ValueError(
                f"{self._train} has no held-out part, and none can be split off {name}: it has one image; give it two, "
                f"or make {self._train}/val"
            )
        parts: tuple[list[tuple[str, int]], ...] = ([], [])
        for sample, taken in zip(found, chosen, strict=True):
            parts[taken].append(sample)
        return parts[0], parts[1]


class _ShardSource(Source):
    """Shards of both parts below a folder, or named by patterns; class names in ``classes.txt``, one a line."""

    def __init__(self, root: str, val_root: str | None) -> None:
        if val_root is None and not Path(root).is_dir():
            raise ValueError(f"root {root!r} names tar files to learn from: name the held-out ones by val_root")
        self._held_out = find_shards(val_root or root, EVAL_FOLDERS)
        paths = find_shards(root, ("train",))
        self._train = Shards(paths, listed_classes(paths[0]), replace_unreadable=True)
        self.classes = self._train.classes

    def train(self, transform: Transform | None, strict: bool) -> Shards:
        self._train.transform, self._train.strict = transform, strict
        return self._train

    def held_out(self, transform: Transform | None, strict: bool) -> Shards:
        return Shards(self._held_out, self.classes, transform, strict)


class Table(ImageSet):
    """A split of a Hugging Face data set.

    Args:
        table: The split.
        image: The column of the images.
        name: What it is called in messages.
        targets: Class of each image; None: its number.
    """

    def __init__(self, table: Any, image: str, name: str, targets: Sequence[int] | None = None) -> None:
        from datasets import Image as ImageFeature

        self._table = table.cast_column(image, ImageFeature(decode=False))
        self._image = image
        self.classes = []
        targets = range(len(table)) if targets is None else targets
        self.samples = [(f"{name}[{index}]", int(target)) for index, target in enumerate(targets)]
        if any(target < 0 for _, target in self.samples):
            raise ValueError(f"{name} has images without a class")

    def load(self, index: int) -> Image.Image:
        """Return an image in mode RGB; raises UnreadableImage."""
        found = self.stored(index)
        path = found["path"] if found["bytes"] is None else self.samples[index][0]
        return load_image(path, found["bytes"], self.least_side)

    def stored(self, index: int) -> dict[str, Any]:
        """Return ``path`` and ``bytes`` of an image; ``bytes`` are None where the path is that of a file."""
        return self._table[index][self._image]


def huggingface_splits(root: str) -> Any:
    """Open a data set saved by ``datasets.save_to_disk``, or a name on the hub; return its splits by name.

    Raises:
        OSError: There is none.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('Hugging Face data sets need: pip install "linvit[train]"') from error
    try:
        return datasets.load_from_disk(root) if Path(root).is_dir() else datasets.load_dataset(root)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise FileNotFoundError(f"no Hugging Face data set at {root!r}: {error}") from error


def column(features: Any, kind: str) -> str | None:
    """Return the first column of a kind of feature of a Hugging Face data set ("Image", "ClassLabel")."""
    return next((name for name, feature in features.items() if type(feature).__name__ == kind), None)


class _HuggingFace(Source):
    """A data set saved by ``datasets.save_to_disk``, or a name on the hub, with an image column and a class column."""

    def __init__(self, root: str) -> None:
        splits = huggingface_splits(root)
        held_out = next((name for name in EVAL_FOLDERS if name in splits), None)
        if held_out is None:
            raise ValueError(f"{root} has the splits {', '.join(splits)}; expected train, and validation or test")
        features = splits[held_out].features
        image, label = column(features, "Image"), column(features, "ClassLabel")
        if image is None or label is None:
            raise ValueError(f"{root} has the columns {', '.join(features)}; expected an image and a class label")
        self.classes = list(features[label].names)
        self._root, self._columns = root, (image, label)
        self._splits, self._name = splits, held_out

    def _open(self, name: str, transform: Transform | None, strict: bool) -> Table:
        if name not in self._splits:
            raise ValueError(f"{self._root} has the splits {', '.join(self._splits)}; expected {name}, too")
        image, label = self._columns
        table = Table(self._splits[name], image, f"{self._root}/{name}", self._splits[name][label])
        table.classes = self.classes
        table.transform, table.strict, table.replace_unreadable = transform, strict, name == "train"
        return table

    def train(self, transform: Transform | None, strict: bool) -> Table:
        return self._open("train", transform, strict)

    def held_out(self, transform: Transform | None, strict: bool) -> Table:
        return self._open(self._name, transform, strict)


def eval_dataset(
    data: str,
    classes: list[str] | None = None,
    transform: Transform | None = None,
    strict: bool = False,
    source: Kind = "auto",
    split: str | None = None,
    share: float = HELD_OUT,
) -> ImageSet | Mnist5k:
    """Open the data set that an evaluation names.

    Args:
        data: ``mnist5k`` for the 1,000 embedded test digits; a folder of class folders, with parts or without; or what
            ``source`` says.
        classes: The model's class names in the order of its outputs; by default the data's own.
        transform: Turns the image, in mode RGB, into what a sample holds.
        strict: Raise on an unreadable image instead of leaving it out.
        source: What ``data`` names, as for :func:`open_source`; of shards and tables, the held-out part.
        split: The part of a folder: train, val, test or all; None for the held-out part, or all where there are no
            parts.
        share: Share of each class that training held out, where there is no held-out part.

    Raises:
        OSError: The folder or the part is missing or a file, or a server does not answer.
        ValueError: The data does not have the layout, or has classes that the model does not know.
    """
    if data == "mnist5k":
        if classes is not None and classes != DIGITS:
            raise ValueError(f"mnist5k has the classes {some(DIGITS)}, but the model's are {some(classes)}")
        if split not in (None, "train", "val", "test"):
            raise ValueError(f"mnist5k has no part {split!r}; its parts: train, test")
        return Mnist5k(train=split == "train", transform=transform)
    kind = _kind(source, data, EVAL_FOLDERS)
    if kind == "folder":
        return _part_of_folder(Path(data), split, share, classes, transform, strict)
    if split is not None:
        raise ValueError(f"split is for folders of class folders, and {data} is read as {kind}: name the part's files")
    found: ImageSet
    if kind == "shards":
        paths = find_shards(data, EVAL_FOLDERS)
        found = Shards(paths, listed_classes(paths[0]) or classes, transform, strict)
    else:
        found = _HuggingFace(data).held_out(transform, strict)
    if classes is not None and classes != found.classes:
        _renumber(found, classes, data)
    return found


def _part_of_folder(
    root: Path, split: str | None, share: float, classes: list[str] | None, transform: Transform | None, strict: bool
) -> ImageFolder:
    found = find_parts(root)
    name, held = part_to_evaluate(found, split)
    if held is None:
        part = ImageFolder(found[name], classes, transform, strict)
        part.split = name
        return part
    source = _Folders(found.root, share)
    part = source.held_out(transform, strict) if held else source.train(transform, strict)
    part.replace_unreadable = False
    part.split = f"{split or 'val'} (split off)"
    if classes is not None and classes != part.classes:
        _renumber(part, classes, str(root))
    return part


def _renumber(found: ImageSet, classes: list[str], data: str) -> None:
    """Let targets be places in the model's classes: by name, or by number where no name fits but their count does."""
    places = {name: place for place, name in enumerate(classes)}
    unknown = [name for name in found.classes if name not in places]
    if len(unknown) == len(found.classes) == len(classes):
        warnings.warn(
            f"{data} and the model call their {len(classes):,} classes differently: taken by number", stacklevel=3
        )
        places = {name: place for place, name in enumerate(found.classes)}
    elif unknown:
        raise ValueError(f"{data} has classes that are none of the {len(classes)} known classes: {some(unknown)}")
    found.samples = [(name, places[found.classes[target]]) for name, target in found.samples]
    found.classes = classes


def warn_about(train: ImageSet, held_out: ImageSet, most: int = 20_000) -> None:
    """Warn of classes of very unequal size, and of files that are in both parts.

    Args:
        train: The training images.
        held_out: The held-out images.
        most: Above so many images the files are not compared, as that takes long.
    """
    counts = [0] * len(train.classes)
    for _, target in train.samples:
        counts[target] += 1
    low, high = (pick(range(len(counts)), key=counts.__getitem__) for pick in (min, max))
    if counts[high] >= 10 * counts[low]:
        warnings.warn(
            f"classes are of very unequal size: {train.classes[high]} has {counts[high]:,} training images, "
            f"{train.classes[low]} {counts[low]:,}; top-1 will say little of the small ones",
            stacklevel=2,
        )
    folders = isinstance(train, ImageFolder) and isinstance(held_out, ImageFolder)
    if not folders or len(train) + len(held_out) > most:
        return
    sizes = {os.path.getsize(path) for path, _ in held_out.samples}
    known = {fingerprint(path): path for path, _ in train.samples if os.path.getsize(path) in sizes}
    twice = [(known[key], path) for path, _ in held_out.samples if (key := fingerprint(path)) in known]
    if twice:
        count = f"{len(twice)} held-out images are" if len(twice) > 1 else "1 held-out image is"
        warnings.warn(
            f"{count} also in the training part, such as {twice[0][1]} = {twice[0][0]}: accuracies will be too high",
            stacklevel=2,
        )
