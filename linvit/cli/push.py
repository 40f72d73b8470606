"""``linvit push RUN USER/REPO``: share a model on the Hugging Face hub, with its card."""

import sys
from collections.abc import Sequence
from pathlib import Path

from linvit.cli.common import Parser, print_json
from linvit.hub import files_of, push, repository_exists


def run(argv: Sequence[str]) -> int:
    """Run the command; see ``linvit push --help``."""
    parser = Parser(
        "push", "Share a model on the Hugging Face hub, with its card.", "linvit push runs/demo someone/care-digits"
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder; its README.md is the card, if it has one")
    parser.add_argument("repo", metavar="USER/REPO", help="the repository, made if it is not there")
    parser.add_argument("--license", metavar="NAME", help="licence of the weights, such as apache-2.0 (none is chosen)")
    parser.add_argument("--private", action="store_true", help="let only you see a new repository")
    parser.add_argument("--message", default="Model trained with linvit", metavar="TEXT", help="of the commit")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    if not args.yes and not sys.stdin.isatty():
        raise ValueError("nobody can be asked here whether to upload: give --yes")
    files = files_of(args.run, args.repo, args.license)
    if not args.yes:
        there = repository_exists(args.repo)
        sizes = {name: what.stat().st_size if isinstance(what, Path) else len(what) for name, what in files.items()}
        for name, size in sizes.items():
            print(f"  {name:18} {size / 1e6:8.2f} MB", file=sys.stderr)
        what = "replaced in" if there else "uploaded to the new"
        seen = "" if there else (" (private)" if args.private else " (public)")
        print(
            f"These files are {what} repository {args.repo}{seen}. Go on? [y/N] ", end="", file=sys.stderr, flush=True
        )
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise ValueError("nothing was uploaded")
    address = push(files, args.repo, args.private, args.message)
    if args.json:
        print_json({"address": address, "model": f"hf-hub:{args.repo}", "files": list(files)})
    else:
        print(f"{address}\nload it as hf-hub:{args.repo}")
    return 0
