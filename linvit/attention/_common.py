"""What the attention modules share: ``(dim, grid_size, num_heads, ...)`` in, ``forward(tokens, grid_size)`` out."""

from collections.abc import Sequence

import torch
from timm.layers import to_2tuple, trunc_normal_
from torch import nn

__all__ = ["TokenAttention"]


class TokenAttention(nn.Module):
    """A self-attention over tokens ``[B, N, C]``: input projection ``qkv``, mechanism, output projection ``proj``.

    Tokens are ``num_prefix_tokens`` prefix tokens (class token, registers), then a grid row by row.

    Args:
        dim: Channels C.
        grid_size: Height and width of the native grid, in tokens.
        num_heads: Heads; each takes a contiguous block of channels.
        qkv_bias: Give the input projection a bias.
        proj_drop: Dropout rate after the output projection.
        num_prefix_tokens: Tokens before the grid; they attend and are attended to.
        num_projections: What ``qkv`` makes of each token, C channels each: 3 for queries, keys and values; 2 for
            a mechanism without queries, whose ``qkv`` has the rows of keys and values alone.

    Raises:
        ValueError: ``dim`` is not a multiple of ``num_heads``.
    """

    grid_size: list[int]

    def __init__(
        self,
        dim: int,
        grid_size: int | Sequence[int],
        num_heads: int = 8,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        num_prefix_tokens: int = 0,
        *,
        num_projections: int = 3,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.grid_size = list(to_2tuple(grid_size))
        self.num_heads = num_heads
        self.num_prefix_tokens = num_prefix_tokens
        self.qkv = nn.Linear(dim, num_projections * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)
        TokenAttention.reset_parameters(self)

    def reset_parameters(self) -> None:
        """Draw all weights anew, and compute buffers anew where there are any."""
        for linear in (self.qkv, self.proj):
            trunc_normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    @torch.jit.ignore
    def set_grid_size(self, grid_size: int | Sequence[int]) -> None:
        """Make another grid the native one."""
        self.grid_size = list(to_2tuple(grid_size))
