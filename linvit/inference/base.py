"""What the predictors share: where they compute and how exactly."""

import torch

__all__ = ["PRECISIONS", "check_precision", "find_device"]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_precision(precision: str) -> None:
    """Raise a ValueError unless the precision is one of ``PRECISIONS``."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")


def find_device(name: str) -> torch.device:
    """Return the device of a name, where "auto" is the accelerator that torch finds, or else the CPU.

    Raises:
        ValueError: It is not here.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not here: give auto, cpu, or an accelerator that torch finds") from error
    return device
