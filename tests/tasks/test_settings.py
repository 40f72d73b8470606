"""Settings that hands have edited: one line that names the key, what was found and what is allowed."""

import random
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.weights.test_description import edited


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A recipe that trains one step on eight images."""
    root = tmp_path_factory.mktemp("photos")
    values = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("dark", "light"):
            (root / part / name).mkdir(parents=True)
            for i in range(2):
                pixels = values.integers(0, 255, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return {
        "model": {"name": "test_efficientnet", "lr": 1e-3, "ema_decay": 0.5, "model_args": {"drop_rate": 0.1}},
        "data": {
            "root": str(root),
            "img_size": 32,
            "batch_size": 4,
            "workers": 0,
            "scale": [0.75, 1.0],
            "crop_pct": 1.0,
        },
        "trainer": {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1, "accelerator": "cpu"},
        "checkpoint": {"minutes": 15, "steps": None},
        "seed_everything": 0,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainer": None}, "recipe.yaml: trainer is null, and must be a section of settings"),
        ({"checkpoint": 3}, "recipe.yaml: checkpoint is 3, and must be a section"),
        ({"model": []}, "recipe.yaml: model is [], and must be a section"),
        ({"data": {"crop_pct": None}}, "--data.crop_pct: Expected float. Got value: null"),
        ({"model": {"model_args": {"drop_rate": ["a"]}}}, "drop_rate must be a number such as 0.0, not ['a']"),
        ({"model": {"layers": 3}}, "Group 'model' does not accept option 'layers'"),
        (None, "recipe.yaml holds no settings"),
    ],
)
def test_what_is_wrong_is_named(
    linvit_command, recipe: dict, tmp_path: Path, change: dict | None, message: str
) -> None:
    changed: dict | None = None
    if change is not None:
        changed = dict(recipe)
        for key, value in change.items():
            changed[key] = recipe[key] | value if isinstance(value, dict) else value
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(changed))
    said = linvit_command("train", "--config", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    assert said.code == 2
    assert message in said.err
    assert len([line for line in said.err.splitlines() if line.startswith("linvit: error")]) == 1


def test_a_file_that_is_no_text_is_named(linvit_command, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    said = linvit_command("train", "--config", tmp_path / "photo.png")
    assert said.code == 2
    assert said.err == f"linvit: error: {tmp_path / 'photo.png'} holds no settings: it is no text in UTF-8\n"


def test_random_edits_train_or_are_one_line(linvit_command, recipe: dict, tmp_path: Path) -> None:
    chance = random.Random(0)
    codes = []
    for number in range(10):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(edited(recipe, chance)))
        said = linvit_command("train", "--config", tmp_path / "recipe.yaml", "--out", tmp_path / str(number))
        codes.append(said.code)  # a traceback would fail the test
    assert set(codes) == {0, 2}
