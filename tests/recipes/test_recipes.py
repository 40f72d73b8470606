"""Recipes: each says how it is run, holds settings that exist, and the demo keeps its promise."""

import re
from pathlib import Path

import pytest
import yaml
from timm.models import get_pretrained_cfg

from linvit import list_models, recipes
from linvit.catalogue import PUBLISHED_TOP1

FOLDER = Path(recipes.__file__).parent
RECIPES = recipes.list_recipes()


def test_every_file_is_a_recipe_that_the_package_carries():
    files = {path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml")}
    assert files == {recipe.name for recipe in RECIPES}
    assert len(files) > 40


STUDIES = [recipe for recipe in RECIPES if recipe.name.startswith("studies/")]
TRAININGS = [recipe for recipe in RECIPES if recipe not in STUDIES]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipe_says_what_it_is(recipe):
    name = recipe.name.removeprefix("studies/")
    command = f"linvit study {name} " if recipe in STUDIES else f"linvit train --config {name} "
    assert re.search(rf"^#   {command}", recipe.path.read_text(), re.MULTILINE)
    assert recipe.purpose.endswith(".")
    assert recipe.cost.endswith(".")
    assert recipe.expected.endswith(".")


def test_a_study_is_no_training(linvit_command):
    said = linvit_command("train", "--config", "studies/care")
    assert said.code == 2
    assert said.err == "linvit: error: studies/care is a study: linvit study care\n"


@pytest.mark.parametrize("recipe", TRAININGS, ids=lambda recipe: recipe.name)
def test_recipe_holds_settings_that_exist(recipe, linvit_command):
    said = linvit_command("train", "--config", recipe.name, "--print_config")
    assert said.code == 0, said.err
    resolved = yaml.safe_load(said.out)
    given = yaml.safe_load(recipe.path.read_text())
    assert resolved["task"] == given.pop("task", "classify")
    for section, settings in given.items():
        for name, value in settings.items():
            assert resolved[section][name] == value


@pytest.mark.parametrize("name", list_models())
def test_every_model_has_a_recipe_for_imagenet_that_says_what_to_expect(name):
    (recipe,) = (recipe for recipe in RECIPES if recipe.name == f"imagenet/{name}")
    text = recipe.path.read_text()
    top1 = PUBLISHED_TOP1.get(name)
    assert recipe.expected.startswith(f"{top1} % top-1 (published" if top1 else "no accuracy was published")
    settings = yaml.safe_load(text)
    assert settings["model"]["name"] == name
    assert settings["data"]["img_size"] == get_pretrained_cfg(name).input_size[-1]
    devices = int(re.search(r"--trainer.devices (\d+)", text)[1])
    epochs, images = settings["trainer"]["max_epochs"], settings["data"]["batch_size"]
    assert recipe.cost == f"{epochs} epochs, made for {devices} devices of {images} images."


def test_names_and_paths_are_found(tmp_path, monkeypatch):
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: {name: care_s1}\n")
    assert recipes.find("imagenet/care_s0") == FOLDER / "imagenet" / "care_s0.yaml"
    assert recipes.find(mine) == mine
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a folder of that name hides no recipe
    assert recipes.find("demo") == FOLDER / "demo.yaml"


@pytest.mark.parametrize("given", [("--config", "imagenet/care_s3"), ("--config=imagenet/care_s3",)])
def test_unknown_name_is_one_line_with_the_nearest(given, linvit_command):
    said = linvit_command("train", *given)
    assert said.code == 2
    line = "imagenet/care_s3 is neither a file nor the name of a recipe; did you mean imagenet/care_s2 or "
    assert said.err.startswith(f"linvit: error: {line}")
    assert said.err.count("\n") == 1


def test_list_says_what_each_is_for(linvit_command):
    found = linvit_command("recipes", "digits", "--json").json
    assert [recipe["name"] for recipe in found] == ["small/detect_digits", "small/segment_digits"]
    table = linvit_command("recipes", "care_s0").out
    assert "imagenet/care_s0" in table
    assert "78.4 % top-1 (published" in table
    said = linvit_command("recipes", "resnet")
    assert said.code == 2
    assert "no recipe matches 'resnet'; there are demo, " in said.err


@pytest.mark.slow
def test_demo_reaches_97_percent(linvit_command, tmp_path):
    said = linvit_command("train", "--config", "demo", "--out", tmp_path / "demo", "--json")
    assert said.code == 0, said.err
    assert said.json["top1"] >= 0.97
    assert said.json["seconds"] < 600  # two minutes on two quiet cores


@pytest.mark.slow
def test_digit_scenes_are_segmented(linvit_command, tmp_path):
    said = linvit_command("train", "--config", "small/segment_digits", "--out", tmp_path / "run", "--json")
    assert said.code == 0, said.err
    assert said.json["miou"] >= 0.47  # 0.52 was measured, background alone would be 0.09
