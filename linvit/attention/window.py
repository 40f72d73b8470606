"""Softmax attention in windows: what FLatten's Swin and CSwin keep in their last two stages."""

from collections.abc import Sequence

import torch
from timm.layers import resize_rel_pos_bias_table_simple, trunc_normal_
from timm.models.swin_transformer import get_relative_position_index
from torch import nn

from linvit.attention._common import TokenAttention
from linvit.ops import window_attention

__all__ = ["StripeAttention", "WindowAttention"]


class WindowAttention(TokenAttention):
    """Swin's attention in square windows with a relative position bias (Liu et al., ICCV 2021).

    The first five arguments are those of :class:`linvit.attention.TokenAttention`; there are no prefix tokens.

    Args:
        window_size: Side of a window.
        shift: Shift the windows by half a window where the map is longer than one.
    """

    relative_position_index: torch.Tensor

    def __init__(
        self,
        dim: int,
        grid_size: int | Sequence[int],
        num_heads: int = 8,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        *,
        window_size: int = 7,
        shift: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__(dim, grid_size, num_heads, qkv_bias, proj_drop, device=device, dtype=dtype)
        self.window_size = window_size
        self.shift_size = window_size // 2 if shift else 0
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window_size - 1) ** 2, num_heads, device=device, dtype=dtype)
        )
        self._reset_own()

    def reset_parameters(self) -> None:
        """Draw all weights anew, and compute the index of the position biases."""
        super().reset_parameters()
        self._reset_own()

    def _reset_own(self) -> None:
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Compute the index of the position biases, which no state dict holds."""
        device = self.relative_position_bias_table.device
        index = get_relative_position_index(self.window_size, self.window_size, device=device)
        self.register_buffer("relative_position_index", index, persistent=False)

    @torch.jit.ignore
    def set_window_size(self, window_size: int) -> None:
        """Make another side of the windows the native one, interpolating the position biases."""
        if window_size == self.window_size:
            return
        self.window_size = window_size
        self.shift_size = window_size // 2 if self.shift_size else 0
        old = self.relative_position_bias_table
        self.relative_position_bias_table = nn.Parameter(old.new_empty((2 * window_size - 1) ** 2, self.num_heads))
        with torch.no_grad():
            self.relative_position_bias_table.copy_(self.resize_bias_table(old))
        self.relative_position_bias_table.requires_grad_(old.requires_grad)
        self.init_non_persistent_buffers()

    def resize_bias_table(self, table: torch.Tensor) -> torch.Tensor:
        """Interpolate the bias table of another window size (bicubic), ``[(2w - 1)^2, h]``, for this one."""
        size = (self.window_size, self.window_size)
        return resize_rel_pos_bias_table_simple(table, size, self.relative_position_bias_table.shape)

    def forward(self, x: torch.Tensor, grid_size: list[int] | None = None) -> torch.Tensor:
        """Map tokens ``[B, H W, C]`` to the same shape; the native grid if ``grid_size`` is None."""
        if grid_size is None:
            grid_size = self.grid_size
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, grid_size[0], grid_size[1], 3, C)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1).unsqueeze(0)
        window, shift = [self.window_size, self.window_size], [self.shift_size, self.shift_size]
        x = window_attention(qkv, self.num_heads, window, shift, bias)
        return self.proj_drop(self.proj(x.reshape(B, N, C)))


class StripeAttention(TokenAttention):
    """CSWin's attention: half of the heads in vertical stripes, half in horizontal ones (Dong et al., CVPR 2022).

    The values' depthwise 3x3 convolution inside each stripe (``get_v``) is added.

    The first five arguments are those of :class:`linvit.attention.TokenAttention`; there are no prefix tokens.

    Args:
        stripe_width: Width of a stripe; None attends over the whole map with all heads.
    """

    def __init__(
        self,
        dim: int,
        grid_size: int | Sequence[int],
        num_heads: int = 8,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        *,
        stripe_width: int | None = 7,
        device=None,
        dtype=None,
    ):
        super().__init__(dim, grid_size, num_heads, qkv_bias, proj_drop, device=device, dtype=dtype)
        self.windows = [[0, 0]] if stripe_width is None else [[0, stripe_width], [stripe_width, 0]]
        width = dim // len(self.windows)
        self.get_v = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, groups=width, device=device, dtype=dtype) for _ in self.windows
        )

    def forward(self, x: torch.Tensor, grid_size: list[int] | None = None) -> torch.Tensor:
        """Map tokens ``[B, H W, C]`` to the same shape; the native grid if ``grid_size`` is None."""
        if grid_size is None:
            grid_size = self.grid_size
        B, N, C = x.shape
        branches = len(self.windows)
        qkv = self.qkv(x).reshape(B, grid_size[0], grid_size[1], 3, C).chunk(branches, dim=4)
        parts = []
        for i, local in enumerate(self.get_v):
            window = self.windows[i]
            part = window_attention(
                qkv[i],
                self.num_heads // branches,
                window,
                [0, 0],
                None,
                local.weight,  # type: ignore[arg-type]
                local.bias,  # type: ignore[arg-type]
            )
            parts.append(part.reshape(B, N, C // branches))
        return self.proj_drop(self.proj(torch.cat(parts, dim=-1)))
