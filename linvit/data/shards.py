"""Images in tar files as WebDataset writes them, on a disk or behind http: indexed once, then read where they lie.

So any image can be read at any time, and order, augmentation, resuming and the shares of devices and loading processes
are what they are for folders.
"""

import contextlib
import copy
import hashlib
import io
import itertools
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from PIL import Image

from linvit.data.datasets import ImageSet, Transform
from linvit.data.images import IMAGE_EXTENSIONS, load_image
from linvit.data.loading import progress
from linvit.data.remote import CONNECTIONS, RemoteFile, fetch, is_url, public
from linvit.files import atomic_write

__all__ = ["Shards", "are_shards", "find_shards", "listed_classes"]

BLOCK = 16384
"""Bytes to fetch at a time while indexing: a class, and the header of the next image."""

SCHEME = re.compile(r"\w\w+:")

Places = list[tuple[str, str, int, int]]
"""Key, class, and where the image lies, in bytes, of each image of a tar file."""


class Shards(ImageSet):
    """Images in tar files: ``KEY.jpg`` (or another image) beside ``KEY.cls``.

    The files are indexed by reading their headers; for those behind http the index is kept in torch's cache folder.

    Args:
        paths: The tar files: paths, and URLs whose server gives out parts of files.
        classes: Class names; ``.cls`` holds one of them, or an index. By default the sorted names or numbers found.
        transform: Turns the image, in mode RGB, into what a sample holds.
        strict: Raise on an unreadable image.
        replace_unreadable: Put the next readable sample in the place of an unreadable one.
        labelled: Expect a class beside each image; otherwise none is looked at, and targets are the images' numbers.

    Raises:
        OSError: A file is missing, or its server does not answer.
        ValueError: A tar file is damaged, or an image has no class or an unknown one.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        classes: list[str] | None = None,
        transform: Transform | None = None,
        strict: bool = False,
        replace_unreadable: bool = False,
        labelled: bool = True,
    ) -> None:
        self._places: list[tuple[str, int, int]] = []
        labels: list[str] = []
        names: list[str] = []
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            found = progress(pool.map(_index, map(str, paths)), len(paths), "indexing")
            for path, places in zip(map(str, paths), found, strict=True):
                for key, label, start, size in places:
                    self._places.append((path, start, size))
                    labels.append(label)
                    names.append(f"{_shown(path)}/{key}")
        first = _shown(os.path.dirname(str(paths[0])))
        if not names:
            raise ValueError(f"no image in {first}: expected KEY.jpg{' and KEY.cls' * labelled} in tar files")
        self.transform = transform
        self.strict = strict
        self.replace_unreadable = replace_unreadable
        if not labelled:
            self.classes = []
            self.samples = [(name, number) for number, name in enumerate(names)]
            return
        if missing := next((name for name, label in zip(names, labels, strict=True) if not label), None):
            raise ValueError(f"{missing} has no class: expected one in a .cls file beside its image")
        if classes is None:
            numbers = all(label.isdigit() for label in labels)
            classes = [str(n) for n in range(max(map(int, labels)) + 1)] if numbers else sorted(set(labels))
        index = {str(number): number for number in range(len(classes))} | {name: n for n, name in enumerate(classes)}
        unknown = next((label for label in labels if label not in index), None)
        if unknown is not None:
            raise ValueError(f"{first} has the class {unknown!r}, which is none of the {len(classes)} known")
        self.classes = classes
        self.samples = [(name, index[label]) for name, label in zip(names, labels, strict=True)]

    def part(self, numbers: Sequence[int]) -> "Shards":
        """Return the images of these numbers, counted anew, without their classes."""
        part = copy.copy(self)
        part.samples = [(self.samples[number][0], place) for place, number in enumerate(numbers)]
        part._places = [self._places[number] for number in numbers]
        return part

    def load(self, index: int) -> Image.Image:
        """Return an image in mode RGB; raises UnreadableImage, or OSError where its shard cannot be reached."""
        path, start, size = self._places[index]
        if is_url(path):
            content = fetch(path, start, size).content
        else:
            with open(path, "rb") as file:
                file.seek(start)
                content = file.read(size)
        return load_image(self.samples[index][0], content, self.least_side)


def are_shards(data: str, parts: Iterable[str]) -> bool:
    """Return whether data are shards by their name, or a folder that has some; see :func:`find_shards`."""
    if Path(data).is_dir():
        return bool(_below(Path(data), parts))
    return bool(SCHEME.match(data)) or data.endswith(".tar")


def find_shards(data: str, parts: Sequence[str]) -> list[str]:
    """Find the shards that data name.

    Args:
        data: A folder with ``PART/*.tar`` or ``PART*.tar``; or files or URLs: ``train-{0000..0127}.tar``.
        parts: Names that the part may have, the likeliest first.

    Raises:
        FileNotFoundError: A folder has none.
        ValueError: A pattern that names nothing, or URLs that are not for http.
    """
    if Path(data).is_dir():
        if found := _below(Path(data), parts):
            return found
        raise FileNotFoundError(f"{data} has no {parts[0]}/*.tar or {parts[0]}*.tar")
    if SCHEME.match(data) and not is_url(data):
        raise ValueError(
            f"{data}: shards are read from a disk, http:// or https://; 'pipe:' would run a command in a shell"
        )
    return list(_expanded(data))


def listed_classes(shard: str) -> list[str] | None:
    """Return the class names in ``classes.txt`` beside a shard, one a line; None where there is no such file."""
    folder = os.path.dirname(urlsplit(shard)._replace(query="", fragment="").geturl() if is_url(shard) else shard)
    path = f"{folder or '.'}/classes.txt"
    with contextlib.suppress(FileNotFoundError, PermissionError):  # which a bucket says of files that it has not
        text = fetch(path, 0, 1 << 24).content.decode() if is_url(path) else Path(path).read_text()
        return [line.strip() for line in text.splitlines() if line.strip()]
    return None


def _shown(path: str) -> str:
    return public(path) if is_url(path) else path


def _below(root: Path, parts: Iterable[str]) -> list[str]:
    for part in parts:
        if found := sorted([*(root / part).glob("*.tar"), *root.glob(f"{part}*.tar")]):
            return [str(path) for path in found]
    return []


def _expanded(pattern: str) -> Iterator[str]:
    """Write out the braces of a pattern, the first ones slowest: ``{08..11}`` and ``{a,b}``."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        yield pattern
        return
    inside = found[1]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = numbers.groups()
        if int(last) < int(first):
            raise ValueError(f"{pattern}: {{{inside}}} counts down; expected such as {{0000..0127}}")
        items = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    elif "," in inside:
        items = inside.split(",")
    else:
        raise ValueError(f"{pattern}: expected {{0000..0127}} or {{a,b}} in braces, not {{{inside}}}")
    for item, rest in itertools.product(items, _expanded(pattern[found.end() :])):
        yield pattern[: found.start()] + item + rest


def _index(path: str) -> Places:
    if not is_url(path):
        with open(path, "rb") as file:
            return _places(path, file)
    remote = RemoteFile(path)
    version = f"{path} {remote.size} {remote.version}".encode()
    digest = hashlib.blake2b(version, digest_size=16).hexdigest()
    kept = Path(torch.hub.get_dir()) / "linvit_shards" / f"{digest}.json"
    with contextlib.suppress(OSError, ValueError):
        return [(key, label, start, size) for key, label, start, size in json.loads(kept.read_text())]
    places = _places(public(path), io.BufferedReader(remote, BLOCK))
    with contextlib.suppress(OSError):  # without room for it, the index is made anew the next time
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(kept) as temporary:
            temporary.write_text(json.dumps(places))
    return places


def _places(path: str, file: Any) -> Places:
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                stem, ending = os.path.splitext(member.name)
                if ending.lower() in IMAGE_EXTENSIONS:
                    images[stem] = member.offset_data, member.size
                elif ending == ".cls":
                    labels[stem] = archive.extractfile(member).read().decode().strip()  # type: ignore[union-attr]
    except tarfile.TarError as error:
        raise ValueError(f"{path} cannot be read as a tar file: {error}") from error
    return [(stem, labels.get(stem, ""), *place) for stem, place in images.items()]
