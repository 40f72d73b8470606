"""The detection task: frozen norms, what is logged, figures over several devices."""

from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.nn import BatchNorm2d

from linvit.data import DetectionData
from linvit.data.detection_sets import DigitDetection
from linvit.tasks import DetectionTask

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|does not have many workers)")


def task(**settings: Any) -> DetectionTask:
    torch.manual_seed(0)
    small = {"backbone": "test_efficientnet", "channels": 8, "size": 96, "anchor_size": 16}
    return DetectionTask(10, **(small | settings))


def fit(made: DetectionTask, **settings: Any) -> Trainer:
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps"), False
    )
    short = {"limit_train_batches": 2, "limit_val_batches": 2, "max_epochs": 1, "accelerator": "cpu"}
    trainer = Trainer(**(quiet | short | settings))
    trainer.fit(made, DetectionData(batch_size=2, workers=0))
    return trainer


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_norms_keep_their_statistics_and_everything_learns(freeze: bool) -> None:
    made = task(freeze_norm=freeze, lr=0.01, warmup_epochs=0)
    norms = {name: each for name, each in made.model.backbone.named_modules() if isinstance(each, BatchNorm2d)}
    before: dict[str, Tensor] = {name: each.running_mean.clone() for name, each in norms.items()}  # type: ignore[union-attr]
    weights = {name: each.detach().clone() for name, each in made.model.named_parameters()}
    trainer = fit(made)
    changed = [not torch.equal(before[name], each.running_mean) for name, each in norms.items()]  # type: ignore[arg-type]
    assert not any(changed) if freeze else any(changed)
    learned = [name for name, each in made.model.named_parameters() if not torch.equal(weights[name], each)]
    assert any("backbone.body" in name for name in learned)
    assert any("head" in name for name in learned)
    metrics = trainer.callback_metrics
    losses = [metrics[f"train/loss_{name}"] for name in ("classification", "bbox_regression")]
    assert metrics["train/loss"] == pytest.approx(float(sum(losses)), rel=1e-4)
    assert 0 <= metrics["val/ap"] <= 1
    assert "val/ap_large" not in metrics  # nothing so large is on the canvases


def test_figures_are_of_the_images_that_were_validated() -> None:
    """Perfect answers on two batches are perfect, whatever the other scenes hold."""
    data = DigitDetection(train=False)
    made = task()
    answers = iter(range(len(data)))

    def perfect(images: list[Tensor], targets: Any = None) -> Any:
        if made.model.training:
            return {"classification": sum(p.sum() for p in made.model.parameters()) * 0}
        found = []
        for _ in images:
            target = data[next(answers)]["target"]
            found.append(
                {key: target[key] for key in ("boxes", "labels")} | {"scores": torch.ones(len(target["labels"]))}
            )
        return found

    made.model.forward = perfect  # type: ignore[method-assign]
    assert fit(made).callback_metrics["val/ap"] == pytest.approx(1)


def test_an_image_that_two_devices_had_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(image: int, score: float) -> dict[str, Any]:
        return {"image_id": image, "category_id": 1, "bbox": [0, 0, 9, 9], "score": score}

    made = task()
    made._trainer = type("Two", (), {"world_size": 2})()
    made._results, made._seen = [record(0, 0.5), record(2, 0.6)], [0, 2, 4]

    def gather(parts: list[Any], mine: Any) -> None:
        parts[:] = [mine, ([record(1, 0.7), record(0, 0.5)], [1, 3, 0])]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    results, seen = made._gathered()
    assert [each["image_id"] for each in results] == [0, 2, 1]
    assert seen == {0, 1, 2, 3, 4}


def test_better_is_a_higher_ap_of_masks_where_there_are_some() -> None:
    few = {"box_batch_size_per_image": 8}
    masks = task(name="mask_rcnn", detector_args=few)
    assert next(iter(masks.metrics)) == "mask_ap"
    assert masks.rank({"mask_ap": 0.4, "ap": 0.1}) > masks.rank({"mask_ap": 0.3, "ap": 0.9})
    boxes = task()
    assert next(iter(boxes.metrics)) == "ap"
    assert boxes.rank({"ap": 0.1}) > boxes.rank({})  # nothing was there to find
