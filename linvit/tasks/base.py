"""What training is, whatever the task: the optimizer and its schedule, the clock, files that could not be read."""

import logging
import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim import Optimizer
from torchmetrics import Metric

from linvit.checks import did_you_mean, require, some
from linvit.tasks.compilation import WORTHWHILE, Compile, compiler_error, estimate_seconds
from linvit.tasks.ema import WeightAverage

log = logging.getLogger("linvit")

__all__ = ["Stopwatch", "VisionTask", "agreed"]


class VisionTask(LightningModule):
    """Trains a network; a task adds the network, the loss and the validation.

    A subclass sets ``model``, and logs its metrics as ``val/NAME``. This class logs ``train/loss`` (mean of the epoch),
    ``train/loss_step``, ``lr`` and ``train/images_per_second``.

    Args:
        opt: Optimizer, by timm's name.
        lr: Highest learning rate.
        lr_batch: Images per update, over all devices, that lr is meant for: it is scaled linearly to how many there
            are; null to take it as it is.
        weight_decay: Weight decay; biases, norms and what the model exempts have none.
        layer_decay: Factor on the learning rate from each layer to the one before it; null for the same everywhere.
        betas: Decay rates of the optimizer's moments; null for its own default.
        eps: The optimizer's epsilon; null for its own default.
        schedule: How the learning rate falls after the warm-up: as a cosine, as a power, or in steps at milestones.
        power: Exponent of the poly schedule; 1 is a straight line.
        milestones: Epochs after which the step schedule divides the learning rate by ten.
        warmup_epochs: Epochs over which the learning rate rises; at most half of the training is used for it.
        warmup_lr: Learning rate to start from.
        min_lr: Learning rate to end at (cosine and poly).
        cooldown_epochs: Epochs at the end that stay at min_lr.
        ema_decay: Decay of a running average of the weights, which is then validated and kept; 0 for none.
        grad_checkpointing: Compute activations anew in the backward pass instead of keeping them: less memory, more
            time.
        compile: Compile the network with torch.compile, or never; auto does on CPUs, where all images have one size and
            the training is long enough to earn the compilation back (see :mod:`linvit.tasks.compilation`).

    Attributes:
        one_size: Whether all images that the network sees have the same size.
        metrics: What a validation logs (shares from 0 to 1, and ``loss``) with its heading; the first is watched.
        model: The network.
        unreadable: Paths of the image files that could not be read so far.
        stopwatch: Counts images and seconds.

    Raises:
        ValueError: An argument is outside its range.
    """

    one_size = False
    metrics: dict[str, str]
    model: nn.Module

    def __init__(
        self,
        opt: str = "adamw",
        lr: float = 1e-3,
        lr_batch: int | None = None,
        weight_decay: float = 0.05,
        layer_decay: float | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        schedule: Literal["cosine", "poly", "step"] = "cosine",
        power: float = 1.0,
        milestones: Sequence[float] = (),
        warmup_epochs: float = 1.0,
        warmup_lr: float = 1e-6,
        min_lr: float = 1e-5,
        cooldown_epochs: float = 0.0,
        ema_decay: float = 0.0,
        grad_checkpointing: bool = False,
        compile: Compile = "auto",
    ) -> None:
        super().__init__()
        require(lr > 0, "lr", lr, "above 0")
        require(lr_batch is None or lr_batch > 0, "lr_batch", lr_batch, "above 0, or null")
        for key, value in {"warmup_epochs": warmup_epochs, "cooldown_epochs": cooldown_epochs}.items():
            require(value >= 0, key, value, "0 or more")
        for key, value in {"warmup_lr": warmup_lr, "min_lr": min_lr}.items():
            require(value >= 0, key, value, "0 or more")
        require(power > 0, "power", power, "above 0")
        require(0 <= ema_decay < 1, "ema_decay", ema_decay, "from 0 to below 1")
        require(layer_decay is None or 0 < layer_decay <= 1, "layer_decay", layer_decay, "above 0, up to 1")
        rising = all(before < after for before, after in zip([0, *milestones], milestones, strict=False))
        require(rising, "milestones", milestones, "rising epochs above 0")
        require(schedule != "step" or bool(milestones), "milestones", milestones, "given where schedule is step")
        if opt.lower().removeprefix("lookahead_") not in list_optimizers():
            raise ValueError(f"unknown opt {opt!r}{did_you_mean(opt, map(str, list_optimizers()))}")
        self.save_hyperparameters(logger=False)
        self.unreadable: dict[str, None] = {}
        self.stopwatch = Stopwatch()
        self.train_loss = FiniteMean()
        self.compiled: bool | None = None  # not decided yet

    def rank(self, metrics: dict[str, float]) -> tuple[float, ...]:
        """Return how good metrics are: by the watched one, then by a lower loss; nothing measured is 0."""
        watched, loss = metrics.get(next(iter(self.metrics)), 0.0), metrics.get("loss", 0.0)
        return watched, -loss if math.isfinite(loss) else -math.inf

    def draw(self, folder: Path, classes: list[str]) -> None:
        """Draw pictures of the last validation into a run folder; by default none."""

    def kept(self) -> nn.Module:
        """Return the network that a run keeps; by default the one that is trained."""
        return self.model

    # Before the training

    def setup(self, stage: str) -> None:
        """Switch on what costs time or memory in another way."""
        if self.hparams["grad_checkpointing"]:
            switch: Any = getattr(self.model, "set_grad_checkpointing", None)
            if switch is None:
                raise ValueError(f"grad_checkpointing is not there for {type(self.model).__name__}")
            switch()
        if self.hparams["compile"] is True and stage == "fit":
            self._compile(needed=True)

    def configure_model(self) -> None:
        """Shard the network over the devices where the strategy is ModelParallelStrategy (FSDP2)."""
        mesh = self.device_mesh
        if mesh is None or isinstance(self.model, FSDPModule):
            return
        require(mesh["tensor_parallel"].size() == 1, "tensor_parallel_size", mesh["tensor_parallel"].size(), "1")
        if getattr(self.trainer.strategy, "_save_distributed_checkpoint", False):
            raise ValueError(
                "the strategy must have save_distributed_checkpoint false: sharded checkpoints would be unpickled when "
                "the run is resumed"
            )
        if self.hparams["ema_decay"]:
            raise ValueError("ema_decay must be 0 with a sharded network: each device would need all of the average")
        self.model.to(memory_format=torch.contiguous_format)  # shards of channels-last weights are not possible
        for module in reversed(list(self.model.modules())):  # a block within a block comes first
            if isinstance(module, nn.ModuleList | nn.Sequential):
                for block in module:
                    if any(True for _ in block.children()):
                        fully_shard(block, mesh=mesh["data_parallel"])
        fully_shard(self.model, mesh=mesh["data_parallel"])

    def configure_callbacks(self) -> list[Callback]:
        """Average the weights if asked to."""
        return [WeightAverage(self.hparams["ema_decay"])] if self.hparams["ema_decay"] else []

    def configure_optimizers(self) -> Optimizer:
        """Build the optimizer, and the schedule that sets its learning rates before each update."""
        hp: Any = self.hparams
        given = {key: hp[key] for key in ("betas", "eps") if hp[key] is not None}
        self.trainer.fit_loop.setup_data()  # or else the number of batches is unknown where only max_steps is set
        optimizer = create_optimizer_v2(
            self.model, hp.opt, lr=self._scaled_lr(), weight_decay=hp.weight_decay, layer_decay=hp.layer_decay, **given
        )
        if self.trainer.estimated_stepping_batches in (-1, math.inf):
            raise ValueError("the schedule needs an end: set trainer.max_epochs or trainer.max_steps")
        updates = int(self.trainer.estimated_stepping_batches)
        batches = min(self.trainer.num_training_batches, updates * self.trainer.accumulate_grad_batches)
        updates_per_epoch = math.ceil(batches / self.trainer.accumulate_grad_batches)
        cooldown = min(round(hp.cooldown_epochs * updates_per_epoch), updates - 1)
        self._compile_if_it_pays(updates)
        self.schedule, _ = create_scheduler_v2(
            optimizer,
            sched={"step": "multistep"}.get(hp.schedule, hp.schedule),
            decay_milestones=[round(epoch * updates_per_epoch) + 1 for epoch in hp.milestones],  # timm looks one ahead
            decay_rate={"step": 0.1, "poly": hp.power}.get(hp.schedule, 1.0),  # timm's name for both
            num_epochs=updates - cooldown,
            warmup_epochs=min(round(hp.warmup_epochs * updates_per_epoch), updates // 2),
            warmup_lr=hp.warmup_lr,
            min_lr=hp.min_lr,
            step_on_epochs=False,
            updates_per_epoch=1,
        )
        return optimizer

    def _compile_if_it_pays(self, updates: int) -> None:
        """Decide about ``compile: auto``, unless the run that is resumed has decided already."""
        if self.hparams["compile"] != "auto" or self.compiled is False:
            return
        if self.compiled is None:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            device = self.trainer.strategy.root_device.type
            if device != "cpu" or not self.one_size or data is None or isinstance(self.model, FSDPModule):
                return
            images = updates * self._images_per_update() // self.trainer.world_size
            seconds = estimate_seconds(self.model, data.input_config()["input_size"], images)
            if seconds < WORTHWHILE:
                return
            if self.trainer.is_global_zero:
                log.info(f"about {seconds / 3600:.1f} hours of training: compiling, which takes one to two minutes")
        self._compile(needed=False)

    def _compile(self, needed: bool) -> None:
        error = compiler_error()
        if error and needed:
            raise ValueError(f"compile must be false or auto, as torch.compile does not work here: {error}")
        if error and self.trainer.is_global_zero:
            log.info(f"training goes on without torch.compile, which does not work here: {error}")
        self.compiled = not error
        if self.compiled:
            self.model.compile()

    def _scaled_lr(self) -> float:
        hp: Any = self.hparams
        if hp.lr_batch is None:
            return hp.lr
        images = self._images_per_update()
        scaled = hp.lr * images / hp.lr_batch
        if self.trainer.is_global_zero:
            log.info(f"learning rate {scaled:.4g} = {hp.lr:.4g} x {images} / {hp.lr_batch} images per update")
        return scaled

    def _images_per_update(self) -> int:
        """Count the images of an update, over all devices."""
        loader: Any = self.trainer.train_dataloader
        images = getattr(loader.sampler, "total", None) or loader.batch_size * self.trainer.world_size
        return images * self.trainer.accumulate_grad_batches

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rates: a function of the update alone, so a resumed run follows its own settings."""
        self.schedule.step_update(self.global_step)

    def log_training(self, loss: Tensor, size: int) -> None:
        """Log the loss of a batch of ``size`` images, and count them; NaN is left out of the epoch's mean."""
        self.stopwatch.images += size * self.trainer.world_size
        self.train_loss.update(loss.detach(), size)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.log("train/loss_step", loss, prog_bar=True, batch_size=size)
        self.log("lr", self._lr(), batch_size=size)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep whether the network is compiled, and the mean loss of an epoch that is under way, of all devices."""
        checkpoint["compiled"] = bool(self.compiled)
        loop: Any = self.trainer.fit_loop
        done = loop.epoch_loop.batch_progress.current.processed
        if loop.epoch_progress.current.processed < loop.epoch_progress.current.started and done < loop.max_batches:
            with self.train_loss.sync_context():
                checkpoint["train_loss"] = self.train_loss.total.cpu(), self.train_loss.weight.cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with both."""
        if self.hparams["compile"] == "auto":
            self.compiled = checkpoint.get("compiled")
        if "train_loss" in checkpoint and self.trainer.is_global_zero:
            total, weight = checkpoint["train_loss"]
            self.train_loss.total, self.train_loss.weight = total.to(self.device), weight.to(self.device)

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
        """Stop the clock for the validation; all devices take the first one's statistics of BatchNorm, as with DDP."""
        self.stopwatch.stop()
        if isinstance(self.model, FSDPModule):
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def on_validation_end(self) -> None:
        """Let the clock go on."""
        self.stopwatch.start()

    def on_train_epoch_end(self) -> None:
        """Log what is known at the end of an epoch only."""
        self.stopwatch.stop()
        self.log("train/images_per_second", self.stopwatch.lap_rate)
        self.log("lr", self._lr())

    def on_fit_end(self) -> None:
        """Report the image files that could not be read."""
        if self.trainer.world_size > 1:
            found: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(found, self.unreadable)
            self.unreadable = {path: None for one in found for path in one}
        if self.unreadable and self.trainer.is_global_zero:
            count = len(self.unreadable)
            warnings.warn(
                f"{count} image {'file' if count == 1 else 'files'} could not be read: {some(self.unreadable, 3)}",
                stacklevel=2,
            )


class FiniteMean(Metric):
    """Mean of what is finite, by weight, without a look at the values that would wait for a GPU."""

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "weight"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: float) -> None:
        """Add a value."""
        finite = value.isfinite()
        self.total += torch.where(finite, value, 0.0) * weight
        self.weight += weight * finite

    def compute(self) -> Tensor:
        """Return the mean; NaN if nothing was finite."""
        return self.total / self.weight


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


def agreed(trainer: Trainer, one: bool) -> bool:
    """Return whether something holds on any of the devices, so that all of them do the same."""
    return trainer.strategy.reduce_boolean_decision(one, all=False) if trainer.world_size > 1 else one
