"""Key-only attention in time and memory linear in the number of tokens."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from linvit.ops.dispatch import operator
from linvit.ops.key_only.reference import global_context_reference, local_context_reference
from linvit.ops.precision import accumulation_dtype

__all__ = [
    "check_neighbourhoods",
    "check_shapes",
    "global_context",
    "key_saliency",
    "local_context",
    "modulate",
    "unite",
]


@operator()
def key_saliency(x: torch.Tensor, key_weight: torch.Tensor, u: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Return ``u . (W_k x)`` without computing a key: as ``(u W_k) x``, h numbers a token instead of C.

    Computed in at least float32, under autocast too. A bias of the keys would add the same to all saliencies of
    a head, which no softmax over tokens sees; it is left out.

    Args:
        x: Tokens ``[B, N, C]``.
        key_weight: ``W_k``, ``[C, C]``.
        u: ``[C]``, the heads' vectors one after the other.
        num_heads: Heads h; each takes a contiguous block of ``C / h`` keys' channels.

    Returns:
        ``[B, N, h]`` in at least float32.
    """
    acc = accumulation_dtype(x)
    weight = (u.to(acc).unsqueeze(1) * key_weight.to(acc)).reshape(num_heads, -1, x.shape[2]).sum(dim=1)
    return F.linear(x.to(acc), weight)


def _global_kernels() -> Callable[..., torch.Tensor]:
    from linvit.ops.key_only.fused import global_context as kernels

    return kernels


