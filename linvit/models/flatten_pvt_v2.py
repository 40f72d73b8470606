"""FLatten-PVTv2: timm's Pyramid Vision Transformer v2 with focused linear attention in all four stages.

Papers: Han et al., "FLatten Transformer" (ICCV 2023, https://arxiv.org/abs/2308.00442); host: Wang et al., "PVT v2"
(https://arxiv.org/abs/2106.13797).
"""

from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from timm.models._input import update_model_input_size
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import nn

from linvit.attention import FocusedLinearAttention
from linvit.models._flatten import cfg, fuse_qkv, published_url, rename
from linvit.models.builder import build_model
from linvit.models.configs import FEATURES
from linvit.models.layers import ChannelsLastMlp, stage_grids
from linvit.weights import resize_tables

__all__ = ["FlattenPvtV2", "checkpoint_filter_fn"]


class FlattenPvtV2(PyramidVisionTransformerV2):
    """PVTv2 with focused linear attention.

    Args:
        embed_dims: Widths of the stages.
        num_heads: Heads per stage.
        mlp_ratios: Hidden width of the MLPs over the stage's, per stage.
        power: The focusing power p.
        kernel_size: Side of the rank-restoring convolution's kernel.
        img_size: The native image size, for which positional encodings are learned.
        proj_drop_rate: Dropout after the attentions' projections and in the MLPs.
        **kwargs: Further arguments of timm's ``PyramidVisionTransformerV2``.
    """

    def __init__(
        self,
        embed_dims: tuple[int, ...] = (64, 128, 320, 512),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        mlp_ratios: tuple[float, ...] = (8.0, 8.0, 4.0, 4.0),
        power: float = 3.0,
        kernel_size: int = 5,
        img_size: int | tuple[int, int] = 224,
        proj_drop_rate: float = 0.0,
        device=None,
        dtype=None,
        **kwargs: Any,
    ):
        dd = {"device": device, "dtype": dtype}
        args = {"embed_dims": embed_dims, "num_heads": num_heads, "mlp_ratios": mlp_ratios, "sr_ratios": (1,) * 4}
        super().__init__(proj_drop_rate=proj_drop_rate, **args, **dd, **kwargs)  # type: ignore[arg-type]
        for i, (stage, grid) in enumerate(zip(self.stages, stage_grids(img_size), strict=True)):
            dim = embed_dims[i]
            for block in stage.get_submodule("blocks").children():
                block.attn = FocusedLinearAttention(
                    dim, grid, num_heads[i], power=power, kernel_size=kernel_size, proj_drop=proj_drop_rate, **dd
                ).apply(self._init_weights)
                block.mlp = ChannelsLastMlp(dim, int(dim * mlp_ratios[i]), drop=proj_drop_rate, **dd).apply(
                    self._init_weights
                )

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Make another image size the native one, interpolating the positional encodings."""
        for stage, grid in zip(self.stages, stage_grids(img_size), strict=False):
            for block in stage.get_submodule("blocks").children():
                block.attn.set_grid_size(grid)  # type: ignore[union-attr, operator]
        update_model_input_size(self, img_size)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are never decayed beyond timm's rule (biases, norms): none, as published."""
        return set()


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
