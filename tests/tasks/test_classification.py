"""The classification task: optimizer groups, schedule, mixing, weight averaging, metrics."""

import math
from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from lightning import Callback, Trainer
from timm.optim import param_groups_layer_decay
from torch.nn import functional as F
from torch.utils.data import DataLoader

from linvit.tasks import ClassificationTask
from linvit.tasks.ema import WeightAverage

pytestmark = pytest.mark.filterwarnings("ignore:.*(no `val_dataloader`|LeafSpec|returned `None`)")

CLASSES = 3


def batches(count: int, size: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """Make random images whose mean tells the class."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        target = torch.randint(CLASSES, (size,), generator=generator)
        image = torch.randn(size, 3, 32, 32, generator=generator) + target.view(-1, 1, 1, 1)
        made.append({"image": image, "target": target, "unreadable": []})
    return made


def loader(made: list[dict[str, Any]]) -> DataLoader[Any]:
    """Give out ready batches."""
    return DataLoader(made, batch_size=None)


def task(**settings: Any) -> ClassificationTask:
    """Make a small task."""
    torch.manual_seed(0)
    given: dict[str, Any] = {"num_classes": CLASSES, "name": "test_efficientnet"} | settings
    return ClassificationTask(**given)


def trainer(*callbacks: Callback, **settings: Any) -> Trainer:
    """Make a trainer that writes nothing."""
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps"), False
    )
    given: dict[str, Any] = quiet | {"accelerator": "cpu", "max_epochs": 1, "callbacks": list(callbacks)} | settings
    return Trainer(**given)


class Recorder(Callback):
    """Remembers learning rates and weights by update."""

    def __init__(self) -> None:
        self.lr: list[float] = []
        self.states: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.lr.append(max(group["lr"] for group in trainer.optimizers[0].param_groups))
        self.states.append(deepcopy(pl_module.model.state_dict()))


def parameter_groups(made: ClassificationTask) -> dict[str, dict[str, Any]]:
    """Map the names of parameters to the settings of their optimizer group, after a fit."""
    names = {id(parameter): name for name, parameter in made.model.named_parameters()}
    groups = made.trainer.optimizers[0].param_groups
    return {names[id(parameter)]: group for group in groups for parameter in group["params"]}


def test_what_the_model_exempts_has_no_weight_decay() -> None:
    made = task(name="test_vit", model_args={"img_size": 32}, weight_decay=0.3)
    trainer().fit(made, loader(batches(1)))
    groups = parameter_groups(made)
    exempt: Any = made.model.no_weight_decay
    assert "pos_embed" in exempt()
    assert groups["pos_embed"]["weight_decay"] == 0
    assert groups["norm.weight"]["weight_decay"] == groups["blocks.0.mlp.fc1.bias"]["weight_decay"] == 0
    assert groups["blocks.0.mlp.fc1.weight"]["weight_decay"] == 0.3


def test_layer_decay_scales_the_learning_rates_through_the_schedule() -> None:
    made = task(layer_decay=0.5, warmup_epochs=0)
    trainer().fit(made, loader(batches(1)))
    groups = parameter_groups(made)
    names = {id(parameter): name for name, parameter in made.model.named_parameters()}
    expected = {
        names[id(parameter)]: group["lr_scale"]
        for group in param_groups_layer_decay(made.model, layer_decay=0.5)
        for parameter in group["params"]
    }
    assert min(expected.values()) < 0.2
    assert max(expected.values()) == 1
    for name, scale in expected.items():
        assert groups[name]["lr"] == pytest.approx(1e-3 * scale), name


def test_schedule_rises_to_lr_then_follows_a_cosine_per_update() -> None:
    recorder = Recorder()
    made = task(lr=0.1, warmup_epochs=1, warmup_lr=0.01, min_lr=0.001, cooldown_epochs=1)
    trainer(recorder, max_epochs=5).fit(made, loader(batches(4)))
    cosine = [0.001 + 0.5 * 0.099 * (1 + math.cos(math.pi * update / 16)) for update in range(4, 16)]
    expected = [0.01, 0.0325, 0.055, 0.0775, *cosine, *[0.001] * 4]
    assert recorder.lr == pytest.approx(expected)


@pytest.mark.parametrize("limits", [{"max_steps": 4, "max_epochs": 9}, {"max_steps": 4, "max_epochs": -1}])
def test_schedule_ends_with_max_steps_and_shortens_the_warmup(limits: dict[str, int]) -> None:
    recorder = Recorder()
    made = task(lr=0.1, warmup_epochs=30, warmup_lr=0.0, min_lr=0.0)
    trainer(recorder, **limits).fit(made, loader(batches(3)))
    assert recorder.lr == pytest.approx([0, 0.05, 0.05, 0.1 * 0.5 * (1 + math.cos(math.pi * 3 / 4))])


def test_training_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"set trainer\.max_epochs"):
        trainer(max_epochs=-1).fit(task(), loader(batches(1)))


def test_given_optimizer_settings_reach_the_optimizer() -> None:
    made = task(opt="lamb", betas=(0.8, 0.9), eps=1e-3)
    trainer().fit(made, loader(batches(1)))
    group = made.trainer.optimizers[0].param_groups[0]
    assert type(made.trainer.optimizers[0]).__name__ == "Lamb"
    assert tuple(group["betas"]) == (0.8, 0.9)
    assert group["eps"] == 1e-3


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("size", [1, 5, 6])
def test_mixing_takes_any_batch_size_and_keeps_targets_distributions(mode: str, size: int) -> None:
    made = task(mixup=0.4, cutmix=1.0, mixup_mode=mode)
    batch = batches(1, size)[0]
    image, target = made._mix(batch["image"].clone(), batch["target"])
    assert image.shape == batch["image"].shape
    if size == 1:
        assert torch.equal(image, batch["image"])
        return
    torch.testing.assert_close(target.sum(1), torch.ones(size))
    assert not torch.equal(image[: size // 2 * 2], batch["image"][: size // 2 * 2])
    if size % 2:
        assert torch.equal(image[-1], batch["image"][-1])
        assert torch.equal(target[-1], F.one_hot(batch["target"][-1], CLASSES).float())


def test_mixed_loss_is_the_mean_of_the_two_targets_with_smoothing() -> None:
    made = task(mixup=0.4, smoothing=0.1).eval()
    batch = batches(1, 4)[0]
    first, second = batch["target"], batch["target"].flip(0)
    share = 0.3
    made.mixing._params_per_batch = lambda: (share, False)
    image, target = made._mix(batch["image"].clone(), first)
    torch.testing.assert_close(image, share * batch["image"] + (1 - share) * batch["image"].flip(0))
    logits = made(image)
    losses = [F.cross_entropy(logits, each, label_smoothing=0.1) for each in (first, second)]
    expected = share * losses[0] + (1 - share) * losses[1]
    torch.testing.assert_close(F.cross_entropy(logits, target, label_smoothing=0.1), expected)


def test_average_includes_batch_norm_and_is_what_gets_validated() -> None:
    recorder, decay = Recorder(), 0.7
    made = task(ema_decay=decay, lr=0.01, warmup_epochs=0)
    held_out = batches(3, seed=1)
    runner = trainer(recorder, max_epochs=2)
    runner.fit(made, loader(batches(5)), loader(held_out))

    average = {name: value.double() for name, value in recorder.states[0].items()}
    for state in recorder.states[1:]:
        for name, value in state.items():
            average[name] = decay * average[name] + (1 - decay) * value.double()
    last = recorder.states[-1]
    kept = made.model.state_dict()
    assert any("running_var" in name for name in kept)
    for name in (name for name in kept if "num_batches" not in name):
        torch.testing.assert_close(kept[name], average[name].float(), rtol=1e-4, atol=1e-5)
        assert not torch.equal(kept[name], last[name]), name

    network = timm.create_model("test_efficientnet", num_classes=CLASSES)
    network.load_state_dict(kept)
    network.eval()
    with torch.no_grad():
        losses = [F.cross_entropy(network(batch["image"]), batch["target"]) for batch in held_out]
    assert float(runner.callback_metrics["val/loss"]) == pytest.approx(float(sum(losses)) / 3, rel=1e-4)


def test_validation_broken_off_leaves_the_trained_weights_in_place() -> None:
    class Break(Callback):
        def on_validation_batch_start(
            self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> None:
            raise RuntimeError("broken off")

    recorder = Recorder()
    made = task(ema_decay=0.5, lr=0.01)
    runner = trainer(recorder, Break())
    with pytest.raises(RuntimeError, match="broken off"):
        runner.fit(made, loader(batches(3)), loader(batches(1)))
    average = next(callback for callback in runner.callbacks if isinstance(callback, WeightAverage))  # ty: ignore
    for name, value in made.model.state_dict().items():
        assert torch.equal(value, recorder.states[-1][name]), name
    assert not torch.equal(average.module.model.conv_stem.weight, made.model.conv_stem.weight)  # ty: ignore


def test_metrics_are_means_over_images_and_unreadable_files_are_reported_once() -> None:
    made = task()
    held_out: list[Any] = [*batches(2, 5, seed=1), *batches(1, 2, seed=2)]
    held_out[0]["unreadable"] = ["a.png"]
    held_out[1]["unreadable"] = ["b.png", "a.png"]
    held_out.append({"image": None, "target": torch.empty(0, dtype=torch.int64), "unreadable": ["c.png", "d.png"]})
    train = [*batches(2), {"image": None, "target": torch.empty(0, dtype=torch.int64), "unreadable": []}]
    runner = trainer()
    with pytest.warns(
        UserWarning, match=r"^4 image files could not be read: a\.png, b\.png, c\.png and 1 more$"
    ) as said:
        runner.fit(made, loader(train), loader(held_out))
    assert sum("could not be read" in str(warning.message) for warning in said) == 1
    made.eval()
    with torch.no_grad():
        logits = torch.cat([made(batch["image"]) for batch in held_out[:3]])
    target = torch.cat([batch["target"] for batch in held_out[:3]])
    metrics = runner.callback_metrics
    assert float(metrics["val/loss"]) == pytest.approx(float(F.cross_entropy(logits, target)), rel=1e-5)
    assert float(metrics["val/top1"]) == pytest.approx(float((logits.argmax(1) == target).float().mean()))
    assert float(metrics["val/top5"]) == 1  # there are three classes
    assert made.confusion is not None
    assert made.confusion.sum() == len(target)
    assert made.confusion[target[0], logits[0].argmax()] > 0
    assert metrics["train/images_per_second"] > 0


def test_validation_without_a_readable_image_is_an_error() -> None:
    nothing = {"image": None, "target": torch.empty(0, dtype=torch.int64), "unreadable": ["a.png"]}
    with pytest.raises(ValueError, match=r"none of the validation images can be read, a\.png"):
        trainer().fit(task(), loader(batches(1)), loader([nothing]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "care_s9"}, "unknown model 'care_s9'; did you mean care_s"),
        ({"opt": "adamm"}, "unknown opt 'adamm'; did you mean adam"),
        ({"model_args": {"depht": 3}}, r"model_args {'depht': 3} do not suit test_efficientnet"),
        ({"lr": 0.0}, "lr must be above 0, not 0.0"),
        ({"smoothing": 1.0}, "smoothing must be from 0 to below 1, not 1.0"),
        ({"ema_decay": 1.5}, "ema_decay must be"),
        ({"layer_decay": 0.0}, "layer_decay must be above 0, up to 1"),
        ({"mixup_prob": 2.0}, "mixup_prob must be from 0 to 1"),
        ({"warmup_epochs": -1.0}, "warmup_epochs must be 0 or more"),
        ({"num_classes": 1}, "num_classes must be at least 2, not 1"),
        ({"schedule": "step"}, "milestones must be given where schedule is step"),
        ({"milestones": [3, 2]}, "milestones must be rising epochs above 0"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(**settings)


def test_pretrained_takes_a_checkpoint_file(tmp_path: Any) -> None:
    donor = timm.create_model("test_efficientnet", num_classes=CLASSES)
    torch.save(donor.state_dict(), tmp_path / "donor.pth")
    made = task(pretrained=str(tmp_path / "donor.pth"))
    assert torch.equal(made.model.state_dict()["conv_stem.weight"], donor.state_dict()["conv_stem.weight"])
    with pytest.raises(FileNotFoundError, match=r"pretrained: no weights at 'gone\.pth'"):
        task(pretrained="gone.pth")


def test_convolutions_are_channels_last_unless_told_otherwise() -> None:
    for wanted in (True, False):
        made = task(channels_last=wanted)
        weight = made.model.get_submodule("conv_stem").weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == wanted  # ty: ignore
        seen = []
        made.model.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        made(torch.randn(2, 3, 32, 32))
        assert seen[0].is_contiguous(memory_format=torch.channels_last) == wanted


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "step", "milestones": [1, 2.5]}, [0.1] * 4 + [0.01] * 6 + [0.001] * 2),
        ({"schedule": "poly"}, [0.1 * (1 - update / 12) for update in range(12)]),
        ({"schedule": "poly", "power": 2.0}, [0.1 * (1 - update / 12) ** 2 for update in range(12)]),
    ],
)
def test_other_schedules_fall_at_milestones_or_as_a_power(settings: dict[str, Any], expected: list[float]) -> None:
    recorder = Recorder()
    trainer(recorder, max_epochs=3).fit(task(lr=0.1, warmup_epochs=0, min_lr=0.0, **settings), loader(batches(4)))
    assert recorder.lr == pytest.approx(expected)
