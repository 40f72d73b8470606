"""``linvit recipes [FILTER]``: which training runs come with linvit, what each costs and what it should reach."""

import re
from collections.abc import Sequence
from dataclasses import asdict

from linvit.cli.common import Parser, print_json, print_rows
from linvit.recipes import Recipe, list_recipes


def run(argv: Sequence[str]) -> int:
    """Run the command; see ``linvit recipes --help``."""
    parser = Parser(
        "recipes",
        "List the recipes: what each is for, costs and should reach. `linvit train --config NAME` runs one, and "
        "`linvit study NAME` those in studies/.",
        "linvit recipes imagenet",
    )
    parser.add_argument("filter", metavar="FILTER", nargs="?", default="*", help="part of a name, or a wildcard (all)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    found = list_recipes(args.filter)
    if args.json:
        print_json([{**asdict(recipe), "path": str(recipe.path)} for recipe in found])
    else:
        print_rows(map(_row, found))
    return 0


def _row(recipe: Recipe) -> dict[str, str]:
    """Return the first sentence of each thing that is said of a recipe; its file has the rest."""
    said = {"what for": recipe.purpose, "cost": recipe.cost, "expected": recipe.expected}
    return {"recipe": recipe.name} | {
        name: re.split(r"[.:;] (?![^(]*\))", text)[0].rstrip(".") for name, text in said.items()
    }
