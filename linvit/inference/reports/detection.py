"""The evaluation of detectors: COCO's average precisions, of all classes and of each."""

import json
from pathlib import Path
from typing import Any

from linvit.checkpoints import load_model
from linvit.files import atomic_write
from linvit.inference.base import Report, Show, plainly
from linvit.inference.coco import BOX_METRICS, CocoMetrics
from linvit.inference.detection import DetectionPredictor
from linvit.inference.reports.common import held_out_share, percent, speed, where

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
    split: str | None = None,
    results: Path | None = None,
) -> Report:
    """Measure a detector.

    Args:
        model: As for :func:`linvit.load_model`.
        data: A folder in COCO's layout, or ``digit-scenes``.
        untrained: Take random weights for a registered name.
        device: As for :class:`DetectionPredictor`, with ``precision`` and ``img_size``.
        precision: As there.
        img_size: As there.
        batch_size: Images at a time.
        workers: Processes that load images.
        strict: Raise on an unreadable image instead of leaving it out.
        show: Shows how far it has come.
        split: Which part of the data; None for the held-out one.
        results: Write what was found in COCO's format for results here.

    Raises:
        ValueError: A setting is wrong, or the data do not suit the model.
        OSError: The data are not there.
    """
    predictor = DetectionPredictor(load_model(model, untrained), device, precision, img_size)
    loader = predictor.load(data, split, batch_size, workers, strict, held_out_share(model))
    found = predictor.evaluate(loader, show)
    dataset: Any = loader.dataset
    if results:
        results.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(results) as temporary:
            temporary.write_text(json.dumps(found.results))
    size, max_size = predictor.model.input_size
    record = {
        **where(model, data, predictor, found),
        "split": dataset.part,
        "size": size,
        "max_size": max_size,
        **found.metrics(),
        "unreadable": found.unreadable,
    }
    facts = {
        "model": model,
        "data": f"{data}, {dataset.part} ({found.images:,} images)",
        "size": f"shorter side {size} pixels, longer side {max_size} at most",
        **speed(record),
    }
    both = {"boxes": found.boxes} | ({"masks": found.masks} if found.masks else {})
    overall = [{"": name} | _in_percent(metrics) for name, metrics in both.items()]
    by_class = [
        {"class": name} | {f"AP of {kind}": percent(metrics.by_class[name]) for kind, metrics in both.items()}
        for name in found.boxes.by_class
    ]
    return Report(record, [facts, overall, by_class], found.unreadable)


def _in_percent(metrics: CocoMetrics) -> dict[str, Any]:
    return {heading: percent(metrics.overall[name]) for name, heading in BOX_METRICS.items()}
