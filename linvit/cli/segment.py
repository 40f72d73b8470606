"""What ``linvit eval`` and ``linvit predict`` do with a segmentation network."""

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from linvit.checkpoints import class_names, load_model
from linvit.cli.common import SPLIT_OPTION, at_least, load_sources, print_facts, print_json, print_rows, progress
from linvit.data.digit_scenes import NAME, DigitScenes
from linvit.data.images import find_images
from linvit.data.joint import eval_transform
from linvit.data.mask_datasets import collate_masks, eval_masks, part_of
from linvit.inference.pictures.masks import draw_overlay, save_mask
from linvit.inference.segmentation import SegmentationEvaluation, SegmentationPredictor

TITLE = "segmentation"

_WINDOWS: dict[str, dict[str, Any]] = {
    "--window": {
        "type": at_least(0),
        "metavar": "PIXELS",
        "help": "predict in windows of this side, 0: whole images (the model's)",
    },
    "--stride": {
        "type": at_least(1),
        "metavar": "PIXELS",
        "help": "distance between windows (the model's; or two thirds of --window)",
    },
}

EVAL_OPTIONS: dict[str, dict[str, Any]] = {
    **_WINDOWS,
    **SPLIT_OPTION,
}

PREDICT_OPTIONS: dict[str, dict[str, Any]] = {
    **_WINDOWS,
    "--masks": {"type": Path, "metavar": "DIR", "help": "write each image's classes here, as a PNG of mask values"},
}


def run_eval(args: Namespace) -> int:
    """Report mIoU, mAcc and aAcc, and both figures of each class."""
    predictor, names = _predictor(args)
    split = part_of(args.data, args.split)
    transform = eval_transform(**predictor.input_config)
    dataset = eval_masks(args.data, split, names, predictor.code, transform, args.strict)
    loader = DataLoader(dataset, batch_size=1, num_workers=args.workers, collate_fn=collate_masks)
    result = predictor.evaluate(progress(loader, len(loader), "evaluating"))
    record = _record(args, predictor, split, result)
    classes = _classes(names, result)
    if args.json:
        print_json(record | {"classes": classes, "unreadable": result.unreadable})
        return 0
    print_rows(
        {"class": row["class"], "IoU": _share(row["iou"]), "Acc": _share(row["acc"]), "pixels": f"{row['pixels']:,}"}
        for row in classes
    )
    print_facts(_words(record))
    if result.unreadable:
        print(f"{len(result.unreadable)} unreadable files left out: {', '.join(result.unreadable[:5])}")
    return 0


def run_predict(args: Namespace) -> int:
    """Report the share of each class in images, and write pictures and masks."""
    predictor, names = _predictor(args)
    sources = _scenes() if args.images == [NAME] else find_images(args.images)
    records: list[dict[str, Any]] = []
    for name, image in load_sources(progress(sources, len(sources), "predicting"), args.strict):
        mask = predictor.predict(image)
        shares = np.bincount(mask.ravel(), minlength=len(names)) / mask.size
        found = [
            {"class": names[i], "share": float(shares[i])} for i in np.argsort(-shares, kind="stable") if shares[i]
        ]
        record: dict[str, Any] = {"image": name, "width": image.width, "height": image.height, "classes": found}
        stem = f"{len(records) + 1:04d}_{Path(name).stem}.png"  # folders may share names
        for kind, folder in (("picture", args.save), ("mask", args.masks)):
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
                record[kind] = str(folder / stem)
        if args.save:
            draw_overlay(image, mask, names, record["picture"])
        if args.masks:
            save_mask(mask, predictor.code.values, record["mask"])
        records.append(record)
    if not records:
        raise ValueError(f"none of the {len(sources)} images could be read")
    if args.json:
        print_json(records)
        return 0
    print_rows(
        {
            "image": record["image"],
            "size": f"{record['width']}x{record['height']}",
            "share of the pixels": ", ".join(f"{row['class']} {row['share']:.1%}" for row in record["classes"][:5]),
        }
        for record in records
    )
    if args.save or args.masks:
        print(f"written into {' and '.join(str(path) for path in (args.save, args.masks) if path)}")
    return 0


def _predictor(args: Namespace) -> tuple[SegmentationPredictor, list[str]]:
    model: Any = load_model(args.model)
    predictor = SegmentationPredictor(
        model, args.device, args.precision, args.img_size, window=args.window, stride=args.stride
    )
    return predictor, class_names(model)


def _scenes() -> list[tuple[str, Image.Image]]:
    """Take the first twelve held-out digit scenes."""
    return [(f"digit scene {i}", scene.image) for i, scene in enumerate(DigitScenes(train=False)[:12])]


def _classes(names: list[str], result: SegmentationEvaluation) -> list[dict[str, Any]]:
    figures = result.figures
    columns = (names, figures.iou.tolist(), figures.acc.tolist(), figures.pixels.tolist())
    return [{"class": name, "iou": iou, "acc": acc, "pixels": n} for name, iou, acc, n in zip(*columns, strict=True)]


def _record(
    args: Namespace, predictor: SegmentationPredictor, split: str, result: SegmentationEvaluation
) -> dict[str, Any]:
    return {
        "model": args.model,
        "data": args.data,
        "split": split,
        "images": result.images,
        "short_side": predictor.input_config["short_side"],
        "window": predictor.model.window,
        "stride": predictor.model.stride,
        "precision": args.precision,
        "device": str(predictor.device),
        "miou": result.figures.miou,
        "macc": result.figures.macc,
        "aacc": result.figures.aacc,
        "images_per_second": result.images / result.seconds,
    }


def _words(record: dict[str, Any]) -> dict[str, str]:
    side, window = record["short_side"], record["window"]
    size = "as it is" if side is None else f"shorter side {side} pixels"
    seen = "whole images" if window is None else f"windows of {window}x{window} pixels every {record['stride']}"
    return {
        "model": record["model"],
        "data": f"{record['data']}, {record['split']} ({record['images']:,} images)",
        "size": f"{size}, {seen}",
        "precision": f"{record['precision']} on {record['device']}",
        "mIoU": _share(record["miou"]),
        "mAcc": _share(record["macc"]),
        "aAcc": _share(record["aacc"]),
        "speed": f"{record['images_per_second']:.2f} images/s",
    }


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2%}"
