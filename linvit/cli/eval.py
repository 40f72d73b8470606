"""``linvit eval MODEL DATA``: measure a model on a data set, by the figures of its task."""

from collections.abc import Sequence

from linvit.cli.common import Parser, at_least
from linvit.cli.tasks import dispatch
from linvit.data.loading import cores


def run(argv: Sequence[str]) -> int:
    """Run the command; see ``linvit eval --help``."""
    parser = Parser("eval", "Measure a model on a data set.", "linvit eval runs/demo mnist5k")
    parser.add_model()
    parser.add_argument("data", metavar="DATA", help="a folder in the layout of the model's task, or embedded data")
    parser.add_runtime()
    parser.add_argument(
        "--batch-size",
        type=at_least(1),
        metavar="N",
        help="images at a time (64; 1 for detection; segmentation takes one)",
    )
    parser.add_argument("--workers", type=at_least(0), default=min(2, cores()), help="processes that load images (2)")
    parser.add_argument("--strict", action="store_true", help="stop at an unreadable image instead of leaving it out")
    return dispatch(parser, "eval", argv)
