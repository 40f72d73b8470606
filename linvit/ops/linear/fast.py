"""Linear attention in time and memory linear in the number of tokens."""

from collections.abc import Callable

import torch

from linvit.ops.dispatch import operator
from linvit.ops.feature_maps import map_features
from linvit.ops.linear.reference import linear_attention_reference
from linvit.ops.precision import accumulation_dtype

__all__ = ["check_shapes", "linear_attention"]


def _kernels() -> Callable[..., torch.Tensor]:
    from linvit.ops.linear.fused import linear_attention as kernels

    return kernels


@operator(reference=linear_attention_reference, kernels=_kernels)
def linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    eps: float = 1e-6,
    feature_map: str | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Attend in time and memory linear in the number of tokens.

    Sums over tokens reach 1e5 and would overflow float16: whatever the input type, and under autocast too, they
    accumulate in at least float32, and keys are scaled by 1/M before they are summed. The result is finite wherever
    the product of one query, key and value entry fits float32.

    Args:
        q: Queries ``[B, h, N, d]``.
        k: Keys ``[B, h, M, d]``.
        v: Values ``[B, h, M, e]``.
        eps: Added to the normaliser ``q_i . mean_j k_j``.
        feature_map: "elu1" or "relu" (:mod:`linvit.ops.feature_maps`), applied to queries and keys; None where they
            are non-negative features already.
        backend: What computes it (:data:`linvit.ops.BACKENDS`).

    Returns:
        ``[B, h, N, e]`` in the type of ``v``.

    Raises:
        ValueError: The shapes do not fit together, or another feature map.
    """
    if not torch.jit.is_scripting():
        check_shapes(q, k, v)
    q, k = map_features(q, k, feature_map)
    acc = accumulation_dtype(v)
    q = q.to(acc)
    k = k.to(acc) / k.shape[-2]
    context = k.transpose(-2, -1) @ v.to(acc)  # [B, h, d, e]
    normaliser = q @ k.sum(dim=-2).unsqueeze(-1)  # [B, h, N, 1]
    return (q @ context / (normaliser + eps)).to(v.dtype)


def check_shapes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Raise a ValueError if the shapes do not fit together; kernels would read beyond the tensors."""
    if torch.jit.is_tracing():  # sizes are tensors there
        return
    fits = (
        q.ndim == k.ndim == v.ndim == 4
        and q.shape[:2] == k.shape[:2] == v.shape[:2]
        and q.shape[3] == k.shape[3]
        and k.shape[2] == v.shape[2]
    )
    if not fits:
        raise ValueError(
            "linear_attention takes q [B, h, N, d], k [B, h, M, d] and v [B, h, M, e], "
            f"got q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)}"
        )
