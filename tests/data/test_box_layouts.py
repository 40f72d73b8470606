"""Boxes as annotation tools write them: each layout is found without a flag and says the same boxes."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from linvit.data import DetectionData, box_layouts, mask_layouts
from linvit.data.box_layouts import boxes_to_evaluate, boxes_to_train, find_boxes
from linvit.data.coco import CocoFile, read_coco
from linvit.data.detection_sets import CocoDetection, eval_detection_set
from linvit.data.parts import part_named

SIZE = (60, 40)
Box = tuple[str, list[float]]  # class; left, top, width, height
BOXES: dict[str, list[Box]] = {
    "a.jpg": [("cell", [9, 4, 20, 10]), ("atom", [39, 19, 15, 15])],
    "b.jpg": [("atom", [1, 1, 30, 30])],
}
Part = tuple[str, str]  # what a tool calls it, what linvit calls it


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, (100 * shade, 0, 0)).save(path)


def coco(names: dict[str, str], first: int = 1) -> dict[str, Any]:
    """Return what COCO's format says of the pictures, under the file names of a tool."""
    ids = {"atom": first, "cell": first + 1}
    return {
        "images": [
            {"id": i, "file_name": names[name], "width": SIZE[0], "height": SIZE[1]} for i, name in enumerate(BOXES)
        ],
        "categories": [{"id": number, "name": name, "supercategory": ""} for name, number in ids.items()],
        "annotations": [
            {"id": 10 * i + j, "image_id": i, "category_id": ids[label], "bbox": box, "area": 1, "segmentation": []}
            for i, boxes in enumerate(BOXES.values())
            for j, (label, box) in enumerate(boxes)
        ],
    }


def write_coco(root: Path, annotations: str, images: str, names: str = "{}", first: int = 1) -> None:
    for shade, name in enumerate(BOXES):
        picture(root / images / name, shade)
    path = root / annotations
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(coco({name: names.format(name) for name in BOXES}, first)), encoding="utf-8")


def write_roboflow(root: Path) -> None:
    for part in ("train", "valid", "test"):
        write_coco(root, f"{part}/_annotations.coco.json", part)
        path = root / part / "_annotations.coco.json"
        content = json.loads(path.read_text())
        for each in content["categories"]:
            each["supercategory"] = "particles"
        content["categories"].insert(0, {"id": 0, "name": "particles", "supercategory": "none"})
        path.write_text(json.dumps(content))


def write_cvat(root: Path, subsets: tuple[str, ...] = ("Train", "Validation")) -> None:
    for subset in subsets:
        write_coco(root, f"annotations/instances_{subset}.json", f"images/{subset}")


def write_label_studio(root: Path) -> None:
    write_coco(root, "result.json", "images", "images\\{}", first=0)


def yolo_lines(name: str) -> str:
    lines = []
    for label, (left, top, wide, high) in BOXES[name]:
        shares = (left + wide / 2) / SIZE[0], (top + high / 2) / SIZE[1], wide / SIZE[0], high / SIZE[1]
        lines.append(" ".join([str(["atom", "cell"].index(label)), *(f"{share:.9f}" for share in shares)]))
    return "\n".join(lines) + "\n"


def write_yolo(root: Path, images: str = "images/{}", labels: str = "labels/{}", yaml: str | None = None) -> None:
    for part in ("train", "val"):
        for shade, name in enumerate(BOXES):
            picture(root / images.format(part) / name, shade)
            (root / labels.format(part)).mkdir(parents=True, exist_ok=True)
            (root / labels.format(part) / name).with_suffix(".txt").write_text(yolo_lines(name))
    if yaml is not None:
        (root / "data.yaml").write_text(yaml)


