"""Training runs and studies, packaged: a YAML file each that says what it is for, what it costs and should reach."""

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from linvit.checks import did_you_mean

__all__ = ["Recipe", "find", "list_recipes", "read_heading"]

FOLDER = Path(__file__).parent
FIELDS = ("Cost", "Expected")


@dataclass(frozen=True)
class Recipe:
    """A recipe and what its first lines say.

    Attributes:
        name: As ``--config`` takes it: ``imagenet/care_s0``.
        path: The YAML file.
        purpose: What it is for.
        cost: How long it takes, on what.
        expected: What it should reach, and who says so.
    """

    name: str
    path: Path
    purpose: str
    cost: str
    expected: str


def list_recipes(pattern: str = "*") -> list[Recipe]:
    """Return the recipes whose name matches a wildcard, or contains a word.

    Raises:
        ValueError: None does.
    """
    wildcard = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    found = [recipe for name, recipe in _recipes().items() if fnmatch(name, wildcard)]
    if not found:
        raise ValueError(f"no recipe matches {pattern!r}; there are {', '.join(_recipes())}")
    return found


def find(name: str | Path) -> Path:
    """Return the file that is meant: a path to one, or else the recipe of that name.

    Args:
        name: ``mine.yaml`` or ``imagenet/care_s0``.

    Raises:
        ValueError: It is neither.
    """
    if Path(name).is_file():
        return Path(name)
    if str(name) not in _recipes():
        near = did_you_mean(str(name), _recipes(), "linvit recipes lists them")
        raise ValueError(f"{name} is neither a file nor the name of a recipe{near}")
    return _recipes()[str(name)].path


def read_heading(name: str, path: Path) -> Recipe:
    """Read the comment that a recipe opens with: a purpose, then ``Cost:`` and ``Expected:``, up to an empty line."""
    said: dict[str, list[str]] = {"Purpose": []}
    field = "Purpose"
    for line in path.read_text().splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text:
            break
        if opened := re.match(rf"({'|'.join(FIELDS)}): (.*)", text):
            field, text = opened[1], opened[2]
        said.setdefault(field, []).append(text)
    purpose, cost, expected = (" ".join(said.get(field, [])) for field in ("Purpose", *FIELDS))
    return Recipe(name, path, purpose, cost, expected)


@cache
def _recipes() -> dict[str, Recipe]:
    """Return the recipes of this package by name, those at the top first."""
    paths = sorted(FOLDER.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    names = [path.relative_to(FOLDER).with_suffix("").as_posix() for path in paths]
    return {name: read_heading(name, path) for name, path in zip(names, paths, strict=True)}