@operator(reference=global_context_reference, kernels=_global_kernels)
def global_context(saliency: torch.Tensor, v: torch.Tensor, backend: str = "auto") -> torch.Tensor:
    """Average the values of all tokens, weighted by ``softmax(saliency)`` over the tokens.

    The softmax subtracts the largest saliency, and sums accumulate in at least float32: finite for every finite
    input and any number of tokens.

    Args:
        saliency: ``[B, N, h]``.
        v: Values ``[B, N, C]``; each head takes a contiguous block of channels.
        backend: What computes it (:data:`linvit.ops.BACKENDS`).

    Returns:
        ``[B, 1, C]`` in the type of ``v``.

    Raises:
        ValueError: The shapes do not fit together.
    """
    if not torch.jit.is_scripting():
        check_shapes("global_context", saliency, v)
    B, N = v.shape[:2]
    acc = accumulation_dtype(v)
    weights = saliency.to(acc).softmax(dim=1).unsqueeze(-1)
    # OpenVINO takes a reshape from [B, h, d] to [B, 1, C] for one that changes nothing; this it understands.
    return (
        (weights * v.to(acc).reshape(B, N, saliency.shape[2], v.shape[2] // saliency.shape[2]))
        .sum(dim=1, keepdim=True)
        .flatten(2)
        .to(v.dtype)
    )


def _local_kernels() -> Callable[..., torch.Tensor]:
    from linvit.ops.key_only.fused import local_context as kernels

    return kernels


@operator(reference=local_context_reference, kernels=_local_kernels)
def local_context(
    saliency: torch.Tensor, v: torch.Tensor, grid_size: list[int], kernel_size: int, backend: str = "auto"
) -> torch.Tensor:
    """Average the values in the neighbourhood of each token, weighted by the softmax of the saliencies in it.

    Computed in at least float32, under autocast too. Finite and accurate for every finite input: each neighbourhood
    has its own maximum.

    Args:
        saliency: ``[B, H W, h]``.
        v: Values ``[B, H W, C]``; each head takes a contiguous block of channels.
        grid_size: H and W.
        kernel_size: Side of the neighbourhood, odd. At the border it is cut off.
        backend: What computes it (:data:`linvit.ops.BACKENDS`).

    Returns:
        ``[B, H W, C]`` in the type of ``v``.

    Raises:
        ValueError: The shapes do not fit together or to the grid, or the kernel size is even.
    """
    if not torch.jit.is_scripting():
        check_neighbourhoods(saliency, v, grid_size, kernel_size)
    # Pooling exp(s - m) v and exp(s - m) needs one m for the whole map, and wherever all saliencies lie 104 below it
    # (87 without subnormals) both pools are 0 in float32. So every neighbourhood carries its own m: a triple (m, sum of
    # exp(s - m) v, sum of exp(s - m)) stands for a set of tokens, and the triples of disjoint sets add up to the one of
    # their union. First along rows, then along columns: 2k terms instead of k x k, exact for any spread.
    B, N, C = v.shape
    H, W, h = grid_size[0], grid_size[1], saliency.shape[2]
    acc = accumulation_dtype(v)
    top = saliency.to(acc).reshape(B, H, W, h)
    values = v.to(acc).reshape(B, H, W, h, C // h)
    mass = torch.cat((values, torch.ones_like(values[..., :1])), dim=-1)
    top, mass = unite(top, mass, 2, kernel_size)
    top, mass = unite(top, mass, 1, kernel_size)
    return (mass[..., :-1] / mass[..., -1:]).reshape(B, N, C).to(v.dtype)


def unite(top: torch.Tensor, mass: torch.Tensor, dim: int, kernel_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unite the ``kernel_size`` neighbouring sets along an axis.

    Args:
        top: ``[B, H, W, h]``, or ``[B, H, W, 1]`` for ``mass [B, H, W, d + 1]``.
        mass: ``[B, H, W, h, d + 1]``.
        dim: 1 or 2.
        kernel_size: Odd.
    """
    size = top.shape[dim]
    sides = [kernel_size // 2, kernel_size // 2]
    top = F.pad(top, [0, 0] * (3 - dim) + sides, value=float("-inf"))  # sets without tokens
    mass = F.pad(mass, [0, 0] * (mass.ndim - 1 - dim) + sides)
    # The result does not depend on the maximum, so no gradient goes through it.
    united = top.detach().narrow(dim, 0, size)
    for shift in range(1, kernel_size):
        united = torch.maximum(united, top.detach().narrow(dim, shift, size))
    total = torch.zeros_like(mass.narrow(dim, 0, size))
    for shift in range(kernel_size):
        weight = torch.exp(top.narrow(dim, shift, size) - united)
        if mass.ndim > top.ndim:
            weight = weight.unsqueeze(-1)
        total = torch.addcmul(total, weight, mass.narrow(dim, shift, size))
    return united, total


@operator()
def modulate(v: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Return ``v * context``, broadcast, in the type of ``v``; float16 saturates at its largest number, 65,504."""
    product = v.to(accumulation_dtype(v)) * context
    if v.dtype == torch.float16:
        product = product.clamp(-65504.0, 65504.0)
    return product.to(v.dtype)


def check_shapes(name: str, saliency: torch.Tensor, v: torch.Tensor) -> None:
    """Raise a ValueError if the shapes do not fit together; kernels would read beyond the tensors."""
    if torch.jit.is_tracing():  # sizes are tensors there
        return
    fits = saliency.ndim == v.ndim == 3 and saliency.shape[:2] == v.shape[:2] and v.shape[2] % saliency.shape[2] == 0
    if not fits:
        raise ValueError(
            f"{name} takes saliency [B, N, h] and v [B, N, C] with C a multiple of h, "
            f"got saliency {list(saliency.shape)} and v {list(v.shape)}"
        )


def check_neighbourhoods(saliency: torch.Tensor, v: torch.Tensor, grid_size: list[int], kernel_size: int) -> None:
    """Raise a ValueError if local_context could not take these."""
    check_shapes("local_context", saliency, v)
    if not torch.jit.is_tracing() and v.shape[1] != grid_size[0] * grid_size[1]:
        raise ValueError(f"got {v.shape[1]} tokens for a grid of {grid_size[0]} x {grid_size[1]}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")
