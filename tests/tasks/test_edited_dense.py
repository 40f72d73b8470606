"""Recipes, descriptions and checkpoints of dense tasks after hands changed them: one line, or they work."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from linvit import recipes
from tests.weights.test_description import edited

pytestmark = pytest.mark.slow

EDITS = 30
"""For each file; seeds are fixed."""

TASKS = ["detect", "segment"]
SHORT = [
    "--trainer.max_epochs=1",
    "--trainer.max_steps=2",
    "--trainer.limit_train_batches=1",
    "--trainer.limit_val_batches=1",
    "--trainer.accelerator=cpu",
    "--data.workers=0",
]
CARE = {"depths": [1, 1, 1, 1], "dims": [4, 4, 16, 32], "layer_scale_init_value": 0.5}
SMALL: dict[str, dict[str, Any]] = {
    "detect": {"channels": 8, "detector_args": {"score_thresh": 0.1, "detections_per_img": 9}},
    "segment": {},
}


def recipe_of(task: str) -> dict[str, Any]:
    """Return a packaged recipe, made short and small."""
    recipe = yaml.safe_load(recipes.find(f"small/{task}_digits").read_text())
    recipe["model"] = recipe["model"] | SMALL[task] | {"backbone_args": CARE}
    recipe["data"] = recipe["data"] | {"batch_size": 2}
    return recipe


@pytest.fixture(scope="module", params=TASKS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from linvit.cli.main import main

    folder = tmp_path_factory.mktemp(request.param)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_of(request.param)))
    assert main(["train", "--config", str(folder / "recipe.yaml"), "--out", str(folder / "run"), *SHORT]) == 0
    return folder / "run"


def check(said: Any, what: Any) -> None:
    """Check that a command worked or said one line; a traceback of its own would have failed the test already."""
    errors = [line for line in said.err.splitlines() if line.startswith("linvit: error")]
    assert (said.code, len(errors)) in ((0, 0), (2, 1)), (what, said.err)
    assert "Traceback" not in said.err, (what, said.err)


@pytest.mark.parametrize("task", TASKS)
def test_recipes(linvit_command: Any, tmp_path: Path, task: str) -> None:
    recipe, chance = recipe_of(task), random.Random(1)
    codes = []
    for number in range(EDITS):
        changed = edited(recipe, chance)
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(changed))
        said = linvit_command("train", "--config", tmp_path / "recipe.yaml", "--out", tmp_path / str(number), *SHORT)
        check(said, changed)
        codes.append(said.code)
    assert set(codes) == {0, 2}


def test_descriptions(linvit_command: Any, run: Path, tmp_path: Path) -> None:
    original, chance = json.loads((run / "config.json").read_text()), random.Random(2)
    shutil.copytree(run, tmp_path / "run")
    codes = []
    for _ in range(EDITS):
        changed = edited(original, chance)
        (tmp_path / "run" / "config.json").write_text(json.dumps(changed))
        said = linvit_command("predict", tmp_path / "run", "digit-scenes", "--json")
        check(said, changed)
        codes.append(said.code)
    assert set(codes) == {0, 2}


def test_settings_of_a_run_that_goes_on(linvit_command: Any, run: Path, tmp_path: Path) -> None:
    original, chance = yaml.safe_load((run / "config.yaml").read_text()), random.Random(3)
    for number in range(EDITS // 2):
        folder = shutil.copytree(run, tmp_path / str(number))
        changed = edited(original, chance)
        (folder / "config.yaml").write_text(yaml.safe_dump(changed))
        check(
            linvit_command("train", "--resume", folder, *SHORT, "--trainer.max_steps=4", "--trainer.max_epochs=2"),
            changed,
        )


def test_checkpoints_to_go_on_from(linvit_command: Any, run: Path, tmp_path: Path) -> None:
    original, chance = torch.load(run / "last.ckpt", weights_only=True), random.Random(4)
    plain = [name for name, value in original.items() if json_like(value)]
    for number in range(EDITS // 2):
        folder = shutil.copytree(run, tmp_path / str(number))
        (folder / "previous.ckpt").unlink(missing_ok=True)
        name = chance.choice(plain)
        changed = original | {name: edited({name: original[name]}, chance).get(name)}
        torch.save(changed, folder / "last.ckpt")
        said = linvit_command("train", "--resume", folder, *SHORT, "--trainer.max_steps=4", "--trainer.max_epochs=2")
        check(said, (name, changed[name]))


def json_like(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return bool(value)