def write_darknet(root: Path) -> None:
    """Write what CVAT's "YOLO 1.1" does."""
    write_yolo(root, "obj_train_data", "obj_train_data")
    (root / "obj.names").write_text("atom\ncell\n")
    (root / "obj.data").write_text("classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    (root / "train.txt").write_text("".join(f"data/obj_train_data/{name}\n" for name in BOXES))


def xml(name: str, first: int = 1) -> str:
    objects = ""
    for label, (left, top, wide, high) in BOXES[name]:
        sides = {"xmin": left + first, "ymin": top + first, "xmax": left + wide, "ymax": top + high}
        box = "".join(f"<{side}>{int(value)}</{side}>" for side, value in sides.items())
        objects += f"<object><name>{label}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
    size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
    text = f"<annotation><folder>x</folder><filename>{name}</filename>{size}{objects}</annotation>"
    return text.replace("><", ">\n<")


def write_voc(root: Path, annotations: str, images: str, lists: tuple[str, ...] = ()) -> None:
    for shade, name in enumerate(BOXES):
        picture(root / images / name, shade)
        (root / annotations).mkdir(parents=True, exist_ok=True)
        (root / annotations / name).with_suffix(".xml").write_text(xml(name))
    for part in lists:
        folder = root / "ImageSets" / "Main"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{part}.txt").write_text("".join(f"{Path(name).stem}\n" for name in BOXES))
        (folder / f"atom_{part}.txt").write_text("a 1\nb -1\n")


def write_voc_by_part(root: Path) -> None:
    for part in ("train", "valid"):
        write_voc(root, part, part)


LAYOUTS: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "COCO": (
        lambda root: [write_coco(root, f"annotations/instances_{p}2017.json", f"{p}2017") for p in ("train", "val")],
        {"train", "val"},
    ),
    "COCO, files beside": (
        lambda root: [write_coco(root, f"{p}.json", f"images/{p}") for p in ("train", "val", "test")],
        {"train", "val", "test"},
    ),
    "Roboflow": (write_roboflow, {"train", "val", "test"}),
    "CVAT": (lambda root: write_cvat(root), {"train", "val"}),
    "CVAT, one subset": (lambda root: write_cvat(root, ("default",)), {"all"}),
    "Label Studio": (write_label_studio, {"all"}),
    "YOLO, names as a list": (
        lambda root: write_yolo(root, yaml="train: images/train\nval: images/val\nnc: 2\nnames: ['atom', 'cell']\n"),
        {"train", "val"},
    ),
    "YOLO, names as a map": (
        lambda root: write_yolo(
            root, yaml="path: ../datasets/x\ntrain: images/train\nval: images/val\nnames:\n  0: atom\n  1: cell\n"
        ),
        {"train", "val"},
    ),
    "YOLO of Roboflow": (
        lambda root: write_yolo(
            root,
            "{}/images",
            "{}/labels",
            "train: ../train/images\nval: ../val/images\ntest: ../test/images\n\nnc: 2\nnames: ['atom', 'cell']\n",
        ),
        {"train", "val"},
    ),
    "YOLO without a file": (
        lambda root: [write_yolo(root), (root / "classes.txt").write_text("atom\ncell\n")],
        {"train", "val"},
    ),
    "YOLO of Label Studio": (
        lambda root: [
            write_yolo(root, "images", "labels"),
            (root / "classes.txt").write_text("atom\ncell\n"),
            (root / "notes.json").write_text('{"categories": [{"id": 0, "name": "atom"}], "info": {}}'),
        ],
        {"all"},
    ),
    "YOLO of CVAT": (write_darknet, {"train"}),
    "VOC": (lambda root: write_voc(root, "Annotations", "JPEGImages", ("train", "val", "trainval")), {"train", "val"}),
    "VOC of 2007": (lambda root: write_voc(root, "Annotations", "JPEGImages", ("trainval", "test")), {"train", "test"}),
    "VOC in its kit": (
        lambda root: write_voc(root / "VOCdevkit" / "VOC2012", "Annotations", "JPEGImages", ("train", "val")),
        {"train", "val"},
    ),
    "VOC of CVAT": (lambda root: write_voc(root, "Annotations", "JPEGImages", ("default",)), {"all"}),
    "VOC of Roboflow": (write_voc_by_part, {"train", "val"}),
    "VOC without lists": (lambda root: write_voc(root, "annotations", "images"), {"all"}),
    "VOC in folders of parts": (
        lambda root: [write_voc(root, f"Annotations/{part}", f"JPEGImages/{part}") for part in ("train", "val")],
        {"train", "val"},
    ),
    "VOC in one folder": (lambda root: write_voc(root, ".", "."), {"all"}),
}


