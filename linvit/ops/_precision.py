"""The one rule of precision: sums over tokens accumulate in at least float32."""

import torch


def accumulation_dtype(x: torch.Tensor) -> torch.dtype:
    """Return float32 for half-precision ``x`` and the type of ``x`` otherwise (float64 stays float64)."""
    if x.dtype == torch.float16 or x.dtype == torch.bfloat16:
        return torch.float32
    return x.dtype
