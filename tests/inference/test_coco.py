"""COCO's figures: equal to those of pycocotools on the same file of results."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from linvit.data.coco import encode_mask
from linvit.data.detection_sets import DigitDetection
from linvit.inference.coco import BOX_METRICS, coco_metrics, coco_results

SIDE = 300
SIZES = (12, 40, 120)  # small, medium, large


def ellipse(left: float, top: float, wide: float, high: float) -> dict[str, Any]:
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    inside = ((x - left - wide / 2) / (wide / 2)) ** 2 + ((y - top - high / 2) / (high / 2)) ** 2 <= 1
    return encode_mask(inside)


@pytest.fixture(scope="module")
def truth_and_results() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Twelve images, one without annotations, with crowds, a category never seen, near misses and inventions."""
    random = np.random.RandomState(0)
    images = [{"id": 3 * i, "width": SIDE, "height": SIDE} for i in range(12)]
    categories = [{"id": id, "name": name} for id, name in ((1, "a"), (4, "b"), (9, "never"))]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in images[1:]:
        for _ in range(random.randint(1, 9)):
            wide, high = random.choice(SIZES) * random.uniform(0.7, 1.2, 2)
            left, top = random.uniform(0, SIDE - wide), random.uniform(0, SIDE - high)
            box, category = [left, top, wide, high], int(random.choice([1, 4]))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": box,
                    "area": wide * high * 0.8,
                    "iscrowd": int(random.uniform() < 0.15),
                    "segmentation": ellipse(*box),
                }
            )
            for _ in range(random.randint(0, 3)):
                near = (np.array(box) + random.normal(0, 0.06, 4) * [wide, high, wide, high]).tolist()
                results.append({"image_id": image["id"], "category_id": category, "bbox": near})
    for image in images:
        results.append({"image_id": image["id"], "category_id": int(random.choice([1, 4])), "bbox": [5, 5, 50, 60]})
    for each in results:
        each |= {"score": float(random.uniform()), "segmentation": ellipse(*each["bbox"])}
    return {"images": images, "categories": categories, "annotations": annotations}, results


def by_pycocotools(folder: Path, truth: Any, results: Any, ids: list[int], kind: str) -> COCOeval:
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        annotated = COCO(str(folder / "truth.json"))
        count = COCOeval(annotated, annotated.loadRes(str(folder / "results.json")), kind)
        count.params.imgIds = ids
        count.evaluate()
        count.accumulate()
        count.summarize()
    return count


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("part", [slice(None), slice(0, 5)])
def test_figures_equal_those_of_pycocotools(tmp_path: Path, truth_and_results: Any, kind: Any, part: slice) -> None:
    truth, results = truth_and_results
    ids = [image["id"] for image in truth["images"]][part]
    shown = [each for each in results if each["image_id"] in ids]
    theirs = by_pycocotools(tmp_path, truth, shown, ids, kind)
    ours = coco_metrics(truth, shown, ids, kind)
    assert list(ours.overall) == list(BOX_METRICS)
    assert list(ours.overall.values()) == pytest.approx(theirs.stats[:6].tolist(), abs=1e-12)
    assert 0.1 < ours.overall["ap"] < 0.9  # type: ignore[operator]
    precision = theirs.eval["precision"][:, :, :, 0, -1]
    assert [ours.by_class[name] for name in "ab"] == pytest.approx([precision[:, :, k].mean() for k in (0, 1)])
    assert ours.by_class["never"] is None


def test_finding_nothing_is_zero_and_nothing_to_find_is_no_figure(truth_and_results: Any) -> None:
    truth, results = truth_and_results
    ids = [image["id"] for image in truth["images"]]
    assert set(coco_metrics(truth, [], ids).overall.values()) == {0.0}
    of_none = coco_metrics(truth, results, ids[:1])
    assert set(of_none.overall.values()) == {None}
    assert set(of_none.by_class.values()) == {None}


def test_what_is_annotated_is_left_as_it_was(truth_and_results: Any) -> None:
    truth, results = truth_and_results
    before = json.dumps([truth, results])
    expected = coco_metrics(truth, results, [3, 6]).overall["ap"]
    without = [{k: v for k, v in a.items() if k != "area" and v != 0} for a in truth["annotations"]]
    null = [a | {"area": None, "iscrowd": a["iscrowd"] or None} for a in truth["annotations"]]
    for annotations in (without, null):
        found = coco_metrics(truth | {"annotations": annotations}, results, [3, 6]).overall["ap"]
        assert found == pytest.approx(expected)
    assert json.dumps([truth, results]) == before


def test_results_are_what_coco_reads(tmp_path: Path) -> None:
    data = DigitDetection(train=False, masks=True)
    results = []
    for index in range(3):
        target = data[index]["target"]
        found = {"boxes": target["boxes"], "labels": target["labels"], "masks": target["masks"].bool()}
        results += coco_results(found | {"scores": torch.linspace(0.9, 0.5, len(target["labels"]))}, index, data)
    for kind in ("bbox", "segm"):
        theirs = by_pycocotools(tmp_path, data.truth, results, [0, 1, 2], kind)
        assert theirs.stats[0] == pytest.approx(1)
        assert coco_metrics(data.truth, results, [0, 1, 2], kind).overall["ap"] == pytest.approx(1)  # type: ignore[arg-type]
