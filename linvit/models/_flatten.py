"""What the FLatten families share: their configurations and the translation of published checkpoints.

Paper: Han et al., "FLatten Transformer: Vision Transformer using Focused Linear Attention" (ICCV 2023,
https://arxiv.org/abs/2308.00442). Published code and weights: https://github.com/LeapLabTHU/FLatten-Transformer.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from linvit.models.configs import imagenet_cfg

__all__ = ["cfg", "fuse_qkv", "published_url", "rename"]

# Buffers that some published constructors compute themselves.
_DERIVED = ("relative_position_index", "attn_mask")


def cfg(**kwargs: Any) -> dict[str, Any]:
    """Return a ``pretrained_cfg`` with the family's preprocessing and sources."""
    return imagenet_cfg(
        paper_ids="arXiv:2308.00442",
        paper_name="FLatten Transformer: Vision Transformer using Focused Linear Attention",
        origin_url="https://github.com/LeapLabTHU/FLatten-Transformer",
        **kwargs,
    )


def published_url(file_id: str, filename: str) -> tuple[str, str]:
    """Return the direct link of a published file and the name to keep it under, as timm pairs them."""
    return f"https://cloud.tsinghua.edu.cn/f/{file_id}/?dl=1", filename


def rename(
    state_dict: Mapping[str, torch.Tensor], rules: list[tuple[str, str | Callable[[re.Match], str]]]
) -> dict[str, torch.Tensor]:
    """Apply regular-expression substitutions to every name, one after the other; leave derived buffers out."""
    renamed = {}
    for name, tensor in state_dict.items():
        if name.endswith(_DERIVED):
            continue
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def fuse_qkv(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Join ``q`` and ``kv`` projections, which PVT and PVTv2 keep apart, into ``qkv``."""
    fused = {}
    for name, tensor in state_dict.items():
        kv = name.replace(".attn.q.", ".attn.kv.")
        if ".attn.q." in name and kv in state_dict:
            fused[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat((tensor, state_dict[kv]))
        elif not (".attn.kv." in name and name.replace(".attn.kv.", ".attn.q.") in state_dict):
            fused[name] = tensor
    return fused
