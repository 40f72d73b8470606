"""What ``linvit eval`` and ``linvit predict`` do with a classifier."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from PIL import Image

from linvit.checkpoints import class_names, load_model
from linvit.cli.common import load_sources, print_json, print_rows, progress
from linvit.cli.evaluation import CROP, EVAL_OPTIONS, run_eval
from linvit.data.datasets import Mnist5k
from linvit.data.images import find_images
from linvit.inference.classification import Classifier

__all__ = ["EVAL_OPTIONS", "PREDICT_OPTIONS", "TITLE", "run_eval", "run_predict"]

TITLE = "classification"
EMBEDDED = "mnist5k"
MOST_IN_GRID = 48


PREDICT_OPTIONS: dict[str, dict[str, Any]] = {
    **CROP,
    "--top": {"type": int, "default": 5, "metavar": "K", "help": "how many classes to name (5)"},
    "--grid": {"type": Path, "metavar": "PNG", "help": "write all images, with classes and attention, here"},
}


def run_predict(args: Namespace) -> int:
    """Report the most likely classes."""
    if args.top < 1:
        raise ValueError(f"--top must be 1 or more, got {args.top}")
    sources = _digits() if args.images == [EMBEDDED] else find_images(args.images)
    if args.grid and len(sources) > MOST_IN_GRID:
        raise ValueError(f"--grid takes at most {MOST_IN_GRID} images, got {len(sources)}; --save takes any number")

    classifier = Classifier(load_model(args.model), args.device, args.precision, args.img_size, args.crop_pct)
    names = class_names(classifier.model, readable=True)
    records: list[dict[str, Any]] = []
    drawn: list[Any] = []
    for name, image in load_sources(progress(sources, len(sources), "predicting"), args.strict):
        probabilities, classes = classifier.predict([image])[0].topk(min(args.top, len(names)))
        top = [
            {"class": names[index], "index": index, "probability": probability}
            for index, probability in zip(classes.tolist(), probabilities.tolist(), strict=True)
        ]
        records.append({"image": name, "top": top})
        if args.save:
            _draw(image, top, args.save / f"{len(records):04d}_{Path(name).stem}.png")  # folders may share names
        if args.grid:
            drawn.append(_with_attention(classifier, name, image, top))
    if not records:
        raise ValueError(f"none of the {len(sources)} images could be read")
    if args.grid:
        from linvit.inference.pictures.classes import draw_predictions

        args.grid.parent.mkdir(parents=True, exist_ok=True)
        draw_predictions(drawn, args.grid)

    if args.json:
        print_json(records)
        return 0
    print_rows(
        {"image": record["image"]}
        | {f"{i}.": f"{t['class']} {t['probability']:.1%}" for i, t in enumerate(record["top"], 1)}
        for record in records
    )
    if args.save or args.grid:
        print(f"pictures in {' and '.join(str(path) for path in (args.save, args.grid) if path)}")
    return 0


def _digits() -> list[tuple[str, Image.Image]]:
    """Take every 84th test digit: they are sorted by class, so all ten classes are among them."""
    digits = Mnist5k(train=False)
    return [(f"test digit {i}, a {digits[i]['target']}", digits[i]["image"]) for i in range(0, len(digits), 84)]


def _draw(image: Image.Image, top: list[dict[str, Any]], path: Path) -> None:
    from linvit.inference.pictures.classes import Prediction, draw_prediction

    path.parent.mkdir(parents=True, exist_ok=True)
    draw_prediction(Prediction(image, [t["class"] for t in top], [t["probability"] for t in top]), path)


def _with_attention(classifier: Classifier, name: str, image: Image.Image, top: list[dict[str, Any]]) -> Any:
    """Return the prediction with what the model's attention looked at, drawn over the image as the model saw it."""
    from linvit.analysis import has_attention, received_map
    from linvit.inference.pictures.classes import Prediction

    pixels = classifier.transform(image)
    attention = None
    if has_attention(classifier.model):
        attention = received_map(classifier.model, pixels[None].to(classifier.device)).cpu().numpy()
    mean, std = (pixels.new_tensor(classifier.input_config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    seen = ((pixels * std + mean).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    classes, probabilities = [t["class"] for t in top], [t["probability"] for t in top]
    return Prediction(Image.fromarray(seen), classes, probabilities, Path(name).name, attention)
