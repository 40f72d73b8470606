"""FLatten-PVTv2: timm's Pyramid Vision Transformer v2 with focused linear attention in all four stages.

Papers: Han et al., "FLatten Transformer" (ICCV 2023, https://arxiv.org/abs/2308.00442); host: Wang et al., "PVT v2"
(https://arxiv.org/abs/2106.13797).
"""

from typing import Any

import torch
from timm.layers import LayerNorm, calculate_drop_path_rates
from timm.models import checkpoint, generate_default_cfgs, register_model
from timm.models.pvt_v2 import PyramidVisionTransformerStage, PyramidVisionTransformerV2
from torch import nn

from linvit.attention import FocusedLinearAttention
from linvit.models._flatten import cfg, fuse_qkv, published_url, rename
from linvit.models.builder import build_model
from linvit.models.configs import FEATURES
from linvit.models.layers import ChannelsLastMlp, check_given, stage_grids
from linvit.models.pyramid import PyramidInterface
from linvit.weights import resize_tables

__all__ = ["FlattenPvtV2", "checkpoint_filter_fn"]


class PvtV2Stage(PyramidVisionTransformerStage):
    """timm's stage with focused linear attention, which takes an empty batch, too.

    Args:
        dim: Channels that come in.
        dim_out: Channels of the stage.
        grid_size: Height and width of the native map.
        num_heads: Heads.
        mlp_ratio: Hidden width of the MLPs over the stage's.
        proj_drop: Dropout after the attentions' projections and in the MLPs.
        drop_path: Stochastic depth rate of each block; its length is the depth.
        downsample: Halve the map first.
        **attention_args: Further arguments of :class:`linvit.attention.FocusedLinearAttention`.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        grid_size: list[int],
        num_heads: int,
        mlp_ratio: float,
        proj_drop: float,
        drop_path: list[float],
        downsample: bool,
        device=None,
        dtype=None,
        **attention_args: float,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, dim_out, len(drop_path), downsample, num_heads, drop_path=drop_path, **dd)
        for block in self.blocks.children():
            block.attn = FocusedLinearAttention(
                dim_out,
                grid_size,
                num_heads,
                proj_drop=proj_drop,
                **attention_args,  # type: ignore[arg-type]
                **dd,
            )
            block.mlp = ChannelsLastMlp(dim_out, int(dim_out * mlp_ratio), drop=proj_drop, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, C, H, W]``, or ``[B, H, W, C]`` without downsampling, to ``[B, C', H', W']``."""
        if self.downsample is not None:
            x = self.downsample(x)
        B, H, W, C = x.shape
        x = x.reshape(B, H * W, C)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, [H, W])
            else:
                x = block(x, [H, W])
        return self.norm(x).reshape(B, H, W, C).permute(0, 3, 1, 2).contiguous()


# What timm's blocks would take, and these cannot: another value would be passed over without a word.
_NOT_TAKEN: dict[str, Any] = {
    "qkv_bias": True,
    "attn_drop_rate": 0.0,
    "linear": False,
    "sr_ratios": None,
    "norm_layer": LayerNorm,
}


