"""CARE's two mechanisms: asymmetric decoupled token mixing and dual interaction.

Source: Zhou et al., "CARE Transformer: Mobile-Friendly Linear Visual Transformer via Decoupled Dual Interaction"
(CVPR 2025, https://arxiv.org/abs/2411.16170). All maps are ``[B, C, H, W]``; ``g`` is the width of one channel group.
Modules are named as in the published checkpoints, so that these load without a translation.
"""

import torch
from timm.layers import to_2tuple
from torch import nn

from linvit.ops import linear_attention

__all__ = ["CareTokenMixer", "DualInteraction", "StackedTokenMixer"]


def _depthwise(channels: int, kernel_size: int | tuple[int, int], device=None, dtype=None) -> nn.Conv2d:
    """Depthwise convolution that keeps height and width."""
    height, width = to_2tuple(kernel_size)
    padding = (height // 2, width // 2)
    return nn.Conv2d(channels, channels, (height, width), padding=padding, groups=channels, device=device, dtype=dtype)


def _attend(qk: torch.Tensor, v: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Linear attention on maps: queries and keys ``[B, 2C, H, W]``, values and result ``[B, C, H, W]``."""
    B, C, H, W = v.shape
    q, k = qk.chunk(2, dim=1)
    heads = (B, num_heads, C // num_heads, H * W)
    q, k, v = q.reshape(heads), k.reshape(heads), v.reshape(heads)
    x = linear_attention(q.transpose(2, 3), k.transpose(2, 3), v.transpose(2, 3), feature_map="elu1")
    return x.transpose(2, 3).reshape(B, C, H, W)


class CareTokenMixer(nn.Module):
    """Mix tokens in three channel groups side by side: one global, one local 3x3, one local 7x7. No residual.

    The global group is mixed by linear attention (``phi = elu + 1``; q and k from one 1x1 convolution, v the group
    itself) or, where maps are still large, by the sum of an 11x1 and a 1x11 depthwise convolution.

    Args:
        dim: Width ``g`` of one group.
        head_dim: Channels per attention head; None mixes the global group by convolution.
    """

    def __init__(self, dim: int, head_dim: int | None = None, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        if head_dim is not None and dim % head_dim:
            raise ValueError(f"dim {dim} is not a multiple of head_dim {head_dim}")
        self.num_heads = dim // head_dim if head_dim else 0
        if head_dim is None:
            self.dwconvatt_1 = _depthwise(dim, (11, 1), **dd)
            self.dwconvatt_2 = _depthwise(dim, (1, 11), **dd)
        else:
            self.qk = nn.Conv2d(dim, 2 * dim, 1, **dd)
        self.dwconv1 = _depthwise(dim, 3, **dd)
        self.dwconv2 = _depthwise(dim, 7, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, 3g, H, W]`` (global, local 3x3, local 7x7) to the same shape."""
        x, local3, local7 = x.chunk(3, dim=1)
        if hasattr(self, "qk"):  # TorchScript compiles only the branch that exists
            x = _attend(self.qk(x), x, self.num_heads)
        else:
            x = self.dwconvatt_1(x) + self.dwconvatt_2(x)
        return torch.cat((x, self.dwconv1(local3), self.dwconv2(local7)), dim=1)


class StackedTokenMixer(nn.Module):
    """Mix all channels by each of the mixers in turn, to compare with: 3x3, 7x7, global; each adds to its input.

    The mixers are those of :class:`CareTokenMixer`, three times as wide: what decoupling does without.

    Args:
        dim: Width ``g`` of one group; all three are mixed as one.
        head_dim: Channels per attention head; None mixes globally by convolution.
    """

    def __init__(self, dim: int, head_dim: int | None = None, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        features = 3 * dim
        if head_dim is not None and features % head_dim:
            raise ValueError(f"three times dim {dim} is not a multiple of head_dim {head_dim}")
        self.num_heads = features // head_dim if head_dim else 0
        self.dwconv1 = _depthwise(features, 3, **dd)
        self.dwconv2 = _depthwise(features, 7, **dd)
        if head_dim is None:
            self.dwconvatt_1 = _depthwise(features, (11, 1), **dd)
            self.dwconvatt_2 = _depthwise(features, (1, 11), **dd)
        else:
            self.qk = nn.Conv2d(features, 2 * features, 1, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, 3g, H, W]`` to the same shape."""
        x = x + self.dwconv1(x)
        x = x + self.dwconv2(x)
        if hasattr(self, "qk"):
            return x + _attend(self.qk(x), x, self.num_heads)
        return x + self.dwconvatt_1(x) + self.dwconvatt_2(x)


class DualInteraction(nn.Module):
    """Let the feature groups interact with each other, then with the memory.

    Each step is BatchNorm, 1x1 expansion, GELU, depthwise 3x3, dropout, 1x1 projection, plus its own input.

    Args:
        dim: Width ``g`` of one group.
        ratios: Expansion of the two steps.
        drop: Dropout rate inside both steps.
        project: False ends the second step after its depthwise convolution, so that it returns the expanded width
            ``ratios[1] * 4g`` without a residual (the last block of a model).
        memory: False leaves the memory out, which has no channels then: the second step is ``3g`` wide.
    """

    def __init__(
        self,
        dim: int,
        ratios: tuple[float, float] = (4, 4),
        drop: float = 0.0,
        project: bool = True,
        memory: bool = True,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        features, width = 3 * dim, (4 if memory else 3) * dim
        hidden1, hidden2 = int(ratios[0] * features), int(ratios[1] * width)
        self.inter1_norm = nn.BatchNorm2d(features, **dd)
        self.inter1_fc1 = nn.Conv2d(features, hidden1, 1, **dd)
        self.inter1_conv = _depthwise(hidden1, 3, **dd)
        self.inter1_fc2 = nn.Conv2d(hidden1, features, 1, **dd)
        self.inter2_norm = nn.BatchNorm2d(width, **dd)
        self.inter2_fc1 = nn.Conv2d(width, hidden2, 1, **dd)
        self.inter2_conv = _depthwise(hidden2, 3, **dd)
        self.inter2_fc2 = nn.Conv2d(hidden2, width, 1, **dd) if project else None
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop)

    def forward(self, memory: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Map memory ``[B, g, H, W]`` and features ``[B, 3g, H, W]`` to ``[B, 4g, H, W]``, memory first."""
        shortcut = x
        x = self.inter1_conv(self.act(self.inter1_fc1(self.inter1_norm(x))))
        x = self.inter1_fc2(self.drop(x)) + shortcut
        shortcut = x = torch.cat((memory, x), dim=1)
        x = self.drop(self.inter2_conv(self.act(self.inter2_fc1(self.inter2_norm(x)))))
        return x if self.inter2_fc2 is None else self.inter2_fc2(x) + shortcut
