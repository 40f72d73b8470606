"""A running average of the weights that survives an interrupted validation and gives its network away."""

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage(WeightAveraging):
    """Exponential moving average of weights and buffers, taken after every update and used for validation.

    Args:
        decay: Share of the average that is kept at each update, from 0 to 1.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))
        self._validating = False

    @property
    def module(self) -> nn.Module:
        """The task with averaged weights (outside of validation, when they are in the task itself)."""
        assert self._average_model is not None, "there is no average before fitting"
        return self._average_model.module

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the averaged weights into the task."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._validating = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the trained weights back."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._validating = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the trained weights back, so that a checkpoint written now has both in their places."""
        if self._validating:
            self.on_validation_epoch_end(trainer, pl_module)
