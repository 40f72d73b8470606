"""Attention for inference: constants folded into the projections around it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linvit.attention import FocusedLinearAttention, KeyOnlyAttention, LinearAttention, StripeAttention, WindowAttention
from linvit.attention._common import TokenAttention
from linvit.deploy.fusion.looks import received
from linvit.ops import (
    attend,
    elu_plus_one,
    focus_folded,
    global_context,
    local_context_by_heads,
    modulate,
    positions_on_grid,
    relu,
    window_attention,
)
from linvit.ops.precision import accumulation_dtype

__all__ = [
    "FusedFocusedAttention",
    "FusedKeyOnlyAttention",
    "FusedLinearAttention",
    "FusedStripeAttention",
    "FusedWindowAttention",
]


class _Fused(nn.Module):
    """What stays of an attention around its mechanism: input and output projection."""

    def __init__(self, attn: TokenAttention):
        super().__init__()
        self.grid_size, self.num_heads, self.num_prefix_tokens = attn.grid_size, attn.num_heads, attn.num_prefix_tokens
        self.qkv, self.proj = attn.qkv, attn.proj

    def _heads(self, x: Tensor) -> Tensor:
        """``[B, N, C]`` to ``[B, h, N, C / h]``."""
        return x.reshape(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)

    def _on_grid(self, shares: Tensor, grid_size: list[int]) -> Tensor:
        """Lay ``[B, N]`` out as a map, without prefix tokens."""
        return shares[:, self.num_prefix_tokens :].reshape(-1, grid_size[0], grid_size[1])


class FusedFocusedAttention(_Fused):
    """Focused linear attention whose learned scale is in its projections, with one kernel for all local branches.

    Features are ``focus((relu(x) + eps) g)`` with a positive gain ``g`` per channel, and ``relu(x) g = relu(x g)``.
    """

    def __init__(self, attn: FocusedLinearAttention, eps: float = 1e-6):
        super().__init__(attn)
        self.power, self.eps = attn.power, eps
        with torch.no_grad():
            gain = 1 / F.softplus(attn.scale.double()).flatten()
            self.size = gain.max().item()  # focus is homogeneous: the size of the gain is a factor at the end
            gain = gain / self.size
            scale = torch.cat((gain, gain, torch.ones_like(gain)))
            self.qkv.weight.copy_(self.qkv.weight.double() * scale.unsqueeze(1))
            if self.qkv.bias is not None:
                self.qkv.bias.copy_(self.qkv.bias.double() * scale)
            dtype = self.qkv.weight.dtype
            self.positions = nn.Parameter((attn.positional_encoding.double() * gain).to(dtype))
            self.floor = nn.Parameter((gain * eps).to(accumulation_dtype(self.qkv.weight)))
            self.local = _local_convolution(attn)

    def forward(self, x: Tensor, grid_size: list[int] | None = None) -> Tensor:
        """Map tokens ``[B, N, C]`` to the same shape; the native grid if ``grid_size`` is None."""
        height, width = self.grid_size if grid_size is None else grid_size
        B, N, C = x.shape
        prefix = self.num_prefix_tokens
        q, k, v = self._project(x, [height, width])
        k, k_factor = focus_folded(k, self.floor, self.power)
        q, q_factor = focus_folded(q, self.floor, self.power)
        # A factor of a query cancels in the quotient, but for epsilon.
        eps = (self.eps / self.size / q_factor).unsqueeze(1)
        mixed = attend(self._heads(q), self._heads(k * (k_factor * self.size)), self._heads(v).to(k.dtype), eps)
        mixed = mixed.transpose(1, 2).reshape(B, N, C).to(v.dtype)
        local = self.local(v[:, prefix:].reshape(B, height, width, C).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        return self.proj(mixed + (F.pad(local, (0, 0, prefix, 0)) if prefix else local))

    def _project(self, x: Tensor, grid_size: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        positions = positions_on_grid(self.positions, self.grid_size, grid_size, x.shape[1], self.num_prefix_tokens)
        return q, k + positions, v

    def received(self, x: Tensor, grid_size: list[int] | None = None) -> Tensor:
        """Return how much each position is attended to, as :func:`linvit.deploy.fusion.looks.received` does."""
        grid = self.grid_size if grid_size is None else grid_size
        q, k, _ = self._project(x, grid)
        k, factor = focus_folded(k, self.floor, self.power)
        q, _ = focus_folded(q, self.floor, self.power)
        return self._on_grid(received(self._heads(q), self._heads(k * factor)), grid)


class FusedLinearAttention(_Fused):
    """Plain linear attention in the cheaper order."""

    def __init__(self, attn: LinearAttention):
        super().__init__(attn)
        self.features = elu_plus_one if attn.feature_map == "elu" else relu

    def forward(self, x: Tensor, grid_size: list[int] | None = None) -> Tensor:
        """Map tokens ``[B, N, C]`` to the same shape; ``grid_size`` changes nothing."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        mixed = attend(self._heads(self.features(q)), self._heads(self.features(k)), self._heads(v))
        return self.proj(mixed.transpose(1, 2).reshape(x.shape))

    def received(self, x: Tensor, grid_size: list[int] | None = None) -> Tensor:
        """Return how much each position is attended to, as :func:`linvit.deploy.fusion.looks.received` does."""
        q, k, _ = self.qkv(x).chunk(3, dim=-1)
        shares = received(self._heads(self.features(q)), self._heads(self.features(k)))
        return self._on_grid(shares, self.grid_size if grid_size is None else grid_size)


