"""Where classification images come from: folders, the embedded digits, tar shards, Hugging Face data sets.

Every source is opened by index, so that order, augmentation and resuming are the same for all of them.
"""

import hashlib
import os
import tarfile
import warnings
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from linvit.data.datasets import (
    DIGITS,
    EVAL_FOLDERS,
    ImageFolder,
    ImageSet,
    Mnist5k,
    Transform,
    class_folders,
    split_folders,
)
from linvit.data.images import IMAGE_EXTENSIONS, load_image
from linvit.data.loading import progress

__all__ = ["Kind", "Shards", "Source", "open_source", "warn_about"]

Kind = Literal["auto", "folder", "shards", "huggingface"]

HEAD = 65536
"""Bytes of a file that, with its size, tell it from others."""


class Source(ABC):
    """A training part and a held-out part of the same classes.

    Attributes:
        classes: Class names in the order of the targets.
    """

    classes: list[str]

    @abstractmethod
    def train(self, transform: Transform, strict: bool) -> Any:
        """Return the training images."""

    @abstractmethod
    def held_out(self, transform: Transform, strict: bool) -> Any:
        """Return the held-out images."""


def open_source(kind: Kind, root: str | None, val_share: float) -> Source:
    """Open data.

    Args:
        kind: What is at ``root``; "auto" finds out.
        root: A folder, or the name of a data set on the Hugging Face hub; None for the embedded digits.
        val_share: Share of each class to hold out of folders that have no held-out part.

    Raises:
        OSError: There is nothing there.
        ValueError: It does not have the layout.
    """
    if root is None:
        return _Embedded()
    if kind == "auto":
        kind = "shards" if Shards.below(Path(root), ("train",)) else "folder"
        if (Path(root) / "dataset_dict.json").is_file():
            kind = "huggingface"
    if kind == "shards":
        return _ShardSource(Path(root))
    if kind == "huggingface":
        return _HuggingFace(root)
    return _Folders(Path(root), val_share)


class _Embedded(Source):
    classes = DIGITS

    def train(self, transform: Transform, strict: bool) -> Mnist5k:
        return Mnist5k(train=True, transform=transform)

    def held_out(self, transform: Transform, strict: bool) -> Mnist5k:
        return Mnist5k(train=False, transform=transform)


class _Folders(Source):
    """``train/CLASS/IMAGE`` and ``val/CLASS/IMAGE``, or one of them, or ``CLASS/IMAGE``: then a part is split off."""

    def __init__(self, root: Path, val_share: float) -> None:
        self._train, self._held_out = split_folders(root)
        self._share = val_share
        self.classes = class_folders(self._train)

    def train(self, transform: Transform, strict: bool) -> ImageFolder:
        found = ImageFolder(self._train, self.classes, transform, strict, replace_unreadable=True)
        if self._held_out is None:
            found.samples = self._split[0]
        return found

    def held_out(self, transform: Transform, strict: bool) -> ImageFolder:
        found = ImageFolder(self._held_out or self._train, self.classes, transform, strict)
        if self._held_out is None:
            found.samples = self._split[1]
        return found

    @cached_property
    def _split(self) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """Split each class by the content of its files: the same whenever it is done, and copies stay together."""
        groups: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        found = ImageFolder(self._train, self.classes).samples
        for path, target in progress(found, len(found), "splitting"):
            groups[target][fingerprint(path)].append(path)
        lonely = [self.classes[target] for target, group in groups.items() if len(group) < 2]
        if lonely:
            raise ValueError(
                f"{self._train} has no held-out part, and none can be split off {lonely[0]}: it has one image; give it "
                f"two, or make {self._train}/val"
            )
        parts: tuple[list[tuple[str, int]], ...] = ([], [])
        for target, group in groups.items():
            count = min(max(1, round(self._share * len(group))), len(group) - 1)
            for rank, key in enumerate(sorted(group)):
                parts[rank < count].extend((path, target) for path in group[key])
        train, held_out = (sorted(part, key=lambda sample: (sample[1], sample[0])) for part in parts)
        return train, held_out


