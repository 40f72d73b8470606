"""What ``linvit eval`` does with classifiers: figures, per class, corrupted, and several models side by side."""

import csv
import io
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image
from timm.data import RealLabelsImagenet
from torch import Tensor
from torch.utils.data import DataLoader

from linvit.checkpoints import class_names, load_model
from linvit.cli.common import print_facts, print_json, print_rows, progress
from linvit.data import collate, eval_dataset
from linvit.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption
from linvit.data.datasets import ImageFolder
from linvit.data.sources import Kind
from linvit.files import atomic_write
from linvit.inference.classification import Classifier, Evaluation

__all__ = ["CROP", "EVAL_OPTIONS", "run_eval"]

CROP = {"--crop-pct": {"type": float, "metavar": "SHARE", "help": "share that the crop keeps (the model's)"}}

EVAL_OPTIONS: dict[str, dict[str, Any]] = {
    **CROP,
    "--source": {
        "choices": get_args(Kind),
        "default": "auto",
        "help": "what DATA names, as --data.source in training: class folders; shards, such as "
        "https://HOST/val-{00..15}.tar; or a Hugging Face data set's folder or name (auto: all but that name)",
    },
    "--crops": {"type": int, "default": 1, "metavar": "N", "help": "1, 5 or 10 crops of each image (1)"},
    "--real": {"action": "store_true", "default": False, "help": "also by the ReaL labels of ImageNet's validation"},
    "--corrupt": {
        "nargs": "+",
        "metavar": "KIND",
        "help": f"also with corrupted images, five severities each: all, or {', '.join(CORRUPTIONS)}",
    },
    "--against": {"nargs": "+", "default": [], "metavar": "MODEL", "help": "more models, evaluated alike"},
    "--chart": {"type": Path, "metavar": "PNG", "help": "draw the models side by side into this file"},
    "--per-class": {"type": Path, "metavar": "CSV", "help": "write images, accuracy and confusions of each class here"},
    "--confusion": {"type": Path, "metavar": "PNG", "help": "draw the confusion matrix into this file"},
}


def run_eval(args: Namespace) -> int:
    """Report accuracies, loss and calibration."""
    kinds = _kinds(args.corrupt)
    if args.against and (args.confusion or args.per_class):
        raise ValueError("--confusion and --per-class are of one model: leave out --against")
    if len({args.model, *args.against}) <= len(args.against):
        raise ValueError("--against names a model twice")
    records = [_measure(args, spec, kinds) for spec in (args.model, *args.against)]
    unreadable = records[0]["unreadable"]
    if args.json:
        print_json(records if args.against else records[0])
    elif args.against:
        print_rows([_row(record) for record in records])
    else:
        print_facts(_words(records[0]))
    if unreadable and not args.json:
        print(f"{len(unreadable)} unreadable images left out: {', '.join(unreadable[:5])}")
    if args.chart:
        from linvit.analysis.plots import plot_comparison

        args.chart.parent.mkdir(parents=True, exist_ok=True)
        plot_comparison({record["model"]: _shares(record) for record in records}, args.chart)
    return 0


def _kinds(given: list[str] | None) -> list[str]:
    kinds = list(CORRUPTIONS) if given == ["all"] else given or []
    for kind in kinds:
        Corruption(kind, 1)
    return kinds


def _measure(args: Namespace, spec: str, kinds: list[str]) -> dict[str, Any]:
    """Evaluate one model, clean and corrupted."""
    model: Any = load_model(spec)
    names = class_names(model)
    if model.num_classes != 1000 and not model.pretrained_cfg.get("label_names"):  # a bare checkpoint has no names
        names = _own_names(args, len(names))

    def evaluate(what: str, corruption: Callable[[Image.Image], Image.Image] | None = None) -> Any:
        classifier = Classifier(
            model, args.device, args.precision, args.img_size, args.crop_pct, args.crops, corruption
        )
        dataset = eval_dataset(args.data, names, classifier.transform, args.strict, args.source)
        loader = DataLoader(dataset, args.batch_size or 64, num_workers=args.workers, collate_fn=collate)
        return classifier, dataset, classifier.evaluate(progress(loader, len(loader), what))

    classifier, dataset, result = evaluate("evaluating")
    record = _record(args, spec, classifier, result)
    if args.real:
        record |= _real(dataset, result)
    if kinds:
        record["corrupted_top1"] = {
            kind: [evaluate(f"{kind} {severity}", Corruption(kind, severity))[2].top1 for severity in SEVERITIES]
            for kind in kinds
        }
    if args.per_class:
        _write_classes(result.confusion, class_names(model, readable=True), args.per_class)
    if args.confusion:
        _draw_confusion(result, class_names(model, readable=True), args.confusion)
    return record | {"unreadable": result.unreadable}


