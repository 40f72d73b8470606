"""What keeps a long run going: updates that are not finite are skipped, and randomness survives a crash."""

import random
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["NotFinite", "SkipNotFinite", "StepSeed"]


class StepSeed(Callback):
    """Lets the randomness of each training step follow from (seed, epoch, batch, device).

    So a run that is stopped anywhere and resumed mixes images and drops paths as it would have done, and no random
    state has to be kept.

    Args:
        seed: Decides all of it.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed Python, NumPy and torch on all its devices."""
        where = self.seed, trainer.current_epoch, batch_idx, trainer.global_rank
        ours, theirs, torchs = map(int, np.random.SeedSequence(where).generate_state(3))
        random.seed(ours)
        np.random.seed(theirs)
        torch.manual_seed(torchs)


class NotFinite(ValueError):
    """Too many updates in a row were not finite."""


class SkipNotFinite(Callback):
    """Skips updates whose gradients hold NaN or infinity, and ends the training after too many in a row.

    A skipped update leaves weights, optimizer state and buffers (the running statistics of BatchNorm) as they were.
    All devices skip together, as they have the same gradients. What float16's loss scaling skips is counted, too.

    Args:
        most: Skipped updates in a row that are one too many.

    Attributes:
        skipped: Skipped updates so far.
        in_a_row: Those since the last good one.
    """

    def __init__(self, most: int = 20) -> None:
        if most < 1:
            raise ValueError(f"most must be at least 1, not {most!r}")
        self.most = most
        self.skipped = 0
        self.in_a_row = 0
        self._buffers: list[Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the buffers as they are before an update."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._buffers = [buffer.clone() for buffer in _buffers(pl_module)]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at the gradients; without any, the optimizer changes nothing."""
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm: Any = nn.utils.get_total_norm(grads)
        if hasattr(norm, "full_tensor"):  # of sharded gradients
            norm = norm.full_tensor()
        if norm.isfinite():
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.most:
            raise NotFinite(
                f"the gradients of {self.most} updates in a row were not finite: the training diverged; lower "
                "--model.lr, lengthen --model.warmup_epochs, or set --trainer.gradient_clip_val"
            )
        optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(_buffers(pl_module), self._buffers, strict=True):
            buffer.copy_(before)

    def state_dict(self) -> dict[str, Any]:
        """Return the count."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the count of the run that is resumed."""
        self.skipped = state_dict["skipped"]


def _buffers(task: Any) -> list[Tensor]:
    """Return the buffers of the network; not those of the metrics, which are the task's."""
    return list(task.model.buffers())
