"""Annotations, lists and palettes that hands have edited: they are read, or one line names the file; nothing else."""

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from linvit.data import DetectionData, SegmentationData
from tests.data import test_box_layouts as boxes
from tests.data import test_mask_layouts as masks

EDITS = 40
"""For each file; seeds are fixed."""

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    1e308,
    float("nan"),
    10**30,
    "",
    "x",
    "1",
    "../..",
    [],
    [[]],
    [1],
    {},
    {"a": 1},
]

TEXTS = [
    "",
    " ",
    ",",
    ":",
    "\t",
    "#",
    "nan",
    "-1",
    "9" * 40,
    "1e999",
    "\0",
    "\u202e",
    "é",
    "/",
    "..",
    "[",
    "{",
    '"',
    "&x;",
]


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """List the places in JSON: containers and what finds their values."""
    found = []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += [(value, key), *nodes(inner)]
    return found


def edit_json(text: str, chance: random.Random) -> str:
    content = json.loads(text)
    for _ in range(chance.randint(1, 2)):
        container, key = chance.choice(nodes(content))
        how = chance.randrange(3)
        if how == 0:
            container[key] = chance.choice(ODD)
        elif how == 1 and isinstance(container, dict):
            container[chance.choice(["id", "name", "file_name", "bbox", "x"])] = container.pop(key)
        elif isinstance(container, list):
            container.insert(key, chance.choice([container[key], *ODD]))
        else:
            del container[key]
    return json.dumps(content)


def edit_text(text: str, chance: random.Random) -> str:
    for _ in range(chance.randint(1, 3)):
        lines = text.splitlines(keepends=True) or [""]
        line, place = chance.randrange(len(lines)), chance.randrange(len(text) + 1)
        how = chance.randrange(5)
        if how == 0:
            text = text[:place] + chance.choice(TEXTS) + text[place:]
        elif how == 1:
            text = text[:place] + text[place + chance.randint(1, 12) :]
        elif how == 2:
            text = "".join(lines[:line] + lines[line + 1 :])
        elif how == 3:
            text = "".join(lines[: line + 1] + lines[line:])
        else:
            words = lines[line].split(" ")
            words[chance.randrange(len(words))] = chance.choice(TEXTS)
            text = "".join([*lines[:line], " ".join(words), *lines[line + 1 :]])
    return text


def edit_bytes(content: bytes, chance: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        found[chance.randrange(len(found))] = chance.randrange(256)
    return bytes(found[: chance.choice([len(found), chance.randrange(len(found))])])


def detect(root: Path) -> None:
    data = DetectionData(str(root), batch_size=1, workers=0, val_share=0.5)
    data.setup()
    for part in (data.train_set, data.val_set):
        for index in range(len(part)):
            part[index]


def segment(root: Path) -> None:
    data = SegmentationData(str(root), batch_size=1, workers=0, val_share=0.34, crop_size=8)
    data.setup()
    for part in (data.train_set, data.val_set):
        for index in range(len(part)):
            part[index]


def yolo(root: Path) -> None:
    boxes.LAYOUTS["YOLO, names as a map"][0](root)


def coloured(root: Path, name: str, text: str) -> None:
    masks.write_colored(root)
    (root / name).write_text(text)


Case = tuple[Callable[[Path], Any], str, Callable[[Path], None]]

CASES: dict[str, Case] = {
    "COCO": (boxes.write_cvat, "annotations/instances_Train.json", detect),
    "Roboflow": (boxes.write_roboflow, "valid/_annotations.coco.json", detect),
    "Label Studio": (boxes.write_label_studio, "result.json", detect),
    "YOLO's settings": (yolo, "data.yaml", detect),
    "YOLO's labels": (yolo, "labels/train/a.txt", detect),
    "YOLO's names": (boxes.write_darknet, "obj.names", detect),
    "YOLO's lists": (boxes.write_darknet, "train.txt", detect),
    "VOC's boxes": (boxes.LAYOUTS["VOC"][0], "Annotations/a.xml", detect),
    "VOC's lists": (boxes.LAYOUTS["VOC"][0], "ImageSets/Main/train.txt", detect),
    "VOC's lists of masks": (masks.voc, "ImageSets/Segmentation/train.txt", segment),
    "polygons": (masks.coco, "annotations/instances_train.json", segment),
    "class_dict.csv": (
        lambda root: coloured(root, "class_dict.csv", "name,r,g,b\nroad,128,64,128\ncar,64,0,128\nVoid,0,0,0\n"),
        "class_dict.csv",
        segment,
    ),
    "label_colors.txt": (
        lambda root: coloured(root, "label_colors.txt", "128 64 128 road\n64 0 128 car\n0 0 0 Void\n"),
        "label_colors.txt",
        segment,
    ),
    "labelmap.txt": (
        lambda root: coloured(root, "labelmap.txt", "# label\nroad:128,64,128::\ncar:64,0,128::\nvoid:0,0,0::\n"),
        "labelmap.txt",
        segment,
    ),
    "classes.txt": (
        lambda root: (
            masks.LAYOUTS["image and label"][0](root),
            (root / "classes.txt").write_text("background\nroad\ncar\n"),
        ),
        "classes.txt",
        segment,
    ),
    "_classes.csv": (
        lambda root: (
            masks.LAYOUTS["Roboflow"][0](root),
            (root / "train" / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, road\n"),
        ),
        "train/_classes.csv",
        segment,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_edited_file_is_read_or_named_in_one_line(tmp_path: Path, case: str) -> None:
    make, name, use = CASES[case]
    make(tmp_path / "data")
    path = tmp_path / "data" / name
    whole = path.read_bytes()
    wrong: list[str] = []
    refused = 0
    for seed in range(EDITS):
        chance = random.Random(f"{case} {seed}")
        if chance.random() < 0.2:
            path.write_bytes(edit_bytes(whole, chance))
        elif path.suffix == ".json":
            path.write_text(edit_json(whole.decode(), chance), encoding="utf-8")
        else:
            path.write_text(edit_text(whole.decode(), chance), encoding="utf-8")
        try:
            with warnings.catch_warnings(record=True):
                warnings.simplefilter("always")
                use(tmp_path / "data")
        except (ValueError, OSError) as error:
            refused += 1
            said = str(error)
            if len(said.splitlines()) != 1 or len(said) > 1200 or str(tmp_path) not in said:
                wrong.append(f"{seed}: {type(error).__name__}: {said}")
        except Exception as error:
            wrong.append(f"{seed}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong[:8])
    assert 0 < refused < EDITS, "some edits matter and some do not"
