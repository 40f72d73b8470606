"""Models with a dense head: saved with how they are built, found by their task, kept apart from classifiers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import linvit
from linvit import heads, registry
from linvit.checkpoints import class_names, task_of
from linvit.inference.classification import ClassificationPredictor


class Dots(heads.DenseModel):
    """Stands for any network with a dense head."""

    task = "dots"

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__(num_classes=num_classes, width=width)
        self.layer = nn.Conv2d(3, width * num_classes, 1)


def build(**architecture: int) -> Dots:
    return Dots(**architecture)


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Dots, Path]:
    monkeypatch.setitem(registry.TASKS, "dots", replace(registry.TASKS["segment"], network=f"{__name__}:build"))
    model = Dots(2, 5)
    linvit.save_model(model, tmp_path, classes=["a", "b"], input_config={"size": [8, 9]}, metrics={"ap": 0.5})
    return model, tmp_path


def test_it_is_loaded_as_it_was_saved(saved: tuple[Dots, Path]) -> None:
    model, folder = saved
    for spec in (folder, folder / "model.safetensors"):
        assert task_of(spec) == "dots"
        loaded = linvit.load_model(spec)
        assert isinstance(loaded, Dots)
        assert not loaded.training
        assert torch.equal(loaded.layer.weight, model.layer.weight)
        assert class_names(loaded) == ["a", "b"]
        assert loaded.pretrained_cfg["size"] == [8, 9]
    assert json.loads((folder / "config.json").read_text())["metrics"] == {"ap": 0.5}


def test_it_is_no_classifier(saved: tuple[Dots, Path], linvit_command, run_folder, monkeypatch) -> None:
    model, folder = saved
    with pytest.raises(ValueError, match="needs a classifier, and the model is one to dots"):
        ClassificationPredictor(model)
    assert task_of(run_folder) == task_of("care_s0") == "classify"
    monkeypatch.delitem(registry.TASKS, "dots")
    said = linvit_command("predict", folder, "mnist5k")
    assert said.code == 2
    assert f"{folder} is a model for task 'dots'; there is classify" in said.err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("{half", "config.json is damaged"),
        ("[]", "config.json describes no model"),
        ('{"task": "dance", "architecture": {}}', "unknown task 'dance' of a saved model; there is detect"),
        ('{"task": "dots", "architecture": {"depth": 1}}', "is no architecture for task 'dots'"),
        ('{"task": "dots", "architecture": {"num_classes": 3, "width": 5}}', r"layer\.weight"),
    ],
)
def test_a_description_that_does_not_fit_is_named(saved: tuple[Dots, Path], changed: str, message: str) -> None:
    (saved[1] / "config.json").write_text(changed)
    with pytest.raises(ValueError, match=message):
        linvit.load_model(saved[1])
