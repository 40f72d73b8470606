"""Key-only attention for fused models."""

import torch

from linvit.ops.dispatch import operator
from linvit.ops.key_only.fast import unite
from linvit.ops.precision import accumulation_dtype

__all__ = ["local_context_by_heads"]


@operator()
def local_context_by_heads(
    saliency: torch.Tensor, v: torch.Tensor, grid_size: list[int], kernel_size: int
) -> torch.Tensor:
    """:func:`local_context` with heads beside images in the first axis, for inference.

    No tensor has more than four axes: GPUs and NPUs of phones take no more. On a CPU it takes a twentieth longer.
    """
    B, N, C = v.shape
    H, W, h = grid_size[0], grid_size[1], saliency.shape[2]
    acc = accumulation_dtype(v)
    top = saliency.to(acc).transpose(1, 2).reshape(B * h, H, W, 1)
    values = v.to(acc).reshape(B, N, h, C // h).transpose(1, 2).reshape(B * h, H, W, C // h)
    mass = torch.cat((values, torch.ones_like(values[..., :1])), dim=-1)
    top, mass = unite(top, mass, 2, kernel_size)
    top, mass = unite(top, mass, 1, kernel_size)
    return (mass[..., :-1] / mass[..., -1:]).reshape(B, h, N, C // h).transpose(1, 2).reshape(B, N, C).to(v.dtype)