def said(file: CocoFile) -> dict[str, list[tuple[str, list[float]]]]:
    """Return class and box of each annotation by image."""
    names = {each["id"]: each["name"] for each in file.content["categories"]}
    found: dict[str, list[tuple[str, list[float]]]] = {}
    for image in file.content["images"]:
        assert (file.images / image["file_name"]).is_file()
        found[Path(image["file_name"]).name] = [
            (names[each["category_id"]], [round(value, 4) for value in each["bbox"]])
            for each in file.content["annotations"]
            if each["image_id"] == image["id"]
        ]
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("within", [".", "unpacked"])
def test_each_layout_is_found_and_says_the_same_boxes(tmp_path: Path, layout: str, within: str) -> None:
    write, parts = LAYOUTS[layout]
    write(tmp_path / within)
    (tmp_path / "__MACOSX").mkdir()
    found = find_boxes(tmp_path)
    assert set(found.parts) == parts
    for part in parts:
        file = found[part](None)
        folders = {
            part_named(folder) for path in file.image_paths() for folder in Path(path).relative_to(tmp_path).parts[:-1]
        }
        assert folders <= {part, None}, "no image of another part"
        assert file.classes == ["atom", "cell"]
        assert said(file) == BOXES
    train, held_out = boxes_to_train(tmp_path, 0.5)
    whole = parts & {"val", "test"}
    assert [len(each.content["images"]) for each in (train, held_out)] == ([2, 2] if whole else [1, 1])
    assert len(CocoDetection(held_out, train.classes, strict=True)[0]["target"]["boxes"]) > 0
    if not whole:
        assert {**said(train), **said(held_out)} == BOXES, "split off, nothing lost"
        again = boxes_to_evaluate(tmp_path, "val", 0.5)
        assert said(again) == said(held_out), "and evaluation takes the same part"
        assert said(boxes_to_evaluate(tmp_path, "train", 0.5)) == said(train)


def test_data_without_parts_are_evaluated_as_a_whole_with_a_line(tmp_path: Path) -> None:
    write_label_studio(tmp_path)
    with pytest.warns(UserWarning, match=r"has no parts: all of it is evaluated, .*--split val takes what training"):
        data = eval_detection_set(str(tmp_path), None, ["atom", "cell"])
    assert (len(data), data.part) == (2, "all")
    data = eval_detection_set(str(tmp_path), "val", ["atom", "cell"])
    assert (len(data), data.part) == (1, "val (split off)")


def test_copies_of_an_image_stay_on_one_side(tmp_path: Path) -> None:
    write_yolo(tmp_path, "images", "labels")
    for number in range(6):
        (tmp_path / "images" / f"copy{number}.jpg").write_bytes((tmp_path / "images" / "a.jpg").read_bytes())
    train, held_out = boxes_to_train(tmp_path, 0.5)
    assert sorted(len(each.content["images"]) for each in (train, held_out)) == [1, 7]
    for path in (tmp_path / "images").glob("*.jpg"):
        path.write_bytes((tmp_path / "images" / "a.jpg").read_bytes())
    with pytest.raises(ValueError, match="no held-out part, and none can be split off: it has 8 images that are all t"):
        boxes_to_train(tmp_path, 0.5)


def test_other_files_and_folders_by_settings(tmp_path: Path) -> None:
    write_coco(tmp_path, "mine/boxes.json", "photos")
    write_coco(tmp_path, "mine/others.json", "held")
    settings: dict[str, Any] = {"root": str(tmp_path), "batch_size": 1, "workers": 0, "strict": True}
    files = {"train_annotations": "mine/boxes.json", "train_images": "photos"}
    data = DetectionData(**settings, **files, val_annotations=str(tmp_path / "mine" / "others.json"), val_images="held")
    assert len(data.train_set) == len(data.val_set) == 2
    assert data.val_set[1]["target"]["boxes"].tolist() == [[1, 1, 31, 31]]
    alone = DetectionData(**settings, **files, val_share=0.5)
    assert (len(alone.train_set), len(alone.val_set)) == (1, 1)
    write_voc(tmp_path, "xml", "photos")
    write_yolo(tmp_path, "images/{}", "labels/{}")
    mixed = DetectionData(**settings, train_annotations="xml", train_images="photos", val_annotations="labels/val")
    with pytest.raises(ValueError, match="has categories that are none of the known classes: 0, 1"):
        mixed.setup()  # nothing names YOLO's numbers
    (tmp_path / "classes.txt").write_text("atom\ncell\n")
    mixed.setup()
    assert len(mixed.val_set) == 2
    with pytest.raises(FileNotFoundError, match=r"there is no .*gone"):
        DetectionData(**settings, train_annotations="gone").setup()
    with pytest.raises(FileNotFoundError, match=r"photos holds no annotations: give a COCO file, or a folder of \.xml"):
        DetectionData(**settings, train_annotations="photos").setup()
    with pytest.raises(ValueError, match="root must be a folder where annotations or images are named, not None"):
        DetectionData(train_images="x")


