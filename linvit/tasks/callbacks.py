"""What a run does beside training: keep the best weights, stay resumable, be reproducible, report each epoch."""

import random
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from linvit.checkpoints import save_model
from linvit.tasks.ema import WeightAverage
from linvit.tasks.run_folder import LAST, MODEL, saving


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
        figures = {
            name.removeprefix("val/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        if not self.best or pl_module.rank(figures) > pl_module.rank(self.best):
            self.best = figures | {"epoch": trainer.current_epoch + 1}
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the weights if there was no validation."""
        if not self.best:
            self._save(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the best figures."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best figures of the run that is resumed."""
        self.best = state_dict["best"]

    def _save(self, trainer: Any, task: Any) -> None:
        if not trainer.is_global_zero:
            return
        averages = [callback.module for callback in trainer.callbacks if isinstance(callback, WeightAverage)]
        network: Any = (averages or [task])[0].model
        with saving(self.folder / MODEL):
            save_model(
                network, self.folder, classes=self.classes, input_config=self.input_config, metrics=self.best or None
            )
        task.draw(self.folder, self.classes)


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt``, written after every epoch and when training stops early, also by Ctrl-C.

    Ctrl-C takes effect after the current batch, so that the checkpoint holds whole updates; a second one, or one
    outside of training, at once.

    Args:
        folder: The run folder.

    Attributes:
        interrupted: Whether Ctrl-C was pressed.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder, Path(LAST).stem, save_on_exception=True, save_on_train_epoch_end=True, enable_version_counter=False
        )
        self.interrupted = False
        self._training = False

    @contextmanager
    def catching_interrupts(self) -> Generator[None]:
        """Let Ctrl-C end the training in an orderly way within this block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        at_once = self.interrupted or not self._training
        self.interrupted = True
        if at_once:
            raise KeyboardInterrupt

    def _stop_if_interrupted(self) -> None:
        if self.interrupted:
            raise KeyboardInterrupt

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on Ctrl-C waits for the end of the batch."""
        super().on_train_start(trainer, pl_module)
        self._training = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after Ctrl-C, except after the last batch of an epoch: what follows it has its own checks."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not trainer.is_last_batch:
            self._stop_if_interrupted()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop after Ctrl-C."""
        self._stop_if_interrupted()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after Ctrl-C: the epoch before it is complete, and so is its checkpoint."""
        self._stop_if_interrupted()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Have a validation that was broken off run from its first batch when training is resumed."""
        if trainer.validating:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            for count in (progress["total"], progress["current"]):
                count.update(ready=1, started=1, processed=0, completed=0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on Ctrl-C takes effect at once."""
        super().on_train_end(trainer, pl_module)
        self._training = False


class RandomState(Callback):
    """Keeps the random states with the checkpoint: a run resumed after an epoch goes on as if it had not stopped."""

    def state_dict(self) -> dict[str, Any]:
        """Return the states as tensors and plain values."""
        kind, keys, *rest = np.random.get_state(legacy=True)
        return {
            "python": random.getstate(),
            "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the states back."""
        kind, keys, *rest = state_dict["numpy"]
        random.setstate(state_dict["python"])
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
        torch.set_rng_state(state_dict["torch"])
        if len(state_dict["cuda"]) == torch.cuda.device_count() > 0:
            torch.cuda.set_rng_state_all(state_dict["cuda"])


class EpochLines(Callback):
    """Writes one line per epoch to standard error: the progress display where there is no terminal."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the line."""
        if trainer.is_global_zero:
            task: Any = pl_module
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            line = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"]
            if "train/loss" in metrics:  # not where an epoch is resumed in its validation
                line += [f"train loss {metrics['train/loss']:.4f}"]
            if "val/loss" in metrics:
                line += [f"val loss {metrics['val/loss']:.4f}"]
            watched, heading = next(iter(task.figures.items()))
            if f"val/{watched}" in metrics:
                line += [f"{heading} {metrics[f'val/{watched}']:.2%}"]
            line += [f"{task.stopwatch.lap_rate:.1f} images/s"]
            print("  ".join(line), file=sys.stderr, flush=True)
