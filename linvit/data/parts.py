"""The parts of a data set (train, val, test): what tools call them, and a held-out part where there is none."""

import hashlib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from linvit.data.images import images_below
from linvit.data.loading import progress

__all__ = [
    "ALL",
    "HELD_OUT",
    "PARTS",
    "NameIndex",
    "below",
    "fingerprint",
    "held_out",
    "lines_of",
    "match_names",
    "normalised",
    "only_folder",
    "part_named",
    "split_off",
    "subfolders",
    "subset_names",
]

PARTS = {
    "train": ("training", "train", "trn"),
    "val": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "tst"),
}
"""Names of each part in folders and files, in any case; the first is ADE20K's, which messages name."""

ALL = "all"
"""The part that is a whole data set without parts."""

HELD_OUT = 0.2
"""Share of the images that training holds out of a data set without a held-out part, unless it is told another."""

HEAD = 65536
"""Bytes of a file that, with its size, tell it from others."""

NO_DATA = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
"""Folders that archivers and file managers leave behind."""


def part_named(name: str) -> str | None:
    """Return which part a folder or file of this name holds, such as "val" for ``instances_Validation2017``."""
    for word in reversed(re.split(r"[^a-z]+", normalised(name))):
        for part, names in PARTS.items():
            if word in names:
                return part
    return None


def subset_names(part: str) -> tuple[str, ...]:
    """Return the names that a part goes by; of a whole data set, what tools call their one subset."""
    return PARTS.get(part, ("default", ALL))


def subfolders(root: Path) -> list[Path]:
    """List the folders in a folder, sorted, without hidden ones and what archivers leave behind.

    Raises:
        FileNotFoundError: ``root`` is missing.
        NotADirectoryError: ``root`` is a file.
    """
    if not root.exists():
        raise FileNotFoundError(f"data folder {root} does not exist")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file, not a data folder")
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    return [root / name for name in names if not name.startswith(".") and name not in NO_DATA]


def only_folder(root: Path) -> Path | None:
    """Return the one folder in a folder that holds nothing else, as unpacked archives do."""
    inside = subfolders(root)
    files = [entry for entry in os.scandir(root) if entry.is_file() and not entry.name.startswith(".")]
    images = any(entry.name.lower().endswith((".jpg", ".jpeg", ".png", ".xml", ".json", ".yaml")) for entry in files)
    return inside[0] if len(inside) == 1 and not images else None


def normalised(name: str) -> str:
    """Return a name as file systems compare it that know neither case nor ways to write an accent."""
    return unicodedata.normalize("NFC", name).casefold()


def below(root: Path, path: str) -> Path:
    """Return what a setting names, from the data's root on or from here.

    Raises:
        FileNotFoundError: There is nothing at either.
    """
    places = [root / path, Path(path)]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise FileNotFoundError(f"there is no {places[0]}" + (f" and no {path}" if places[0] != places[1] else ""))
    return found


