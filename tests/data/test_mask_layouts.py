"""Masks as tools and data sets lay them out: each layout is found without a flag, each image with its mask."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from linvit.data import SegmentationData
from linvit.data.legends import CITYSCAPES
from linvit.data.mask_layouts import find_masks, masks_to_evaluate, masks_to_train
from linvit.data.masks import IGNORED

SIZE = (24, 16)
NAMES = ["a", "b", "c"]
ALL_PARTS = ("train", "val", "test")


def write(image: Path, mask: Path, number: int, values: tuple[int, int] = (0, 1)) -> None:
    """Write an image whose left part is bright, and its mask, whose second value is there."""
    split = 6 + 4 * number
    pixels = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
    pixels[:, :split] = 1
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(200 * pixels).convert("RGB").save(image)
    Image.fromarray(np.array(values, dtype=np.uint8)[pixels]).save(mask)


def folders(images: str, masks: str, parts: tuple[str, ...] = ("train", "val")) -> Callable[[Path], None]:
    """Return what writes images and masks by name; ``{part}`` and ``{name}`` stand in the patterns."""

    def make(root: Path) -> None:
        for part in parts:
            for number, name in enumerate(NAMES):
                image, mask = (root / each.format(part=part, name=name) for each in (images, masks))
                write(image, mask, number)

    return make


def cityscapes(root: Path) -> None:
    for part in ("train", "val"):
        for number, name in enumerate(NAMES):
            stem = f"bonn_00000{number}_000019"
            image = root / "leftImg8bit" / part / "bonn" / f"{stem}_leftImg8bit.png"
            folder = root / "gtFine" / part / "bonn"
            write(image, folder / f"{stem}_gtFine_labelIds.png", number, (4, 26))
            for other in ("instanceIds", "color"):
                Image.new("L", SIZE, 77).save(folder / f"{stem}_gtFine_{other}.png")
            (folder / f"{stem}_gtFine_polygons.json").write_text(f'{{"objects": ["{name}"]}}')


def voc(root: Path, lists: tuple[str, ...] = ("train", "val", "trainval")) -> None:
    folders("JPEGImages/{name}.jpg", "SegmentationClass/{name}.png", ("",))(root)
    write(root / "JPEGImages" / "boxes_alone.jpg", root / "x.png", 0)
    (root / "x.png").unlink()
    (root / "Annotations").mkdir()
    (root / "Annotations" / "a.xml").write_text("<annotation/>")
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for part in lists:
        (root / "ImageSets" / "Segmentation" / f"{part}.txt").write_text("".join(f"{name}\n" for name in NAMES))


def coco(root: Path, subsets: tuple[str, ...] = ("train", "val")) -> None:
    for subset in subsets:
        folders(f"images/{subset}/{{name}}.png", "x/{name}.png", ("",))(root)
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 5, "name": "thing"}]}
        for number, name in enumerate(NAMES):
            split = 6 + 4 * number
            content["images"].append({"id": number, "file_name": f"{name}.png", "width": SIZE[0], "height": SIZE[1]})
            outline: Any = [[0, 0, split, 0, split, SIZE[1], 0, SIZE[1]]]
            if number == 1:
                area = split * SIZE[1]
                outline = {"size": [SIZE[1], SIZE[0]], "counts": [0, area, SIZE[0] * SIZE[1] - area]}
            box = [0, 0, split, SIZE[1]]
            content["annotations"].append(
                {"id": number, "image_id": number, "category_id": 5, "bbox": box, "segmentation": outline}
            )
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{subset}.json").write_text(json.dumps(content))
    for path in (root / "x").iterdir():
        path.unlink()
    (root / "x").rmdir()


LAYOUTS: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "ADE20K": (
        folders("images/{part}/{name}.jpg", "annotations/{part}/{name}.png", ("training", "validation", "test")),
        {"train", "val", "test"},
    ),
    "by part": (folders("{part}/images/sub/{name}.JPG", "{part}/labels/sub/{name}.png"), {"train", "val"}),
    "OpenMMLab": (folders("img_dir/{part}/{name}.png", "ann_dir/{part}/{name}.png"), {"train", "val"}),
    "CamVid of SegNet": (folders("{part}/{name}.png", "{part}annot/{name}.png", ALL_PARTS), set(ALL_PARTS)),
    "CamVid of CVAT": (folders("default/{name}.png", "defaultannot/{name}.png", ("",)), {"all"}),
    "CamVid of Cambridge": (folders("{part}/{name}.png", "{part}_labels/{name}_L.png"), {"train", "val"}),
    "Carvana": (folders("train/{name}.jpg", "train_masks/{name}_mask.gif", ("",)), {"train"}),
    "parts in the names": (folders("{part}_images/{name}.jpg", "{part}_masks/{name}.png"), {"train", "val"}),
    "image and label": (folders("image/{name}.jpg", "label/{name}.png", ("",)), {"all"}),
    "any case": (folders("Images/{name}.jpg", "Masks/{name}.png", ("",)), {"all"}),
    "any case by part": (folders("Train/Images/{name}.jpg", "Train/MASKS/{name}.png", ("",)), {"train"}),
    "names in another case": (folders("images/IMG_{name}.JPG", "masks/img_{name}.png", ("",)), {"all"}),
    "one folder": (folders("{name}.jpg", "{name}_mask.png", ("",)), {"all"}),
    "one folder, _L": (folders("{name}.png", "{name}_L.png", ("",)), {"all"}),
    "Roboflow": (
        folders("{part}/{name}.jpg", "{part}/{name}_mask.png", ("train", "valid", "test")),
        {"train", "val", "test"},
    ),
    "DeepGlobe": (folders("train/{name}_sat.jpg", "train/{name}_mask.png", ("",)), {"train"}),
    "Cityscapes": (cityscapes, {"train", "val"}),
    "VOC": (voc, {"train", "val"}),
    "VOC in its kit": (lambda root: voc(root / "VOCdevkit" / "VOC2012"), {"train", "val"}),
    "VOC without lists": (lambda root: voc(root, ()), {"all"}),
    "COCO": (coco, {"train", "val"}),
    "COCO, one subset": (lambda root: coco(root, ("default",)), {"all"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("within", [".", "unpacked"])
def test_each_layout_is_found_with_the_mask_of_each_image(tmp_path: Path, layout: str, within: str) -> None:
    make, parts = LAYOUTS[layout]
    make(tmp_path / within)
    found = find_masks(tmp_path)
    assert set(found.parts) == parts
    for part in parts:
        files = found[part]()
        assert len(files.images) == len(files.masks) == len(NAMES)
        for index, path in enumerate(files.images):
            bright = np.asarray(Image.open(path).convert("L")) > 100
            mask = files.masks.load(index)
            assert ((mask == mask[0, 0]) == bright).all(), "the mask is of this image"
    train, held_out = masks_to_train(tmp_path, 0.34)
    assert [len(each.images) for each in (train, held_out)] == ([3, 3] if parts & {"val", "test"} else [2, 1])
    if not parts & {"val", "test"}:
        assert masks_to_evaluate(tmp_path, "val", 0.34).images == held_out.images, "evaluation takes the same part"


def open_data(root: Path, **settings: Any) -> SegmentationData:
    plain: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "workers": 0, "batch_size": 1, "crop_size": 8}
    return SegmentationData(str(root), **plain | settings)


@pytest.mark.parametrize("layout", ["image and label", "COCO", "VOC"])
def test_two_classes_need_no_flag(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout][0](tmp_path)
    data = open_data(tmp_path, val_share=0.34)
    data.setup()
    assert data.num_classes == (21 if layout == "VOC" else 2)
    assert set(data.val_set[0]["target"].unique().tolist()) == {0, 1}


def test_zero_and_255_are_two_classes_which_a_model_remembers(tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        write(tmp_path / "images" / f"{name}.png", tmp_path / "masks" / f"{name}.png", number, (0, 255))
    for settings in ({}, {"classes": ["floor", "crack"]}, {"classes": 2}):
        data = open_data(tmp_path, val_share=0.34, **settings)
        assert set(data.val_set[0]["target"].unique().tolist()) == {0, 1}
        assert data.input_config()["values"] == [0, 255]
        assert data.input_config()["ignore"] == []
    for number, name in enumerate("def"):
        write(tmp_path / "images" / f"{name}.png", tmp_path / "masks" / f"{name}.png", number, (0, 1))
    assert open_data(tmp_path, classes=2).input_config()["values"] == [0, 1], "255 counts for nothing beside 1"
    with pytest.raises(FileNotFoundError, match=r"has no classes\.txt .* masks looked at have the values 0, 1, 255$"):
        _ = open_data(tmp_path).classes
    given = open_data(tmp_path, classes=2, values=[255, 0], ignore=(1,))
    assert given.input_config()["values"] == [255, 0]


def test_jpeg_masks_are_taken_with_a_line(tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        write(tmp_path / "images" / f"{name}.png", tmp_path / "masks" / f"{name}.jpg", number, (0, 255))
    data = open_data(tmp_path, val_share=0.34)
    with pytest.warns(UserWarning, match=r"a\.jpg are JPEGs, blurred at their edges: values from 128 on are"):
        data.setup()
    for index in range(len(data.val_set)):
        sample = data.val_set[index]
        assert sample["image"] is not None
        assert torch.equal(sample["target"], (sample["image"][0] > 0.4).long())


def test_cityscapes_counts_its_nineteen_classes(tmp_path: Path) -> None:
    cityscapes(tmp_path)
    data = open_data(tmp_path)
    assert data.classes == CITYSCAPES["labelIds"].names
    assert set(data.val_set[0]["target"].unique().tolist()) == {IGNORED, 13}, "cars, and what is static"
    for path in sorted((tmp_path / "gtFine").rglob("*_labelIds.png")):
        Image.new("L", SIZE, 2).save(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    assert set(open_data(tmp_path).val_set[0]["target"].unique().tolist()) == {2}


COLORS = {"road": (128, 64, 128), "car": (64, 0, 128), "Void": (0, 0, 0)}


def write_colored(root: Path) -> None:
    folders("{part}/{name}.png", "{part}_labels/{name}_L.png")(root)
    for path in root.glob("*_labels/*.png"):
        mask = np.asarray(Image.open(path))
        pixels = np.array([COLORS["road"], COLORS["car"]], dtype=np.uint8)[mask]
        pixels[0] = COLORS["Void"]
        Image.fromarray(pixels).save(path)


def test_colours_by_a_file_in_the_folder_or_a_setting(tmp_path: Path) -> None:
    write_colored(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no classes\.txt"):
        open_data(tmp_path).setup()
    with pytest.raises(ValueError, match=r"is a colour picture: name the colours by --data\.palette FILE"):
        open_data(tmp_path, classes=2).val_set[0]
    text = "name,r,g,b\n" + "".join(f"{name},{r},{g},{b}\n" for name, (r, g, b) in COLORS.items())
    (tmp_path / "mine.csv").write_text(text)
    given = open_data(tmp_path, palette="mine.csv")
    (tmp_path / "class_dict.csv").write_text(text)
    for data in (given, open_data(tmp_path), open_data(tmp_path, classes=["road", "car"])):
        assert data.classes == ["road", "car"]
        target = data.val_set[0]["target"]
        assert (target[0] == IGNORED).all()
        assert (target[1:, :6] == 1).all()
        assert (target[1:, 6:] == 0).all()
        assert data.input_config()["colors"] == [[128, 64, 128], [64, 0, 128]]
    assert set(open_data(tmp_path, classes=["car"], palette="mine.csv")._legend.void) == {(0, 0, 0), (128, 64, 128)}


def test_annotations_of_boxes_alone_are_no_masks(tmp_path: Path) -> None:
    coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["segmentation"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"instances_train\.json: annotation 1: .* and masks are asked for"):
        open_data(tmp_path).setup()


def test_categories_go_by_name_and_the_smaller_lies_on_top(tmp_path: Path) -> None:
    coco(tmp_path)
    path = tmp_path / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["categories"] = [{"id": 1, "name": "spot"}, {"id": 5, "name": "thing"}]
    spot = [[2, 2, 4, 2, 4, 4, 2, 4]]
    content["annotations"].insert(
        0, {"id": 9, "image_id": 0, "category_id": 1, "bbox": [2, 2, 2, 2], "segmentation": spot}
    )
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"instances_val\.json has categories that are none of the known .*: spot"):
        open_data(tmp_path).setup()
    train = tmp_path / "annotations" / "instances_train.json"
    known = json.loads(train.read_text())
    known["categories"].append({"id": 9, "name": "spot"})
    train.write_text(json.dumps(known))
    data = open_data(tmp_path)
    assert data.classes == ["background", "thing", "spot"]
    target = data.val_set[0]["target"]
    assert (target[2:4, 2:4] == 2).all()
    assert int((target == 2).sum()) == 4
    assert int((target == 1).sum()) == 6 * SIZE[1] - 4


def test_other_folders_by_settings(tmp_path: Path) -> None:
    folders("mine/{name}.jpg", "theirs/{name}.png", ("",))(tmp_path)
    coco(tmp_path / "more")
    data = open_data(
        tmp_path, train_images="mine", train_masks="theirs", val_share=0.34, classes=["background", "thing"]
    )
    assert (len(data.train_set), len(data.val_set)) == (2, 1)
    held = {"val_images": "more/images/val", "val_masks": "more/annotations/instances_val.json"}
    mixed = open_data(tmp_path, train_images="mine", train_masks="theirs", classes=["background", "thing"], **held)
    assert set(mixed.val_set[0]["target"].unique().tolist()) == {0, 1}
    with pytest.raises(FileNotFoundError, match=r"there is no .*gone"):
        open_data(tmp_path, train_images="gone", train_masks="theirs").setup()
    with pytest.raises(ValueError, match=r"give both --data\.train_images and --data\.train_masks"):
        open_data(tmp_path, train_images="mine").setup()
    with pytest.raises(ValueError, match="root must be a folder where a palette, images or masks are named, not None"):
        SegmentationData(palette="x")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        find_masks(tmp_path / "absent")
    (tmp_path / "x.png").touch()
    with pytest.raises(NotADirectoryError, match=r"x\.png is a file"):
        find_masks(tmp_path / "x.png")
    with pytest.raises(FileNotFoundError, match=r"has no masks in a layout that is known: .*images/train/ and mask"):
        find_masks(tmp_path)
    for folder in ("images/training", "annotations/training"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"images/training holds no image"):
        masks_to_train(tmp_path, 0.2)
    write(tmp_path / "images/training/a.png", tmp_path / "annotations/training/b.png", 0)
    write(tmp_path / "images/training/b.png", tmp_path / "annotations/training/b.png", 0)
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images have no mask in .*annotations/training: .*/a\.png$"):
        masks_to_train(tmp_path, 0.2)
    write(tmp_path / "images/training/a.png", tmp_path / "annotations/training/a.png", 1)
    write(tmp_path / "images/training/c.png", tmp_path / "annotations/training/c.png", 1)
    (tmp_path / "images/training/c.png").unlink()
    with pytest.warns(UserWarning, match=r"1 masks have no image in .*images/training: .*c\.png"):
        assert len(masks_to_train(tmp_path, 0.5)[0].images) == 1
    with pytest.raises(FileNotFoundError, match="has no part 'test', read as folders of images and masks; its part"):
        masks_to_evaluate(tmp_path, "test")
    twin = tmp_path / "images/training/a.jpg"
    Image.new("RGB", SIZE).save(twin)
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png have the same name but for the ending"):
        masks_to_train(tmp_path, 0.2)
