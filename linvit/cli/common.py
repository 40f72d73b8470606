"""What the commands share: a parser whose errors are one line, tables, JSON, and a progress bar."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

from PIL import Image
from rich.console import Console
from rich.table import Table

from linvit.data.images import UnreadableImage, load_image
from linvit.data.loading import progress

__all__ = [
    "SPLIT_OPTION",
    "Parser",
    "at_least",
    "image_size",
    "load_sources",
    "print_facts",
    "print_json",
    "print_rows",
    "progress",
]

SPLIT_OPTION: dict[str, dict[str, Any]] = {
    "--split": {
        "metavar": "NAME",
        "help": "which part of DATA: val, test, train or all (val, or else test; all of data without parts)",
    }
}
"""For the commands of tasks whose data have parts."""


class Parser(argparse.ArgumentParser):
    """argparse with an example in its help, and errors that are raised as ValueError.

    Args:
        command: Name of the command.
        description: What it does.
        example: A line that works when pasted.
    """

    def __init__(self, command: str, description: str, example: str):
        super().__init__(
            prog=f"linvit {command}",
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def add_model(self) -> None:
        """Add the MODEL argument and how to run it."""
        help = "a run folder, a checkpoint file, a registered name (published weights) or hf-hub:USER/REPO"
        self.add_argument("model", metavar="MODEL", help=help)
        self.add_argument("--json", action="store_true", help="print JSON instead of a table")

    def add_runtime(self) -> None:
        """Add where and how exactly the model computes, and what it sees."""
        self.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ... (auto)")
        self.add_argument("--precision", default="float32", help="float32, bfloat16 or float16 (float32)")
        self.add_argument("--img-size", type=int, metavar="PIXELS", help="size to see images at (the model's)")

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the arguments."""
        raise ValueError(f"{message} (see {self.prog} --help)")


def at_least(least: int) -> Callable[[str], int]:
    """Return an argument type: a whole number that is ``least`` or more."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number, {least} or more, not {text!r}")
        return int(text)

    return number


def image_size(text: str) -> tuple[int, int]:
    """Read a height and a width in pixels: ``224`` for both, or ``224x320``."""
    height, _, width = text.partition("x")
    if not height.isdecimal() or not (width or height).isdecimal() or int(height) < 1 or int(width or 1) < 1:
        raise argparse.ArgumentTypeError(f"must be PIXELS or HEIGHTxWIDTH, got {text!r}")
    return int(height), int(width or height)


def print_rows(rows: Iterable[Mapping[str, Any]], title: str = "") -> None:
    """Print records as a table whose columns are their keys."""
    rows = list(rows)
    table = Table(title=title or None, title_justify="left")
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row.values()))
    _print(table)


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print names and values as a table of two columns."""
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name, str(value))
    _print(table)


def _print(table: Table) -> None:
    """Print a table: folded into a terminal's width; into pipes and files, where programs look for words, unfolded."""
    console = Console()
    if not console.is_terminal:
        console.width = 10_000
    console.print(table)


def print_json(value: Any) -> None:
    """Print JSON to the standard output; numbers that JSON does not know (NaN, infinity) as null."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load_sources(sources: Iterable[Any], strict: bool) -> Iterator[tuple[str, Image.Image]]:
    """Read the images at paths; pairs of name and image are passed through.

    Args:
        sources: Paths or pairs.
        strict: Raise on an unreadable image instead of passing it over with a line on the standard error stream.
    """
    for source in sources:
        if isinstance(source, tuple):
            yield source
            continue
        try:
            yield str(source), load_image(source)
        except UnreadableImage as error:
            if strict:
                raise
            print(f"linvit: passed over: {error}", file=sys.stderr)
