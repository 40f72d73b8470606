"""FLatten-CSwin: CSWin Transformer with focused linear attention in its first two stages.

Papers: Han et al., "FLatten Transformer" (ICCV 2023, https://arxiv.org/abs/2308.00442); host: Dong et al., "CSWin
Transformer" (CVPR 2022, https://arxiv.org/abs/2107.00652).

Computes exactly what the published code computes at its image size. At others, linear stages attend over the whole
map, and stripes keep their width: the map is padded and the padding masked.
"""

import re
from typing import Any

import torch
from timm.layers import calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from torch import nn

from linvit.attention import FocusedLinearAttention, StripeAttention, TokenAttention
from linvit.models._flatten import cfg, published_url, rename
from linvit.models.builder import build_model
from linvit.models.configs import FEATURES
from linvit.models.layers import Block, ConvEmbed, stage_grids
from linvit.models.pyramid import Pyramid, Stage
from linvit.weights import resize_tables

__all__ = ["FlattenCswin", "checkpoint_filter_fn"]


class FlattenCswin(Pyramid):
    """CSwin with focused linear attention in the first stages, stripes in the third, global softmax in the last.

    Args:
        depths: Blocks per stage.
        embed_dim: Width of the first stage; it doubles from stage to stage.
        num_heads: Heads per stage.
        linear_stages: How many stages, from the first, have linear attention.
        stripe_width: Width of the stripes of softmax stages before the last.
        mlp_ratio: Hidden width of the MLPs over the stage's.
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
        depths: tuple[int, ...] = (2, 4, 18, 1),
        embed_dim: int = 64,
        num_heads: tuple[int, ...] = (2, 4, 8, 16),
        linear_stages: int = 2,
        stripe_width: int = 7,
        mlp_ratio: float = 4.0,
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
        dims = tuple(embed_dim * 2**i for i in range(len(depths)))
        rates: list = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        last = len(depths) - 1

        def attention(stage: int, grid: list[int]) -> TokenAttention:
            args: dict[str, Any] = {"grid_size": grid, "num_heads": num_heads[stage]} | dd
            if stage < linear_stages:
                args |= {"power": power, "kernel_size": kernel_size, "local_kernel_size": 3}
                return FocusedLinearAttention(dims[stage], proj_drop=proj_drop_rate, **args)
            width = None if stage == last else stripe_width
            return StripeAttention(dims[stage], stripe_width=width, proj_drop=proj_drop_rate, **args)

        stages = []
        width = in_chans
        for i, (dim, grid) in enumerate(zip(dims, stage_grids(img_size), strict=True)):
            blocks = [
                Block(attention(i, grid), dim, mlp_ratio, 1e-5, proj_drop=proj_drop_rate, drop_path=rate, **dd)
                for rate in rates[i]
            ]
            kernel_stride_padding = (7, 4, 2) if i == 0 else (3, 2, 1)
            stages.append(Stage(ConvEmbed(width, dim, *kernel_stride_padding, **dd), blocks, grid))
            width = dim
        norm = nn.LayerNorm(width, **dd)
        super().__init__(stages, dims, norm, in_chans, num_classes, global_pool, drop_rate, **dd)


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Translate published names and fit positional encodings to the image size."""
    linear = {name.removesuffix(".attns.0.scale") for name in state_dict if name.endswith(".attns.0.scale")}

    def attention(match: re.Match) -> str:
        block, branch, tensor = match.groups()
        if block not in linear:
            tensor = tensor.replace("get_v.", f"get_v.{branch}.")
        return f"{block}.attn.{tensor}"

    state_dict = rename(
        state_dict,
        [
            (r"^(stage\d\.\d+)\.attns\.(\d)\.(.+)$", attention),
            (r"^(stage\d\.\d+)\.(qkv|proj)\.", r"\1.attn.\2."),
            (r"^stage(\d)\.(\d+)\.", lambda match: f"stages.{int(match[1]) - 1}.blocks.{match[2]}."),
            (r"^stage1_conv_embed\.0\.", "stages.0.downsample.proj."),
            (r"^stage1_conv_embed\.2\.", "stages.0.downsample.norm."),
            (r"^merge(\d)\.conv\.", r"stages.\1.downsample.proj."),
            (r"^merge(\d)\.norm\.", r"stages.\1.downsample.norm."),
        ],
    )
    return resize_tables(state_dict, model)


default_cfgs = generate_default_cfgs(
    {
        "flatten_cswin_tiny.in1k": cfg(url=published_url("48ba765ba8b0451d9d5a", "flatten_cswin_t.pth")),
        "flatten_cswin_small.untrained": cfg(),
        "flatten_cswin_base.untrained": cfg(),
        "flatten_cswin_base_384.untrained": cfg(input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=1.0),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> FlattenCswin:
    return build_model(FlattenCswin, variant, pretrained, feature_cfg=dict(FEATURES), **kwargs)


_SMALL = {"depths": (2, 4, 32, 2)}
_BASE = {"depths": (3, 6, 29, 2), "embed_dim": 96, "num_heads": (4, 8, 16, 32)}


@register_model
def flatten_cswin_tiny(pretrained: bool = False, **kwargs: Any) -> FlattenCswin:
    """FLatten-CSwin-T: 83.1 % ImageNet-1K top-1 published."""
    return _create("flatten_cswin_tiny", pretrained, **kwargs)


@register_model
def flatten_cswin_small(pretrained: bool = False, **kwargs: Any) -> FlattenCswin:
    """FLatten-CSwin-S; no published weights."""
    return _create("flatten_cswin_small", pretrained, **_SMALL | kwargs)


@register_model
def flatten_cswin_base(pretrained: bool = False, **kwargs: Any) -> FlattenCswin:
    """FLatten-CSwin-B; no published weights."""
    return _create("flatten_cswin_base", pretrained, **_BASE | kwargs)


@register_model
def flatten_cswin_base_384(pretrained: bool = False, **kwargs: Any) -> FlattenCswin:
    """FLatten-CSwin-B for 384x384 images; no published weights."""
    return _create("flatten_cswin_base_384", pretrained, **_BASE | {"img_size": 384, "stripe_width": 12} | kwargs)