def test_one_file_says_all(tmp_path: Path) -> None:
    write_label_studio(tmp_path / "one")
    assert set(find_boxes(tmp_path / "one" / "result.json").parts) == {"all"}
    write_yolo(tmp_path / "two", yaml="train: images/train\nval: images/val\nnames: [atom, cell]\n")
    assert said(boxes_to_evaluate(tmp_path / "two" / "data.yaml", "val")) == BOXES


def test_what_is_open_is_asked(tmp_path: Path) -> None:
    write_coco(tmp_path, "one.json", "images")
    write_coco(tmp_path, "two.json", "images")
    with pytest.raises(
        ValueError, match=r"several annotation files: one\.json, two\.json; name the ones .*train_annot"
    ):
        find_boxes(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"no boxes in a layout that is known: annotations/instances_train\.json"
    ):
        find_boxes(tmp_path / "images")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1", "must be a class number and 4 or more numbers"),
        ("cell 0.5 0.5 0.1 0.1", "is 'cell 0.5 0.5 0.1 0.1', and must be a class number"),
        ("0 0.5 0.5 nan 0.1", "must be a class number and 4 or more numbers"),
        ("2 0.5 0.5 0.1 0.1", "has the class 2, and must have a whole number from 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", "has the class -1"),
        ("0 30 20 10 10", "has 30, and must have shares of the image's size, from 0 to 1"),
    ],
)
def test_a_line_of_yolo_that_is_none_is_named(tmp_path: Path, line: str, message: str) -> None:
    write_yolo(tmp_path, yaml="train: images/train\nnames: [atom, cell]\n")
    path = tmp_path / "labels" / "train" / "b.txt"
    path.write_text(f"\n{line}\n")
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}, line 2 .*{message}"):
        find_boxes(tmp_path)["train"](None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/train\nnames: 3\n", "names is 3, and must be a list or a map of class names"),
        ("train: images/train\nnames: [a, [b]]\n", "names is .* and must be a list"),
        ("train: images/train\nnames: [a, a]\n", "names has 'a' twice"),
        ("train: images/train\nnc: 3\nnames: [a, b]\n", "nc is 3, and names has 2: they must agree"),
        (
            "train: images/train\nnames: {0: a, 2: b}\n",
            "names has the keys 0, 2, and must have all numbers from 0 to 1",
        ),
        ("train: {a: 1}\nnames: [a, b]\n", "train is {'a': 1}, and must be a folder of images"),
        ("train: gone\nnames: [a, b]\n", "train is 'gone', and there is no such folder or file below"),
        ("path: 7\ntrain: images/train\nnames: [a, b]\n", "path is 7, and must be the data set's folder"),
        ("train: [\n", "is no YAML"),
        (
            "a0: &a0 [x, x]\n"
            + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
            + "train: images/train\nnames: *a11\n",
            "names is .*, and must be a list",
        ),
        ("train: !!python/object/apply:os.getcwd []\nnames: [a]\n", "is no YAML: could not determine a constructor"),
    ],
)
def test_a_description_of_yolo_that_is_none_is_named(tmp_path: Path, text: str, message: str) -> None:
    write_yolo(tmp_path, yaml=text)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"data\.yaml.*{message}"):
        find_boxes(tmp_path)["train"](None)


