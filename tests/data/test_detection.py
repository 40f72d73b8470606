"""Detection data: COCO's layout as the world writes it, well and badly; augmentation that moves boxes with pixels."""

import json
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from linvit.data import DetectionData
from linvit.data.box_layouts import boxes_to_evaluate, find_boxes
from linvit.data.coco import decode_mask, encode_mask, read_coco
from linvit.data.detection_sets import CocoDetection, DigitDetection, collate_detection, eval_detection_set
from linvit.data.images import UnreadableImage

WIDTH, HEIGHT = 60, 40
MakeCoco = Callable[..., Path]

CONTENT: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
        {"id": 9, "file_name": "b.png", "width": WIDTH, "height": HEIGHT},
        {"id": 8, "file_name": "empty.png", "width": WIDTH, "height": HEIGHT},
    ],
    "categories": [{"id": 5, "name": "cell"}, {"id": 2, "name": "atom"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 5, "bbox": [10, 5, 20, 10], "area": 200, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [40, 20, 15, 15], "area": 225, "iscrowd": 0},
        {"id": 3, "image_id": 9, "category_id": 2, "bbox": [0, 0, 30, 30], "area": 900, "iscrowd": 0},
    ],
}


@pytest.fixture
def make_coco(tmp_path: Path) -> MakeCoco:
    """Write a small data set, changed by a function; images are black but for white boxes."""

    def make(change: Callable[[dict[str, Any]], Any] = lambda content: None, split: str = "train") -> Path:
        content = deepcopy(CONTENT)
        for each in content["annotations"]:
            left, top, wide, high = each["bbox"]
            each["segmentation"] = [[left, top, left + wide, top, left + wide, top + high, left, top + high]]
        change(content)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / split).mkdir(exist_ok=True)
        for image in content["images"]:
            pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            for each in content["annotations"]:
                if each.get("image_id") == image.get("id"):
                    left, top, wide, high = map(int, each["bbox"])
                    pixels[max(top, 0) : top + high, max(left, 0) : left + wide] = 255
            Image.fromarray(pixels).save(tmp_path / split / image["file_name"])
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        return tmp_path

    return make


def training_set(root: Path, **settings: Any) -> CocoDetection:
    return CocoDetection(find_boxes(root)["train"](None), train=True, **settings)


def test_items_hold_boxes_labels_and_masks_in_pixels(make_coco: MakeCoco) -> None:
    data = training_set(make_coco(), masks=True)
    assert data.classes == ["atom", "cell"]  # by id
    assert [data.category_id(label) for label in (0, 1)] == [2, 5]
    first = data[0]
    assert first["image"].shape == (3, HEIGHT, WIDTH)
    assert first["image"].dtype == torch.uint8
    assert first["target"]["image_id"] == 7
    assert first["target"]["boxes"].tolist() == [[10, 5, 30, 15], [40, 20, 55, 35]]
    assert first["target"]["labels"].tolist() == [1, 0]
    assert torch.equal(first["target"]["masks"].sum(0) > 0, first["image"][0] > 0)


def test_images_without_boxes_are_trained_on_only_when_asked_and_always_evaluated(make_coco: MakeCoco) -> None:
    root = make_coco()
    assert len(training_set(root)) == 2
    all_of_them = training_set(root, keep_empty=True, masks=True)
    assert len(all_of_them) == 3
    assert all_of_them[2]["target"]["boxes"].shape == (0, 4)
    assert all_of_them[2]["target"]["masks"].shape == (0, HEIGHT, WIDTH)
    assert len(CocoDetection(read_coco(root / "annotations" / "instances_train.json"))) == 3


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ([-10, -10, 30, 30], [[0, 0, 20, 20]]),  # in part
        ([50, 30, 100, 100], [[50, 30, WIDTH, HEIGHT]]),
        ([70, 10, 5, 5], []),  # outside
        ([10, 10, 0, 8], []),  # no area
        ([10, 10, -5, 8], []),
        ([10, 10, 0.5, 8], []),  # less than a pixel
    ],
)
def test_boxes_are_cut_to_the_image_for_training_and_left_alone_for_evaluation(
    make_coco: MakeCoco, bbox: list[float], expected: list[list[float]]
) -> None:
    root = make_coco(lambda content: content["annotations"][2].update(bbox=bbox))
    data = training_set(root, keep_empty=True)
    assert data[1]["target"]["boxes"].tolist() == expected
    assert data.left_out == ([] if expected else [3])
    assert CocoDetection(find_boxes(root)["train"](None)).truth["annotations"][2]["bbox"] == bbox
    if not expected:
        make_coco(split="val")
        with pytest.warns(UserWarning, match="1 of 3 boxes have less than a pixel inside .* such as annotation 3"):
            _ = DetectionData(str(root), batch_size=1, workers=0).train_set


