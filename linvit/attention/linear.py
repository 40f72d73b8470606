"""Plain linear attention with the interface of the focused one, to compare with."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from linvit.attention._common import TokenAttention
from linvit.ops import linear_attention

__all__ = ["LinearAttention", "RankRestoredLinearAttention"]


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
        return self.proj_drop(self.proj(self._mix(self.qkv(x))))

    def _mix(self, qkv: torch.Tensor) -> torch.Tensor:
        B, N, C = qkv.shape
        qkv = qkv.reshape(B, N, 3, self.num_heads, C // (3 * self.num_heads)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = linear_attention(q, k, v, feature_map="elu1" if self.feature_map == "elu" else "relu")
        return x.transpose(1, 2).reshape(B, N, C // 3)


class RankRestoredLinearAttention(LinearAttention):
    """Plain linear attention plus the focused one's depthwise convolution of the values, and nothing else of it.

    Args:
        *args: Those of :class:`LinearAttention`.
        kernel_size: Side of the convolution's kernel, odd; all heads share it.
        **kwargs: Those of :class:`LinearAttention`.
    """

    def __init__(self, *args: Any, kernel_size: int = 5, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        head_dim = self.proj.in_features // self.num_heads
        dd: dict[str, Any] = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        self.dwc = nn.Conv2d(head_dim, head_dim, kernel_size, padding=kernel_size // 2, groups=head_dim, **dd)

    def forward(self, x: torch.Tensor, grid_size: list[int] | None = None) -> torch.Tensor:
        """Map tokens ``[B, N, C]`` to the same shape.

        Args:
            x: Prefix tokens, which stay out of the convolution, then the grid row by row.
            grid_size: Height and width of the grid; the native one if None.
        """
        if grid_size is None:
            grid_size = self.grid_size
        B, _, C = x.shape
        height, width = grid_size[0], grid_size[1]
        qkv = self.qkv(x)
        v = qkv[:, self.num_prefix_tokens :, 2 * C :].transpose(1, 2)
        # The heads' channels side by side, as the kernel is the same for each.
        maps = v.reshape(B * self.num_heads, C // self.num_heads, height, width)
        local = self.dwc(maps).reshape(B, C, height * width).transpose(1, 2)
        if self.num_prefix_tokens > 0:
            local = F.pad(local, (0, 0, self.num_prefix_tokens, 0))
        return self.proj_drop(self.proj(self._mix(qkv) + local))
