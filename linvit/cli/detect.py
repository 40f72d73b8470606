"""What ``linvit eval`` and ``linvit predict`` do with a detector."""

import json
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from linvit.checkpoints import class_names, load_model
from linvit.cli.common import SPLIT_OPTION, load_sources, print_facts, print_json, print_rows, progress
from linvit.data.coco import encode_mask
from linvit.data.detection_sets import collate_detection, eval_detection_set
from linvit.data.digit_scenes import NAME, DigitScenes
from linvit.data.images import find_images
from linvit.files import atomic_write
from linvit.inference.coco import BOX_FIGURES, CocoFigures
from linvit.inference.detection import DetectionEvaluation, Detector

TITLE = "detection"

EVAL_OPTIONS: dict[str, dict[str, Any]] = {
    **SPLIT_OPTION,
    "--results": {"type": Path, "metavar": "JSON", "help": "write what was found in COCO's format for results here"},
}

PREDICT_OPTIONS: dict[str, dict[str, Any]] = {
    "--min-score": {"type": float, "default": 0.5, "metavar": "SHARE", "help": "leave out what scores less (0.5)"},
}


def run_eval(args: Namespace) -> int:
    """Report COCO's average precisions."""
    detector = Detector(load_model(args.model), args.device, args.precision, args.img_size)
    names = class_names(detector.model)
    dataset = eval_detection_set(args.data, args.split, names, args.strict, detector.model.has_masks)
    loader = DataLoader(dataset, args.batch_size or 1, num_workers=args.workers, collate_fn=collate_detection)
    result = detector.evaluate(progress(loader, len(loader), "evaluating"), dataset)
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(args.results) as temporary:
            temporary.write_text(json.dumps(result.results))
    if args.json:
        print_json(_record(args, dataset.part, detector, result))
        return 0
    size, max_size = detector.model.input_size
    print_facts(
        {
            "model": args.model,
            "data": f"{args.data}, {dataset.part} ({result.images:,} images)",
            "size": f"shorter side {size} pixels, longer side {max_size} at most",
            "precision": f"{args.precision} on {detector.device}",
            "speed": f"{result.images / result.seconds:.1f} images/s",
        }
    )
    both = {"boxes": result.boxes} | ({"masks": result.masks} if result.masks else {})
    print_rows({"": name} | _in_percent(figures) for name, figures in both.items())
    print_rows(
        {"class": name} | {f"AP of {kind}": _percent(figures.by_class[name]) for kind, figures in both.items()}
        for name in result.boxes.by_class
    )
    if result.unreadable:
        print(f"{len(result.unreadable)} unreadable images left out: {', '.join(result.unreadable[:5])}")
    return 0


def _record(args: Namespace, part: str, detector: Detector, result: DetectionEvaluation) -> dict[str, Any]:
    size, max_size = detector.model.input_size
    masks: dict[str, Any] = {}
    if result.masks:
        masks = {f"mask_{name}": value for name, value in result.masks.overall.items()}
        masks["mask_ap_by_class"] = result.masks.by_class
    return {
        "model": args.model,
        "data": args.data,
        "split": part,
        "images": result.images,
        "size": size,
        "max_size": max_size,
        "precision": args.precision,
        "device": str(detector.device),
        **result.boxes.overall,
        "ap_by_class": result.boxes.by_class,
        **masks,
        "images_per_second": result.images / result.seconds,
        "unreadable": result.unreadable,
    }


def _in_percent(figures: CocoFigures) -> dict[str, str]:
    return {heading: _percent(figures.overall[name]) for name, heading in BOX_FIGURES.items()}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def run_predict(args: Namespace) -> int:
    """Report what is on images."""
    if not 0 <= args.min_score <= 1:
        raise ValueError(f"--min-score must be from 0 to 1, got {args.min_score}")
    sources = _scenes() if args.images == [NAME] else find_images(args.images)
    detector = Detector(load_model(args.model), args.device, args.precision, args.img_size)
    names = class_names(detector.model)
    records: list[dict[str, Any]] = []
    for name, image in load_sources(progress(sources, len(sources), "searching"), args.strict):
        found = detector.predict(image, args.min_score)
        records.append(
            {"image": name, "width": image.width, "height": image.height, "detections": _detections(found, names)}
        )
        if args.save:
            _draw(image, found, names, args.save / f"{len(records):04d}_{Path(name).stem}.png")
    if not records:
        raise ValueError(f"none of the {len(sources)} images could be read")
    if args.json:
        print_json(records)
        return 0
    print_rows(
        {"image": each["image"], "found": _counted(each["detections"]), "best": _best(each["detections"])}
        for each in records
    )
    if args.save:
        print(f"pictures in {args.save}")
    return 0


def _scenes() -> list[tuple[str, Image.Image]]:
    return [(f"held-out scene {i}", scene.image) for i, scene in enumerate(DigitScenes(train=False)[:12])]


def _detections(found: dict[str, Tensor], names: list[str]) -> list[dict[str, Any]]:
    """Return detections in the words of COCO's results: bbox is left, top, width, height in pixels."""
    made = []
    for i, (left, top, right, bottom) in enumerate(found["boxes"].tolist()):
        label = int(found["labels"][i])
        record = {"class": names[label], "index": label, "score": float(found["scores"][i])}
        record["bbox"] = [left, top, right - left, bottom - top]
        if "masks" in found:
            record["segmentation"] = encode_mask(found["masks"][i].numpy())
        made.append(record)
    return made


def _counted(detections: list[dict[str, Any]]) -> str:
    counts = Counter(each["class"] for each in detections)
    return ", ".join(f"{count} x {name}" for name, count in counts.most_common()) or "nothing"


def _best(detections: list[dict[str, Any]]) -> str:
    return f"{detections[0]['class']} {detections[0]['score']:.1%}" if detections else "-"


def _draw(image: Image.Image, found: dict[str, Tensor], names: list[str], path: Path) -> None:
    from linvit.inference.pictures.boxes import Detection, draw_detections

    path.parent.mkdir(parents=True, exist_ok=True)
    masks = found["masks"].numpy() if "masks" in found else [None] * len(found["boxes"])
    rows = zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), masks, strict=True)
    draw_detections(image, [Detection(box, names[label], label, score, mask) for box, label, score, mask in rows], path)
