"""Softmax attention with the interface of the linear ones, to compare with. Its cost grows with N squared."""

import torch
import torch.nn.functional as F

from linvit.attention._common import TokenAttention

__all__ = ["SoftmaxAttention"]


class SoftmaxAttention(TokenAttention):
    """Self-attention by ``softmax(q k^T / sqrt(d)) v`` (Vaswani et al., NeurIPS 2017), through PyTorch's fused kernel.

    Arguments are those of :class:`linvit.attention.FocusedLinearAttention` that every mechanism has. It has no
    positions of its own, so grids only arrange the tokens.
    """

    def forward(self, x: torch.Tensor, grid_size: list[int] | None = None) -> torch.Tensor:
        """Map tokens ``[B, N, C]`` to the same shape; ``grid_size`` changes nothing."""
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(B, N, C)))
