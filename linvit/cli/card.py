"""``linvit card RUN``: describe a model for those who find it on the hub."""

from collections.abc import Sequence
from pathlib import Path

from linvit.cli.common import Parser, print_json
from linvit.files import atomic_write, check_output
from linvit.hub import CARD, model_card


def run(argv: Sequence[str]) -> int:
    """Run the command; see ``linvit card --help``."""
    parser = Parser(
        "card", "Write a model card: what a model is, its metrics, how to load it.", "linvit card runs/demo"
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    parser.add_argument("--repo", default="USER/REPO", metavar="USER/REPO", help="what it is called on the hub")
    parser.add_argument("--license", metavar="NAME", help="licence of the weights, such as apache-2.0 (none is chosen)")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"where to (RUN/{CARD}, which linvit push takes)")
    parser.add_argument("--force", action="store_true", help="replace the card that is there")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    out = args.out or args.run / CARD
    check_output(args.out)
    text = model_card(args.run, args.repo, args.license)
    if out.exists() and not args.force:
        raise ValueError(f"{out} is there already: --force replaces it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if args.json:
        print_json({"card": str(out)})
    else:
        print(f"{out}: read it, and add what the training data are and what the model is not for")
    return 0
