"""Recipes: each says how it is run, holds settings that exist, and the demo keeps its promise."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_opens_with_its_command_and_holds_settings_that_exist(recipe, linvit_command):
    head = recipe.read_text().split("\n\n")[0]
    assert f"linvit train --config {recipe.relative_to(ROOT)}" in head
    said = linvit_command("train", "--config", recipe, "--print_config")
    assert said.code == 0, said.err
    resolved = yaml.safe_load(said.out)
    given = yaml.safe_load(recipe.read_text())
    assert resolved["task"] == given.pop("task", "classify")
    for section, settings in given.items():
        for name, value in settings.items():
            assert resolved[section][name] == value


@pytest.mark.slow
def test_demo_reaches_97_percent(linvit_command, tmp_path):
    said = linvit_command("train", "--config", ROOT / "recipes" / "demo.yaml", "--out", tmp_path / "demo", "--json")
    assert said.code == 0, said.err
    assert said.json["top1"] >= 0.97
    assert said.json["seconds"] < 600  # two minutes on two quiet cores
