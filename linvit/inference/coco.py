"""COCO's metrics: average precision of boxes or masks, as COCO's own tools count it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from linvit.data.coco import Record, encode_mask
from linvit.data.detection_sets import DetectionSet

__all__ = ["BOX_METRICS", "MASK_METRICS", "CocoMetrics", "coco_metrics", "coco_results"]

BOX_METRICS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "AP S", "ap_medium": "AP M", "ap_large": "AP L"}
MASK_METRICS = {f"mask_{name}": f"mask {heading}" for name, heading in BOX_METRICS.items()}


@dataclass(frozen=True)
class CocoMetrics:
    """Average precisions as shares of 1; None where there is nothing annotated to find.

    Attributes:
        overall: By the names of BOX_METRICS.
        by_class: Of each category, by its name.
    """

    overall: dict[str, float | None]
    by_class: dict[str, float | None]


def coco_results(found: dict[str, Tensor], image_id: int, dataset: DetectionSet) -> list[Record]:
    """Return what was found on an image in COCO's format for results.

    Args:
        found: ``boxes [N, 4]`` (left, top, right, bottom in pixels), ``scores``, ``labels`` and maybe ``masks``.
        image_id: The image's id in the data.
        dataset: The data, whose categories are named; what it has no category for is left out.
    """
    corners = found["boxes"].detach().float().cpu()
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)
    masks = found["masks"].cpu().numpy() if "masks" in found else [None] * len(boxes)
    rows = zip(boxes.tolist(), found["scores"].tolist(), found["labels"].tolist(), masks, strict=True)
    return [
        {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
        | ({} if mask is None else {"segmentation": encode_mask(mask)})
        for box, score, label, mask in rows
        if (category := dataset.category_id(label)) >= 0
    ]


def coco_metrics(
    truth: dict[str, Any], results: Sequence[Record], image_ids: Iterable[int], kind: Literal["bbox", "segm"] = "bbox"
) -> CocoMetrics:
    """Count average precision at IoU 0.50 to 0.95 with at most 100 detections per image.

    Args:
        truth: The annotations, in COCO's format.
        results: What was found, in COCO's format.
        image_ids: The images to count; those without results count, too.
        kind: Compare boxes or masks.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    annotations = [_complete(each) for each in truth["annotations"]]
    annotated = COCO({"images": truth["images"], "categories": truth["categories"], "annotations": annotations})
    found = annotated.loadRes([dict(each) for each in results]) if results else COCO(truth | {"annotations": []})
    count = COCOeval_faster(annotated, found, kind)
    count.params.imgIds = sorted(image_ids)
    count.evaluate()
    count.accumulate()
    count.summarize()
    overall = {name: _known(value) for name, value in zip(BOX_METRICS, count.stats[:6], strict=True)}
    precision = np.asarray(count.eval["precision"])[:, :, :, 0, -1]  # [IoU, recall, category], all sizes, 100 each
    names = {each["id"]: each["name"] for each in truth["categories"]}
    by_class = {}
    for place, category in enumerate(count.params.catIds):
        counted = precision[:, :, place]
        by_class[names[category]] = float(counted.mean()) if (counted > -1).all() else None
    return CocoMetrics(overall, by_class)


def _complete(annotation: Record) -> Record:
    """Return a copy, because COCO's tools write into records, without null: a missing area is that of the box."""
    area, crowd = annotation.get("area"), annotation.get("iscrowd")
    wide, high = annotation["bbox"][2:]
    return annotation | {"area": wide * high if area is None else area, "iscrowd": int(crowd or 0)}


def _known(value: float) -> float | None:
    return float(value) if value >= 0 else None
