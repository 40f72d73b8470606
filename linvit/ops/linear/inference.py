"""Linear attention for fused models: of the two orders of the products the cheaper one."""

import torch

from linvit.ops.dispatch import operator
from linvit.ops.precision import accumulation_dtype

__all__ = ["attend", "attend_columns"]


@operator()
def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float | torch.Tensor = 1e-6) -> torch.Tensor:
    """Attend as :func:`linvit.ops.linear_attention` does, by weights ``[N, N]`` where tokens are fewer than channels.

    Where N is symbolic (an export for any size) the order is the linear one.

    Args:
        q: Query features ``[B, h, N, d]``, non-negative.
        k: Key features ``[B, h, M, d]``, non-negative.
        v: Values ``[B, h, M, e]``.
        eps: Added to the normaliser; a number or ``[B, 1, N, 1]``.

    Returns:
        ``[B, h, N, e]`` in the type of ``v``.
    """
    acc = accumulation_dtype(v)
    tokens = k.shape[2]
    q, k = q.to(acc), k.to(acc) / tokens
    values = v.to(acc)
    if not isinstance(tokens, torch.SymInt) and tokens < k.shape[3]:
        weights = q @ k.transpose(2, 3)
        return (weights @ values / (weights.sum(dim=3, keepdim=True) + eps)).to(v.dtype)
    normaliser = q @ k.sum(dim=2).unsqueeze(3)
    return (q @ (k.transpose(2, 3) @ values) / (normaliser + eps)).to(v.dtype)


@operator()
def attend_columns(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """:func:`attend` on maps, whose tokens are columns: nothing has to be transposed on the way.

    Args:
        q: Query features ``[B, h, d, N]``, non-negative.
        k: Key features ``[B, h, d, M]``, non-negative.
        v: Values ``[B, h, e, M]``.
        eps: Added to the normaliser.

    Returns:
        ``[B, h, e, N]`` in the type of ``v``.
    """
    acc = accumulation_dtype(v)
    tokens = k.shape[3]
    q, k = q.to(acc), k.to(acc) / tokens
    values = v.to(acc)
    if not isinstance(tokens, torch.SymInt) and tokens < k.shape[2]:
        weights = k.transpose(2, 3) @ q
        return (values @ weights / (weights.sum(dim=2, keepdim=True) + eps)).to(v.dtype)
    normaliser = k.sum(dim=3).unsqueeze(2) @ q
    return (values @ k.transpose(2, 3) @ q / (normaliser + eps)).to(v.dtype)