class NameIndex:
    """The images below a folder by the last part of their names, whatever the case.

    Args:
        root: The folder; searched when it is first needed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._found: dict[str, list[str]] | None = None

    def find(self, name: str, near: Path | None = None) -> str | None:
        """Return the one image that a path of another machine must mean, or None where that is open.

        It has the same last part, and of several the longest end in common; or else it is the one in ``near``.
        """
        if self._found is None:
            self._found = defaultdict(list)
            for path in images_below(self.root):
                self._found[normalised(os.path.basename(path))].append(path)
        wanted = _pieces(name)
        if not wanted:
            return None
        candidates = self._found.get(wanted[-1], [])
        if len(candidates) > 1:
            lengths = [_common_end(wanted, _pieces(path)) for path in candidates]
            candidates = [path for path, length in zip(candidates, lengths, strict=True) if length == max(lengths)]
        if len(candidates) > 1 and near is not None:
            candidates = [path for path in candidates if Path(path).parent == near]
        return candidates[0] if len(candidates) == 1 else None


def match_names(where: Path, known: Sequence[tuple[str, int]], paths: Sequence[str | os.PathLike[str]]) -> list[int]:
    """Return the id of each image of an annotation file, which may name it by another folder.

    Args:
        where: The annotation file, for the message.
        known: Names and ids.
        paths: The images.

    Raises:
        ValueError: One is not among them, or could be several.
    """
    index: dict[str, list[tuple[list[str], int]]] = defaultdict(list)
    for name, number in known:
        if pieces := _pieces(name):
            index[pieces[-1]].append((pieces, number))
    found = []
    for path in paths:
        wanted = _pieces(os.fspath(path))
        candidates = index.get(wanted[-1], []) if wanted else []
        lengths = [_common_end(wanted, pieces) for pieces, _ in candidates]
        best = [number for (_, number), length in zip(candidates, lengths, strict=True) if length == max(lengths)]
        if len(best) != 1:
            what = "could be several of" if best else "is not among"
            raise ValueError(f"image {os.fspath(path)} {what} the {len(known):,} images of {where}")
        found += best
    return found


def _pieces(path: str) -> list[str]:
    return [normalised(piece) for piece in re.split(r"[/\\]+", path) if piece not in ("", ".", "..")]


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    for mine, yours in zip(reversed(one), reversed(other), strict=False):
        if mine != yours:
            break
        count += 1
    return count


def held_out(
    paths: Sequence[str], share: float, groups: Sequence[int] | None = None, keys: Sequence[str] | None = None
) -> list[bool]:
    """Choose what to hold out of images that have no held-out part, by the content of their files.

    It is the same choice whenever it is made, on any machine, and copies of an image stay together. What cannot be read
    is chosen by its name.

    Args:
        paths: The images.
        share: Share of the distinct images to hold out: at least one, and not all.
        groups: The group of each image, such as its class, within each of which that share is held out; None for one.
        keys: What tells the content of each image from others', where it is no file of its own; None to read it.

    Returns:
        For each image, whether it is held out; all False in a group of but one image.
    """
    members: dict[int, list[str]] = defaultdict(list)
    owners = [0] * len(paths) if groups is None else groups
    prints = [_print(path) for path in progress(paths, len(paths), "splitting")] if keys is None else keys
    for owner, key in zip(owners, prints, strict=True):
        members[owner].append(key)
    chosen = {}
    for owner, found in members.items():
        distinct = sorted(set(found))
        chosen[owner] = set(distinct[: min(max(1, round(share * len(distinct))), len(distinct) - 1)])
    return [key in chosen[owner] for owner, key in zip(owners, prints, strict=True)]


def split_off(where: Path, paths: Sequence[str], share: float, advice: str) -> list[bool]:
    """Choose what to hold out, as :func:`held_out` does.

    Args:
        where: The data set, for the message.
        paths: The images.
        share: Share of the distinct images to hold out.
        advice: The settings that name a held-out part, for the message.

    Raises:
        ValueError: There is but one image, or copies of one.
    """
    chosen = held_out(paths, share)
    if not any(chosen):
        has = "1 image" if len(paths) == 1 else f"{len(paths)} images that are all the same"
        raise ValueError(
            f"{where} has no held-out part, and none can be split off: it has {has}; give {advice}, or more images"
        )
    return chosen


def _print(path: str) -> str:
    try:
        if os.path.isfile(path):
            return fingerprint(path)
    except OSError:
        pass
    return hashlib.blake2b(os.path.basename(path).encode(), digest_size=16).hexdigest()


def fingerprint(path: str) -> str:
    """Return what tells a file's content from others: a hash of its size and beginning."""
    with open(path, "rb") as file:
        return hashlib.blake2b(f"{os.path.getsize(path)}:".encode() + file.read(HEAD), digest_size=16).hexdigest()


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Give out the numbered lines of a text file that are not empty, without a byte order mark.

    Raises:
        OSError: There is no such file.
        ValueError: It is no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line.strip()
