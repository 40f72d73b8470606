"""FLatten-Swin: timm's Swin Transformer with focused linear attention in its first two stages.

Papers: Han et al., "FLatten Transformer" (ICCV 2023, https://arxiv.org/abs/2308.00442); host: Liu et al., "Swin
Transformer" (ICCV 2021, https://arxiv.org/abs/2103.14030).

Computes exactly what the published code computes at its image size. At others, linear stages attend over the whole
map, and softmax windows keep their size: the map is padded and the padding masked.
"""

from typing import Any

import torch
from timm.layers import calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from timm.models._input import update_model_input_size
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from linvit.attention import FocusedLinearAttention, TokenAttention, WindowAttention
from linvit.models._flatten import cfg, published_url, rename
from linvit.models.builder import build_model
from linvit.models.configs import FEATURES
from linvit.models.layers import Block, WholePatchEmbed, WholePatchMerging, check_given, set_grids, stage_grids
from linvit.weights import resize_tables

__all__ = ["FlattenSwin", "checkpoint_filter_fn"]


_GIVEN: dict[str, Any] = {"strict_img_size": False}
# What timm's blocks would take, and these cannot: another value would be passed over without a word.
_NOT_TAKEN: dict[str, Any] = {"qkv_bias": True, "attn_drop_rate": 0.0, "head_dim": None, "norm_layer": nn.LayerNorm}


class FlattenSwin(SwinTransformer):
    """Swin with focused linear attention in the first stages and shifted softmax windows in the others.

    Args:
        depths: Blocks per stage.
        embed_dim: Width of the first stage; it doubles from stage to stage.
        num_heads: Heads per stage.
        linear_stages: How many stages, from the first, have linear attention.
        window_size: Side of the softmax windows.
        mlp_ratio: Hidden width of the MLPs over the stage's.
        power: The focusing power p.
        kernel_size: Side of the rank-restoring convolution's kernel.
        img_size: The native image size, for which positional encodings are learned.
        proj_drop_rate: Dropout after the attentions' projections and in the MLPs.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0.
        **kwargs: Further arguments of timm's ``SwinTransformer``.

    Raises:
        ValueError: A further argument that only timm's blocks would take.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        embed_dim: int = 96,
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        linear_stages: int = 2,
        window_size: int = 7,
        mlp_ratio: float = 4.0,
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
        check_given(_GIVEN | _NOT_TAKEN, kwargs)
        # timm builds everything but the blocks.
        super().__init__(
            img_size=img_size,  # type: ignore[arg-type]
            embed_dim=embed_dim,
            depths=(0,) * len(depths),
            num_heads=num_heads,
            embed_layer=WholePatchEmbed,  # type: ignore[arg-type]
            **kwargs | _GIVEN,
            **dd,
        )
        rates: list = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        grids = stage_grids(img_size, self.patch_embed.patch_size)  # type: ignore[arg-type]
        for i, (stage, grid) in enumerate(zip(self.layers, grids, strict=True)):
            dim = embed_dim * 2**i
            blocks = []
            for j, rate in enumerate(rates[i]):
                args: dict[str, Any] = {"grid_size": grid, "num_heads": num_heads[i]} | dd
                args["proj_drop"] = proj_drop_rate
                attn: TokenAttention
                if i < linear_stages:
                    attn = FocusedLinearAttention(dim, power=power, kernel_size=kernel_size, **args)
                else:
                    attn = WindowAttention(dim, window_size=window_size, shift=j % 2 == 1, **args)
                blocks.append(Block(attn, dim, mlp_ratio, 1e-5, proj_drop_rate, rate, **dd))
            stage.blocks = nn.Sequential(*blocks)
            if i > 0:
                stage.downsample = WholePatchMerging(stage.downsample)  # type: ignore[arg-type]

    @torch.jit.ignore
    def set_input_size(  # type: ignore[override]
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
        window_size: int | None = None,
    ) -> None:
        """Make other sizes the native ones, interpolating positional encodings, kernels and position biases.

        Args:
            img_size: Height and width of the images; None leaves them.
            patch_size: Side of a patch; None leaves it.
            window_size: Side of the softmax windows, which do not follow the image's size; None leaves it.
        """
        if img_size is None and patch_size is None and window_size is None:
            return
        patch_embed: Any = self.patch_embed
        patch_embed.set_input_size(img_size=img_size, patch_size=patch_size)
        for i, info in enumerate(self.feature_info):
            info["reduction"] = max(patch_embed.patch_size) * 2**i
        set_grids(self.layers, stage_grids(patch_embed.img_size, patch_embed.patch_size))
        for module in self.modules():
            if isinstance(module, WindowAttention) and window_size is not None:
                module.set_window_size(window_size)
        update_model_input_size(self, patch_embed.img_size, patch_size=patch_size, window_size=window_size)


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Translate published names; fit positional encodings to the image size and bias tables to the window size."""
    rules: list = [(r"^head\.(weight|bias)$", r"head.fc.\1")]
    if any(name.startswith("layers.0.downsample.") for name in state_dict):  # published: merging ends a stage
        rules.append((r"^layers\.(\d)\.downsample\.", lambda match: f"layers.{int(match[1]) + 1}.downsample."))
    return resize_tables(rename(state_dict, rules), model)


