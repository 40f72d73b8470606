"""``linvit predict MODEL IMAGE...``: what a model sees in images, in words, JSON, CSV or pictures."""

import contextlib
import csv
import json
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from linvit.checkpoints import load_model
from linvit.checks import some
from linvit.cli.common import CROP, WINDOWS, Parser, at_least, print_json, print_rows, progress, share
from linvit.data.coco import read_names
from linvit.data.images import UnreadableImage, find_images
from linvit.data.loading import cores
from linvit.data.parts import match_names
from linvit.files import atomic_write, check_output, save_picture

MOST_IN_GRID = 48

OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "classification": {
        **CROP,
        "--top": {"type": at_least(1), "default": 5, "metavar": "K", "help": "how many classes to name (5)"},
        "--grid": {"type": Path, "metavar": "PNG", "help": "write all images, with classes and attention, here"},
    },
    "detection": {
        "--min-score": {
            "type": share,
            "default": 0.5,
            "metavar": "SHARE",
            "help": "leave out what scores less (0.5)",
        },
        "--results": {
            "type": Path,
            "metavar": "JSON",
            "help": "write what was found in COCO's format for results here; images are numbered from 1",
        },
        "--ids": {
            "type": Path,
            "metavar": "JSON",
            "help": "annotation file in COCO's format whose ids of images and categories --results takes",
        },
    },
    "segmentation": {
        **WINDOWS,
        "--masks": {
            "type": Path,
            "metavar": "DIR",
            "help": "write each image's classes here, as a PNG of mask values",
        },
    },
}
"""Options of each task, as argparse takes them; but for the files, they are arguments of its predictor."""

FILES = ("grid", "results", "masks", "ids")


def run(argv: Sequence[str]) -> int:
    """Run the command; see ``linvit predict --help``."""
    parser = Parser(
        "predict", "Say what is in images.", 'linvit predict runs/demo photo.jpg folder "more/*.png" --save pictures'
    )
    parser.add_model()
    help = "files, folders and patterns; or the name of embedded data for twelve of its test images"
    parser.add_argument("images", metavar="IMAGE", nargs="+", help=help)
    parser.add_runtime()
    parser.add_argument("--batch-size", type=at_least(1), metavar="N", help="images of one size at a time (64, or 1)")
    parser.add_argument("--workers", type=at_least(1), default=cores(), help="threads that decode (one a core)")
    parser.add_argument("--save", type=Path, metavar="DIR", help="write a picture of each image and its result here")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the results here instead of printing them")
    parser.add_argument("--strict", action="store_true", help="stop at an unreadable image instead of passing it over")
    args, task, own = parser.parse_for_task(argv, OPTIONS)
    from linvit.inference.stream import open_image, predict_all

    files: dict[str, Path | None] = {name: own.pop(name, None) for name in FILES}
    for place in (args.csv, files["grid"], files["results"]):
        check_output(place)
    for place in (args.save, files["masks"]):
        check_output(place, folder=True)
    named = None if args.images == [task.examples] else find_images(args.images)
    if files["grid"] and named and len(named) > MOST_IN_GRID:
        raise ValueError(f"--grid takes at most {MOST_IN_GRID} images, got {len(named)}; --save takes any number")
    model = load_model(args.model, args.untrained, exported=True)
    predictor: Any = task.load_predictor()(model, args.device, args.precision, args.img_size, **own)
    sources: Sequence[Any] = predictor.examples() if named is None else named

    ids = _ids(files["ids"], sources, predictor.classes, files["results"]) if files["ids"] else None

    records: list[dict[str, Any]] = []
    rows: list[dict[str, str]] = []
    drawn: list[Any] = []
    count = 0
    stream = predict_all(predictor, sources, args.batch_size, args.workers, None if args.strict else _say_passed_over)
    with contextlib.ExitStack() as outputs:
        table = outputs.enter_context(_csv(args.csv)) if args.csv else None
        results = outputs.enter_context(_json_list(files["results"])) if files["results"] else None
        for source, prediction in progress(stream, len(sources), "predicting"):
            if prediction is None:
                continue
            count += 1
            name = source[0] if isinstance(source, tuple) else str(source)
            record = {"image": name, **prediction.record()}
            file = f"{count:04d}_{Path(name).stem}.png"  # folders may share names
            if args.save:
                record["picture"] = str(args.save / file)
                save_picture(prediction.picture(open_image(source)[1]), record["picture"])
            if files["masks"]:
                record["mask"] = str(files["masks"] / file)
                save_picture(prediction.mask_picture(), record["mask"])
            if files["grid"]:
                drawn.append(_with_attention(predictor, *open_image(source), prediction))
            if table:
                table(name, prediction)
            if results:
                results(
                    prediction.results(ids.images[name], name, ids.categories)
                    if ids
                    else prediction.results(count, name)
                )
            if args.json:
                records.append(record)
            elif not args.csv:
                rows.append({"image": name} | prediction.row())
        if not count:
            raise ValueError(f"none of the {len(sources)} images could be read")
    if files["grid"]:
        from linvit.inference.pictures.classes import draw_grid

        save_picture(draw_grid(drawn), files["grid"])

    if args.json:
        print_json(records)
        return 0
    if rows:
        print_rows(rows)
    pictures = " and ".join(str(path) for path in (args.save, files["grid"]) if path)
    kinds = {"pictures": pictures, "masks": files["masks"], "COCO results": files["results"], "results": args.csv}
    if written := "; ".join(f"{kind} in {place}" for kind, place in kinds.items() if place):
        print(written)
    return 0