def test_crowd_regions_are_not_trained_on(make_coco: MakeCoco) -> None:
    rle = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    root = make_coco(lambda content: content["annotations"][0].update(iscrowd=1, segmentation=rle))
    data = training_set(root, masks=True)
    assert data[0]["target"]["labels"].tolist() == [0]
    assert not data.left_out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "has no list 'images'"),
        (lambda c: c.update(annotations={}), "has no list 'annotations'"),
        (lambda c: c.update(categories=[]), "has 3 images and 0 categories"),
        (lambda c: c["annotations"][1].update(category_id=77), "annotation 2 is of category 77, which is not among"),
        (lambda c: c["annotations"][1].update(image_id=77), "annotation 2 is of image 77, which is not among"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 3]), r"annotation 2 has a bbox \[1, 2, 3\], not 4 numbers"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 3, float("nan")]), "annotation 2 has a bbox .*nan"),
        (lambda c: c["annotations"][1].pop("bbox"), "record 1 of annotations has no proper 'bbox'"),
        (lambda c: c["annotations"][1].update(area="big"), "annotation 2 has an area of 'big', not a number"),
        (lambda c: c["annotations"][1].update(iscrowd="no"), "annotation 2 has iscrowd 'no', not 0 or 1"),
        (lambda c: c["images"][1].update(width="60"), "image 9 has a width of '60', not a number of pixels"),
        (lambda c: c["images"][1].update(height=0), "image 9 has a height of 0, not a number of pixels"),
        (lambda c: c["annotations"].append(5), "record 3 of annotations is no object"),
        (lambda c: c["images"][2].update(id=8.5), "record 2 of images has no proper 'id': it is 8.5, and must be a w"),
        (lambda c: c["images"][2].pop("id"), "record 2 of images has no proper 'id': it is missing"),
        (lambda c: c["annotations"][0].update(image_id=[7]), "record 0 of annotations has no proper 'image_id'"),
        (lambda c: c["annotations"][1].update(id=1), "duplicate id among annotations: 1"),
        (lambda c: c["images"][1].update(id=7), "duplicate id among images: 7"),
        (lambda c: c["categories"][1].update(id=5), "duplicate id among categories: 5"),
        (
            lambda c: c.update(
                categories=[{**each, "name": "x", "supercategory": each["id"]} for each in c["categories"]]
            ),
            "duplicate category name x",
        ),
    ],
)
def test_a_damaged_record_is_named_with_its_file(make_coco: MakeCoco, change: Any, message: str) -> None:
    root = make_coco()
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"instances_train\.json.*{message}"):
        read_coco(path)


