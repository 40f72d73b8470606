"""``--split val`` of data without parts: what the run held out, not what it learned from."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from linvit.data.datasets import ImageFolder
from linvit.data.sources import open_source
from linvit.inference.pictures.masks import draw_overlay, mask_picture, palette_of
from linvit.inference.reports.common import held_out_share
from tests.conftest import CLASSES

EACH = 5


@pytest.fixture
def run(tmp_path: Path, run_folder: Path) -> Path:
    """A run that held out two fifths of each class."""
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("data:\n  val_share: 0.4\n")
    return tmp_path / "run"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(EACH):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path / "data"


def test_classification(linvit_command, run: Path, data: Path) -> None:
    said = {split: linvit_command("eval", run, data, "--split", split, "--json").json for split in ("val", "train")}
    assert {split: record["images"] for split, record in said.items()} == {"val": 6, "train": 9}
    assert said["val"]["split"] == "val (split off)"
    whole = linvit_command("eval", run, data, "--json")
    assert whole.json["images"] == 15
    assert "all of it is evaluated, also what a run on it learned from; --split val" in whole.err


def test_it_is_what_training_holds_out(data: Path) -> None:
    source = open_source("folder", str(data), 0.4)
    held, learned = (
        {path for path, _ in part.samples} for part in (source.held_out(None, False), source.train(None, 0))
    )
    assert len(held) == 6
    assert not held & learned
    assert held | learned == {path for path, _ in ImageFolder(data).samples}


def test_the_classes_are_the_models(linvit_command, run: Path, data: Path) -> None:
    shutil.rmtree(data / "bee")
    said = linvit_command("eval", run, data, "--split", "val", "--json")
    assert said.json["images"] == 4
    (data / "cat").rename(data / "dog")
    said = linvit_command("eval", run, data, "--split", "val")
    assert said.code == 2
    assert "classes that are none of the 3 known classes: dog" in said.err


@pytest.mark.parametrize(("split", "line"), [("test", "no part 'test', read as class folders; its parts: all")])
def test_a_part_that_is_not_there(linvit_command, run: Path, data: Path, split: str, line: str) -> None:
    said = linvit_command("eval", run, data, "--split", split)
    assert said.code == 2
    assert line in said.err


@pytest.mark.parametrize(
    "text", ["data: {val_share: 2}", "data: {val_share: much}", "data: {val_share: true}", "a: b: c"]
)
def test_settings_that_hands_have_edited(run: Path, text: str) -> None:
    (run / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml(: data\.val_share is .*, and must be a number| is no YAML)"):
        held_out_share(str(run))


@pytest.mark.parametrize("text", ["", "data:", "data: {val_share: 0.3}", "[]"])
def test_settings_without_a_share_mean_the_usual_one(run: Path, text: str) -> None:
    (run / "config.yaml").write_text(text)
    assert held_out_share(str(run / "model.safetensors")) == (0.3 if "0.3" in text else 0.2)
    assert held_out_share("care_s0") == 0.2


@pytest.mark.parametrize("colours", [None, [[9, 9, 9], [200, 0, 0], [0, 0, 200]]])
def test_masks_have_the_colours_of_the_pictures(colours) -> None:
    classes, values = ["background", "tree", "sky"], [1, 2, 3]
    mask = np.repeat(np.array([[0, 1, 2]], dtype=np.uint8), 40, axis=0).repeat(40, axis=1)
    palette = palette_of(classes, colours)
    assert (palette == [[0, 0, 0], *palette[1:]] if colours is None else palette == colours).all()
    picture = mask_picture(mask, values, classes, colours)
    assert (np.asarray(picture) == mask + 1).all()
    assert (np.asarray(picture.convert("RGB")) == palette[mask]).all()
    drawn = np.asarray(draw_overlay(Image.new("RGB", (120, 40)), mask, classes, colours).convert("RGB")).reshape(-1, 3)
    for colour in palette[1:]:
        shown = (colour * 0.6).round()  # laid over black
        assert (np.abs(drawn - shown).max(axis=1) <= 1).sum() > 100
