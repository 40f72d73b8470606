"""Focused linear attention as its formula, step by step, with ``N x M`` weights."""

import torch
import torch.nn.functional as F

from linvit.ops.feature_maps import focus_reference
from linvit.ops.heads import merge_heads, split_heads
from linvit.ops.linear import linear_attention_reference

__all__ = ["focused_linear_attention_reference"]


def focused_linear_attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: torch.Tensor,
    num_heads: int,
    power: float = 3.0,
    eps: float = 1e-6,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """The formula, step by step, with ``N x M`` weights; quadratic, for tests and for reading."""
    if positions is not None:
        k = k + positions
    q = (F.relu(q) + eps) / F.softplus(scale)
    k = (F.relu(k) + eps) / F.softplus(scale)
    q, k = focus_reference(q, power), focus_reference(k, power)
    q, k, v = split_heads(q, num_heads), split_heads(k, num_heads), split_heads(v, num_heads)
    return merge_heads(linear_attention_reference(q, k, v, eps))
