"""Images without classes, wherever they lie: folders of any depth, shards, Hugging Face sets, the embedded digits."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from linvit.data.datasets import EVAL_FOLDERS, ImageSet, Mnist5k, Transform
from linvit.data.images import images_below, load_image
from linvit.data.loading import progress
from linvit.data.parts import fingerprint, held_out
from linvit.data.shards import Shards, are_shards, find_shards
from linvit.data.sources import Kind, Source, Table, column, huggingface_splits

__all__ = ["Photos", "open_unlabelled"]

T = TypeVar("T")
S = TypeVar("S", bound=ImageSet)

SAVED = ("dataset_dict.json", "dataset_info.json")
"""Files that ``datasets.save_to_disk`` leaves, beside splits and beside a single one."""

PARTS = {"train", *EVAL_FOLDERS}


class Photos(ImageSet):
    """Image files; a sample's target is the image's number.

    Args:
        paths: The files.
        transform: Turns the image, in mode RGB, into what a sample holds.
        strict: Raise on an unreadable image.
        replace_unreadable: Put the next readable sample in the place of an unreadable one.
    """

    def __init__(
        self,
        paths: Sequence[str],
        transform: Transform | None = None,
        strict: bool = False,
        replace_unreadable: bool = False,
    ) -> None:
        self.classes = []
        self.samples = [(path, number) for number, path in enumerate(paths)]
        self.transform = transform
        self.strict = strict
        self.replace_unreadable = replace_unreadable

    def load(self, index: int) -> Image.Image:
        """Return an image in mode RGB; raises UnreadableImage."""
        return load_image(self.samples[index][0], least_side=self.least_side)


def open_unlabelled(kind: Kind, root: str | None, val_share: float, val_root: str | None = None) -> Source:
    """Open images to learn from and held-out ones, without a look at classes.

    Args:
        kind: What is at ``root``; "auto" tells folders and shards apart.
        root: A folder whose images lie at any depth; a folder with shards, or a pattern that names them; a Hugging Face
            data set, saved or on the hub (kind "huggingface"); None for the embedded digits. A folder that holds
            nothing but ``train`` and ``val`` (``validation``, ``test``), or shards or splits of these names, is split
            already.
        val_share: Share of the images to hold out where they are not split; copies of an image stay together.
        val_root: The held-out shards, where ``root`` does not hold them.

    Raises:
        OSError: There is nothing there.
        ValueError: There are no images, or too few to hold some out.
    """
    shards = root is not None and (kind == "shards" or (kind == "auto" and _are_shards(root)))
    saved = root is not None and kind == "auto" and any((Path(root) / name).is_file() for name in SAVED)
    if val_root is not None and not shards:
        raise ValueError(f"val_root {val_root!r} is for shards, not for {root or 'the embedded digits'}")
    if root is None:
        return _Digits()
    if kind == "huggingface" or saved:
        return _UnlabelledTables(root, val_share)
    return _UnlabelledShards(root, val_root, val_share) if shards else _Folder(Path(root), val_share)


class _Digits(Source):
    """The embedded digits; their numbers stand in the place of their classes."""

    def __init__(self) -> None:
        self.classes = []

    def train(self, transform: Transform | None, strict: bool) -> Mnist5k:
        return self._open(True, transform)

    def held_out(self, transform: Transform | None, strict: bool) -> Mnist5k:
        return self._open(False, transform)

    def _open(self, train: bool, transform: Transform | None) -> Mnist5k:
        digits = Mnist5k(train, transform)
        digits.classes, digits.targets = [], np.arange(len(digits))
        return digits


class _Folder(Source):
    def __init__(self, root: Path, val_share: float) -> None:
        self.classes = []
        if not root.exists():
            raise FileNotFoundError(f"data folder {root} does not exist")
        if not root.is_dir():
            raise NotADirectoryError(f"{root} is a file, not a data folder")
        entries = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
        folders = {entry.name for entry in entries if entry.is_dir()}
        hold = next((name for name in EVAL_FOLDERS if name in folders), None)
        if "train" in folders and hold and folders <= PARTS:
            self._parts = images_below(root / "train"), images_below(root / hold)
        else:
            found = images_below(root)
            self._parts = _split(found, held_out(found, val_share), root)
        for part, images in zip(("learn from", "hold out"), self._parts, strict=True):
            if not images:
                raise ValueError(f"no image to {part} in {root}")

    def train(self, transform: Transform | None, strict: bool) -> Photos:
        return Photos(self._parts[0], transform, strict, replace_unreadable=True)

    def held_out(self, transform: Transform | None, strict: bool) -> Photos:
        return Photos(self._parts[1], transform, strict)


class _UnlabelledShards(Source):
    """``train*.tar`` and ``val*.tar``, or any tar files, of whose images some are held out."""

    def __init__(self, root: str, val_root: str | None, val_share: float) -> None:
        self.classes = []
        folder = Path(root).is_dir()
        if val_root is not None or (folder and all(are_shards(root, part) for part in (("train",), EVAL_FOLDERS))):
            self._parts = (
                Shards(find_shards(root, ("train",)), labelled=False),
                Shards(find_shards(val_root or root, EVAL_FOLDERS), labelled=False),
            )
            return
        tars = sorted(map(str, Path(root).glob("*.tar")))
        whole = Shards(tars or find_shards(root, ("train",)), labelled=False)
        names = [name for name, _ in whole.samples]
        keys = [hashlib.blake2b(name.encode(), digest_size=16).hexdigest() for name in names]
        train, hold = _split(range(len(whole)), held_out(names, val_share, keys=keys), root)
        self._parts = whole.part(train), whole.part(hold)

    def train(self, transform: Transform | None, strict: bool) -> Shards:
        return _prepared(self._parts[0], transform, strict, True)

    def held_out(self, transform: Transform | None, strict: bool) -> Shards:
        return _prepared(self._parts[1], transform, strict, False)


class _UnlabelledTables(Source):
    """Splits of a Hugging Face data set with an image column; of a single one, some images are held out."""

    def __init__(self, root: str, val_share: float) -> None:
        self.classes = []
        self._root = root
        found = huggingface_splits(root)
        splits = found if isinstance(found, dict) else {"train": found}
        hold = next((name for name in EVAL_FOLDERS if name in splits), None)
        if "train" not in splits:
            raise ValueError(f"{root} has the splits {', '.join(splits)}; expected train")
        if hold is not None:
            self._parts = self._table(splits["train"], "train"), self._table(splits[hold], hold)
            return
        whole = splits["train"]
        table = self._table(whole, "train")
        keys = [_key(table.stored(index)) for index in progress(range(len(table)), len(table), "splitting")]
        names = [name for name, _ in table.samples]
        train, rest = _split(range(len(table)), held_out(names, val_share, keys=keys), root)
        self._parts = self._table(whole.select(train), "train"), self._table(whole.select(rest), "held out of train")

    def _table(self, table: Any, name: str) -> Table:
        image = column(table.features, "Image")
        if image is None:
            raise ValueError(f"{self._root} has the columns {', '.join(table.features)}; expected an image")
        return Table(table, image, f"{self._root}/{name}")

    def train(self, transform: Transform | None, strict: bool) -> Table:
        return _prepared(self._parts[0], transform, strict, True)

    def held_out(self, transform: Transform | None, strict: bool) -> Table:
        return _prepared(self._parts[1], transform, strict, False)


def _key(stored: dict[str, Any]) -> str:
    """Return what tells an image from others: a digest of its bytes."""
    content = stored["bytes"]
    return fingerprint(stored["path"]) if content is None else hashlib.blake2b(content, digest_size=16).hexdigest()


def _prepared(images: S, transform: Transform | None, strict: bool, replace: bool) -> S:
    images.transform, images.strict, images.replace_unreadable = transform, strict, replace
    return images


def _are_shards(root: str) -> bool:
    """Return whether data are shards by their names, or a folder with nothing else in it."""
    if not Path(root).is_dir():
        return are_shards(root, ())
    names = [entry.name for entry in os.scandir(root) if not entry.name.startswith(".") and entry.name != "classes.txt"]
    return are_shards(root, ("train",)) or (bool(names) and all(name.endswith(".tar") for name in names))


def _split(items: Sequence[T], hold: Sequence[bool], root: str | Path) -> tuple[list[T], list[T]]:
    """Part items into those to learn from and those to hold out."""
    if not any(hold):
        raise ValueError(f"{root} holds {min(len(items), 1)} different images: two are the least, one to hold out")
    parts: tuple[list[T], list[T]] = ([], [])
    for item, one in zip(items, hold, strict=True):
        parts[one].append(item)
    return parts