def test_a_file_cut_in_half_or_of_another_kind_is_named(make_coco: MakeCoco) -> None:
    path = make_coco() / "annotations" / "instances_train.json"
    path.write_text(path.read_text()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"instances_train\.json is no JSON, it may be cut off: .*char"):
        read_coco(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no JSON"):
        read_coco(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="is no COCO annotation file"):
        read_coco(path)


def test_what_is_missing_is_said(make_coco: MakeCoco, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data folder .*gone does not exist"):
        find_boxes(tmp_path / "gone")
    root = make_coco()
    with pytest.raises(FileNotFoundError, match=r"has no part 'test', read as COCO's; its parts: train$"):
        boxes_to_evaluate(root, "test")
    with pytest.raises(ValueError, match="has no image with a box to train on"):
        training_set(make_coco(lambda content: content.update(annotations=[])))


@pytest.mark.parametrize("layout", ["{split}2017", "images/{split}2017", "images", "."])
def test_layouts_of_the_images(make_coco: MakeCoco, layout: str) -> None:
    root = make_coco()
    (root / "annotations" / "instances_train.json").rename(root / "annotations" / "instances_train2017.json")
    folder = root / layout.format(split="train")
    folder.mkdir(parents=True, exist_ok=True)
    for path in (root / "train").iterdir():
        path.rename(folder / path.name)
    (root / "train").rmdir()
    assert training_set(root, strict=True)[0]["target"]["image_id"] == 7


def test_an_image_that_is_missing_broken_or_of_another_size(make_coco: MakeCoco) -> None:
    root = make_coco()
    spoil: list[Callable[[Path], Any]] = [
        lambda path: path.unlink(),
        lambda path: path.write_text("no image"),
        lambda path: Image.new("RGB", (WIDTH, HEIGHT + 1)).save(path),
    ]
    for change in spoil:
        change(root / "train" / "a.png")
        replaced = training_set(root)[0]
        assert replaced["target"]["image_id"] == 9
        assert replaced["unreadable"] == [str(root / "train" / "a.png")]
        file = read_coco(root / "annotations" / "instances_train.json")
        batch = collate_detection([CocoDetection(file)[i] for i in range(3)])
        assert [target["image_id"] for target in batch["target"]] == [9, 8]
        assert batch["unreadable"] == [str(root / "train" / "a.png")]
        with pytest.raises(UnreadableImage, match=re.escape(str(root / "train" / "a.png"))):
            _ = CocoDetection(file, strict=True)[0]
    with pytest.raises(UnreadableImage, match=r"is 60x41 pixels, .*instances_train\.json says 60x40"):
        _ = CocoDetection(file, strict=True)[0]
    (root / "train" / "b.png").unlink()
    with pytest.raises(UnreadableImage, match=rf"none of the 2 images can be read, such as {root}/train/a\.png"):
        _ = training_set(root)[0]
    with pytest.raises(IndexError):
        _ = training_set(root)[2]


def test_pixels_stay_as_stored_unless_the_annotations_are_of_the_upright_image(make_coco: MakeCoco) -> None:
    root = make_coco()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    for size, upright in (((WIDTH, HEIGHT), False), ((HEIGHT, WIDTH), True)):
        image = Image.new("RGB", size)
        image.putpixel((0, 0), (255, 255, 255))
        image.save(root / "train" / "a.png", exif=exif)
        pixels = training_set(root, strict=True)[0]["image"]
        assert pixels.shape == (3, HEIGHT, WIDTH)
        assert pixels[0, 0, -1 if upright else 0] == 255


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "neither polygons nor"),
        ([], "neither polygons nor"),
        ([[1, 2]], "the segmentation"),
        ({"size": [HEIGHT, WIDTH], "counts": [1, 2, 3]}, "neither polygons nor"),
        ({"size": [9, 9], "counts": [81]}, "the segmentation"),
    ],
)
def test_a_segmentation_that_is_none_is_named(make_coco: MakeCoco, segmentation: Any, message: str) -> None:
    root = make_coco(lambda c: c["annotations"][1].update(segmentation=segmentation))
    with pytest.raises(ValueError, match=rf"instances_train\.json: annotation 2: .*{message}"):
        _ = training_set(root, masks=True)[0]


def test_masks_are_missed_before_the_training_begins(make_coco: MakeCoco) -> None:
    make_coco()
    root = make_coco(lambda c: c["annotations"][2].pop("segmentation"), split="val")
    DetectionData(str(root), batch_size=1, workers=0).setup()
    with pytest.raises(ValueError, match=r"instances_val\.json: annotation 3: .* and masks are asked for"):
        DetectionData(str(root), batch_size=1, workers=0, masks=True).setup()


