"""Channels to heads and back."""

import torch

__all__ = ["merge_heads", "split_heads"]


def split_heads(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """``[B, N, C]`` to ``[B, h, N, C / h]``: contiguous blocks of channels."""
    return x.reshape(x.shape[0], x.shape[1], num_heads, x.shape[2] // num_heads).transpose(1, 2)


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    """``[B, h, N, d]`` to ``[B, N, h d]``."""
    return x.transpose(1, 2).flatten(2)
