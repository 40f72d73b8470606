"""What the commands share: a parser whose errors are one line, tables, JSON, and a progress bar."""

import argparse
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from linvit.checkpoints import task_of
from linvit.data.loading import progress
from linvit.registry import TASKS, Task

__all__ = [
    "CROP",
    "SPLIT",
    "WINDOWS",
    "Parser",
    "at_least",
    "image_size",
    "positive",
    "print_facts",
    "print_json",
    "print_rows",
    "print_tables",
    "progress",
    "share",
]

SPLIT: dict[str, dict[str, Any]] = {
    "--split": {
        "choices": ("val", "test", "train", "all"),
        "help": "which part of DATA: val, test, train or all (val, or else test; all of data without parts)",
    }
}


def at_least(least: int) -> Callable[[str], int]:
    """Return an argument type: a whole number that is ``least`` or more."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number, {least} or more, not {text!r}")
        return int(text)

    return number


def positive(text: str) -> float:
    """Read a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return value


def share(text: str) -> float:
    """Read a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")
    return value


CROP: dict[str, dict[str, Any]] = {
    "--crop-pct": {"type": share, "metavar": "SHARE", "help": "share that the crop keeps (the model's)"}
}
WINDOWS: dict[str, dict[str, Any]] = {
    "--window": {
        "type": at_least(0),
        "metavar": "PIXELS",
        "help": "predict in windows of this side, 0: whole images (the model's)",
    },
    "--stride": {
        "type": at_least(1),
        "metavar": "PIXELS",
        "help": "distance between windows (the model's; or two thirds of --window)",
    },
}

Options = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Options of tasks: for each title of a task its options by name, as argparse takes them."""


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
        help = "a run folder, a checkpoint file, a registered name (published weights), hf-hub:USER/REPO, package:NAME"
        self.add_argument("model", metavar="MODEL", help=help)
        self.add_argument("--untrained", action="store_true", help="random weights for a registered name")
        self.add_argument("--json", action="store_true", help="print JSON instead of a table")

    def add_runtime(self) -> None:
        """Add where and how exactly the model computes, and what it sees."""
        self.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ... (auto)")
        self.add_argument("--precision", default="float32", help="float32, bfloat16 or float16 (float32)")
        self.add_argument("--img-size", type=at_least(1), metavar="PIXELS", help="size to see images at (the model's)")

    def parse_for_task(self, argv: Sequence[str], options: Options) -> tuple[argparse.Namespace, Task, dict[str, Any]]:
        """Parse the arguments of a command that every task has its own options for.

        Args:
            argv: The arguments.
            options: What each task adds; an option that several share is the same in all of them.

        Returns:
            The arguments, the task of MODEL, and the task's own options by their names in Python.

        Raises:
            ValueError: The arguments are wrong, or belong to another task than the model's.
        """
        owners: dict[str, list[str]] = {}
        for title, own in options.items():
            for name in own:
                owners.setdefault(name, []).append(title)
        titles = {name: " and ".join(owning) for name, owning in owners.items()}
        groups = {title: self.add_argument_group(title) for title in dict.fromkeys(titles.values())}
        actions = {
            name: groups[titles[name]].add_argument(name, **options[owning[0]][name]) for name, owning in owners.items()
        }
        args = self.parse_args(argv)
        name = task_of(args.model)
        if name not in TASKS:
            raise ValueError(f"{args.model} is a model for task {name!r}; there is {', '.join(TASKS)}")
        task = TASKS[name]
        for name, action in actions.items():
            if getattr(args, action.dest) != action.default and task.title not in owners[name]:
                raise ValueError(f"{name} is for {titles[name]}, and {args.model} is a model for {task.title}")
        own = {
            action.dest: getattr(args, action.dest) for name, action in actions.items() if task.title in owners[name]
        }
        return args, task, own

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the arguments."""
        raise ValueError(f"{message} (see {self.prog} --help)")


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


def print_tables(tables: Iterable[Mapping[str, str] | Sequence[Mapping[str, str]]]) -> None:
    """Print tables: of names and values, or of rows."""
    for table in tables:
        if isinstance(table, Mapping):
            print_facts(table)
        else:
            print_rows(table)


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
