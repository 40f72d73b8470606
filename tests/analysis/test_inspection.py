"""What is gathered of a model on an image, its pictures, the report and the command."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image

import linvit
from linvit.analysis import figures
from linvit.analysis.inspection import Eye
from linvit.heads import build as build_dense
from tests.conftest import Said

Command = Callable[..., Said]


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo-like picture of 1013 x 37 pixels."""
    path = tmp_path_factory.mktemp("photo") / "wide one.png"
    noise = np.random.default_rng(0).integers(0, 255, (37, 1013, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def test_a_folder_with_pictures_a_report_and_numbers(
    linvit_command: Command, run_folder: Path, photo: Path, tmp_path: Path
) -> None:
    said = linvit_command("inspect", run_folder, photo, "--out", tmp_path / "seen", "--json")
    assert said.code == 0, said.err
    (image,) = said.json["images"]
    assert image["size"] == [32, 32]
    assert image["at"] == [16, 16]
    assert [layer["mechanism"] for layer in image["layers"]] == ["care", "care"]
    for layer in image["layers"]:
        assert {"name", "grid", "entropy", "rank", "rank_mixed", "distance", "heads"} <= layer.keys()
        assert layer["rank"]["numerical"] <= layer["rank"]["full"]
    assert len(image["groups"]) == 4
    assert json.loads((tmp_path / "seen" / "report.json").read_text())["images"] == said.json["images"]
    written = sorted(path.name for path in (tmp_path / "seen" / "pictures").iterdir())
    assert written == sorted(
        f"{name}.{kind}"
        for name in ("01_wide_one_overview", "01_wide_one_layers", "01_wide_one_heads", "groups", "measures")
        for kind in ("png", "svg")
    )
    with Image.open(tmp_path / "seen" / "pictures" / "01_wide_one_overview.png") as picture:
        assert picture.width > 1000, "for print"
        assert np.asarray(picture.convert("RGB")).std() > 20


def test_the_report_needs_no_network(linvit_command: Command, run_folder: Path, photo: Path, tmp_path: Path) -> None:
    said = linvit_command("inspect", run_folder, photo, "--out", tmp_path)
    assert "report: " in said.out
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert len(re.findall("<img", page)) == 5
    assert not re.search(r"https?://", page)


def test_the_pixel_is_the_original_images() -> None:
    """Column 60, row 10 of 120 x 40 pixels: the centre crop of the right half of a resized image."""
    model = timm.create_model("linglo_b0", num_classes=3)
    eye = Eye(model, img_size=64)
    image = Image.new("RGB", (120, 40))
    column, row = eye.find(image, (60, 10))
    assert abs(column - 32) <= 1
    # 40 rows become 73 (64 / 0.875), of which the middle 64 are seen: row 10 is at 18 of 73, 14 of 64
    assert abs(row - 14) <= 1
    with pytest.raises(ValueError, match=r"pixel 3,10 is not in what the model sees of the image: columns 4\d to 7\d"):
        eye.find(image, (3, 10))
    with pytest.raises(ValueError, match="outside the image, which has 120x40 pixels"):
        eye.find(image, (120, 0))


def test_what_was_marked_is_where_the_attention_starts(run_folder: Path) -> None:
    """A dot at a pixel of the original is under the mark in the image as the model sees it."""
    image = Image.new("RGB", (200, 150))
    image.paste((255, 255, 255), (120, 60, 126, 66))
    eye = Eye(linvit.load_model(run_folder))
    found = eye.inspect(image, at=(123, 63), ranks=False)
    assert found.image.getpixel(found.at)[0] > 100


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_backbones_of_dense_models_are_looked_into_whole(task: str) -> None:
    name = {"segment": "fpn", "detect": "retinanet"}[task]
    model = build_dense(task, {"name": name, "backbone": "linglo_b0", "num_classes": 2})
    eye = Eye(model, img_size=96)
    found = eye.inspect(Image.new("RGB", (200, 100)), at=(199, 99))
    assert found.image.size == (96, 48)
    assert found.at == (95, 47)
    assert found.layers[0].grid == (12, 24)
    assert not found.classes
    assert figures.draw_overview(found).axes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--at", "3"], "must be X,Y, a column and a row in pixels, got '3'"),
        (["--at", "5000,3"], "pixel 5000,3 lies outside the image, which has 1013x37 pixels"),
        (["--class", "dog"], "--class must be one of the model's 3 classes (ant, bee, cat) or its number, got 'dog'"),
        (["--img-size", "0"], "must be a whole number, 1 or more"),
    ],
)
def test_wrong_arguments_are_one_line(
    linvit_command: Command, run_folder: Path, photo: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    said = linvit_command("inspect", run_folder, photo, "--out", tmp_path / "no", *arguments)
    assert said.code == 2
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "no").exists()


def test_wrong_files_are_one_line(linvit_command: Command, run_folder: Path, photos: Path, tmp_path: Path) -> None:
    said = linvit_command("inspect", run_folder, photos / "val" / "cat" / "broken.jpg", "--out", tmp_path / "no")
    assert said.code == 2
    assert "none of the 1 images could be read" in said.err
    said = linvit_command("inspect", run_folder, tmp_path / "missing.png")
    assert said.code == 2
    assert "missing.png" in said.err
    many = [photos / "val"] * 5
    assert linvit_command("inspect", "nowhere/model", *many).code == 2


def test_chosen_layers_keep_the_ends() -> None:
    assert figures.spread(list(range(12))) == [0, 2, 4, 7, 9, 11]  # type: ignore[arg-type, comparison-overlap]
    assert figures.spread([1, 2]) == [1, 2]  # type: ignore[arg-type, list-item, comparison-overlap]
    assert figures.short("stages.2.blocks.0.attn") == "stage 3, block 1"
    assert figures.short("layers.0.blocks.1.attn") == "stage 1, block 2"
