"""Focused linear attention as a module: what FLatten puts in the place of softmax attention.

Source: Han et al., "FLatten Transformer: Vision Transformer using Focused Linear Attention" (ICCV 2023,
https://arxiv.org/abs/2308.00442), section 4.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from linvit.attention._common import TokenAttention
from linvit.ops import focused_linear_attention, positions_on_grid, resize_positions

__all__ = ["FocusedLinearAttention"]


class FocusedLinearAttention(TokenAttention):
    """Self-attention in time and memory linear in the number of tokens.

    Keys get a learned positional encoding; queries and keys are sharpened (:func:`linvit.ops.focus`); linear
    attention mixes the tokens; a depthwise convolution of the values, one kernel for all heads, restores the rank
    that linear attention cannot reach. Prefix tokens have no positional encoding and stay out of the convolution.

    Args:
        dim: Channels C.
        grid_size: Height and width of the native grid, for which positions are learned. Other grids work, too:
            positions are interpolated bilinearly.
        num_heads: Heads; each takes a contiguous block of channels.
        qkv_bias: Give the input projection a bias.
        proj_drop: Dropout rate after the output projection.
        num_prefix_tokens: Tokens before the grid (class token, registers); they attend and are attended to.
        power: The focusing power p.
        kernel_size: Side of the depthwise convolution's kernel, odd.
        local_kernel_size: Side of a second depthwise convolution of the values, ``get_v``, with a kernel for every
            channel (CSWin's locally-enhanced positional encoding); odd, at most ``kernel_size``; None leaves it out.
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
        power: float = 3.0,
        kernel_size: int = 5,
        local_kernel_size: int | None = None,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, grid_size, num_heads, qkv_bias, proj_drop, num_prefix_tokens, **dd)
        if kernel_size % 2 == 0 or (
            local_kernel_size is not None and local_kernel_size not in range(1, kernel_size + 1, 2)
        ):
            raise ValueError(
                "kernel_size must be odd and local_kernel_size odd and no larger, "
                f"got {kernel_size} and {local_kernel_size}"
            )
        self.power = power
        height, width = self.grid_size
        self.positional_encoding = nn.Parameter(torch.empty(1, height * width, dim, **dd))
        self.scale = nn.Parameter(torch.empty(1, 1, dim, **dd))
        self._reset_own()
        head_dim = dim // num_heads
        self.dwc = nn.Conv2d(head_dim, head_dim, kernel_size, padding=kernel_size // 2, groups=head_dim, **dd)
        self.get_v = None
        self.border = 0
        if local_kernel_size is not None:
            self.get_v = nn.Conv2d(dim, dim, local_kernel_size, padding=local_kernel_size // 2, groups=dim, **dd)
            self.border = (kernel_size - local_kernel_size) // 2

    def reset_parameters(self) -> None:
        """Draw all weights anew; positions and scale start at zero."""
        super().reset_parameters()
        self._reset_own()

    def _reset_own(self) -> None:
        nn.init.zeros_(self.positional_encoding)
        nn.init.zeros_(self.scale)

    @torch.jit.ignore
    def set_grid_size(self, grid_size: int | Sequence[int]) -> None:
        """Make another grid the native one, interpolating the positional encoding."""
        old = self.grid_size
        super().set_grid_size(grid_size)
        with torch.no_grad():
            table = resize_positions(self.positional_encoding, old, self.grid_size).contiguous()
        self.positional_encoding = nn.Parameter(table, requires_grad=self.positional_encoding.requires_grad)

    def _convolve(self, v: torch.Tensor) -> torch.Tensor:
        """Depthwise convolution of maps ``[B, C, H, W]``; both convolutions are one, as they are linear."""
        weight, bias = self.dwc.weight, self.dwc.bias
        assert bias is not None  # for TorchScript, as below
        weight, bias = weight.repeat(self.num_heads, 1, 1, 1), bias.repeat(self.num_heads)
        if self.get_v is not None:
            local_bias = self.get_v.bias
            assert local_bias is not None
            weight = weight + F.pad(self.get_v.weight, (self.border, self.border, self.border, self.border))
            bias = bias + local_bias
        return F.conv2d(v, weight, bias, padding=self.dwc.padding, groups=weight.shape[0])

    def forward(self, x: torch.Tensor, grid_size: list[int] | None = None) -> torch.Tensor:
        """Map tokens ``[B, N, C]`` to the same shape.

        Args:
            x: Prefix tokens, then the grid row by row: N = ``num_prefix_tokens`` + H W.
            grid_size: H and W; the native grid if None.

        Raises:
            ValueError: N does not fit the grid.
        """
        if grid_size is None:
            grid_size = self.grid_size
        B, N, C = x.shape
        prefix = self.num_prefix_tokens
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        positions = positions_on_grid(self.positional_encoding, self.grid_size, grid_size, N, prefix)
        x = focused_linear_attention(q, k, v, self.scale, self.num_heads, self.power, positions=positions)
        # Tokens are the channels-last layout of a map: no data moves.
        v = v[:, prefix:].reshape(B, grid_size[0], grid_size[1], C).permute(0, 3, 1, 2)
        local = self._convolve(v).flatten(2).transpose(1, 2)
        if prefix > 0:
            local = F.pad(local, (0, 0, prefix, 0))
        return self.proj_drop(self.proj(x + local))