class Shards(ImageSet):
    """Images in tar files as WebDataset writes them: ``KEY.jpg`` (or another image) beside ``KEY.cls``.

    The files are indexed once by reading their headers; then any image is read where it lies.

    Args:
        paths: The tar files.
        classes: Class names; ``.cls`` holds one of them, or an index. By default the sorted names or numbers found.
        transform: Turns the image, in mode RGB, into what a sample holds.
        strict: Raise on an unreadable image.
        replace_unreadable: Put the next readable sample in the place of an unreadable one.

    Raises:
        ValueError: A tar file is damaged, or an image has no class or an unknown one.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        classes: list[str] | None = None,
        transform: Transform | None = None,
        strict: bool = False,
        replace_unreadable: bool = False,
    ) -> None:
        self._places: list[tuple[Path, int, int]] = []
        labels: list[str] = []
        names: list[str] = []
        for path in progress(paths, len(paths), "indexing"):
            for key, label, start, size in _members(path):
                self._places.append((path, start, size))
                labels.append(label)
                names.append(f"{path}/{key}")
        if not names:
            raise ValueError(f"no image in {paths[0].parent}: expected KEY.jpg and KEY.cls in tar files")
        if classes is None:
            numbers = all(label.isdigit() for label in labels)
            classes = [str(n) for n in range(max(map(int, labels)) + 1)] if numbers else sorted(set(labels))
        index = {str(number): number for number in range(len(classes))} | {name: n for n, name in enumerate(classes)}
        unknown = next((label for label in labels if label not in index), None)
        if unknown is not None:
            raise ValueError(f"{paths[0].parent} has the class {unknown!r}, which is none of the {len(classes)} known")
        self.classes = classes
        self.samples = [(name, index[label]) for name, label in zip(names, labels, strict=True)]
        self.transform = transform
        self.strict = strict
        self.replace_unreadable = replace_unreadable

    @staticmethod
    def below(root: Path, names: Iterable[str]) -> list[Path]:
        """Find the tar files of a part: ``root/NAME/*.tar`` or ``root/NAME*.tar``."""
        for name in names:
            if found := sorted([*(root / name).glob("*.tar"), *root.glob(f"{name}*.tar")]):
                return found
        return []

    def load(self, index: int) -> Image.Image:
        """Return an image in mode RGB; raises UnreadableImage."""
        path, start, size = self._places[index]
        with path.open("rb") as file:
            file.seek(start)
            return load_image(self.samples[index][0], file.read(size), self.least_side)


def _members(path: Path) -> Iterable[tuple[str, str, int, int]]:
    """Return key, class, and where the image lies, in bytes, for each image of a tar file."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                stem, ending = os.path.splitext(member.name)
                if ending.lower() in IMAGE_EXTENSIONS:
                    images[stem] = member.offset_data, member.size
                elif ending == ".cls":
                    labels[stem] = archive.extractfile(member).read().decode().strip()  # type: ignore[union-attr]
    except tarfile.TarError as error:
        raise ValueError(f"{path} cannot be read as a tar file: {error}") from error
    if missing := next((stem for stem in images if stem not in labels), None):
        raise ValueError(f"{path} has no {missing}.cls beside its image")
    return [(stem, labels[stem], *place) for stem, place in images.items()]


class _ShardSource(Source):
    """``train*.tar`` and ``val*.tar``, or folders of these names; class names in ``classes.txt``, one a line."""

    def __init__(self, root: Path) -> None:
        self._parts = Shards.below(root, ("train",)), Shards.below(root, EVAL_FOLDERS)
        for part, name in zip(self._parts, ("train", "val"), strict=True):
            if not part:
                raise FileNotFoundError(f"{root} has no {name}/*.tar or {name}*.tar")
        names = root / "classes.txt"
        self.classes = names.read_text().split() if names.is_file() else Shards(self._parts[0]).classes

    def train(self, transform: Transform, strict: bool) -> Shards:
        return Shards(self._parts[0], self.classes, transform, strict, replace_unreadable=True)

    def held_out(self, transform: Transform, strict: bool) -> Shards:
        return Shards(self._parts[1], self.classes, transform, strict)


class _Table(ImageSet):
    """A split of a Hugging Face data set."""

    def __init__(self, table: Any, classes: list[str], columns: tuple[str, str], name: str) -> None:
        from datasets import Image as ImageFeature

        image, label = columns
        self._table = table.cast_column(image, ImageFeature(decode=False))
        self._image = image
        self.classes = classes
        self.samples = [(f"{name}[{index}]", int(target)) for index, target in enumerate(table[label])]

    def load(self, index: int) -> Image.Image:
        """Return an image in mode RGB; raises UnreadableImage."""
        found = self._table[index][self._image]
        return load_image(found["path"] or self.samples[index][0], found["bytes"], self.least_side)


class _HuggingFace(Source):
    """A data set saved by ``datasets.save_to_disk``, or a name on the hub, with an image column and a class column."""

    def __init__(self, root: str) -> None:
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError('Hugging Face data sets need: pip install "linvit[train]"') from error
        try:
            local = Path(root).is_dir()
            splits: Any = datasets.load_from_disk(root) if local else datasets.load_dataset(root)
        except (OSError, datasets.exceptions.DatasetsError) as error:
            raise FileNotFoundError(f"no Hugging Face data set at {root!r}: {error}") from error
        held_out = next((name for name in ("validation", "val", "test") if name in splits), None)
        if "train" not in splits or held_out is None:
            raise ValueError(f"{root} has the splits {', '.join(splits)}; expected train, and validation or test")
        features = splits["train"].features
        image = next((name for name, kind in features.items() if isinstance(kind, datasets.Image)), None)
        label = next((name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)), None)
        if image is None or label is None:
            raise ValueError(f"{root} has the columns {', '.join(features)}; expected an image and a class label")
        self.classes = list(features[label].names)
        self._root, self._columns = root, (image, label)
        self._splits = splits["train"], splits[held_out]

    def _open(self, part: int, transform: Transform, strict: bool) -> _Table:
        table = _Table(self._splits[part], self.classes, self._columns, f"{self._root}/{('train', 'held-out')[part]}")
        table.transform, table.strict, table.replace_unreadable = transform, strict, part == 0
        return table

    def train(self, transform: Transform, strict: bool) -> _Table:
        return self._open(0, transform, strict)

    def held_out(self, transform: Transform, strict: bool) -> _Table:
        return self._open(1, transform, strict)


def fingerprint(path: str) -> str:
    """Return what tells a file's content from others: a hash of its size and beginning."""
    with open(path, "rb") as file:
        return hashlib.blake2b(f"{os.path.getsize(path)}:".encode() + file.read(HEAD), digest_size=16).hexdigest()


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
