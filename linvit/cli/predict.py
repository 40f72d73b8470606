"""``linvit predict MODEL IMAGE...``: what a model sees in images, in words, JSON or pictures."""

from collections.abc import Sequence
from pathlib import Path

from linvit.cli.common import Parser
from linvit.cli.tasks import dispatch


def run(argv: Sequence[str]) -> int:
    """Run the command; see ``linvit predict --help``."""
    parser = Parser(
        "predict", "Say what is in images.", 'linvit predict runs/demo photo.jpg folder "more/*.png" --save pictures'
    )
    parser.add_model()
    help = "files, folders and patterns; or the name of embedded data for twelve of its test images"
    parser.add_argument("images", metavar="IMAGE", nargs="+", help=help)
    parser.add_runtime()
    parser.add_argument("--save", type=Path, metavar="DIR", help="write a picture of each image and its result here")
    parser.add_argument("--strict", action="store_true", help="stop at an unreadable image instead of passing it over")
    return dispatch(parser, "predict", argv)