def test_masks_survive_being_written_in_each_of_the_formats() -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:15, 10:30] = True
    compressed = encode_mask(mask)
    assert json.loads(json.dumps(compressed)) == compressed
    runs = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel(), [0]]).astype(int)))
    counts = np.diff(np.concatenate([[0], runs, [mask.size]])).tolist()
    for segmentation in (compressed, {"size": [HEIGHT, WIDTH], "counts": counts}, [[10, 5, 30, 5, 30, 15, 10, 15]]):
        assert np.array_equal(decode_mask(segmentation, HEIGHT, WIDTH), mask)


def test_augmentation_moves_boxes_and_masks_with_the_pixels(make_coco: MakeCoco) -> None:
    root = make_coco()
    make_coco(split="val")
    data = DetectionData(
        str(root), 80, 120, train_sizes=[40, 80], batch_size=2, workers=0, hflip=0.5, masks=True, photometric=True
    )
    torch.manual_seed(0)
    heights, mirrored = set(), set()
    for _ in range(12):
        sample = data.train_set[0]
        image, target = sample["image"], sample["target"]
        heights.add(image.shape[1])
        mirrored.add(bool(target["boxes"][0, 0] > image.shape[2] / 2 - 1))
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            left, top, right, bottom = box.round().int().tolist()
            assert image[:, top + 1 : bottom - 1, left + 1 : right - 1].float().mean() > 150
            assert mask[top:bottom, left:right].all()
            assert mask.sum() == (right - left) * (bottom - top)
    assert heights == {40, 80}
    assert mirrored == {True, False}
    (batch,) = data.train_dataloader()
    assert len(batch["image"]) == 2
    held_out = data.val_set[0]
    assert held_out["image"].shape == (3, HEIGHT, WIDTH)  # the model resizes it


def test_classes_of_the_held_out_images_are_known_by_name(make_coco: MakeCoco) -> None:
    root = make_coco()

    def others(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": 1, "name": "cell"}]
        content["annotations"] = [content["annotations"][0] | {"category_id": 1}]

    make_coco(others, split="val")
    data = DetectionData(str(root), batch_size=1, workers=0)
    data.setup()
    assert data.val_set.classes == data.classes == ["atom", "cell"]
    assert data.val_set[0]["target"]["labels"].tolist() == [1]
    assert [data.val_set.category_id(label) for label in (0, 1)] == [-1, 1]
    make_coco(lambda content: content["categories"][0].update(name="virus"), split="val")
    with pytest.raises(ValueError, match=r"instances_val\.json has categories that are none of the known .*: virus"):
        DetectionData(str(root), batch_size=1, workers=0).setup()


def test_digit_scenes_say_in_coco_format_what_they_show() -> None:
    data = DigitDetection(train=False, masks=True)
    sample = data[3]
    records = [each for each in data.truth["annotations"] if each["image_id"] == 3]
    assert [each["category_id"] - 1 for each in records] == sample["target"]["labels"].tolist()
    for record, box, mask in zip(records, sample["target"]["boxes"], sample["target"]["masks"], strict=True):
        left, top, right, bottom = box.tolist()
        assert record["bbox"] == [left, top, right - left, bottom - top]
        assert np.array_equal(decode_mask(record["segmentation"], 96, 96), mask.numpy())
        assert record["area"] == int(mask.sum())
    assert len(eval_detection_set("digit-scenes", "val", data.classes)) == len(data)
    with pytest.raises(ValueError, match=r"digit-scenes has the classes 0, 1, .* the model has cat"):
        eval_detection_set("digit-scenes", "val", ["cat"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, r"size must be from 1 to max_size \(1333\), not 0"),
        ({"size": 900, "max_size": 800}, "size must be from 1 to max_size"),
        ({"train_sizes": []}, "train_sizes must be one or more numbers"),
        ({"train_sizes": [500, 2000]}, "train_sizes must be one or more numbers"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"workers": -1}, "workers must be 0 or more"),
        ({"hflip": 2.0}, "hflip must be between 0 and 1"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionData(**settings)


def test_a_batch_must_be_filled() -> None:
    with pytest.raises(ValueError, match="batch_size must be at most 2000, the number of training images, not 2001"):
        DetectionData(batch_size=2001).setup()
