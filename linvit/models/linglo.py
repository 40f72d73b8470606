"""LinGlo: a reading of its paper's abstract, which published no code (https://arxiv.org/abs/2207.00188).

Paper: Li and Liu, "Rethinking Query-Key Pairwise Interactions in Vision Transformers" (2022).

Stated there: key-only attention (:mod:`linvit.attention.key_only`) in all stages; convolution and attention layers that
alternate within every stage, instead of being grafted (first convolution, then attention); a hierarchy of stages.
Secondary records give the sizes of three models: 3.4, 13.1 and 25.4 M parameters; ours have 3.4, 12.9 and 24.8 M.

Ours is all else: the formulas of the attention; PVT v2's skeleton (Wang et al., https://arxiv.org/abs/2106.13797) of
overlapping embeddings, widths and MLPs with a depthwise convolution; what a convolution block is; depths and MLP
ratios, chosen for those sizes. There are no pretrained weights, and the paper's accuracy is none of these models'.
"""

from typing import Any

import torch
from timm.layers import DropPath, calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from torch import nn

from linvit.attention import KeyOnlyAttention, SoftmaxAttention
from linvit.models.builder import build_model
from linvit.models.configs import FEATURES, imagenet_cfg
from linvit.models.layers import ChannelsLastMlp, ConvEmbed, init_linear, stage_grids
from linvit.models.pyramid import Pyramid, Stage

__all__ = ["Linglo"]


