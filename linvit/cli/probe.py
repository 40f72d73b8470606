"""The options of ``linvit eval MODEL DATA --knn --linear``: a model's frozen features judged, whatever its task."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any, get_args

from linvit.cli.common import Parser, at_least, positive
from linvit.data.sources import Kind

__all__ = ["add_options", "is_asked_for", "parse"]

OPTIONS: dict[str, dict[str, Any]] = {
    "knn": {"action": "store_true", "help": "classify by the nearest neighbours among DATA's training part"},
    "linear": {"action": "store_true", "help": "train a linear classifier on the frozen features"},
    "stage": {"type": int, "metavar": "N", "help": "features of this stage, averaged over the image (pooled ones)"},
    "neighbours": {"type": at_least(1), "default": 20, "metavar": "K", "help": "how many vote (20)"},
    "temperature": {"type": positive, "default": 0.07, "metavar": "T", "help": "small: the nearest count most (0.07)"},
    "epochs": {"type": at_least(1), "default": 30, "metavar": "N", "help": "of the linear classifier (30)"},
}
"""Arguments of :func:`linvit.inference.reports.features.evaluate`, as argparse takes them."""


def add_options(parser: Parser) -> None:
    """Add the probes' options."""
    group = parser.add_argument_group("features of any model, judged without training it")
    for name, option in OPTIONS.items():
        group.add_argument(f"--{name}", **option)


def is_asked_for(argv: Sequence[str]) -> bool:
    """Return whether arguments ask for a probe.

    Raises:
        ValueError: They do not, and hold an option of the probes.
    """
    given = {argument.partition("=")[0].removeprefix("--") for argument in argv if argument.startswith("--")}
    if given & {"knn", "linear"}:
        return True
    if alone := sorted(given & OPTIONS.keys()):
        raise ValueError(f"--{alone[0]} is for --knn and --linear: give one of them, too")
    return False


def parse(parser: Parser, argv: Sequence[str]) -> tuple[Namespace, Callable[..., Any], dict[str, Any]]:
    """Return the arguments, the evaluation, and its own arguments."""
    from linvit.inference.reports.features import evaluate

    parser.add_argument("--source", choices=get_args(Kind), default="auto", help="what DATA names")
    args = parser.parse_args(argv)
    return args, evaluate, {name: getattr(args, name) for name in (*OPTIONS, "source")}
