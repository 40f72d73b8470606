"""``linvit eval MODEL DATA``: top-1, top-5 and loss of a model on a data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from linvit.checkpoints import class_names, load_model
from linvit.cli.common import Parser, print_facts, print_json, progress
from linvit.data import collate, eval_dataset
from linvit.tasks.inference import Classifier, Evaluation


def run(argv: Sequence[str]) -> int:
    """Run the command; see ``linvit eval --help``."""
    parser = Parser("eval", "Measure a classifier on a data set.", "linvit eval runs/demo mnist5k")
    parser.add_model()
    parser.add_argument("data", metavar="DATA", help="folder with val/CLASS/IMAGE or CLASS/IMAGE, or mnist5k")
    parser.add_runtime()
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (64)")
    parser.add_argument("--workers", type=int, default=2, help="processes that load images (2)")
    parser.add_argument("--strict", action="store_true", help="stop at an unreadable image instead of leaving it out")
    parser.add_argument("--confusion", type=Path, metavar="PNG", help="draw the confusion matrix into this file")
    args = parser.parse_args(argv)
    if args.batch_size < 1 or args.workers < 0:
        raise ValueError(f"--batch-size {args.batch_size} must be 1 or more and --workers {args.workers} 0 or more")

    model: Any = load_model(args.model)
    classifier = Classifier(model, args.device, args.precision, args.img_size, args.crop_pct)
    names = class_names(model)
    if model.num_classes != 1000 and not model.pretrained_cfg.get("label_names"):  # a bare checkpoint has no names
        names = _folders_as_names(args.data, len(names))
    dataset = eval_dataset(args.data, names, classifier.transform, args.strict)
    loader = DataLoader(dataset, args.batch_size, num_workers=args.workers, collate_fn=collate)
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
