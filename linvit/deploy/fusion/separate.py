"""CARE whose channel groups stay separate tensors, for runtimes that copy to split channels (OpenVINO).

Memory, global and local group go through a stage side by side. Every projection becomes one for each group, which
writes its own tensor; nothing is split but the map that enters the stage. Convolutions grow in number and shrink in
size, which pays where the groups are wide: in the stages that attend.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linvit.deploy.fusion.care import FusedCareStage
from linvit.ops import attend_columns, elu_plus_one

__all__ = ["separate_groups"]


def separate_groups(model: nn.Module) -> nn.Module:
    """Return a copy of a fused model in which the stages of CARE that attend keep their groups separate."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, FusedCareStage) and child.attends_in_groups:
                setattr(parent, name, _SeparateStage(child))
    return model.requires_grad_(False).eval()


class _SeparateStage(nn.Module):
    """A stage; maps in and out are the fused stage's."""

    def __init__(self, stage: FusedCareStage):
        super().__init__()
        self.downsample = stage.downsample
        self.blocks = nn.ModuleList(map(_SeparateBlock, stage.blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to ``[B, C', H', W']``."""
        x = self.downsample(x)
        groups = list(x.split([size * x.shape[1] // 4 for size in (1, 1, 2)], dim=1))
        for block in self.blocks:
            groups = block(groups)
        return torch.cat(groups, dim=1)


class _SeparateBlock(nn.Module):
    """A block that takes and returns memory, global and local group; the last of a model returns a single map."""

    def __init__(self, block: Any):
        super().__init__()
        mix = block.mix
        g = mix.local3.in_channels
        self.num_heads = mix.num_heads
        self.query, self.key = _rows(mix.qk, [g, g])
        self.local = _merged(mix.local3, mix.local7)
        self.expand1, self.local1 = block.expand1, block.local1
        self.project1 = _rows(block.project1, [g, 2 * g])
        self.expand2, self.local2 = block.expand2, block.local2
        self.project2 = None if block.project2 is None else _rows(block.project2, [g, g, 2 * g])
        gammas = () if block.gamma is None else block.gamma.split([g, g, 2 * g], dim=1)
        self.gammas = nn.ParameterList(gammas)

    def forward(self, groups: list[Tensor]) -> list[Tensor]:
        memory, *features = groups
        mixed = [self._attend(features[0]), self.local(features[1])]
        z = self.local1(F.gelu(self.expand1(torch.cat(mixed, dim=1))))
        y = [memory, *(project(z) + x for project, x in zip(self.project1, mixed, strict=True))]
        z = self.local2(F.gelu(self.expand2(torch.cat(y, dim=1))))
        if self.project2 is None:
            return [z]
        residual = [x + part * gamma for x, part, gamma in zip(groups, y, self.gammas, strict=True)]
        return [project(z) + x for project, x in zip(self.project2, residual, strict=True)]

    def _attend(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        q, k = elu_plus_one(self.query(x)), elu_plus_one(self.key(x))
        q, k, v = (t.reshape(B, self.num_heads, -1, H * W) for t in (q, k, x))
        return attend_columns(q, k, v).reshape(B, C, H, W)


def _rows(conv: nn.Conv2d, sizes: list[int]) -> nn.ModuleList:
    """Cut a 1x1 convolution into one for each group of its output channels."""
    assert conv.bias is not None
    parts = nn.ModuleList()
    for weight, bias in zip(conv.weight.split(sizes), conv.bias.split(sizes), strict=True):
        part = nn.Conv2d(weight.shape[1], weight.shape[0], 1, device="meta")
        part.weight, part.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
        parts.append(part)
    return parts


def _merged(small: nn.Conv2d, large: nn.Conv2d) -> nn.Conv2d:
    """Make two depthwise convolutions side by side one, whose kernels are those of the larger."""
    assert small.bias is not None
    assert large.bias is not None
    border = (large.kernel_size[0] - small.kernel_size[0]) // 2
    weight = torch.cat((F.pad(small.weight, (border,) * 4), large.weight)).detach()
    channels, _, size, _ = weight.shape
    conv = nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, device="meta")
    conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(torch.cat((small.bias, large.bias)).detach())
    return conv