class FusedKeyOnlyAttention(_Fused):
    """Key-only attention whose saliencies are rows of the projection that makes the values."""

    def __init__(self, attn: KeyOnlyAttention):
        super().__init__(attn)
        self.interaction, self.kernel_size = attn.interaction, attn.kernel_size
        weight, bias = attn.qkv.weight.detach(), attn.qkv.bias
        C, heads = attn.u.shape[0], attn.num_heads
        u = attn.u.detach().double().unsqueeze(1)
        saliency = (u * weight[-2 * C : -C].double()).reshape(heads, -1, C).sum(dim=1).to(weight.dtype)
        self.rows = [heads, *([C] if attn.interaction == "gate" else []), C]
        self.qkv = nn.Linear(C, sum(self.rows), bias is not None, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            self.qkv.weight.copy_(torch.cat((saliency, weight[: -2 * C], weight[-C:])))
            if bias is not None:  # what the keys' would add to all saliencies of a head, no softmax sees
                self.qkv.bias.copy_(torch.cat((bias.new_zeros(heads), bias[: -2 * C], bias[-C:])))

    def forward(self, x: Tensor, grid_size: list[int] | None = None) -> Tensor:
        """Map tokens ``[B, N, C]`` to the same shape; the native grid if ``grid_size`` is None."""
        parts = self.qkv(x).split(self.rows, dim=2)
        saliency, v = parts[0], parts[-1]
        c = global_context(saliency, v)
        if self.interaction == "modulate":
            return self.proj(modulate(v, c))
        if self.interaction == "gate":
            return self.proj(v + parts[1].sigmoid() * c)
        prefix = self.num_prefix_tokens
        grid = self.grid_size if grid_size is None else grid_size
        local = local_context_by_heads(saliency[:, prefix:], v[:, prefix:], grid, self.kernel_size)
        return self.proj((torch.cat((v[:, :prefix], local), dim=1) if prefix else local) + c)

    def received(self, x: Tensor, grid_size: list[int] | None = None) -> Tensor:
        """Return how much each position counts in the global context, on average over heads: ``[B, H, W]``."""
        shares = self.qkv(x).split(self.rows, dim=2)[0].softmax(dim=1).mean(dim=2)
        return self._on_grid(shares, self.grid_size if grid_size is None else grid_size)


class FusedWindowAttention(_Fused):
    """Softmax attention in windows whose position bias is looked up once for all."""

    def __init__(self, attn: WindowAttention):
        super().__init__(attn)
        self.window, self.shift = [attn.window_size] * 2, [attn.shift_size] * 2
        bias = attn.relative_position_bias_table[attn.relative_position_index]
        self.bias = nn.Parameter(bias.permute(2, 0, 1).unsqueeze(0).detach().contiguous())

    def forward(self, x: Tensor, grid_size: list[int] | None = None) -> Tensor:
        """Map tokens ``[B, H W, C]`` to the same shape; the native grid if ``grid_size`` is None."""
        height, width = self.grid_size if grid_size is None else grid_size
        B, N, C = x.shape
        qkv: Any = self.qkv(x).reshape(B, height, width, 3, C)
        return self.proj(window_attention(qkv, self.num_heads, self.window, self.shift, self.bias).reshape(B, N, C))


class FusedStripeAttention(_Fused):
    """Softmax attention in stripes whose projection writes the three parts of each branch side by side."""

    def __init__(self, attn: StripeAttention):
        super().__init__(attn)
        self.windows, self.local = attn.windows, attn.get_v
        rows = torch.arange(self.qkv.out_features).reshape(3, len(self.windows), -1).transpose(0, 1).flatten()
        with torch.no_grad():
            self.qkv.weight.copy_(self.qkv.weight[rows])
            if self.qkv.bias is not None:
                self.qkv.bias.copy_(self.qkv.bias[rows])

    def forward(self, x: Tensor, grid_size: list[int] | None = None) -> Tensor:
        """Map tokens ``[B, H W, C]`` to the same shape; the native grid if ``grid_size`` is None."""
        height, width = self.grid_size if grid_size is None else grid_size
        B, N, C = x.shape
        count = len(self.windows)
        qkv = self.qkv(x)
        parts = []
        # LiteRT's converter stumbles over a split into one.
        branches = qkv.chunk(count, dim=2) if count > 1 else [qkv]
        for branch, window, local in zip(branches, self.windows, self.local, strict=True):
            maps = branch.reshape(B, height, width, 3, C // count)
            kernel: Any = local
            part = window_attention(maps, self.num_heads // count, window, [0, 0], None, kernel.weight, kernel.bias)
            parts.append(part.reshape(B, N, -1))
        return self.proj(torch.cat(parts, dim=2))


def _local_convolution(attn: FocusedLinearAttention) -> nn.Conv2d:
    """Make one depthwise convolution of the one that all heads share and the one that each channel has."""
    weight = attn.dwc.weight.repeat(attn.num_heads, 1, 1, 1)
    assert attn.dwc.bias is not None
    bias = attn.dwc.bias.repeat(attn.num_heads)
    if attn.get_v is not None:
        assert attn.get_v.bias is not None
        weight, bias = weight + F.pad(attn.get_v.weight, (attn.border,) * 4), bias + attn.get_v.bias
    size = weight.shape[-1]
    conv = nn.Conv2d(len(weight), len(weight), size, padding=size // 2, groups=len(weight))
    conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
    return conv
