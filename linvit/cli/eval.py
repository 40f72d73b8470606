"""``linvit eval MODEL DATA``: measure a model on a data set, by the metrics of its task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from linvit.cli import probe
from linvit.cli.common import CROP, SPLIT, WINDOWS, Parser, at_least, print_json, print_tables, progress
from linvit.data.corruptions import CORRUPTIONS
from linvit.data.loading import cores
from linvit.data.sources import Kind
from linvit.files import check_output

OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "classification": {
        **CROP,
        **SPLIT,
        "--source": {
            "choices": get_args(Kind),
            "default": "auto",
            "help": "what DATA names, as --data.source in training: class folders; shards, such as "
            "https://HOST/val-{00..15}.tar; or a Hugging Face data set's folder or name (auto: all but that name)",
        },
        "--crops": {"type": int, "default": 1, "metavar": "N", "help": "1, 5 or 10 crops of each image (1)"},
        "--real": {
            "action": "store_true",
            "default": False,
            "help": "also by the ReaL labels of ImageNet's validation",
        },
        "--corrupt": {
            "nargs": "+",
            "default": [],
            "metavar": "KIND",
            "help": f"also with corrupted images, five severities each: all, or {', '.join(CORRUPTIONS)}",
        },
        "--against": {"nargs": "+", "default": [], "metavar": "MODEL", "help": "more models, evaluated alike"},
        "--chart": {"type": Path, "metavar": "PNG", "help": "draw the models beside each other into this file"},
        "--per-class": {
            "type": Path,
            "metavar": "CSV",
            "help": "write images, accuracy and confusions of each class here",
        },
        "--confusion": {"type": Path, "metavar": "PNG", "help": "draw the confusion matrix into this file"},
    },
    "detection": {
        **SPLIT,
        "--results": {
            "type": Path,
            "metavar": "JSON",
            "help": "write what was found in COCO's format for results here",
        },
    },
    "segmentation": {**WINDOWS, **SPLIT},
}
"""Options of each task, as argparse takes them; they are arguments of its evaluation."""


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
    probe.add_options(parser)
    if probe.is_asked_for(argv):
        args, evaluate, own = probe.parse(parser, argv)
    else:
        args, task, own = parser.parse_for_task(argv, OPTIONS)
        evaluate = task.load_evaluation()
    for place in ("results", "chart", "per_class", "confusion"):
        check_output(own.get(place))
    report = evaluate(
        args.model,
        args.data,
        untrained=args.untrained,
        device=args.device,
        precision=args.precision,
        img_size=args.img_size,
        batch_size=args.batch_size,
        workers=args.workers,
        strict=args.strict,
        show=progress,
        **own,
    )
    if args.json:
        print_json(report.record)
        return 0
    print_tables(report.tables)
    if report.unreadable:
        print(f"{len(report.unreadable)} unreadable images left out: {', '.join(report.unreadable[:5])}")
    return 0
