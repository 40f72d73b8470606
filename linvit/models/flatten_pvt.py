"""FLatten-PVT: Pyramid Vision Transformer with focused linear attention in all four stages.

Papers: Han et al., "FLatten Transformer" (ICCV 2023, https://arxiv.org/abs/2308.00442); host: Wang et al., "Pyramid
Vision Transformer" (ICCV 2021, https://arxiv.org/abs/2102.12122).

Computes exactly what the published code computes; besides, any height and width, half precision, timm's interface.
"""

from typing import Any

import torch
from timm.layers import calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from torch import nn

from linvit.attention import build_attention
from linvit.models._flatten import cfg, fuse_qkv, published_url, rename
from linvit.models.builder import build_model
from linvit.models.configs import FEATURES
from linvit.models.layers import Block, ConvEmbed, stage_grids
from linvit.models.pyramid import Pyramid, Stage
from linvit.weights import resize_tables

__all__ = ["FlattenPvt", "checkpoint_filter_fn"]


class FlattenPvt(Pyramid):
    """PVT with focused linear attention.

    Args:
        depths: Blocks per stage.
        embed_dims: Widths of the stages.
        num_heads: Heads per stage.
        mlp_ratios: Hidden width of the MLPs over the stage's, per stage.
        attention: "focused", or one of :data:`linvit.attention.MECHANISMS` to compare it with in the same host.
        power: The focusing power p.
        kernel_size: Side of the rank-restoring convolution's kernel.
        img_size: The native image size, for which positions are learned.
        in_chans: Channels of the image.
        num_classes: Classes; 0 leaves the classifier out.
        global_pool: "avg", or "" to keep the map.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after the attentions' projections and in the MLPs.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 2, 2, 2),
        embed_dims: tuple[int, ...] = (64, 128, 320, 512),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        mlp_ratios: tuple[float, ...] = (8, 8, 4, 4),
        attention: str = "focused",
        power: float = 3.0,
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
        rates: list = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        focus = {"power": power, "kernel_size": kernel_size}
        stages = []
        width = in_chans
        for i, (dim, grid) in enumerate(zip(embed_dims, stage_grids(img_size), strict=True)):
            blocks = [
                Block(
                    build_attention(attention, dim, grid, num_heads[i], focus, proj_drop=proj_drop_rate, **dd),
                    dim,
                    mlp_ratios[i],
                    proj_drop=proj_drop_rate,
                    drop_path=rate,
                    **dd,
                )
                for rate in rates[i]
            ]
            patch = 4 if i == 0 else 2
            stages.append(Stage(ConvEmbed(width, dim, patch, patch, **dd), blocks, grid, position_dim=dim, **dd))
            width = dim
        # The published code pools the last stage's tokens without a norm.
        super().__init__(stages, embed_dims, nn.Identity(), in_chans, num_classes, global_pool, drop_rate, **dd)


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Translate published names; drop the published final norm, which nothing uses; fit tables to the image size."""
    state_dict = rename(
        state_dict,
        [
            (r"^(patch_embed|pos_embed|block)(\d)", lambda m: f"stages.{int(m[2]) - 1}.{_PARTS[m[1]]}"),
        ],
    )
    state_dict = {name: tensor for name, tensor in state_dict.items() if name not in ("norm.weight", "norm.bias")}
    return resize_tables(fuse_qkv(state_dict), model)


_PARTS = {"patch_embed": "downsample", "pos_embed": "pos_embed", "block": "blocks"}

default_cfgs = generate_default_cfgs(
    {
        "flatten_pvt_tiny.in1k": cfg(url=published_url("3ab1d773f19d45648690", "flatten_pvt_t.pth")),
        "flatten_pvt_small.untrained": cfg(),
        "flatten_pvt_medium.untrained": cfg(),
        "flatten_pvt_large.untrained": cfg(),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> FlattenPvt:
    return build_model(FlattenPvt, variant, pretrained, feature_cfg=dict(FEATURES), **kwargs)


@register_model
def flatten_pvt_tiny(pretrained: bool = False, **kwargs: Any) -> FlattenPvt:
    """FLatten-PVT-T: 77.8 % ImageNet-1K top-1 published."""
    return _create("flatten_pvt_tiny", pretrained, **kwargs)


@register_model
def flatten_pvt_small(pretrained: bool = False, **kwargs: Any) -> FlattenPvt:
    """FLatten-PVT-S; no published weights."""
    return _create("flatten_pvt_small", pretrained, **{"depths": (3, 4, 6, 3)} | kwargs)


@register_model
def flatten_pvt_medium(pretrained: bool = False, **kwargs: Any) -> FlattenPvt:
    """FLatten-PVT-M; no published weights."""
    return _create("flatten_pvt_medium", pretrained, **{"depths": (3, 4, 18, 3)} | kwargs)


@register_model
def flatten_pvt_large(pretrained: bool = False, **kwargs: Any) -> FlattenPvt:
    """FLatten-PVT-L; no published weights."""
    return _create("flatten_pvt_large", pretrained, **{"depths": (3, 8, 27, 3)} | kwargs)
