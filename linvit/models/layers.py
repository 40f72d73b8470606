"""Layers that several families share: the block, the embedding, the MLP, and the grids of their stages."""

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, PatchEmbed, to_2tuple, trunc_normal_
from timm.models.pvt_v2 import MlpWithDepthwiseConv
from timm.models.swin_transformer import PatchMerging
from torch import nn

from linvit.attention import TokenAttention

__all__ = [
    "Block",
    "ChannelsLastMlp",
    "ConvEmbed",
    "WholePatchEmbed",
    "WholePatchMerging",
    "check_given",
    "check_pool",
    "init_linear",
    "pad_to_multiple",
    "reset",
    "set_grids",
    "stage_grids",
]


def init_linear(module: nn.Module) -> None:
    """Truncated normal weights of std 0.02 and zero biases; for ``Module.apply``."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_pool(global_pool: str) -> str:
    """Return ``global_pool`` if it is "avg" or ""; raise a ``ValueError`` otherwise."""
    if global_pool not in ("", "avg"):
        raise ValueError(f"global_pool must be '' or 'avg', got {global_pool!r}")
    return global_pool


def check_given(given: Mapping[str, object], arguments: Mapping[str, object]) -> None:
    """Raise a ``ValueError`` about arguments of the host that are fixed here and were given another value."""
    for name, value in given.items():
        if arguments.get(name, value) != value:
            raise ValueError(f"{name} is {value} here, got {arguments[name]!r}")


class Block(nn.Module):
    """Pre-norm transformer block on maps ``[B, H, W, C]``: attention, then an MLP.

    Args:
        attn: Attention over tokens ``[B, N, C]`` that also takes the grid.
        dim: Channels.
        mlp_ratio: Hidden width of the MLP over ``dim``.
        norm_eps: Epsilon of both LayerNorms.
        proj_drop: Dropout rate in the MLP.
        drop_path: Stochastic depth rate.
    """

    def __init__(
        self,
        attn: TokenAttention,
        dim: int,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps, **dd)
        self.attn = attn
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd).apply(init_linear)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, H, W, C = x.shape
        x = x.reshape(B, H * W, C)
        x = x + self.drop_path1(self.attn(self.norm1(x), [H, W]))
        x = x + self.drop_path2(self.mlp(self.norm2(x)))
        return x.reshape(B, H, W, C)


class ChannelsLastMlp(MlpWithDepthwiseConv):
    """timm's MLP with a depthwise convolution, whose map PyTorch knows for channels last at batch size 1, too."""

    def forward(self, x: torch.Tensor, feat_size: list[int]) -> torch.Tensor:
        """Map tokens ``[B, H W, C]`` to the same shape."""
        B, N, _ = x.shape
        x = self.fc1(x)
        hidden = x.shape[2]
        x = x.reshape(B, feat_size[0], feat_size[1], hidden).permute(0, 3, 1, 2)
        x = self.dwconv(x).permute(0, 2, 3, 1).reshape(B, N, hidden)
        return self.drop(self.fc2(self.drop(self.act(x))))


class ConvEmbed(nn.Module):
    """Strided convolution, then LayerNorm: ``[B, C, H, W]`` to ``[B, ceil(H / stride), ceil(W / stride), C']``.

    The map is first padded at the bottom and right to whole strides, which changes nothing at multiples of them.
    """

    def __init__(
        self, in_chans: int, dim: int, kernel_size: int, stride: int, padding: int = 0, device=None, dtype=None
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.stride = stride
        self.proj = nn.Conv2d(in_chans, dim, kernel_size, stride=stride, padding=padding, **dd)
        self.norm = nn.LayerNorm(dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = pad_to_multiple(x, self.stride, self.stride)
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class WholePatchEmbed(PatchEmbed):
    """timm's embedding, for any size, padded to whole patches: ``[B, C, H, W]`` to ``[B, H', W', C']``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = pad_to_multiple(x, self.patch_size[0], self.patch_size[1])
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class WholePatchMerging(PatchMerging):
    """timm's merging of 2x2 pixels, padded to whole ones: ``[B, H, W, C]`` to ``[B, ceil(H / 2), ceil(W / 2), C']``.

    Args:
        merging: The layer of timm whose norm and projection it takes.
    """

    def __init__(self, merging: PatchMerging):
        super().__init__(merging.dim, merging.out_dim, device="meta")
        self.norm, self.reduction = merging.norm, merging.reduction

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, H, W, C = x.shape
        rows, cols = (H + 1) // 2, (W + 1) // 2
        x = F.pad(x, (0, 0, 0, 2 * cols - W, 0, 2 * rows - H))
        x = x.reshape(B, rows, 2, cols, 2, C).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


def pad_to_multiple(x: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """Pad maps ``[B, C, H, W]`` at the bottom and right to multiples of ``rows`` and ``cols``.

    The sizes are quotients that are rounded up, without a remainder: where they are symbols, in an export for any
    size, those of the stages that follow stay short, which is what the exporter's time goes into.
    """
    H, W = x.shape[2], x.shape[3]
    return F.pad(x, (0, (W + cols - 1) // cols * cols - W, 0, (H + rows - 1) // rows * rows - H))


def stage_grids(img_size: int | Sequence[int], patch_size: int | Sequence[int] = 4, stages: int = 4) -> list[list[int]]:
    """Return the height and width of each stage's map for an image size; each stage halves the one before."""
    sides = list(zip(to_2tuple(img_size), to_2tuple(patch_size), strict=True))
    return [[-(-side // (patch * 2**i)) for side, patch in sides] for i in range(stages)]


def set_grids(stages: Iterable[nn.Module], grids: Iterable[list[int]]) -> None:
    """Make other grids the native ones of stages, interpolating what was learned per position.

    Grids beyond the last stage of a pruned model are left out.
    """
    for stage, grid in zip(stages, grids, strict=False):
        for module in stage.modules():
            if hasattr(module, "set_grid_size"):
                module.set_grid_size(grid)  # type: ignore[operator]


def reset(module: nn.Module) -> None:
    """Draw the parameters that a module itself holds anew; for ``Module.apply``."""
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()  # type: ignore[operator]
