"""The one rule of precision: sums over tokens accumulate in at least float32."""

import torch

__all__ = ["accumulation_dtype", "smallest_normal"]


def accumulation_dtype(x: torch.Tensor) -> torch.dtype:
    """Return float32 for half-precision ``x`` and the type of ``x`` otherwise (float64 stays float64)."""
    if x.dtype == torch.float16 or x.dtype == torch.bfloat16:
        return torch.float32
    return x.dtype


def smallest_normal(dtype: torch.dtype) -> float:
    """Return what ``torch.finfo(dtype).tiny`` is for float32 and float64; TorchScript has no ``finfo``."""
    return 2.2250738585072014e-308 if dtype == torch.float64 else 1.1754943508222875e-38
