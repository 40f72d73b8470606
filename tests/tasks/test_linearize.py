"""Recovery after a conversion: what the original teaches, what is kept, what is refused; and from the command line."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from torch import nn
from torch.nn import functional as F

import linvit
from linvit.cli.main import main
from linvit.tasks import LinearizeTask
from tests.tasks.test_classification import CLASSES, batches, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*(no `val_dataloader`|LeafSpec)")

SMALL: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
    "deit3_small_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
    "pvt_v2_b0": {"embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2), "sr_ratios": (1, 1, 1, 1)},
    "swin_tiny_patch4_window7_224": {
        "img_size": 32,
        "window_size": 8,  # the whole map: what the conversion attends over, too
        "embed_dim": 12,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 2, 2, 4),
    },
}
INPUT = {"input_size": (3, 32, 32), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.5,) * 3}
NO_LESSONS = {"logit_weight": 0.0, "attention_weight": 0.0}


def save_original(folder: Path, name: str = "vit_tiny_patch16_224", classes: int = CLASSES) -> Path:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=classes, **SMALL[name])
    for key, parameter in model.named_parameters():
        if key.endswith("bias_table"):
            nn.init.zeros_(parameter)  # linvit's softmax has no such thing, and is to be the same
        elif key.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)  # trained layer scales are not tiny
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)  # logits and attention that differ from token to token
    linvit.save_model(model, folder, classes=[f"class {i}" for i in range(classes)], input_config=INPUT)
    return folder


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return save_original(tmp_path / "original")


def task(original: Path, **settings: Any) -> LinearizeTask:
    torch.manual_seed(0)
    given: dict[str, Any] = {"name": str(original), "smoothing": 0.0, "model_args": {"drop_path_rate": 0.0}} | settings
    return LinearizeTask(CLASSES, **given)


def fit(made: LinearizeTask, count: int = 2, **settings: Any) -> dict[str, float]:
    training = trainer(**settings)
    training.fit(made, loader(batches(count)))
    return {name: float(value) for name, value in training.callback_metrics.items()}


@pytest.mark.parametrize("name", SMALL)
def test_model_that_computes_the_same_has_nothing_to_learn(name: str, tmp_path: Path) -> None:
    made = task(save_original(tmp_path, name), attention="softmax", lr=1e-12, min_lr=0.0, warmup_lr=0.0)
    metrics = fit(made)
    assert metrics["train/attention_loss"] < 1e-9
    assert metrics["train/logit_loss"] < 1e-6
    assert metrics["train/loss"] > 0.1
    assert len(made._replaced) == {"vit_tiny_patch16_224": 2, "deit3_small_patch16_224": 2, "pvt_v2_b0": 8}.get(name, 4)


@pytest.mark.parametrize("name", SMALL)
def test_converted_model_comes_nearer_to_the_original(name: str, tmp_path: Path) -> None:
    folder = save_original(tmp_path, name)
    first = fit(task(folder, label_weight=0.0), 1)
    later = fit(task(folder, label_weight=0.0, warmup_epochs=0.0, lr=3e-3), 1, max_epochs=30)
    assert later["train/attention_loss"] < 0.9 * first["train/attention_loss"]
    assert later["train/logit_loss"] < first["train/logit_loss"]


def test_loss_is_the_weighted_sum(original: Path) -> None:
    batch = batches(1)[0]

    def loss(**settings: Any) -> float:
        made = task(original, **settings)
        made.log = made.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
        made._trainer = trainer()  # for the number of processes, and the learning rate
        made._lr = lambda: 0.0  # type: ignore[method-assign]
        return float(made.training_step(batch, 0))

    label = loss(**NO_LESSONS)
    logit = loss(label_weight=0.0, attention_weight=0.0)
    attention = loss(label_weight=0.0, logit_weight=0.0)
    assert min(label, logit, attention) > 0.05
    weighted = loss(label_weight=0.5, logit_weight=2.0, attention_weight=3.0)
    assert weighted == pytest.approx(0.5 * label + 2 * logit + 3 * attention, rel=1e-5)

    model = task(original).model
    teacher = linvit.load_model(original)
    with torch.no_grad():
        ours, theirs = model(batch["image"]) / 4, teacher(batch["image"]) / 4
    expected = 16 * (theirs.softmax(1) * (theirs.log_softmax(1) - ours.log_softmax(1))).sum(1).mean()
    assert loss(label_weight=0.0, attention_weight=0.0, temperature=4.0) == pytest.approx(float(expected), rel=1e-4)
    assert label == pytest.approx(float(F.cross_entropy(4 * ours, batch["target"])), rel=1e-5)


def test_original_teaches_without_learning_or_being_kept(original: Path) -> None:
    made = task(original)
    before = deepcopy(made._original[0].state_dict())
    fit(made)
    after = made._original[0].state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not made._original[0].training
    assert not any("_original" in name for name in made.state_dict())
    kept = [*made.model._forward_hooks, *made.model.blocks[0].drop_path1._forward_pre_hooks]
    assert kept == []


def test_without_lessons_there_is_no_original(original: Path) -> None:
    made = task(original, **NO_LESSONS)
    assert made._original == ()
    assert "train/logit_loss" not in fit(made)
    trained = linvit.load_model(original).state_dict()["blocks.0.mlp.fc1.weight"]
    assert torch.equal(task(original, **NO_LESSONS).model.state_dict()["blocks.0.mlp.fc1.weight"], trained)
    new = task(original, **NO_LESSONS, pretrained=False).model.state_dict()
    assert not torch.equal(new["blocks.0.mlp.fc1.weight"], trained)
    assert new.keys() == made.model.state_dict().keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": "magic"}, "attention must be one of focused"),
        ({"stages": [7]}, r"stages must be from 0 to 1"),
        ({"logit_weight": -1.0}, r"logit_weight must be 0 or more, not -1.0"),
        ({"temperature": 0.0}, r"temperature must be above 0, not 0.0"),
        ({"label_weight": 0.0, **NO_LESSONS}, "nothing to learn from"),
        ({"pretrained": False}, "an untrained original teaches nothing"),
        ({"name": "test_efficientnet", "pretrained": False, **NO_LESSONS}, "cannot linearize EfficientNet"),
        ({"name": "nothing/there"}, "unknown model 'nothing/there'"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str, original: Path) -> None:
    with pytest.raises(ValueError, match=message):
        task(original, **settings)


def test_original_of_other_classes_teaches_attention_only(tmp_path: Path) -> None:
    folder = save_original(tmp_path, classes=7)
    with pytest.raises(ValueError, match="the original tells 7 classes apart, the data has 3"):
        task(folder)
    assert fit(task(folder, logit_weight=0.0))["train/attention_loss"] > 0


def test_from_the_command_line_to_a_loaded_model(
    original: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "task": "linearize",
        "model": {"name": str(original), "stages": [1], "warmup_epochs": 0},
        "data": {"root": str(make_training(photos, tmp_path)), "img_size": 32, "batch_size": 3, "workers": 0},
        "trainer": {"accelerator": "cpu", "max_epochs": 1},
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    out = tmp_path / "run"
    assert main(["train", "--config", str(recipe), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epochs"] == 1
    model: Any = linvit.load_model(out)
    assert [row.module for row in model.linearized] == ["blocks.1.attn"]
    assert "train/attention_loss" in (out / "metrics.csv").read_text().splitlines()[0]

    assert main(["train", "--resume", str(out), "--trainer.max_epochs", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epochs"] == 2
    with pytest.raises(ValueError, match="is converted already"):
        task(out)
    assert main(["eval", str(out), str(photos), "--workers", "0", "--json"]) == 0


def make_training(photos: Path, folder: Path) -> Path:
    """Give the photos a training half."""
    root = folder / "data"
    root.mkdir()
    for part in ("train", "val"):
        (root / part).symlink_to(photos / "val")
    return root
