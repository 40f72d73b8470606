"""Plain linear attention with the interface of the focused one, to compare with."""

from collections.abc import Sequence

import torch

from linvit.attention._common import TokenAttention
from linvit.ops import linear_attention

__all__ = ["LinearAttention"]


class LinearAttention(TokenAttention):
    """Self-attention by the inner product of ``elu(x) + 1`` (Katharopoulos et al., ICML 2020) or ``relu(x)`` features.

    The first six arguments are those of :class:`linvit.attention.TokenAttention`.

    Args:
        feature_map: "elu" or "relu".

    Raises:
        ValueError: Another feature map.
    """

    def __init__(
        self,
        dim: int,
        grid_size: int | Sequence[int],
        num_heads: int = 8,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        num_prefix_tokens: int = 0,
        *,
        feature_map: str = "elu",
        device=None,
        dtype=None,
    ):
        super().__init__(dim, grid_size, num_heads, qkv_bias, proj_drop, num_prefix_tokens, device=device, dtype=dtype)
        if feature_map not in ("elu", "relu"):
            raise ValueError(f"feature_map must be 'elu' or 'relu', got {feature_map!r}")
        self.feature_map = feature_map

    def forward(self, x: torch.Tensor, grid_size: list[int] | None = None) -> torch.Tensor:
        """Map tokens ``[B, N, C]`` to the same shape; ``grid_size`` changes nothing."""
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = linear_attention(q, k, v, feature_map="elu1" if self.feature_map == "elu" else "relu")
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(B, N, C)))
