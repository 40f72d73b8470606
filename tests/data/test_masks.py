"""Masks: found beside their images whatever the layout, read whatever the file, and their values checked."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from linvit.data.images import UnreadableImage
from linvit.data.masks import IGNORED, MaskCode, class_list, find_pairs, has_split, load_mask

VALUES = np.arange(12, dtype=np.uint8).reshape(3, 4)


def put(path: Path, size: tuple[int, int] = (4, 3), mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)
    return path


@pytest.mark.parametrize(
    ("images", "masks", "split"),
    [
        ("images/training", "annotations/training", "train"),
        ("images/validation", "annotations/validation", "val"),
        ("images/test", "annotations/test", "test"),
        ("train/images", "train/masks", "train"),
        ("val/images", "val/labels", "val"),
        ("images/train", "masks/train", "train"),
        ("images", "masks", "all"),
    ],
)
def test_pairs_are_found_in_every_layout(tmp_path: Path, images: str, masks: str, split: str) -> None:
    expected = []
    for name in ("b", "sub/a"):
        image = put(tmp_path / images / f"{name}.JPG", mode="RGB")
        expected.append((str(image), str(put(tmp_path / masks / f"{name}.png"))))
    (tmp_path / images / "notes.txt").touch()
    assert find_pairs(tmp_path, split) == expected
    twin = put(tmp_path / images / "sub" / "a.png")
    with pytest.raises(ValueError, match=rf"a\.JPG and {twin} have the same name but for the ending"):
        find_pairs(tmp_path, split)
    assert has_split(tmp_path, split)
    assert not has_split(tmp_path, "train" if split == "test" else "test")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        find_pairs(tmp_path / "absent", "train")
    with pytest.raises(NotADirectoryError, match=r"x\.png is a file"):
        find_pairs(put(tmp_path / "x.png"), "train")
    with pytest.raises(FileNotFoundError, match=r"lacks images/training with annotations/training, masks/training"):
        find_pairs(tmp_path, "train")
    for folder in ("images/training", "annotations/training"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"images/training holds no image"):
        find_pairs(tmp_path, "train")
    put(tmp_path / "images/training/a.png")
    put(tmp_path / "images/training/b.png")
    put(tmp_path / "annotations/training/b.png")
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images have no mask in .*annotations/training: .*/a\.png$"):
        find_pairs(tmp_path, "train")
    put(tmp_path / "annotations/training/a.png")
    put(tmp_path / "annotations/training/c.png")
    with pytest.warns(UserWarning, match=r"1 masks have no image in .*images/training: .*c\.png"):
        assert len(find_pairs(tmp_path, "train")) == 2


def masks() -> dict[str, Image.Image]:
    palette = Image.fromarray(VALUES, mode="P")
    palette.putpalette(list(range(255, -1, -1)) * 3)
    return {
        "gray": Image.fromarray(VALUES),
        "palette": palette,
        "16 bits": Image.fromarray(VALUES.astype(np.uint16)),
        "32 bits": Image.fromarray(VALUES.astype(np.int32)),
        "gray saved as RGB": Image.fromarray(VALUES).convert("RGB"),
        "gray with alpha": Image.fromarray(VALUES).convert("LA"),
        "RGBA": Image.fromarray(VALUES).convert("RGBA"),
    }


@pytest.mark.parametrize("kind", masks())
def test_values_are_read_as_they_are_stored(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("mask.tif" if kind == "32 bits" else "mask.png")
    masks()[kind].save(path)
    assert (load_mask(path) == VALUES).all()


def test_binary_masks_are_zero_and_one(tmp_path: Path) -> None:
    Image.fromarray(VALUES > 5).save(tmp_path / "mask.png")
    assert (load_mask(tmp_path / "mask.png") == (VALUES > 5)).all()


def test_files_that_are_no_masks_are_named(tmp_path: Path) -> None:
    colors = np.zeros((3, 4, 3), dtype=np.uint8)
    colors[0, 0] = (1, 2, 3)
    Image.fromarray(colors).save(tmp_path / "color.png")
    with pytest.raises(ValueError, match=r"color\.png is a colour picture"):
        load_mask(tmp_path / "color.png")
    Image.fromarray(np.zeros((3, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float\.tif holds floating-point values"):
        load_mask(tmp_path / "float.tif")
    (tmp_path / "broken.png").write_bytes(put(tmp_path / "whole.png").read_bytes()[:40])
    with pytest.raises(UnreadableImage, match=r"cannot read mask .*broken\.png: ") as error:
        load_mask(tmp_path / "broken.png")
    assert error.value.path == str(tmp_path / "broken.png")


@pytest.mark.parametrize(
    ("settings", "stored", "expected"),
    [
        ({}, [0, 2, 255], [0, 2, IGNORED]),
        ({"ignore": [1]}, [0, 1, 2], [0, 1, 2]),  # a class stays one
        ({"ignore": [3, 77]}, [2, 3, 77], [2, IGNORED, IGNORED]),
        ({"reduce_zero_label": True}, [0, 1, 3, 255], [IGNORED, 0, 2, IGNORED]),
        ({"values": [0, 255, 40]}, [255, 40, 0], [1, 2, 0]),
        ({"values": [0, 1000, 40], "ignore": [7]}, [1000, 7], [1, IGNORED]),
    ],
)
def test_values_mean_what_the_settings_say(settings: dict, stored: list[int], expected: list[int]) -> None:
    code = MaskCode(3, **settings)
    assert code.encode(np.array([stored]), "x").tolist() == [expected]
    again = MaskCode(3, code.values, code.ignore)  # as a saved model knows it
    assert again.encode(np.array([stored]), "x").tolist() == [expected]


@pytest.mark.parametrize("value", [3, 254, 65535, 70000, -1])
def test_a_value_out_of_range_is_named_with_its_file(value: int) -> None:
    with pytest.raises(ValueError, match=rf"mask a/b\.png has the values {value}: classes are 0 to 2, ignored 255"):
        MaskCode(3).encode(np.array([[0, value]]), "a/b.png")


@pytest.mark.parametrize(
    ("classes", "settings", "message"),
    [
        (1, {}, "classes must be from 2 to 255, not 1"),
        (256, {}, "classes must be from 2 to 255, not 256"),
        (3, {"values": [0, 1]}, "values must name one mask value for each of 3 classes, not 2"),
        (2, {"values": [4, 4]}, "must be different numbers"),
        (2, {"ignore": [-1]}, r"from 0 to 65535, not \[-1\]"),
        (2, {"values": [1, 2], "reduce_zero_label": True}, "give one of them"),
    ],
)
def test_settings_that_contradict_are_refused(classes: int, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskCode(classes, **settings)


def test_classes_are_named_by_settings_or_files(tmp_path: Path) -> None:
    assert class_list(tmp_path, ["sky", "tree"]) == ["sky", "tree"]
    assert class_list(tmp_path, 3) == ["0", "1", "2"]
    with pytest.raises(FileNotFoundError, match=r"has no classes\.txt .* give names or their number"):
        class_list(tmp_path, None)
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tName\n1\t0.15\twall\n2\t0.11\tbuilding, edifice\n")
    assert class_list(tmp_path, None) == ["wall", "building"]
    (tmp_path / "classes.txt").write_text("road\n\nsky, clear\n")
    assert class_list(tmp_path, None) == ["road", "sky, clear"]
