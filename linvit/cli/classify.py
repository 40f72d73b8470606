"""What ``linvit eval`` and ``linvit predict`` do with a classifier."""

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader

from linvit.checkpoints import class_names, load_model
from linvit.cli.common import print_facts, print_json, print_rows, progress
from linvit.data import collate, eval_dataset
from linvit.data.datasets import Mnist5k
from linvit.data.images import UnreadableImage, find_images, load_image
from linvit.tasks.inference import Classifier, Evaluation

TITLE = "classification"
EMBEDDED = "mnist5k"
MOST_IN_GRID = 48


_CROP = {"--crop-pct": {"type": float, "metavar": "SHARE", "help": "share that the crop keeps (the model's)"}}

EVAL_OPTIONS: dict[str, dict[str, Any]] = {
    **_CROP,
    "--confusion": {"type": Path, "metavar": "PNG", "help": "draw the confusion matrix into this file"},
}

PREDICT_OPTIONS: dict[str, dict[str, Any]] = {
    **_CROP,
    "--top": {"type": int, "default": 5, "metavar": "K", "help": "how many classes to name (5)"},
    "--grid": {"type": Path, "metavar": "PNG", "help": "write all images, with classes and attention, here"},
}


def run_eval(args: Namespace) -> int:
    """Report top-1, top-5 and loss."""
    model: Any = load_model(args.model)
    classifier = Classifier(model, args.device, args.precision, args.img_size, args.crop_pct)
    names = class_names(model)
    if model.num_classes != 1000 and not model.pretrained_cfg.get("label_names"):  # a bare checkpoint has no names
        names = _folders_as_names(args.data, len(names))
    dataset = eval_dataset(args.data, names, classifier.transform, args.strict)
    loader = DataLoader(dataset, args.batch_size or 64, num_workers=args.workers, collate_fn=collate)
    result = classifier.evaluate(progress(loader, len(loader), "evaluating"))
    record = _record(args, classifier, result)
    if args.json:
        print_json(record | {"unreadable": result.unreadable})
    else:
        print_facts(_words(record))
        if result.unreadable:
            print(f"{len(result.unreadable)} unreadable images left out: {', '.join(result.unreadable[:5])}")
    if args.confusion:
        _draw_confusion(result, class_names(model, readable=True), args.confusion)
    return 0


def _folders_as_names(data: str, num_classes: int) -> list[str]:
    names = eval_dataset(data).classes
    if len(names) != num_classes:
        raise ValueError(
            f"the checkpoint has {num_classes} classes without names, {data} has {len(names)}: give its run folder"
        )
    return names


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
    for name, image in _load(progress(sources, len(sources), "predicting"), args.strict):
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
        from linvit.analysis.pictures import draw_predictions

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


def _load(sources: Any, strict: bool) -> Iterator[tuple[str, Image.Image]]:
    for source in sources:
        if isinstance(source, tuple):
            yield source
            continue
        try:
            yield str(source), load_image(source)
        except UnreadableImage as error:
            if strict:
                raise
            print(f"linvit: passed over: {error}", file=sys.stderr)


def _draw(image: Image.Image, top: list[dict[str, Any]], path: Path) -> None:
    from linvit.analysis.pictures import Prediction, draw_prediction

    path.parent.mkdir(parents=True, exist_ok=True)
    draw_prediction(Prediction(image, [t["class"] for t in top], [t["probability"] for t in top]), path)


def _with_attention(classifier: Classifier, name: str, image: Image.Image, top: list[dict[str, Any]]) -> Any:
    """Return the prediction with what the model's attention looked at, drawn over the image as the model saw it."""
    from linvit.analysis.attention import attention_received, has_attention
    from linvit.analysis.pictures import Prediction

    pixels = classifier.transform(image)
    attention = None
    if has_attention(classifier.model):
        attention = attention_received(classifier.model, pixels[None].to(classifier.device))[0].cpu().numpy()
    mean, std = (pixels.new_tensor(classifier.input_config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    seen = ((pixels * std + mean).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    classes, probabilities = [t["class"] for t in top], [t["probability"] for t in top]
    return Prediction(Image.fromarray(seen), classes, probabilities, Path(name).name, attention)


def _record(args: Any, classifier: Classifier, result: Evaluation) -> dict[str, Any]:
    config = classifier.input_config
    return {
        "model": args.model,
        "data": args.data,
        "images": result.images,
        "img_size": list(config["input_size"][1:]),
        "crop_pct": config["crop_pct"],
        "interpolation": config["interpolation"],
        "precision": args.precision,
        "device": str(classifier.device),
        "top1": result.top1,
        "top5": result.top5,
        "loss": result.loss,
        "images_per_second": result.images / result.seconds,
    }


def _words(record: dict[str, Any]) -> dict[str, str]:
    height, width = record["img_size"]
    return {
        "model": record["model"],
        "data": f"{record['data']} ({record['images']:,} images)",
        "size": f"{height}x{width} pixels, {record['interpolation']}, crop {record['crop_pct']}",
        "precision": f"{record['precision']} on {record['device']}",
        "top-1": f"{record['top1']:.2%}",
        "top-5": f"{record['top5']:.2%}",
        "loss": f"{record['loss']:.4f}",
        "speed": f"{record['images_per_second']:.1f} images/s",
    }


def _draw_confusion(result: Evaluation, names: list[str], path: Path) -> None:
    from linvit.analysis.plots import plot_confusion

    counts = result.confusion
    seen = torch.nonzero(counts.sum(0) + counts.sum(1)).flatten()  # a subset of ImageNet has few of its 1,000 classes
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_confusion(counts[seen][:, seen].numpy(), [names[i] for i in seen], path)
