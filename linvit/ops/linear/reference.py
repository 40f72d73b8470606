"""Linear attention as its formula, with the ``N x M`` weights written out."""

import torch

from linvit.ops.feature_maps import map_features

__all__ = ["linear_attention_reference"]


def linear_attention_reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float = 1e-6, feature_map: str | None = None
) -> torch.Tensor:
    """The formula with its ``N x M`` weights written out; quadratic, for tests and for reading."""
    q, k = map_features(q, k, feature_map)
    weights = q @ k.transpose(-2, -1) / k.shape[-2]  # [B, h, N, M]
    return weights @ v / (weights.sum(dim=-1, keepdim=True) + eps)