class _Ids(NamedTuple):
    """Ids of images by their names, and of categories by theirs."""

    images: dict[str, int]
    categories: dict[str, int]


def _ids(file: Path, sources: Sequence[Any], classes: Sequence[str], results: Path | None) -> _Ids:
    """Look up what an annotation file calls images and classes."""
    if results is None:
        raise ValueError("--ids is for --results: give it, too")
    if any(isinstance(source, tuple) for source in sources):
        raise ValueError("--ids is for image files, not for embedded data")
    known, categories = read_names(file)
    if not set(classes) & categories.keys():
        raise ValueError(
            f"{file} has the categories {some(categories)}, which are none of the model's: {some(classes)}"
        )
    return _Ids(dict(zip(map(str, sources), match_names(file, known, sources), strict=True)), categories)


def _say_passed_over(error: UnreadableImage) -> None:
    print(f"linvit: passed over: {error}", file=sys.stderr)


@contextlib.contextmanager
def _csv(path: Path) -> Generator[Callable[[str, Any], None]]:
    """Write rows of predictions as they come; the file is there when all are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)

        def write(name: str, prediction: Any) -> None:
            if not file.tell():
                writer.writerow(["image", *prediction.columns])
            writer.writerows([name, *row] for row in prediction.csv_rows())

        yield write


@contextlib.contextmanager
def _json_list(path: Path) -> Generator[Callable[[list[Any]], None]]:
    """Write a list of JSON as its items come; the file is there when all are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        comma = "["

        def write(items: list[Any]) -> None:
            nonlocal comma
            for item in items:
                file.write(f"{comma}\n{json.dumps(item)}")
                comma = ","

        yield write
        file.write("\n]\n" if comma == "," else "[]\n")


def _with_attention(predictor: Any, name: str, image: Image.Image, prediction: Any) -> Any:
    """Return the prediction with what the model's attention looked at, drawn over the image as the model saw it."""
    from linvit.analysis import has_attention, received_map
    from linvit.inference.pictures.classes import ClassPicture

    pixels = predictor.prepare(image).pixels
    attention = None
    if has_attention(predictor.model):
        attention = received_map(predictor.model, pixels[None].to(predictor.device)).cpu().numpy()
    mean, std = (pixels.new_tensor(predictor.input_config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    seen = ((pixels * std + mean).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    top = prediction.top()
    classes, probabilities = [t["class"] for t in top], [t["probability"] for t in top]
    return ClassPicture(Image.fromarray(seen), classes, probabilities, Path(name).name, attention)
