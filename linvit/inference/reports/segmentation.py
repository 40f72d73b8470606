"""The evaluation of segmentation networks: mIoU, mAcc and aAcc, and IoU and accuracy of each class."""

from typing import Any

from linvit.checkpoints import class_names, load_model
from linvit.inference.base import Report, Show, plainly
from linvit.inference.reports.common import held_out_share, percent, speed, where
from linvit.inference.segmentation import SegmentationPredictor

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
    window: int | None = None,
    stride: int | None = None,
) -> Report:
    """Measure a segmentation network.

    Args:
        model: As for :func:`linvit.load_model`.
        data: A folder of images and masks, or ``digit-scenes``.
        untrained: Take random weights for a registered name.
        device: As for :class:`SegmentationPredictor`, with ``precision``, ``img_size``, ``window`` and ``stride``.
        precision: As there.
        img_size: As there.
        batch_size: Images at a time: 1.
        workers: Processes that load images.
        strict: Raise on an unreadable file instead of leaving it out.
        show: Shows how far it has come.
        split: Which part of the data; None for the held-out one.
        window: As for the predictor.
        stride: As there.

    Raises:
        ValueError: A setting is wrong, or the data do not suit the model.
        OSError: The data are not there.
    """
    predictor = SegmentationPredictor(load_model(model, untrained), device, precision, img_size, window, stride)
    loader = predictor.load(data, split, batch_size, workers, strict, held_out_share(model))
    dataset: Any = loader.dataset
    found = predictor.evaluate(loader, show)
    columns = (class_names(predictor.model), *(each.tolist() for each in (found.pixels.iou, found.pixels.acc)))
    classes = [
        {"class": name, "iou": iou, "acc": acc, "pixels": pixels}
        for name, iou, acc, pixels in zip(*columns, found.pixels.pixels.tolist(), strict=True)
    ]
    record = {
        **where(model, data, predictor, found),
        "split": dataset.part,
        "short_side": predictor.input_config["short_side"],
        "window": predictor.model.window,
        "stride": predictor.model.stride,
        **found.metrics(),
        "classes": classes,
        "unreadable": found.unreadable,
    }
    by_class = [
        {
            "class": each["class"],
            "IoU": percent(each["iou"]),
            "Acc": percent(each["acc"]),
            "pixels": f"{each['pixels']:,}",
        }
        for each in classes
    ]
    return Report(record, [by_class, _words(record)], found.unreadable)


def _words(record: dict[str, Any]) -> dict[str, str]:
    side, window = record["short_side"], record["window"]
    size = "as it is" if side is None else f"shorter side {side} pixels"
    seen = "whole images" if window is None else f"windows of {window}x{window} pixels every {record['stride']}"
    return {
        "model": record["model"],
        "data": f"{record['data']}, {record['split']} ({record['images']:,} images)",
        "size": f"{size}, {seen}",
        "mIoU": percent(record["miou"]),
        "mAcc": percent(record["macc"]),
        "aAcc": percent(record["aacc"]),
        **speed(record),
    }