def _swin_cfg(**kwargs: Any) -> dict[str, Any]:
    return cfg(first_conv="patch_embed.proj", classifier="head.fc", **kwargs)


default_cfgs = generate_default_cfgs(
    {
        "flatten_swin_tiny.in1k": _swin_cfg(url=published_url("e1518e76703e4e57a7f2", "flatten_swin_t.pth")),
        "flatten_swin_small.in1k": _swin_cfg(url=published_url("94188e52af354bf4a88b", "flatten_swin_s.pth")),
        "flatten_swin_base.in1k": _swin_cfg(url=published_url("7a9e5186bad04e7fb3a9", "flatten_swin_b.pth")),
        "flatten_swin_base_384.in1k": _swin_cfg(
            url=published_url("0d0330cf2e5249f1abb6", "flatten_swin_b_384.pth"),
            input_size=(3, 384, 384),
            pool_size=(12, 12),
            crop_pct=1.0,
            crop_mode="squash",
        ),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> FlattenSwin:
    # The getter gives maps in NCHW; timm's Swin works in NHWC.
    return build_model(FlattenSwin, variant, pretrained, feature_cfg=FEATURES | {"feature_cls": "getter"}, **kwargs)


_BASE = {"depths": (2, 2, 18, 2), "embed_dim": 128, "num_heads": (4, 8, 16, 32)}


@register_model
def flatten_swin_tiny(pretrained: bool = False, **kwargs: Any) -> FlattenSwin:
    """FLatten-Swin-T: 82.1 % ImageNet-1K top-1 published."""
    return _create("flatten_swin_tiny", pretrained, **kwargs)


@register_model
def flatten_swin_small(pretrained: bool = False, **kwargs: Any) -> FlattenSwin:
    """FLatten-Swin-S: 83.5 % ImageNet-1K top-1 published."""
    return _create("flatten_swin_small", pretrained, **{"depths": (2, 2, 18, 2)} | kwargs)


@register_model
def flatten_swin_base(pretrained: bool = False, **kwargs: Any) -> FlattenSwin:
    """FLatten-Swin-B: 83.8 % ImageNet-1K top-1 published."""
    return _create("flatten_swin_base", pretrained, **_BASE | kwargs)


@register_model
def flatten_swin_base_384(pretrained: bool = False, **kwargs: Any) -> FlattenSwin:
    """FLatten-Swin-B for 384x384 images: 85.0 % ImageNet-1K top-1 published."""
    return _create("flatten_swin_base_384", pretrained, **_BASE | {"img_size": 384, "window_size": 12} | kwargs)
