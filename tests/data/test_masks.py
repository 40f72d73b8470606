"""Masks: read whatever the file, and their values and colours checked; classes by the files that tools write."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from linvit.data.images import UnreadableImage
from linvit.data.legends import Legend, read_legend, read_palette
from linvit.data.masks import IGNORED, MaskCode, load_mask

VALUES = np.arange(12, dtype=np.uint8).reshape(3, 4)


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
    Image.new("YCbCr", (4, 3), (1, 2, 3)).save(tmp_path / "color.tif")
    with pytest.raises(ValueError, match=r"color\.tif is a picture of Y/Cb/Cr; a mask has one channel, or R/G/B"):
        load_mask(tmp_path / "color.tif")
    Image.fromarray(np.zeros((3, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float\.tif holds floating-point values"):
        load_mask(tmp_path / "float.tif")
    Image.new("L", (4, 3)).save(tmp_path / "whole.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "whole.png").read_bytes()[:40])
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
    again = MaskCode.saved(3, json.loads(json.dumps(code.config())) | {"mean": [0]})
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


def test_colours_are_classes_by_the_palette(tmp_path: Path) -> None:
    colors = np.array([[(0, 0, 0), (128, 64, 128)], [(9, 9, 200), (128, 64, 128)]], dtype=np.uint8)
    Image.fromarray(colors).save(tmp_path / "a.png")
    mask = load_mask(tmp_path / "a.png")
    code = MaskCode(2, colors=[(128, 64, 128), (9, 9, 200)], void=[(0, 0, 0)])
    for each in (code, MaskCode.saved(2, json.loads(json.dumps(code.config())))):
        assert each.encode(mask, "a.png").tolist() == [[IGNORED, 0], [1, 0]]
    assert code.encode(np.array([[0, 1]]), "gray.png").tolist() == [[0, 1]], "numbers are read, too"
    with pytest.raises(ValueError, match=r"mask a\.png has the colours \[0, 0, 0\], which are none of the palette's 2"):
        MaskCode(2, colors=[(128, 64, 128), (9, 9, 200)]).encode(mask, "a.png")
    with pytest.raises(ValueError, match=r"a\.png is a colour picture: .*--data\.palette FILE .*class_dict\.csv or la"):
        MaskCode(2).encode(mask, "a.png")


def test_jpegs_of_two_classes_are_parted_in_the_middle(tmp_path: Path) -> None:
    values = np.zeros((32, 32), dtype=np.uint8)
    values[8:, 12:] = 255
    Image.fromarray(values).save(tmp_path / "a.jpg", quality=60)
    mask = load_mask(tmp_path / "a.jpg")
    assert set(np.unique(mask)) > {0, 255}, "blurred"
    assert (MaskCode(2).encode(mask, str(tmp_path / "a.jpg")) == (values > 0)).all()
    with pytest.raises(ValueError, match=r"a\.jpg is a JPEG, whose values are blurred: save masks of 3 classes as PNG"):
        MaskCode(3).encode(mask, str(tmp_path / "a.jpg"))


PALETTES = {
    "class_dict.csv": "name,r,g,b\nroad,128,64,128\ncar,64,0,128\nVoid,0,0,0\n",
    "numbered.csv": "class,id,r,g,b\nroad,7,128,64,128\ncar,8,64,0,128\nvoid,9,0,0,0\n",
    "label_colors.txt": "128 64 128\troad\n64 0 128\tcar\n0 0 0\tVoid\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nroad:128,64,128::\ncar:64,0,128::\nvoid:0,0,0::\n",
    "other.txt": "\ufeffroad 128 64 128\ncar 64 0 128\nunlabeled 0 0 0\n",
    "other.json": '{"road": [128, 64, 128], "car": [64, 0, 128], "void": [0, 0, 0]}',
}


@pytest.mark.parametrize("name", PALETTES)
def test_palettes_of_tools(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(PALETTES[name], encoding="utf-8")
    legend = read_palette(tmp_path / name)
    assert legend == Legend(["road", "car"], None, [(128, 64, 128), (64, 0, 128)], ((0, 0, 0),))
    assert legend.choose(["car"], "x") == Legend(["car"], None, [(64, 0, 128)], ((0, 0, 0), (128, 64, 128)))
    assert legend.choose(["Strasse", "Auto"], "x").colors == legend.colors
    with pytest.raises(ValueError, match="classes has bus, which x has no colour for; it has road, car"):
        legend.choose(["car", "bus"], "x")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "has no class: a line must hold a name and three numbers from 0 to 255"),
        ("a.csv", "name,r,g,b\nroad,1,2\n", "line 2 is 'road,1,2', and must hold a name and three numbers"),
        ("a.csv", "name,r,g,b\nroad,1,2,256\n", "line 2 is 'road,1,2,256', and must hold"),
        ("a.csv", "name,r,g,b\nroad,1,2,3\nroad,4,5,6\n", "line 3 has the class 'road' a second time"),
        ("a.txt", "1 2 3 road\n1 2 3 car\n", r"line 2 gives 'car' the colour \(1, 2, 3\), which is that of 'road'"),
        ("a.json", '{"road": [1, 2]}', r"'road' is \[1, 2\], and must be .*three numbers"),
        ("a.json", "[1", "is no JSON"),
        ("a.txt", b"\xff\xfe\x00", "is no text in UTF-8"),
    ],
)
def test_palettes_that_are_none_are_named(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        read_palette(tmp_path / name)


def test_class_names_come_from_files(tmp_path: Path) -> None:
    assert read_legend([tmp_path], None) is None
    with pytest.raises(FileNotFoundError, match=r"there is no palette gone\.csv"):
        read_legend([tmp_path], "gone.csv")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "_classes.csv").write_text("Pixel Value, Class\n0, background\n3, road\n")
    found = read_legend([tmp_path, tmp_path / "train"], None)
    assert found == (Legend(["background", "road"], [0, 3]), str(tmp_path / "train" / "_classes.csv"))
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tName\n1\t0.15\twall\n2\t0.11\tbuilding, edifice\n")
    assert read_legend([tmp_path], None) == (Legend(["wall", "building"]), str(tmp_path / "objectInfo150.txt"))
    (tmp_path / "classes.txt").write_text("road\n\nsky, clear\n")
    assert read_legend([tmp_path], None) == (Legend(["road", "sky, clear"]), str(tmp_path / "classes.txt"))
