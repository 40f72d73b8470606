"""``linvit models [FILTER]``: which models there are, what they cost and what they reach."""

from collections.abc import Sequence
from dataclasses import asdict

from linvit.catalogue import ModelFacts, catalogue
from linvit.cli.common import Parser, print_json, print_rows


def run(argv: Sequence[str]) -> int:
    """Run the command; see ``linvit models --help``."""
    parser = Parser(
        "models",
        "List linvit's models: size, cost, published ImageNet-1K top-1 with its paper, weights.",
        "linvit models swin",
    )
    parser.add_argument("filter", metavar="FILTER", nargs="?", default="*", help="part of a name, or a wildcard (all)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    found = catalogue(args.filter)
    if args.json:
        print_json([asdict(facts) for facts in found])
    else:
        print_rows(map(_row, found))
    return 0


def _row(facts: ModelFacts) -> dict[str, str]:
    """Return the facts in so few words that a table of them fits 80 columns."""
    macs = facts.macs / 1e9
    return {
        "model": facts.name,
        "px": str(facts.img_size),
        "params": f"{facts.params / 1e6:.1f}M",
        "MACs": f"{macs:.1f}G" if macs >= 10 else f"{macs:.2f}G",
        "top-1": "-" if facts.top1 is None else f"{facts.top1:.1f}",
        "arXiv": (facts.source or "-").removeprefix("arXiv:"),
        "weights": "yes" if facts.weights else "-",
    }
