"""A callback that leaves a part out of a model: its parameters are zero, and stay so."""

from fnmatch import fnmatch

import torch
from lightning import Callback, LightningModule, Trainer

__all__ = ["Frozen"]


class Frozen(Callback):
    """Sets parameters to zero before the training and keeps them there.

    So an arm of a study can do without a part (such as the convolution that restores the rank) in the same network,
    which every other command then takes as it is.

    Args:
        pattern: Wildcard of the parameters' names, such as ``*.attn.dwc.*``.

    Raises:
        ValueError: It matches none.
    """

    def __init__(self, pattern: str):
        self.pattern = pattern

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set them to zero; a run that is resumed finds the same zeros in its checkpoint."""
        found = [parameter for name, parameter in pl_module.named_parameters() if fnmatch(name, self.pattern)]
        if not found:
            raise ValueError(f"pattern {self.pattern!r} matches no parameter of the model")
        for parameter in found:
            torch.nn.init.zeros_(parameter).requires_grad_(False)