class FlattenPvtV2(PyramidInterface, PyramidVisionTransformerV2):  # type: ignore[misc]
    """PVTv2 with focused linear attention.

    Args:
        depths: Blocks per stage.
        embed_dims: Widths of the stages.
        num_heads: Heads per stage.
        mlp_ratios: Hidden width of the MLPs over the stage's, per stage.
        power: The focusing power p.
        kernel_size: Side of the rank-restoring convolution's kernel.
        img_size: The native image size, for which positional encodings are learned.
        proj_drop_rate: Dropout after the attentions' projections and in the MLPs.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0.
        **kwargs: Further arguments of timm's ``PyramidVisionTransformerV2``.

    Raises:
        ValueError: A further argument that only timm's blocks would take.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (3, 4, 6, 3),
        embed_dims: tuple[int, ...] = (64, 128, 320, 512),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        mlp_ratios: tuple[float, ...] = (8.0, 8.0, 4.0, 4.0),
        power: float = 3.0,
        kernel_size: int = 5,
        img_size: int | tuple[int, int] = 224,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
        **kwargs: Any,
    ):
        dd = {"device": device, "dtype": dtype}
        check_given(_NOT_TAKEN, kwargs)
        # timm builds everything but the stages.
        super().__init__(embed_dims=embed_dims, depths=(0,) * len(depths), **kwargs, **dd)  # type: ignore[arg-type]
        rates: list = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        self.depths = depths
        self.stages = nn.Sequential(
            *(
                PvtV2Stage(
                    embed_dims[max(i - 1, 0)],
                    embed_dims[i],
                    grid,
                    num_heads[i],
                    mlp_ratios[i],
                    proj_drop_rate,
                    rates[i],
                    downsample=i > 0,
                    power=power,
                    kernel_size=kernel_size,
                    **dd,
                )
                for i, grid in enumerate(stage_grids(img_size))
            )
        ).apply(self._init_weights)


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Translate published names and fit positional encodings to the image size."""
    parts = {"patch_embed": "downsample", "block": "blocks", "norm": "norm"}
    state_dict = rename(
        state_dict,
        [
            (r"^patch_embed1\.", "patch_embed."),
            (r"^(patch_embed|block|norm)(\d)\.", lambda match: f"stages.{int(match[2]) - 1}.{parts[match[1]]}."),
            (r"\.mlp\.dwconv\.dwconv\.", ".mlp.dwconv."),
        ],
    )
    return resize_tables(fuse_qkv(state_dict), model)


_FIRST_CONV = {"first_conv": "patch_embed.proj"}
default_cfgs = generate_default_cfgs(
    {
        "flatten_pvt_v2_b0.in1k": cfg(
            url=published_url("5d1f01532b104da28e7b", "flatten_pvt_v2_b0.pth"), **_FIRST_CONV
        ),
        "flatten_pvt_v2_b1.untrained": cfg(**_FIRST_CONV),
        "flatten_pvt_v2_b2.untrained": cfg(**_FIRST_CONV),
        "flatten_pvt_v2_b3.untrained": cfg(**_FIRST_CONV),
        "flatten_pvt_v2_b4.untrained": cfg(**_FIRST_CONV),
        "flatten_pvt_v2_b5.untrained": cfg(**_FIRST_CONV),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> FlattenPvtV2:
    return build_model(FlattenPvtV2, variant, pretrained, feature_cfg=dict(FEATURES), **kwargs)


@register_model
def flatten_pvt_v2_b0(pretrained: bool = False, **kwargs: Any) -> FlattenPvtV2:
    """FLatten-PVTv2-B0: 71.1 % ImageNet-1K top-1 published."""
    args = {"depths": (2, 2, 2, 2), "embed_dims": (32, 64, 160, 256)}
    return _create("flatten_pvt_v2_b0", pretrained, **args | kwargs)


@register_model
def flatten_pvt_v2_b1(pretrained: bool = False, **kwargs: Any) -> FlattenPvtV2:
    """FLatten-PVTv2-B1; no published weights."""
    return _create("flatten_pvt_v2_b1", pretrained, **{"depths": (2, 2, 2, 2)} | kwargs)


@register_model
def flatten_pvt_v2_b2(pretrained: bool = False, **kwargs: Any) -> FlattenPvtV2:
    """FLatten-PVTv2-B2; no published weights."""
    return _create("flatten_pvt_v2_b2", pretrained, **{"depths": (3, 4, 6, 3)} | kwargs)


@register_model
def flatten_pvt_v2_b3(pretrained: bool = False, **kwargs: Any) -> FlattenPvtV2:
    """FLatten-PVTv2-B3; no published weights."""
    return _create("flatten_pvt_v2_b3", pretrained, **{"depths": (3, 4, 18, 3)} | kwargs)


@register_model
def flatten_pvt_v2_b4(pretrained: bool = False, **kwargs: Any) -> FlattenPvtV2:
    """FLatten-PVTv2-B4; no published weights."""
    return _create("flatten_pvt_v2_b4", pretrained, **{"depths": (3, 8, 27, 3)} | kwargs)


@register_model
def flatten_pvt_v2_b5(pretrained: bool = False, **kwargs: Any) -> FlattenPvtV2:
    """FLatten-PVTv2-B5; no published weights."""
    args = {"depths": (3, 6, 40, 3), "mlp_ratios": (4, 4, 4, 4)}
    return _create("flatten_pvt_v2_b5", pretrained, **args | kwargs)
