"""``linvit inspect MODEL IMAGE...``: where a model looks, how sharply, and of what rank its attention is."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from linvit.cli.common import Parser, at_least, print_json, print_rows, progress

MOST_IMAGES = 24


def run(argv: Sequence[str]) -> int:
    """Run the command; see ``linvit inspect --help``."""
    from linvit.analysis.inspection import Eye, Inspection
    from linvit.checkpoints import load_model
    from linvit.data.images import UnreadableImage
    from linvit.files import check_output
    from linvit.inference.base import check_finite, find_device
    from linvit.inference.stream import open_image

    args = _parser().parse_args(argv)
    check_output(args.out, folder=True)
    sources = _sources(args.images)
    if len(sources) > MOST_IMAGES:
        raise ValueError(f"at most {MOST_IMAGES} images fit one report, got {len(sources)}")
    model = load_model(args.model, args.untrained)
    check_finite(model)
    eye = Eye(model, find_device(args.device), args.img_size)
    target = _target(args.target, eye.labels)
    seen: list[tuple[str, Inspection]] = []
    for source in progress(sources, len(sources), "inspecting"):
        try:
            name, image = open_image(source)
        except UnreadableImage as error:
            print(f"linvit: passed over: {error}", file=sys.stderr)
            continue
        seen.append((name, eye.inspect(image, args.at, target)))
    if not seen:
        raise ValueError(f"none of the {len(sources)} images could be read")
    record = {"model": str(args.model), "images": [{"image": name} | found.numbers() for name, found in seen]}
    written = _write(args.out, str(args.model), seen, record)
    if args.json:
        print_json(record | {"report": str(args.out / "report.html"), "pictures": [str(path) for path in written]})
        return 0
    print_rows([_row(i, [found for _, found in seen]) for i in range(len(seen[0][1].layers))], "means over images")
    print(f"report: {args.out / 'report.html'}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        "inspect",
        "Show where a model looks, how sharply, and of what rank its attention is: pictures and a report.",
        "linvit inspect runs/demo photo.jpg --at 120,80 --out seen",
    )
    parser.add_model()
    help = "files, folders and patterns; or mnist5k for six of the embedded test digits"
    parser.add_argument("images", metavar="IMAGE", nargs="+", help=help)
    help = "the pixel to look from, column and row of the image (its centre)"
    parser.add_argument("--at", type=_pixel, metavar="X,Y", help=help)
    parser.add_argument("--class", dest="target", metavar="NAME", help="class to draw Grad-CAM of (the most likely)")
    help = "folder for report.html, report.json and pictures/ as PNG and SVG (inspected)"
    parser.add_argument("--out", type=Path, default=Path("inspected"), metavar="DIR", help=help)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ... (auto)")
    parser.add_argument("--img-size", type=at_least(1), metavar="PIXELS", help="size to see images at (the model's)")
    return parser


def _pixel(text: str) -> tuple[float, float]:
    found = re.fullmatch(r"(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"must be X,Y, a column and a row in pixels, got {text!r}")
    return float(found[1]), float(found[2])


def _sources(images: list[str]) -> list[Any]:
    from linvit.data.datasets import Mnist5k
    from linvit.data.images import find_images

    if images != ["mnist5k"]:
        return list(find_images(images))
    digits = Mnist5k(train=False)
    return [(f"test digit {i}, a {digits[i]['target']}", digits[i]["image"]) for i in range(0, len(digits), 168)]


def _target(name: str | None, labels: list[str]) -> int | None:
    if name is None:
        return None
    if not labels:
        raise ValueError("--class is for classifiers, and this model has no classes of whole images: leave it out")
    if name in labels:
        return labels.index(name)
    if name.isdecimal() and int(name) < len(labels):
        return int(name)
    few = ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")
    raise ValueError(f"--class must be one of the model's {len(labels)} classes ({few}) or its number, got {name!r}")


def _write(out: Path, model: str, seen: list[tuple[str, Any]], record: dict[str, Any]) -> list[Path]:
    """Write the pictures, the report and its numbers, and return the pictures."""
    from linvit.analysis import figures
    from linvit.analysis.report import write_report
    from linvit.files import atomic_write

    pictures, written = out / "pictures", []
    shown = []
    for i, (name, found) in enumerate(seen, 1):
        mine: dict[str, Path] = {}
        stem = f"{i:02d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', Path(name).stem)[:60]}"
        for kind, draw in (
            ("overview", figures.draw_overview),
            ("layers", figures.draw_layers),
            ("heads", figures.draw_heads),
        ):
            files = figures.save(draw(found), pictures / f"{stem}_{kind}")
            mine[kind] = files[0]
            written += files
        shown.append((Path(name).name, found, mine))
    inspections = [found for _, found in seen]
    common = [("Every attention layer, from the first to the last, means over the images.", "measures")]
    written += figures.save(figures.draw_measures(inspections), pictures / "measures")
    if inspections[0].groups:
        common.append(
            ("How much a block's result changes when one of its groups says nothing about positions.", "groups")
        )
        written += figures.save(figures.draw_groups(inspections), pictures / "groups")
    write_report(out / "report.html", model, shown, [(text, pictures / f"{name}.png") for text, name in common])
    with atomic_write(out / "report.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return written


def _row(index: int, inspections: list[Any]) -> dict[str, str]:
    layers = [found.layers[index].numbers() for found in inspections]
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    mixed = [layer["rank_mixed"] for layer in layers]
    first = layers[0]
    return {
        "layer": first["name"],
        "mechanism": first["mechanism"],
        "grid": f"{first['grid'][0]}x{first['grid'][1]}",
        "heads": str(first["heads"]),
        "entropy, nats": f"{mean([layer['entropy'] for layer in layers]):.2f} of {first['entropy_highest']:.2f}",
        "distance, px": f"{mean([layer['distance'] for layer in layers]):.1f}",
        "rank (effective)": _rank([layer["rank"] for layer in layers]),
        "with local part": _rank(mixed) if mixed[0] else "-",
        "of": str(first["rank"]["full"]),
    }


def _rank(ranks: list[dict[str, float]]) -> str:
    numerical, effective = (sum(rank[key] for rank in ranks) / len(ranks) for key in ("numerical", "effective"))
    return f"{numerical:.0f} ({effective:.0f})"