def _own_names(args: Namespace, num_classes: int) -> list[str]:
    names = eval_dataset(args.data, source=args.source).classes
    if len(names) != num_classes:
        raise ValueError(
            f"the checkpoint has {num_classes} classes without names, {args.data} has {len(names)}: give its run folder"
        )
    return names


def _real(dataset: Any, result: Evaluation) -> dict[str, float]:
    """Return the accuracies by the reassessed labels (Beyer et al., 2020), which come with timm."""
    labels = RealLabelsImagenet([""] * 50_000).real_labels
    paths = [path for path, _ in dataset.samples] if isinstance(dataset, ImageFolder) else []
    images = [Path(path).name for path in paths if path not in set(result.unreadable)]
    if not images or not set(images) <= labels.keys():
        raise ValueError("--real is for the 50,000 validation images of ImageNet, ILSVRC2012_val_00000001.JPEG and on")
    right = [
        [bool({*top[:k]} & {*labels[name]}) for k in (1, 5)]
        for name, top in zip(images, result.top.tolist(), strict=True)
        if labels[name]  # images that show nothing of the 1,000 classes do not count
    ]
    return {f"real_top{k}": sum(hit[i] for hit in right) / len(right) for i, k in enumerate((1, 5))}


def _record(args: Namespace, spec: str, classifier: Classifier, result: Evaluation) -> dict[str, Any]:
    config = classifier.input_config
    return {
        "model": spec,
        "data": args.data,
        "images": result.images,
        "img_size": list(config["input_size"][1:]),
        "crop_pct": config["crop_pct"],
        "crops": args.crops,
        "interpolation": config["interpolation"],
        "precision": args.precision,
        "device": str(classifier.device),
        "top1": result.top1,
        "top5": result.top5,
        "loss": result.loss,
        "calibration_error": result.calibration_error,
        "images_per_second": result.images / result.seconds,
    }


def _shares(record: dict[str, Any]) -> dict[str, float]:
    """Return the accuracies of a record; of each corruption the mean over its severities."""
    shares = {"top-1": record["top1"], "top-5": record["top5"]}
    if "real_top1" in record:
        shares |= {"ReaL top-1": record["real_top1"], "ReaL top-5": record["real_top5"]}
    corrupted = record.get("corrupted_top1", {})
    return shares | {kind.replace("_", " "): sum(found) / len(found) for kind, found in corrupted.items()}


def _row(record: dict[str, Any]) -> dict[str, str]:
    return {
        "model": record["model"],
        "size": "x".join(map(str, record["img_size"])),
        **{name: f"{share:.2%}" for name, share in _shares(record).items()},
        "loss": f"{record['loss']:.4f}",
        "calibration error": f"{record['calibration_error']:.2%}",
        "images/s": f"{record['images_per_second']:.1f}",
    }


def _words(record: dict[str, Any]) -> dict[str, str]:
    height, width = record["img_size"]
    crops = f"crop {record['crop_pct']}" + (f", {record['crops']} crops" if record["crops"] > 1 else "")
    words = {
        "model": record["model"],
        "data": f"{record['data']} ({record['images']:,} images)",
        "size": f"{height}x{width} pixels, {record['interpolation']}, {crops}",
        "precision": f"{record['precision']} on {record['device']}",
        **{name: f"{share:.2%}" for name, share in _shares(record).items()},
        "loss": f"{record['loss']:.4f}",
        "calibration error": f"{record['calibration_error']:.2%}",
        "speed": f"{record['images_per_second']:.1f} images/s",
    }
    for kind, found in record.get("corrupted_top1", {}).items():
        words[kind.replace("_", " ")] += "  by severity: " + ", ".join(f"{top1:.1%}" for top1 in found)
    return words


def _write_classes(confusion: Tensor, names: list[str], path: Path) -> None:
    """Write a row for each class that occurs: images, accuracy, precision, and what it is taken for most."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["class", "images", "accuracy", "precision", "taken for", "times"])
    for index, (name, counts) in enumerate(zip(names, confusion, strict=True)):
        if images := int(counts.sum()):
            right, predicted = int(counts[index]), int(confusion[:, index].sum())
            others = counts.clone()
            others[index] = 0
            times, other = (int(value) for value in others.max(dim=0))
            precision = f"{right / predicted:.4f}" if predicted else ""
            rows.writerow([name, images, f"{right / images:.4f}", precision, names[other] if times else "", times])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _draw_confusion(result: Evaluation, names: list[str], path: Path) -> None:
    from linvit.analysis.plots import plot_confusion

    counts = result.confusion
    seen = torch.nonzero(counts.sum(0) + counts.sum(1)).flatten()  # a subset of ImageNet has few of its 1,000 classes
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_confusion(counts[seen][:, seen].numpy(), [names[i] for i in seen], path)