def test_polygons_and_points_of_yolo(tmp_path: Path) -> None:
    write_yolo(tmp_path, yaml="train: images/train\nnames: [atom, cell]\n")
    text = tmp_path / "labels" / "train" / "b.txt"
    text.write_text("1 0.1 0.25 0.5 0.25 0.5 0.75\n")
    file = find_boxes(tmp_path)["train"](None)
    (each,) = [each for each in file.content["annotations"] if each["image_id"] == 2]
    assert each["bbox"] == [6, 10, 24, 20]
    assert each["segmentation"] == [[6, 10, 30, 10, 30, 30]]
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [atom, cell]\nkpt_shape: [2, 3]\n")
    text.write_text("1 0.5 0.5 0.5 0.5 0.1 0.1 2 0.2 0.2 0\n")
    file = find_boxes(tmp_path)["train"](None)
    assert file.content["annotations"][-1]["bbox"] == [15, 10, 30, 20]


def test_boxes_of_yolo_are_on_the_upright_image(tmp_path: Path) -> None:
    write_yolo(tmp_path, yaml="train: images/train\nval: images/val\nnames: [atom, cell]\n")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image = Image.new("RGB", (40, 40))
    image.paste("white", (0, 0, 20, 40))
    image.save(tmp_path / "images" / "train" / "a.jpg", exif=exif)
    data = CocoDetection(find_boxes(tmp_path)["train"](None), train=True, strict=True)
    assert data[0]["image"][0, 5].float().mean() > 200, "the white half is on top"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:60], "is no XML, it may be cut off"),
        (lambda text: "<html/>", "is no file of Pascal VOC: its root is <html>, not <annotation>"),
        (lambda text: text.replace("<name>atom</name>", ""), "object 0 has no <name>"),
        (lambda text: text.replace("<xmin>2</xmin>", ""), "an object has no <bndbox><xmin>"),
        (lambda text: text.replace("<xmin>2</xmin>", "<xmin>wide</xmin>"), "<xmin> is 'wide', and must be a number"),
        (lambda text: text.replace("<xmin>2</xmin>", "<xmin>inf</xmin>"), "<xmin> is 'inf', and must be a number"),
        (
            lambda text: (
                '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
                + "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9))
                + "]>"
                + text.replace("atom", "&j;")
            ),
            "is no XML",
        ),
    ],
)
def test_an_xml_file_that_is_none_is_named(tmp_path: Path, change: Callable[[str], str], message: str) -> None:
    write_voc(tmp_path, "Annotations", "JPEGImages", ("train",))
    path = tmp_path / "Annotations" / "b.xml"
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=rf"b\.xml.*{message}"):
        find_boxes(tmp_path)["train"](None)


def test_voc_counts_from_one_unless_a_box_begins_at_zero_and_leaves_out_what_is_difficult(tmp_path: Path) -> None:
    write_voc(tmp_path, "Annotations", "JPEGImages", ("train",))
    path = tmp_path / "Annotations" / "b.xml"
    path.write_text(path.read_text().replace("<xmin>2</xmin>", "<xmin>0</xmin>").replace(">0</diff", ">1</diff"))
    file = find_boxes(tmp_path)["train"](None)
    assert said(file)["b.jpg"] == [("atom", [0, 2, 31, 29])]
    assert [each["iscrowd"] for each in file.content["annotations"]] == [0, 0, 1]


