"""Sizes of tensors: numbers or, in exports and compiled graphs for any size, symbols, of which nothing is decided.

A decision by a symbol would become a condition of the graph, and restrict the sizes that it takes.
"""

import torch
from torch.fx.experimental.symbolic_shapes import has_static_value, statically_known_true

__all__ = ["is_number", "surely_equal"]


@torch.jit.unused
def is_number(size: int) -> bool:
    """Tell a number from a symbol."""
    return torch.jit.is_tracing() or bool(has_static_value(size))  # ``torch.jit.trace`` gives sizes as tensors


@torch.jit.unused
def surely_equal(size: int, other: int) -> bool:
    """Tell whether two sizes are equal, and must be where they are symbols."""
    if torch.jit.is_tracing():
        return bool(size == other)
    return bool(statically_known_true(size == other))
