"""What attention costs at a size of image, measured here and now: linear against softmax."""

from typing import Any

import torch

from linvit.attention import FocusedLinearAttention, LinearAttention, SoftmaxAttention
from linvit.bench.memory import peak_memory
from linvit.bench.timing import median, take_turns
from linvit.checks import require

__all__ = ["SIZES", "measure_cost"]

SIZES = range(128, 1537, 128)
DIM, HEADS, PATCH = 192, 3, 16
KINDS = {"linear": LinearAttention, "focused linear": FocusedLinearAttention, "softmax": SoftmaxAttention}


@torch.inference_mode()
def measure_cost(size: int, rounds: int = 3) -> dict[str, Any]:
    """Measure one attention layer of DeiT-Tiny's width on an image's patches, on the CPU, in turns.

    Returns:
        ``size``, ``tokens``, and ``rows``: for each kind its ``milliseconds`` (median) and ``megabytes`` (peak beyond
        what is in use before; None on other systems than Linux).

    Raises:
        ValueError: The size is none of :data:`SIZES`.
    """
    require(size in SIZES, "size", size, f"one of {', '.join(map(str, SIZES))}")
    grid = size // PATCH
    tokens = torch.randn(1, grid * grid, DIM)
    layers = {name: kind(DIM, grid, HEADS).eval() for name, kind in KINDS.items()}
    calls = {name: lambda layer=layer: layer(tokens) for name, layer in layers.items()}
    seconds = median(take_turns(calls, rounds))
    rows = []
    for name, call in calls.items():
        try:
            memory: float | None = peak_memory(call) / 2**20
        except (RuntimeError, OSError):
            memory = None
        rows.append({"kind": name, "milliseconds": 1000 * seconds[name], "megabytes": memory})
    return {"size": size, "tokens": grid * grid, "rows": rows}