def faults() -> dict[str, Callable[[dict[str, Any]], Any]]:
    def names(form: str) -> Callable[[dict[str, Any]], Any]:
        return lambda c: [each.update(file_name=form.format(each["file_name"])) for each in c["images"]]

    def ids(change: Callable[[int], Any]) -> Callable[[dict[str, Any]], Any]:
        def apply(content: dict[str, Any]) -> None:
            for part in ("images", "categories", "annotations"):
                for each in content[part]:
                    for name in each.keys() & {"id", "image_id", "category_id"}:
                        each[name] = change(each[name])

        return apply

    return {
        "ids as text": ids(str),
        "ids as floats": ids(float),
        "image ids that are names": lambda c: [
            *(each.update(id=f"im-{each['id']}") for each in c["images"]),
            *(each.update(image_id=f"im-{each['image_id']}") for each in c["annotations"]),
        ],
        "no ids of annotations": lambda c: [each.pop("id") for each in c["annotations"]],
        "ids of annotations that are null": lambda c: [each.update(id=None) for each in c["annotations"]],
        "backslashes": names("images\\{}"),
        "folders above": names("../../label-studio/data/media/upload/1/{}"),
        "another machine's path": names("C:\\Users\\me\\data\\{}"),
        "another machine's absolute path": names("/home/me/data/{}"),
        "percent signs": lambda c: [
            each.update(file_name=each["file_name"].replace(".", "%2E")) for each in c["images"]
        ],
        "another case": lambda c: [each.update(file_name=each["file_name"].upper()) for each in c["images"]],
        "a category twice": lambda c: [
            c["categories"].append({"id": 7, "name": "atom", "supercategory": ""}),
            c["annotations"][1].update(category_id=7),
        ],
        "an unused category twice": lambda c: c["categories"].insert(0, {"id": 0, "name": "atom"}),
    }


@pytest.mark.parametrize("fault", faults())
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_small_faults_of_tools_are_mended(tmp_path: Path, fault: str) -> None:
    write_coco(tmp_path, "annotations/instances_train.json", "images")
    path = tmp_path / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    faults()[fault](content)
    path.write_text("\ufeff" + json.dumps(content), encoding="utf-8")  # and a byte order mark
    file = read_coco(path)
    assert file.classes == ["atom", "cell"]
    assert said(file) == BOXES
    ids = [each["id"] for each in file.content["annotations"]]
    assert len(set(ids)) == 3
    assert all(type(each) is int for each in ids)


def test_what_was_mended_is_said_in_one_line(tmp_path: Path) -> None:
    write_coco(tmp_path, "annotations/instances_train.json", "images", "D:\\photos\\{}")
    with pytest.warns(UserWarning, match=r"2 file names were found by the last part, such as 'D:.*a\.jpg' = .*a\.jpg$"):
        read_coco(tmp_path / "annotations" / "instances_train.json")
    (tmp_path / "images" / "a.jpg").unlink()
    for folder in ("one", "other"):
        picture(tmp_path / "images" / folder / "a.jpg")
    with pytest.warns(UserWarning, match=r"1 file name was found by the last part"):
        file = read_coco(tmp_path / "annotations" / "instances_train.json")
    assert "D:\\photos\\a.jpg" in [each["file_name"] for each in file.content["images"]], "which of two is open"


def test_an_image_that_is_missing_is_not_taken_from_another_part(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_coco(tmp_path, f"annotations/instances_{part}.json", part, "E:\\data\\{}")
    (tmp_path / "val" / "a.jpg").unlink()
    with pytest.warns(UserWarning, match="1 file name was found by the last part"):
        file = find_boxes(tmp_path)["val"](None)
    assert file.images == tmp_path / "val"
    assert [each["file_name"] for each in file.content["images"]] == ["E:\\data\\a.jpg", "b.jpg"]


def test_polygons_without_area_go_where_whole_ones_are_beside_them(tmp_path: Path) -> None:
    write_coco(tmp_path, "annotations/instances_train.json", "images")
    path = tmp_path / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    whole = [1, 1, 9, 1, 9, 9]
    for each in content["annotations"]:
        each["segmentation"] = [[1, 1, 5, 5], whole, [3, 3]]
    path.write_text(json.dumps(content))
    file = read_coco(path)
    file.check_masks()
    assert file.content["annotations"][0]["segmentation"] == [whole]
    content["annotations"][1]["segmentation"] = [[1, 1, 5, 5]]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="annotation 1: the segmentation is neither polygons nor"):
        read_coco(path).check_masks()


def test_documentation_names_what_each_layout_looks_for() -> None:
    docs = Path(__file__).parents[2] / "docs"
    for page, layouts in (("detection.md", box_layouts.LAYOUTS), ("segmentation.md", mask_layouts.LAYOUTS)):
        text = (docs / page).read_text(encoding="utf-8")
        for layout in layouts:
            for word in re.findall(r"[\w.]{6,}", layout.example):  # folders and files
                assert word in text, f"{page} says nothing of {word} ({layout.name})"
