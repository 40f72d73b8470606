"""Whether a training is compiled: decided before it begins, from its settings and the machine alone.

A timing would decide otherwise from run to run, and a run that is resumed must go on as it began.
"""

import logging
from typing import Literal

import torch
from torch import nn

from linvit.catalogue import count_macs

__all__ = ["WORTHWHILE", "Compile", "compiler_error", "estimate_seconds"]

log = logging.getLogger("linvit")

Compile = bool | Literal["auto"]

MACS_PER_SECOND = 30e9
"""What a core does in eager training, about (CARE-S0 27e9, FLatten-Swin-T 33e9, batch 8 at 224, AVX-512)."""

WORTHWHILE = 3600.0
"""Seconds of training from which compiling, one to two minutes, pays: a step is 2 % (Swin) to 28 % (CARE) shorter."""


def estimate_seconds(model: nn.Module, input_size: tuple[int, int, int], images: int) -> float:
    """Estimate how long eager training takes on this CPU, from multiply-accumulates.

    Args:
        model: The network; a forward pass counts its work.
        input_size: Channels, height and width of what it sees.
        images: How often an image goes forward and backward.
    """
    training = model.training
    try:
        macs = count_macs(model.eval(), input_size)
    finally:
        model.train(training)
    return 3 * macs * images / (MACS_PER_SECOND * torch.get_num_threads())  # backward costs twice what forward does


def compiler_error() -> str | None:
    """Return in one line why ``torch.compile`` cannot work here; None where it can."""
    try:
        torch.compile(_probe)(torch.zeros(64))
    except Exception as error:  # whatever stands in its way: no C++ compiler, no headers, a full disk
        lines = [line for line in str(error).splitlines() if line.strip()]
        return " ".join(lines[0].split()) if lines else type(error).__name__
    finally:
        torch.compiler.reset()
    return None


def _probe(x: torch.Tensor) -> torch.Tensor:
    return (x + 1).relu() * 2
