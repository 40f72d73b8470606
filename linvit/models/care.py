"""CARE Transformer: a mobile vision transformer with decoupled, dually interacting channel groups.

Paper: Zhou et al., "CARE Transformer: Mobile-Friendly Linear Visual Transformer via Decoupled Dual Interaction"
(CVPR 2025, https://arxiv.org/abs/2411.16170).
Published code and weights: https://github.com/zhouyuan888888/CARE-Transformer (MIT).

Computes exactly what the published code computes and loads its checkpoints as they are. Beyond it: any height and
width (the published strided convolutions drop the rows and columns that do not fill a stride; here the map is padded,
which changes nothing at multiples of 32), safe half precision, and timm's interface.
"""

from typing import Any

import torch
from timm.layers import DropPath, calculate_drop_path_rates, trunc_normal_
from timm.models import checkpoint_seq, generate_default_cfgs, register_model
from torch import nn

from linvit.attention.care import CareTokenMixer, DualInteraction, StackedTokenMixer
from linvit.models.builder import build_model
from linvit.models.configs import FEATURES, imagenet_cfg
from linvit.models.layers import pad_to_multiple
from linvit.models.pyramid import Pyramid

__all__ = ["Care"]

MIXING = {"decoupled": CareTokenMixer, "stacked": StackedTokenMixer}


