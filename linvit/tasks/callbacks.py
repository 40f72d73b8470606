"""What a run does beside training: keep the best weights, stay resumable, be reproducible, report each epoch."""

import signal
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from linvit.checkpoints import save_model
from linvit.files import saving
from linvit.tasks.base import agreed
from linvit.tasks.ema import WeightAverage
from linvit.tasks.faults import SkipNotFinite
from linvit.tasks.run_folder import LAST, MODEL


class KeepBest(Callback):
    """Keeps the weights with the best validation so far as a model that every command can load.

    The task says which are better (:meth:`linvit.tasks.base.VisionTask.rank`). With weight averaging it is the average
    that is validated and kept. Without validation the last weights are kept.

    Args:
        folder: The run folder.
        classes: Names of the classes, in the order of the logits.
        input_config: What the model sees, for :func:`linvit.checkpoints.save_model`.

    Attributes:
        best: Figures of the best validation, as the task names them, and its ``epoch``, counted from 1.
    """

    def __init__(self, folder: Path, classes: list[str], input_config: dict[str, Any]) -> None:
        self.folder = folder
        self.classes = classes
        self.input_config = input_config
        self.best: dict[str, float] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save the weights if they are the best."""
        if trainer.sanity_checking:
            return
        metrics = {
            name.removeprefix("val/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        if not self.best or pl_module.rank(metrics) > pl_module.rank(self.best):
            self.best = metrics | {"epoch": trainer.current_epoch + 1}
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the weights if there was no validation."""
        if not self.best:
            self._save(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the best metrics."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best metrics of the run that is resumed."""
        self.best = state_dict["best"]

    def _save(self, trainer: Any, task: Any) -> None:
        averages: list[Any] = [each.module for each in trainer.callbacks if isinstance(each, WeightAverage)]
        network = (averages or [task])[0].kept()
        weights = {name: _whole(tensor) for name, tensor in network.state_dict().items()}
        if not trainer.is_global_zero:
            return
        with saving(self.folder / MODEL):
            save_model(
                network,
                self.folder,
                classes=self.classes,
                input_config=self.input_config,
                metrics=self.best or None,
                weights=weights,
            )
        task.draw(self.folder, self.classes)


def _whole(tensor: Any) -> Any:
    """Return all of a tensor, which all devices must ask for if it is sharded over them."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt``: written after every epoch, now and then within it, and when training stops early.

    Ctrl-C takes effect after the current update, so that the checkpoint holds whole updates; a second one, or one
    outside of training, at once. While one update after the other is not finite, nothing is written: the
    weights may be what is wrong.

    Args:
        folder: The run folder.
        steps: Write within an epoch after so many batches; None for never.
        minutes: Write within an epoch after so many minutes; None for never.

    Attributes:
        interrupted: Whether Ctrl-C was pressed.
    """

    def __init__(self, folder: Path, steps: int | None = None, minutes: float | None = None) -> None:
        for name, value in {"steps": steps, "minutes": minutes}.items():
            if value is not None and value <= 0:
                raise ValueError(f"checkpoint.{name} must be above 0, or null, not {value!r}")
        super().__init__(
            folder, Path(LAST).stem, save_on_exception=True, save_on_train_epoch_end=True, enable_version_counter=False
        )
        self.path = folder / LAST
        self.steps = steps
        self.minutes = minutes
        self.interrupted = False
        self._training = False
        self._validated = False
        self._saved_at = time.monotonic()

    @contextmanager
    def catching_interrupts(self) -> Generator[None]:
        """Let Ctrl-C and SIGTERM end the training in an orderly way within this block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        at_once = self.interrupted or not self._training
        self.interrupted = True
        if at_once:
            raise KeyboardInterrupt

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on Ctrl-C waits for the end of the update."""
        super().on_train_start(trainer, pl_module)
        self._training = True
        if signal.getsignal(signal.SIGINT) == self._on_signal:
            # Lightning put a handler around ours that has all devices talk to each other wherever they are: a deadlock.
            signal.signal(signal.SIGTERM, self._on_signal)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop after Ctrl-C, or write the checkpoint when it is time: all of the batch before is in the logs now.

        Gradients that wait for their update, and Lightning's step count right after a validation, would be lost.
        """
        between_updates = batch_idx and batch_idx % trainer.accumulate_grad_batches == 0
        if between_updates and not self._validated:
            stop = agreed(trainer, self.interrupted)
            if (stop or agreed(trainer, self._is_time(batch_idx))) and not _diverging(trainer):
                trainer.save_checkpoint(self.path)
                self._saved_at, self._last_global_step_saved = time.monotonic(), trainer.global_step
            if stop:
                self.interrupted = True
                raise KeyboardInterrupt
        self._validated = False

    def _is_time(self, batch_idx: int) -> bool:
        by_steps = self.steps is not None and batch_idx % self.steps == 0
        return by_steps or (self.minutes is not None and time.monotonic() - self._saved_at >= 60 * self.minutes)

    def _stop_if_interrupted(self, trainer: Trainer) -> None:
        if agreed(trainer, self.interrupted):
            self.interrupted = True
            raise KeyboardInterrupt

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop after Ctrl-C."""
        self._stop_if_interrupted(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there was a validation."""
        super().on_validation_end(trainer, pl_module)
        self._validated = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after Ctrl-C: the epoch before it is complete, and so is its checkpoint."""
        self._stop_if_interrupted(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint."""
        if not _diverging(trainer):
            super().on_train_epoch_end(trainer, pl_module)
            self._saved_at = time.monotonic()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the checkpoint, unless it would hold what went wrong, or other devices know nothing of the error."""
        everywhere = trainer.world_size == 1 or isinstance(exception, (KeyboardInterrupt, SIGTERMException))
        if everywhere and not _diverging(trainer):
            super().on_exception(trainer, pl_module, exception)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say where training is to be resumed: at the first batch, and the start of a validation, not done yet."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for count in (progress["total"], progress["current"]):
            count.update(dict.fromkeys(("ready", "started", "completed"), count["processed"]))
        progress["is_last_batch"] = progress["current"]["processed"] >= trainer.num_training_batches
        if trainer.validating:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            for count in (progress["total"], progress["current"]):
                count.update(ready=1, started=1, processed=0, completed=0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on Ctrl-C takes effect at once."""
        super().on_train_end(trainer, pl_module)
        self._training = False


def _diverging(trainer: Any) -> bool:
    return any(callback.in_a_row > 1 for callback in trainer.callbacks if isinstance(callback, SkipNotFinite))


class EpochLines(Callback):
    """Writes one line per epoch to standard error: the progress display where there is no terminal."""

    def __init__(self) -> None:
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have this epoch's line say what the validation found."""
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the line."""
        validated, self._validated = self._validated, False
        if not trainer.is_global_zero:
            return
        task: Any = pl_module
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        line = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"]
        if "train/loss" in metrics:  # not where an epoch is resumed in its validation
            line += [f"train loss {metrics['train/loss']:.4f}"]
        if validated and "val/loss" in metrics:
            line += [f"val loss {metrics['val/loss']:.4f}"]
        watched, heading = next(iter(task.metrics.items()))
        if validated and f"val/{watched}" in metrics:
            line += [f"{heading} {metrics[f'val/{watched}']:.2%}"]
        line += [f"{task.stopwatch.lap_rate:.1f} images/s"]
        print("  ".join(line), file=sys.stderr, flush=True)
