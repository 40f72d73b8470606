"""``linvit app [MODEL...]``: a page in the browser, on this machine, to compare models and see where they look."""

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from linvit.cli.common import Parser

RUNS = Path("runs")
MOST_FOUND = 8


def run(argv: Sequence[str]) -> int:
    """Run the command; see ``linvit app --help``."""
    parser = Parser(
        "app",
        "Serve a page on this machine: drop an image, compare models, click a pixel and see where they look.",
        "linvit app runs/demo",
    )
    help = "run folders, checkpoint files, registered names or hf-hub:USER/REPO (the run folders below runs/)"
    parser.add_argument("models", metavar="MODEL", nargs="*", help=help)
    parser.add_argument("--port", type=int, default=7860, help="where to listen; 0 takes any free port (7860)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ... (auto)")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")
    args = parser.parse_args(argv)
    if not 0 <= args.port < 2**16:
        raise ValueError(f"--port must be from 0 to 65535, got {args.port}")

    from linvit.app.server import make_server
    from linvit.app.viewer import Models

    models = Models(args.models or _runs(), args.device)
    try:
        server = make_server(models, args.port)
    except OSError as error:
        raise ValueError(f"--port {args.port} is not to be had ({error.strerror}): 0 takes any free one") from error
    with server:
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        print(f"linvit: {address} (this machine alone; Ctrl-C ends it)", flush=True)
        if not args.no_browser:
            webbrowser.open(address)
        server.serve_forever()
    return 0


def _runs() -> list[str]:
    found = sorted(RUNS.glob("*/model.safetensors"), key=lambda path: -path.stat().st_mtime)
    return [str(path.parent) for path in found[:MOST_FOUND]]