class PatchConv2d(nn.Conv2d):
    """Convolution whose stride is its kernel size, padded at the bottom and right to whole patches."""

    def __init__(self, in_channels: int, out_channels: int, patch_size: int, device=None, dtype=None):
        super().__init__(in_channels, out_channels, patch_size, stride=patch_size, device=device, dtype=dtype)
        self.patch_size = patch_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, C, H, W]`` to ``[B, C', ceil(H / patch), ceil(W / patch)]``."""
        x = pad_to_multiple(x, self.patch_size, self.patch_size)
        return self._conv_forward(x, self.weight, self.bias)


class CareBlock(nn.Module):
    """One block: split off the memory, mix the feature groups, let both interact.

    Args:
        dim: Width ``g`` of one channel group; the block is ``4g`` wide.
        head_dim: Channels per attention head; None mixes the global group by convolution.
        ratios: Expansion ratios of the dual interaction.
        proj_drop: Dropout rate inside the dual interaction.
        drop_path: Stochastic depth rate.
        layer_scale_init_value: Start of the per-channel scale of the block's result.
        project: False for the last block of the model, which returns ``ratios[1] * 4g`` channels and has neither
            layer scale nor shortcut.
        mixing: Of :data:`MIXING`.
        memory: False leaves the memory out; the block is ``3g`` wide then.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int | None,
        ratios: tuple[float, float],
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        project: bool = True,
        mixing: str = "decoupled",
        memory: bool = True,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.split = (dim if memory else 0, 3 * dim)
        self.token_mixer = MIXING[mixing](dim, head_dim, **dd)
        self.inter_layer = DualInteraction(dim, ratios, drop=proj_drop, project=project, memory=memory, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.layer_scale_init_value = layer_scale_init_value
        self.gamma = nn.Parameter(torch.empty(sum(self.split), **dd)) if project else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the layer scale anew."""
        if self.gamma is not None:
            nn.init.constant_(self.gamma, self.layer_scale_init_value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x
        memory, x = x.split(self.split, dim=1)
        x = self.inter_layer(memory, self.token_mixer(x))
        if self.gamma is None:
            return self.drop_path(x)
        return shortcut + self.drop_path(x * self.gamma.view(-1, 1, 1))


class CareStage(nn.Module):
    """Blocks at one resolution, behind the downsampling that leads to it.

    Args:
        in_chans: Channels that come in.
        width: Channels of the blocks.
        dim: Width ``g`` of one channel group of the blocks.
        drop_paths: Stochastic depth rate of each block; its length is the depth.
        downsample: Halve the map first (and take it from ``in_chans`` to ``width`` channels).
        last: The stage ends the model: its last block returns the expanded width.
        **block_args: Further arguments of :class:`CareBlock`.
    """

    def __init__(
        self,
        in_chans: int,
        width: int,
        dim: int,
        drop_paths: list[float],
        downsample: bool,
        last: bool,
        device=None,
        dtype=None,
        **block_args: Any,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = nn.Sequential()
        if downsample:
            self.downsample.extend([nn.BatchNorm2d(in_chans, **dd), PatchConv2d(in_chans, width, 2, **dd)])
        self.blocks = nn.Sequential(
            *(
                CareBlock(dim, drop_path=rate, project=not (last and i == len(drop_paths) - 1), **block_args, **dd)
                for i, rate in enumerate(drop_paths)
            )
        )

    @torch.jit.ignore
    def set_grid_size(self, grid_size: list[int]) -> None:
        """Nothing in the stage depends on the size of the map."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


def _init_conv_and_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class CareHead(nn.Module):
    """LayerNorm, dropout and a linear classifier on pooled features ``[B, C]`` (or on maps ``[B, H, W, C]``)."""

    def __init__(self, in_features: int, num_classes: int, drop_rate: float = 0.0, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = nn.LayerNorm(in_features, eps=1e-6, **dd)
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(in_features, num_classes, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.norm(x)))


class Care(Pyramid):
    """CARE Transformer.

    Args:
        depths: Blocks per stage.
        dims: Width ``g`` of one channel group per stage; a stage is ``4g`` wide.
        ratios: Expansion ratios of the dual interaction, two per stage; widths are rounded down.
        head_dims: Channels per attention head, per stage; None mixes the global group by convolution.
        in_chans: Channels of the image.
        num_classes: Classes; 0 leaves the heads out.
        global_pool: "avg", or "" to keep the map.
        drop_rate: Dropout before the classifiers.
        proj_drop_rate: Dropout inside the dual interactions.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0.
        layer_scale_init_value: Start of the layer scale. The published 1e-6 is made for 300 epochs; short runs
            converge faster from 0.1 to 1.
        mixing: "decoupled", or "stacked" to compare with: all features through each of the mixers in turn.
        memory: False, to compare with, leaves the memory out: a stage is ``3g`` wide.
        img_size: Accepted from timm's factory and unused: nothing in the model depends on the image's size.

    Raises:
        ValueError: There is no such mixing.

    The model has two classifiers, ``head`` and ``dist_head`` (for distillation). Its output is their mean, or after
    ``set_distilled_training(True)``, in training mode, the pair.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 4, 8, 4),
        dims: tuple[int, ...] = (8, 16, 32, 64),
        ratios: tuple[tuple[float, float], ...] = ((2, 2), (2, 4), (4, 4), (4, 4)),
        head_dims: tuple[int | None, ...] = (None, None, 16, 32),
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        mixing: str = "decoupled",
        memory: bool = True,
        img_size: int | tuple[int, int] | None = None,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        if mixing not in MIXING:
            raise ValueError(f"mixing must be one of {', '.join(MIXING)}, got {mixing!r}")
        groups = 4 if memory else 3
        width = groups * dims[0]
        stem = nn.Sequential(PatchConv2d(in_chans, width, 4, **dd), nn.BatchNorm2d(width, **dd))
        stages, widths = [], []
        rates: list = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        for i, dim in enumerate(dims):
            last = i == len(dims) - 1
            stages.append(
                CareStage(
                    width,
                    groups * dim,
                    dim,
                    drop_paths=rates[i],
                    downsample=i > 0,
                    last=last,
                    head_dim=head_dims[i],
                    ratios=ratios[i],
                    proj_drop=proj_drop_rate,
                    layer_scale_init_value=layer_scale_init_value,
                    mixing=mixing,
                    memory=memory,
                    **dd,
                )
            )
            width = int(groups * dim * (ratios[i][1] if last else 1))
            widths.append(width)
        super().__init__(stages, widths, nn.Identity(), in_chans, num_classes, global_pool, drop_rate, stem, **dd)
        self.distilled_training = False
        self.head_act = nn.GELU()
        self.apply(self._init_weights)

    _init_weights = staticmethod(_init_conv_and_linear)

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        return self.stem(x)

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        return x  # as published: the heads normalise

    @torch.jit.ignore
    def set_distilled_training(self, enable: bool = True) -> None:
        """In training mode, return the outputs of ``head`` and ``dist_head`` as a pair instead of their mean."""
        self.distilled_training = enable

    @torch.jit.ignore
    def get_classifier(self) -> tuple[nn.Module, nn.Module]:
        """Return the two classifier heads, for labels and for distillation."""
        return self.head, self.dist_head

    def _build_heads(self, device=None, dtype=None) -> None:
        self.head: nn.Module = self._new_head(device, dtype)
        self.dist_head: nn.Module = self._new_head(device, dtype)

    def _new_head(self, device=None, dtype=None) -> nn.Module:
        if self.num_classes == 0:
            return nn.Identity()
        head = CareHead(self.num_features, self.num_classes, self.drop_rate, device=device, dtype=dtype)
        return head.apply(self._init_weights).train(self.training)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False):
        """Pool and classify. ``pre_logits`` returns what both heads share: the pooled, activated features."""
        x = self.head_act(self._pool(x))
        if pre_logits or self.num_classes == 0:
            return x
        if self.global_pool == "":
            x = x.permute(0, 2, 3, 1)
        logits, dist_logits = self.head(x), self.dist_head(x)
        if self.distilled_training and self.training and not torch.jit.is_scripting():
            return logits, dist_logits
        return (logits + dist_logits) / 2


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return imagenet_cfg(
        first_conv="stem.0",
        classifier=("head.fc", "dist_head.fc"),
        hf_hub_id="YuanZ1995/CARE-Transformer",
        license="mit",
        paper_ids="arXiv:2411.16170",
        paper_name="CARE Transformer: Mobile-Friendly Linear Visual Transformer via Decoupled Dual Interaction",
        origin_url="https://github.com/zhouyuan888888/CARE-Transformer",
        **kwargs,
    )


default_cfgs = generate_default_cfgs(
    {
        "care_s0.dist_in1k": _cfg(hf_hub_filename="CARETrans_S0.pth.tar"),
        "care_s1.dist_in1k": _cfg(hf_hub_filename="CARETrans_S1.pth.tar"),
        "care_s2.dist_in1k": _cfg(hf_hub_filename="CARETrans_S2.pth.tar"),
    }
)


def _create_care(variant: str, pretrained: bool = False, **kwargs: Any) -> Care:
    return build_model(Care, variant, pretrained, feature_cfg=dict(FEATURES), **kwargs)


@register_model
def care_s0(pretrained: bool = False, **kwargs: Any) -> Care:
    """CARE-S0: 7.3 M parameters, 0.7 GMACs, 78.4 % ImageNet-1K top-1 published."""
    return _create_care("care_s0", pretrained, **kwargs)


@register_model
def care_s1(pretrained: bool = False, **kwargs: Any) -> Care:
    """CARE-S1: 9.6 M parameters, 1.0 GMACs, 80.1 % ImageNet-1K top-1 published."""
    args = {"depths": (3, 6, 10, 6), "ratios": ((2, 4), (2, 4), (4, 4), (4, 4))}
    return _create_care("care_s1", pretrained, **args | kwargs)


@register_model
def care_s2(pretrained: bool = False, **kwargs: Any) -> Care:
    """CARE-S2: 19.5 M parameters, 1.9 GMACs, 82.1 % ImageNet-1K top-1 published."""
    args = {"depths": (3, 6, 10, 6), "dims": (8, 16, 48, 96), "ratios": ((4, 4),) * 4}
    return _create_care("care_s2", pretrained, **args | kwargs)
