"""``config.json`` as hands leave it: a wrong key is named with what it is and what it must be."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import linvit
from linvit.heads.segmentation import Segmenter
from linvit.inference.classification import ClassificationPredictor
from linvit.inference.segmentation import SegmentationPredictor
from linvit.weights.description import read_description

SMALL = {"depths": (1, 1, 1, 1), "dims": (4, 4, 16, 32), "layer_scale_init_value": 0.5}
JUNK: list[Any] = [None, 0, -3, 1e99, "x", "", [], [1], ["a", 2], {}, {"a": 1}, True, "NaN"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": 3}, "config.json: architecture is 3, and must be a text"),
        ({"architecture": "care_s9"}, "describes no model that can be built: Unknown model (care_s9)"),
        ({"label_names": 5}, "label_names is 5, and must be a list of texts"),
        ({"label_names": ["a"]}, "label_names has 1 names, and num_classes is 3"),
        ({"pretrained_cfg": None}, "pretrained_cfg is null, and must be an object of names and values"),
        ({"global_pool": ["avg"]}, 'global_pool is ["avg"], and must be a text'),
        ({"num_classes": 4, "label_names": [], "model_args": SMALL}, "does not fit the model in config.json beside it"),
        ({"model_args": {"depth": 3}}, "describes no model that can be built"),
        ({"model_args": {"dims": "wide"}}, "describes no model that can be built"),
        ({"pretrained_cfg": {"mean": "grey"}}, 'pretrained_cfg.mean is "grey", and must be a list of numbers'),
        ({"pretrained_cfg": {"std": [0, 1, 1]}}, "pretrained_cfg.std is [0, 1, 1], and must be numbers above 0"),
        ({"pretrained_cfg": {"input_size": [224]}}, "must be three whole numbers: channels, height, width"),
        ({"pretrained_cfg": {"interpolation": "best"}}, "must be one of bilinear, bicubic"),
        ({"linearize": [{"module": "x"}]}, "must be a list of objects with module, attention and grid_size"),
    ],
)
def test_a_wrong_key_is_named(linvit_command, run_folder: Path, tmp_path: Path, change: Any, message: str) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | change))
    said = linvit_command("predict", folder, "mnist5k")
    assert said.code == 2
    assert message in said.err
    assert said.err.count("\n") == 1


def test_a_missing_architecture_is_named(run_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    described = json.loads((folder / "config.json").read_text())
    described.pop("architecture")
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"config\.json: architecture is missing"):
        read_description(folder)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segmenter")
    model = Segmenter(3, "fpn", "test_efficientnet", decoder_args={"pyramid_channels": 8, "segmentation_channels": 32})
    seen = {"short_side": None, "mean": [0.5] * 3, "std": [0.2] * 3, "values": [0, 1, 2], "ignore": [255]}
    linvit.save_model(model, folder, classes=["a", "b", "c"], input_config=seen)
    return folder


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the ways to all values within a JSON value."""
    if not isinstance(value, dict | list):
        return [path]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(way for key, each in items for way in places(each, (*path, key)))]


def edited(described: Any, chance: random.Random) -> Any:
    """Change, drop or rename something anywhere in a description."""
    described = json.loads(json.dumps(described))
    way = chance.choice([way for way in places(described) if way])
    inner = described
    for key in way[:-1]:
        inner = inner[key]
    if chance.random() < 0.3:
        value = inner.pop(way[-1])
        if isinstance(inner, dict) and chance.random() < 0.5:
            inner[str(way[-1])[1:]] = value
    else:
        inner[way[-1]] = chance.choice(JUNK)
    return described


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_random_edits_give_a_model_or_one_line_of_a_value_error(
    kind: str, run_folder: Path, segmenter: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(run_folder if kind == "classifier" else segmenter, tmp_path / "run")
    original = json.loads((folder / "config.json").read_text())
    chance = random.Random(0)
    refused = []
    for _ in range(40):
        described = edited(original, chance)
        (folder / "config.json").write_text(json.dumps(described))
        try:
            model = linvit.load_model(folder)
            predictor = SegmentationPredictor if kind == "segmenter" else ClassificationPredictor
            predictor(model, "cpu").predict([Image.new("RGB", (37, 53))])
        except ValueError as error:  # anything else fails the test
            refused.append(str(error))
    assert len(refused) > 10
    assert not [message for message in refused if "\n" in message]
