"""The evaluation of classifiers: accuracy, loss, calibration; by class, corrupted, several models alike."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import RealLabelsImagenet
from torch import Tensor

from linvit.checkpoints import load_model
from linvit.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption
from linvit.data.datasets import ImageFolder
from linvit.data.sources import Kind
from linvit.files import atomic_write
from linvit.inference.base import Report, Show, plainly
from linvit.inference.classification import ClassificationEvaluation, ClassificationPredictor
from linvit.inference.reports.common import held_out_share, speed, where

__all__ = ["evaluate"]


def evaluate(
    model: str,
    data: str,
    *,
    untrained: bool = False,
    device: str = "auto",
    precision: str = "float32",
    img_size: int | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    strict: bool = False,
    show: Show = plainly,
    crop_pct: float | None = None,
    crops: int = 1,
    source: Kind = "auto",
    split: str | None = None,
    real: bool = False,
    corrupt: Sequence[str] = (),
    against: Sequence[str] = (),
    chart: Path | None = None,
    per_class: Path | None = None,
    confusion: Path | None = None,
) -> Report:
    """Measure a classifier, or several alike.

    Args:
        model: As for :func:`linvit.load_model`, with exported files.
        data: A folder of class folders, shards, a data set of Hugging Face, or ``mnist5k``.
        untrained: Take random weights for a registered name.
        device: As for :class:`ClassificationPredictor`, with ``precision``, ``img_size``, ``crop_pct`` and ``crops``.
        precision: As there.
        img_size: As there.
        batch_size: Images at a time.
        workers: Processes that load images.
        strict: Raise on an unreadable image instead of leaving it out.
        show: Shows how far it has come.
        crop_pct: As for the predictor.
        crops: As there.
        source: What ``data`` names.
        split: Which part of the data; None for the held-out one.
        real: Count by the ReaL labels of ImageNet's validation images, too.
        corrupt: Kinds of corruption to repeat it with, five severities each; "all" for all.
        against: More models.
        chart: Draw the models beside each other into this PNG.
        per_class: Write images, accuracy and confusions of each class into this CSV.
        confusion: Draw the confusion matrix into this PNG.

    Raises:
        ValueError: A setting is wrong, or the data do not suit the model.
        OSError: The data are not there.
    """
    kinds = list(CORRUPTIONS) if list(corrupt) == ["all"] else list(corrupt)
    for kind in kinds:
        Corruption(kind, 1)
    if against and (confusion or per_class):
        raise ValueError("--confusion and --per-class are of one model: leave out --against")
    if len({model, *against}) <= len(against):
        raise ValueError("--against names a model twice")

    def measure(spec: str) -> dict[str, Any]:
        network = load_model(spec, untrained, exported=True)

        def run(what: str, corruption: Callable[[Image.Image], Image.Image] | None = None) -> Any:
            predictor = ClassificationPredictor(
                network, device, precision, img_size, crop_pct, crops=crops, corruption=corruption
            )
            share = held_out_share(spec)
            loader = predictor.load(data, split, batch_size, workers, strict, share, source)
            return predictor, loader.dataset, predictor.evaluate(loader, show, what)

        predictor, dataset, found = run("evaluating")
        record = _record(spec, data, predictor, found, crops) | {"split": dataset.split}
        if real:
            record |= _real(dataset, found)
        if kinds:
            record["corrupted_top1"] = {
                kind: [run(f"{kind} {severity}", Corruption(kind, severity))[2].top1 for severity in SEVERITIES]
                for kind in kinds
            }
        if per_class:
            _write_classes(found.confusion, predictor.classes, per_class)
        if confusion:
            _draw_confusion(found.confusion, predictor.classes, confusion)
        return record | {"unreadable": found.unreadable}

    records = [measure(spec) for spec in (model, *against)]
    if chart:
        from linvit.inference.pictures.metrics import plot_comparison

        plot_comparison({record["model"]: _shares(record) for record in records}, chart)
    tables: list[Any] = [[_row(record) for record in records]] if against else [_words(records[0])]
    return Report(records if against else records[0], tables, records[0]["unreadable"])


def _real(dataset: Any, found: ClassificationEvaluation) -> dict[str, float]:
    """Return the accuracies by the reassessed labels (Beyer et al., 2020), which come with timm."""
    labels = RealLabelsImagenet([""] * 50_000).real_labels
    paths = [path for path, _ in dataset.samples] if isinstance(dataset, ImageFolder) else []
    images = [Path(path).name for path in paths if path not in set(found.unreadable)]
    if not images or not set(images) <= labels.keys():
        raise ValueError("--real is for the 50,000 validation images of ImageNet, ILSVRC2012_val_00000001.JPEG and on")
    right = [
        [bool({*top[:k]} & {*labels[name]}) for k in (1, 5)]
        for name, top in zip(images, found.top.tolist(), strict=True)
        if labels[name]  # images that show nothing of the 1,000 classes do not count
    ]
    return {f"real_top{k}": sum(hit[i] for hit in right) / len(right) for i, k in enumerate((1, 5))}


def _record(
    model: str, data: str, predictor: ClassificationPredictor, found: ClassificationEvaluation, crops: int
) -> dict[str, Any]:
    config = predictor.input_config
    return {
        **where(model, data, predictor, found),
        "img_size": list(config["input_size"][1:]),
        "crop_pct": config["crop_pct"],
        "crops": crops,
        "interpolation": config["interpolation"],
        **found.metrics(),
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
        "data": f"{record['data']}, {record['split']} ({record['images']:,} images)",
        "size": f"{height}x{width} pixels, {record['interpolation']}, {crops}",
        **{name: f"{share:.2%}" for name, share in _shares(record).items()},
        "loss": f"{record['loss']:.4f}",
        "calibration error": f"{record['calibration_error']:.2%}",
        **speed(record),
    }
    for kind, found in record.get("corrupted_top1", {}).items():
        words[kind.replace("_", " ")] += "  by severity: " + ", ".join(f"{top1:.1%}" for top1 in found)
    return words


def _write_classes(confusion: Tensor, names: Sequence[str], path: Path) -> None:
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


def _draw_confusion(counts: Tensor, names: Sequence[str], path: Path) -> None:
    from linvit.inference.pictures.metrics import plot_confusion

    seen = torch.nonzero(counts.sum(0) + counts.sum(1)).flatten()  # a subset of ImageNet has few of its 1,000 classes
    plot_confusion(counts[seen][:, seen].numpy(), [names[i] for i in seen], path)
