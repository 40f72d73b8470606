"""Image classification as a Lightning module: any timm model, timm's optimizers, cosine schedule and mixing."""

import difflib
import math
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from lightning import Callback, LightningModule
from lightning.pytorch.utilities.types import STEP_OUTPUT
from timm.data.mixup import Mixup
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from linvit.checkpoints import load_checkpoint
from linvit.tasks.ema import WeightAverage

MOST_CLASSES_TO_CONFUSE = 1000
"""Above this many classes no confusion matrix is kept: it grows with their square."""


class ClassificationTask(LightningModule):
    """Trains and validates a classifier.

    Batches are dictionaries: ``image [B, 3, H, W]`` float (None: skipped), ``target [B]`` int64 and ``unreadable``,
    the paths of image files that could not be read.

    Logs ``train/loss`` (mean of the epoch), ``train/loss_step``, ``lr``, ``train/images_per_second``, ``val/loss``,
    ``val/top1`` and ``val/top5`` (shares from 0 to 1).

    Args:
        num_classes: Number of classes of the data.
        name: Model to train, any name that timm knows.
        pretrained: Start from the published weights (true), from those of a checkpoint file (its path), or from none.
        model_args: More arguments of the model, such as drop_path_rate.
        opt: Optimizer, by timm's name.
        lr: Highest learning rate.
        weight_decay: Weight decay; biases, norms and what the model exempts have none.
        layer_decay: Factor on the learning rate from each layer to the one before it; null for the same everywhere.
        betas: Decay rates of the optimizer's moments; null for its own default.
        eps: The optimizer's epsilon; null for its own default.
        warmup_epochs: Epochs over which the learning rate rises; at most half of the training is used for it.
        warmup_lr: Learning rate to start from.
        min_lr: Learning rate to end at.
        cooldown_epochs: Epochs at the end that stay at min_lr.
        smoothing: Label smoothing.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of CutMix; 0 for none.
        mixup_prob: Probability that a batch is mixed.
        mixup_switch_prob: Probability of CutMix rather than mixup where both are on.
        mixup_mode: Mix all images of a batch alike, in pairs, or each by itself.
        ema_decay: Decay of a running average of the weights, which is then validated and kept; 0 for none.
        channels_last: Lay out convolutions with the channels last.

    Attributes:
        model: The network.
        confusion: ``[classes, classes]`` counts (true, predicted) of the last validation; None before it, and above
            MOST_CLASSES_TO_CONFUSE classes.
        unreadable: Paths of the image files that could not be read so far.

    Raises:
        ValueError: An argument is outside its range, or ``name`` is no model.
    """

    def __init__(
        self,
        num_classes: int,
        name: str = "care_s0",
        pretrained: bool | str = False,
        model_args: dict[str, Any] | None = None,
        opt: str = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        layer_decay: float | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        warmup_epochs: float = 1.0,
        warmup_lr: float = 1e-6,
        min_lr: float = 1e-5,
        cooldown_epochs: float = 0.0,
        smoothing: float = 0.1,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mixup_prob: float = 1.0,
        mixup_switch_prob: float = 0.5,
        mixup_mode: Literal["batch", "pair", "elem"] = "batch",
        ema_decay: float = 0.0,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        _require(num_classes >= 2, "num_classes", num_classes, "at least 2")
        _require(lr > 0, "lr", lr, "above 0")
        for key, value in {"warmup_epochs": warmup_epochs, "cooldown_epochs": cooldown_epochs}.items():
            _require(value >= 0, key, value, "0 or more")
        for key, value in {"mixup": mixup, "cutmix": cutmix, "warmup_lr": warmup_lr, "min_lr": min_lr}.items():
            _require(value >= 0, key, value, "0 or more")
        for key, value in {"mixup_prob": mixup_prob, "mixup_switch_prob": mixup_switch_prob}.items():
            _require(0 <= value <= 1, key, value, "from 0 to 1")
        for key, value in {"smoothing": smoothing, "ema_decay": ema_decay}.items():
            _require(0 <= value < 1, key, value, "from 0 to below 1")
        _require(layer_decay is None or 0 < layer_decay <= 1, "layer_decay", layer_decay, "above 0, up to 1")
        if opt.lower().removeprefix("lookahead_") not in list_optimizers():
            raise ValueError(f"unknown opt {opt!r}{_did_you_mean(opt, map(str, list_optimizers()))}")
        self.save_hyperparameters(logger=False)
        self.model = _create_model(name, num_classes, pretrained, model_args or {})
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.mixing = (
            Mixup(mixup, cutmix, None, mixup_prob, mixup_switch_prob, mixup_mode, True, 0.0, num_classes)
            if mixup or cutmix
            else None
        )
        self.val_loss = MeanMetric()
        self.val_accuracy = MetricCollection(
            {
                f"top{k}": MulticlassAccuracy(num_classes, min(k, num_classes), average="micro", validate_args=False)
                for k in (1, 5)
            }
        )
        self.val_confusion = (
            MulticlassConfusionMatrix(num_classes, validate_args=False)
            if num_classes <= MOST_CLASSES_TO_CONFUSE
            else None
        )
        self.confusion: Tensor | None = None
        self.unreadable: dict[str, None] = {}
        self.stopwatch = Stopwatch()

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits ``[B, num_classes]`` of images ``[B, 3, H, W]``."""
        if self.hparams["channels_last"]:
            image = image.contiguous(memory_format=torch.channels_last)
        return self.model(image)

    # Training

    def configure_callbacks(self) -> list[Callback]:
        """Average the weights if asked to."""
        return [WeightAverage(self.hparams["ema_decay"])] if self.hparams["ema_decay"] else []

    def configure_optimizers(self) -> Optimizer:
        """Build the optimizer, and the schedule that sets its learning rates before each update."""
        hp: Any = self.hparams
        given = {key: hp[key] for key in ("betas", "eps") if hp[key] is not None}
        optimizer = create_optimizer_v2(
            self.model, hp.opt, lr=hp.lr, weight_decay=hp.weight_decay, layer_decay=hp.layer_decay, **given
        )
        self.trainer.fit_loop.setup_data()  # or else the number of batches is unknown where only max_steps is set
        if self.trainer.estimated_stepping_batches in (-1, math.inf):
            raise ValueError("the schedule needs an end: set trainer.max_epochs or trainer.max_steps")
        updates = int(self.trainer.estimated_stepping_batches)
        batches = min(self.trainer.num_training_batches, updates * self.trainer.accumulate_grad_batches)
        updates_per_epoch = math.ceil(batches / self.trainer.accumulate_grad_batches)
        cooldown = min(round(hp.cooldown_epochs * updates_per_epoch), updates - 1)
        self.schedule, _ = create_scheduler_v2(
            optimizer,
            sched="cosine",
            num_epochs=updates - cooldown,
            warmup_epochs=min(round(hp.warmup_epochs * updates_per_epoch), updates // 2),
            warmup_lr=hp.warmup_lr,
            min_lr=hp.min_lr,
            step_on_epochs=False,
            updates_per_epoch=1,
        )
        return optimizer

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rates: a function of the update alone, so a resumed run follows its own settings."""
        self.schedule.step_update(self.global_step)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> STEP_OUTPUT:
        """Return the loss of a batch."""
        self.unreadable.update(dict.fromkeys(batch["unreadable"]))
        if batch["image"] is None:
            return None
        image, target = self._mix(batch["image"], batch["target"])
        loss = F.cross_entropy(self(image).float(), target, label_smoothing=self.hparams["smoothing"])
        size = len(image)
        self.stopwatch.images += size * self.trainer.world_size
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        self.log("train/loss_step", loss, prog_bar=True, batch_size=size)
        self.log("lr", self._lr(), batch_size=size)
        return loss

    def _mix(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Apply mixup or CutMix; the last of an odd number of images stays as it is, as mixing goes by pairs."""
        even = len(image) // 2 * 2
        if self.mixing is None or not even:
            return image, target
        mixed, mixed_target = self.mixing(image[:even], target[:even])
        rest = F.one_hot(target[even:], self.hparams["num_classes"]).to(mixed_target)
        return torch.cat([mixed, image[even:]]), torch.cat([mixed_target, rest])

    def _lr(self) -> float:
        return max(group["lr"] for group in self.trainer.optimizers[0].param_groups)

    # Hooks that time the training, without the validation in between

    def on_train_start(self) -> None:
        """Start the clock; an epoch that is resumed in its middle has no start of its own."""
        self.stopwatch.start_lap()

    def on_train_epoch_start(self) -> None:
        """Start the clock."""
        self.stopwatch.start_lap()

    def on_validation_start(self) -> None:
        """Stop the clock for the validation."""
        self.stopwatch.stop()

    def on_validation_end(self) -> None:
        """Let the clock go on."""
        self.stopwatch.start()

    def on_train_epoch_end(self) -> None:
        """Log what is known at the end of an epoch only."""
        self.stopwatch.stop()
        self.log("train/images_per_second", self.stopwatch.lap_rate)
        self.log("lr", self._lr())

    # Validation

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add a batch to the figures."""
        self.unreadable.update(dict.fromkeys(batch["unreadable"]))
        if batch["image"] is None:
            return
        target = batch["target"]
        logits = self(batch["image"]).float()
        self.val_loss.update(F.cross_entropy(logits, target, reduction="none"))
        self.val_accuracy.update(logits, target)
        if self.val_confusion is not None:
            self.val_confusion.update(logits, target)

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the whole validation."""
        if not self.val_loss.update_called:
            raise ValueError(f"none of the validation images can be read, {_first(self.unreadable)}")
        for key, value in self.val_accuracy.compute().items():
            self.log(f"val/{key}", value, prog_bar=key == "top1")
        self.log("val/loss", self.val_loss.compute())
        self.val_accuracy.reset()
        self.val_loss.reset()
        if self.val_confusion is not None:
            self.confusion = self.val_confusion.compute()
            self.val_confusion.reset()

    def on_fit_end(self) -> None:
        """Report the image files that could not be read."""
        if self.unreadable:
            count = len(self.unreadable)
            warnings.warn(
                f"{count} image {'file' if count == 1 else 'files'} could not be read: {_first(self.unreadable)}",
                stacklevel=2,
            )


class Stopwatch:
    """Counts images and the seconds that went into training on them.

    Attributes:
        images: Images so far.
    """

    def __init__(self) -> None:
        self.images = 0
        self._seconds = 0.0
        self._started: float | None = None
        self._lap = (0, 0.0)

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._seconds + (time.perf_counter() - self._started if self._started is not None else 0.0)

    @property
    def lap_rate(self) -> float:
        """Images per second since the lap began."""
        images, seconds = self._lap
        return (self.images - images) / max(self.seconds - seconds, 1e-9)

    def start(self) -> None:
        """Let the time run from now on."""
        self.stop()
        self._started = time.perf_counter()

    def stop(self) -> None:
        """Let the time stand still."""
        self._seconds, self._started = self.seconds, None

    def start_lap(self) -> None:
        """Begin a lap now."""
        self.start()
        self._lap = self.images, self.seconds


def _create_model(name: str, num_classes: int, pretrained: bool | str, args: dict[str, Any]) -> nn.Module:
    if ":" not in name and not timm.is_model(name):
        raise ValueError(f"unknown model {name!r}{_did_you_mean(name, timm.list_models())}")
    if isinstance(pretrained, str) and not Path(pretrained).is_file():
        raise FileNotFoundError(f"pretrained: no checkpoint file at {pretrained!r} (true takes the published weights)")
    try:
        model = timm.create_model(name, pretrained=pretrained is True, num_classes=num_classes, **args)
    except TypeError as error:
        raise ValueError(f"model_args {args} do not suit {name}: {error}") from error
    if isinstance(pretrained, str):
        load_checkpoint(model, pretrained)
    return model.train()


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), list(known), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else "; timm names them all"


def _first(paths: dict[str, None], most: int = 3) -> str:
    names = ", ".join(list(paths)[:most])
    return f"{names}, ..." if len(paths) > most else names


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {allowed}, not {value!r}")