class SeparableConv(nn.Module):
    """Depthwise-separable convolution of tokens ``[B, H W, C]``: expand, depthwise k x k, GELU, project.

    Expanding by 1.5 gives it the ``3 C^2`` weights of a key-only attention's three projections.
    """

    def __init__(self, dim: int, kernel_size: int = 5, proj_drop: float = 0.0, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        hidden = 3 * dim // 2
        self.expand = nn.Linear(dim, hidden, **dd)
        self.dwconv = nn.Conv2d(hidden, hidden, kernel_size, padding=kernel_size // 2, groups=hidden, **dd)
        self.act = nn.GELU()
        self.proj = nn.Linear(hidden, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.apply(init_linear)

    def forward(self, x: torch.Tensor, grid_size: list[int]) -> torch.Tensor:
        B, N, _ = x.shape
        # Tokens are the channels-last layout of a map: no data moves.
        x = self.expand(x)
        hidden = x.shape[2]
        x = x.reshape(B, grid_size[0], grid_size[1], hidden).permute(0, 3, 1, 2)
        x = self.act(self.dwconv(x)).permute(0, 2, 3, 1).reshape(B, N, hidden)
        return self.proj_drop(self.proj(x))


class LingloBlock(nn.Module):
    """Pre-norm block on maps ``[B, H, W, C]``: attention or convolution, then an MLP with a depthwise convolution.

    Args:
        mixer: Mixes tokens ``[B, N, C]`` and takes the grid.
        dim: Channels.
        mlp_ratio: Hidden width of the MLP over ``dim``.
        proj_drop: Dropout rate in the MLP.
        drop_path: Stochastic depth rate.
    """

    def __init__(
        self,
        mixer: nn.Module,
        dim: int,
        mlp_ratio: float,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mixer = mixer
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = ChannelsLastMlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd).apply(init_linear)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, H, W, C = x.shape
        x = x.reshape(B, H * W, C)
        x = x + self.drop_path1(self.mixer(self.norm1(x), [H, W]))
        x = x + self.drop_path2(self.mlp(self.norm2(x), [H, W]))
        return x.reshape(B, H, W, C)


class Linglo(Pyramid):
    """A pyramid of convolution and key-only attention blocks.

    Args:
        depths: Blocks per stage.
        embed_dims: Widths of the stages, even.
        num_heads: Heads per stage.
        mlp_ratios: Hidden width of the MLPs over the stage's, per stage.
        layout: "alternate" (every stage begins with a convolution block, and every second one is attention), or
            "grafted" (convolution in the first half of the stages, attention in the other).
        attention: "key_only", or "softmax" to compare with: query-key attention over all tokens of the stage, plain,
            without PVT v2's spatial reduction; its cost grows with the square of the tokens.
        interaction: What brings the token itself into key-only attention: "modulate", "gate" or "local_global"
            (:class:`linvit.attention.KeyOnlyAttention`).
        kernel_size: Side of the convolution blocks' kernel.
        img_size: The native image size. Nothing is learned for it.
        in_chans: Channels of the image.
        num_classes: Classes; 0 leaves the classifier out.
        global_pool: "avg", or "" to keep the map.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after the projections of attentions and convolutions, and in the MLPs.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0.

    Raises:
        ValueError: Another layout, attention or interaction.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 2, 2, 2),
        embed_dims: tuple[int, ...] = (64, 128, 320, 512),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        mlp_ratios: tuple[float, ...] = (8, 8, 5, 5),
        layout: str = "alternate",
        attention: str = "key_only",
        interaction: str = "local_global",
        kernel_size: int = 5,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        if layout not in ("alternate", "grafted"):
            raise ValueError(f"layout must be 'alternate' or 'grafted', got {layout!r}")
        if attention not in ("key_only", "softmax"):
            raise ValueError(f"attention must be 'key_only' or 'softmax', got {attention!r}")
        rates: list = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        width = in_chans
        for i, (dim, grid) in enumerate(zip(embed_dims, stage_grids(img_size), strict=True)):
            blocks = []
            for j, rate in enumerate(rates[i]):
                attends = j % 2 == 1 if layout == "alternate" else i >= len(depths) // 2
                mixer: nn.Module
                if not attends:
                    mixer = SeparableConv(dim, kernel_size, proj_drop_rate, **dd)
                elif attention == "key_only":
                    mixer = KeyOnlyAttention(
                        dim, grid, num_heads[i], interaction=interaction, proj_drop=proj_drop_rate, **dd
                    )
                else:
                    mixer = SoftmaxAttention(dim, grid, num_heads[i], proj_drop=proj_drop_rate, **dd)
                blocks.append(LingloBlock(mixer, dim, mlp_ratios[i], proj_drop_rate, rate, **dd))
            embed = ConvEmbed(width, dim, 7, 4, 3, **dd) if i == 0 else ConvEmbed(width, dim, 3, 2, 1, **dd)
            stages.append(Stage(embed, blocks, grid, **dd))
            width = dim
        norm = nn.LayerNorm(embed_dims[-1], eps=1e-6, **dd)
        super().__init__(stages, embed_dims, norm, in_chans, num_classes, global_pool, drop_rate, **dd)


_SIZES = ("b0", "b1", "b2")
_PAPER = {
    "paper_ids": "arXiv:2207.00188",
    "paper_name": "Rethinking Query-Key Pairwise Interactions in Vision Transformers",
}
default_cfgs = generate_default_cfgs({f"linglo_{size}.untrained": imagenet_cfg(**_PAPER) for size in _SIZES})


def _create(variant: str, pretrained: bool, **kwargs: Any) -> Linglo:
    return build_model(Linglo, variant, pretrained, feature_cfg=dict(FEATURES), **kwargs)


@register_model
def linglo_b0(pretrained: bool = False, **kwargs: Any) -> Linglo:
    """LinGlo-B0, our reading: 3.4 M parameters; no pretrained weights exist."""
    return _create("linglo_b0", pretrained, **{"embed_dims": (32, 64, 160, 256)} | kwargs)


@register_model
def linglo_b1(pretrained: bool = False, **kwargs: Any) -> Linglo:
    """LinGlo-B1, our reading: 12.9 M parameters; no pretrained weights exist."""
    return _create("linglo_b1", pretrained, **kwargs)


@register_model
def linglo_b2(pretrained: bool = False, **kwargs: Any) -> Linglo:
    """LinGlo-B2, our reading: 24.8 M parameters; no pretrained weights exist."""
    return _create("linglo_b2", pretrained, **{"depths": (4, 4, 6, 4), "mlp_ratios": (8, 8, 4, 5)} | kwargs)
