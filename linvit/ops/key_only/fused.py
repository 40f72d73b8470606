"""Key-only pooling by the Triton kernels, as registered operators with their gradients."""

from typing import Any

import torch
import triton
from torch import Tensor

from linvit.ops.heads import merge_heads, split_heads
from linvit.ops.key_only import kernels
from linvit.ops.key_only.fast import check_neighbourhoods, check_shapes
from linvit.ops.launch import accumulator, alike, check_supported, launch, once, pool_tile, shares, strides

__all__ = ["global_context", "local_context"]


def _arguments(saliency: Tensor, v: Tensor, **strided: Tensor) -> dict[str, Any]:
    """Return what all kernels take; ``v`` and others are ``[B, h, N, d]``."""
    s_b, s_n, s_h = saliency.stride()
    return {
        **{"s": saliency, "s_b": s_b, "s_n": s_n, "s_h": s_h, "v": v, "tokens": v.shape[2], "heads": v.shape[1]},
        **pool_tile(v.shape[3]),
        **{"ACC": accumulator(v.dtype)[1]},
        **strided,
        **strides(v=v, **strided),
    }


@torch.library.custom_op("linvit::global_context", mutates_args=())
def _global(saliency: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    B, h, N, E = v.shape
    arguments, dtype = _arguments(saliency, v), accumulator(v.dtype)[0]
    programs, share = shares(N, B * h, arguments["BN"], v.device)
    part = v.new_empty(programs, B, h, E + 2, dtype=dtype)
    launch(kernels.pool, (B, programs, h), v.device, part=part, share=share, **arguments)
    context, level = v.new_empty(B, h, E, dtype=dtype), v.new_empty(B, h, 2, dtype=dtype)
    arguments |= {"part": part, "context": context, "level": level, "programs": programs}
    launch(kernels.unite, (B, h), v.device, **arguments)
    return context, level


@_global.register_fake
def _(saliency, v):
    B, h, _, E = v.shape
    dtype = accumulator(v.dtype)[0]
    return v.new_empty(B, h, E, dtype=dtype), v.new_empty(B, h, 2, dtype=dtype)


@torch.library.custom_op("linvit::global_context_backward", mutates_args=())
def _global_backward(
    grad: Tensor, saliency: Tensor, v: Tensor, context: Tensor, level: Tensor
) -> tuple[Tensor, Tensor]:
    B, h, N, E = v.shape
    ds, dv = saliency.new_empty(B, h, N), alike(v, E)
    arguments = _arguments(saliency, v, dv=dv)
    programs, share = shares(N, B * h, arguments["BN"], v.device)
    tensors = {"g": grad.contiguous(), "context": context, "level": level, "ds": ds}
    launch(kernels.pool_gradient, (B, programs, h), v.device, share=share, **arguments, **tensors)
    return ds, dv


@_global_backward.register_fake
def _(grad, saliency, v, context, level):
    return saliency.new_empty(v.shape[:3]), alike(v, v.shape[3])


once(_global_backward)


def _global_setup(ctx: Any, inputs, output) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _global_gradient(ctx: Any, grad: Tensor, _):
    ds, dv = _global_backward(grad, *ctx.saved_tensors)
    return ds.transpose(1, 2), dv


_global.register_autograd(_global_gradient, setup_context=_global_setup)


def _neighbourhoods(saliency: Tensor, v: Tensor, height: int, width: int, kernel_size: int, **strided: Tensor):
    """Return the grid of the local kernels, and what all of them take."""
    arguments = _arguments(saliency, v, **strided) | {"height": height, "width": width, "reach": kernel_size // 2}
    return (v.shape[0], triton.cdiv(v.shape[2], arguments["BN"]), v.shape[1]), arguments


@torch.library.custom_op("linvit::local_context", mutates_args=())
def _local(saliency: Tensor, v: Tensor, height: int, width: int, kernel_size: int) -> Tensor:
    out = alike(v, v.shape[3])
    grid, arguments = _neighbourhoods(saliency, v, height, width, kernel_size, out=out)
    launch(kernels.local_pool, grid, v.device, **arguments)
    return out


@_local.register_fake
def _(saliency, v, height, width, kernel_size):
    return alike(v, v.shape[3])


@torch.library.custom_op("linvit::local_context_backward", mutates_args=())
def _local_backward(
    grad: Tensor, saliency: Tensor, v: Tensor, height: int, width: int, kernel_size: int
) -> tuple[Tensor, Tensor]:
    B, h, N, E = v.shape
    ds, dv, level = saliency.new_empty(B, h, N), alike(v, E), v.new_empty(B, h, 3, N, dtype=accumulator(v.dtype)[0])
    grid, arguments = _neighbourhoods(saliency, v, height, width, kernel_size, g=grad, dv=dv)
    for kernel in (kernels.local_measure, kernels.local_pool_gradient):
        launch(kernel, grid, v.device, level=level, ds=ds, **arguments)
    return ds, dv


@_local_backward.register_fake
def _(grad, saliency, v, height, width, kernel_size):
    return saliency.new_empty(v.shape[:3]), alike(v, v.shape[3])


once(_local_backward)


def _local_setup(ctx: Any, inputs, output) -> None:
    saliency, v, *ctx.sizes = inputs
    ctx.save_for_backward(saliency, v)


def _local_gradient(ctx: Any, grad: Tensor):
    ds, dv = _local_backward(grad, *ctx.saved_tensors, *ctx.sizes)
    return ds.transpose(1, 2), dv, None, None, None


_local.register_autograd(_local_gradient, setup_context=_local_setup)


def global_context(saliency: Tensor, v: Tensor) -> Tensor:
    """:func:`linvit.ops.global_context` by the kernels."""
    check_shapes("global_context", saliency, v)
    heads = saliency.shape[2]
    check_supported(v, v.shape[2] // heads)
    context, _ = _global(saliency, split_heads(v, heads))
    return context.flatten(1).unsqueeze(1).to(v.dtype)


def local_context(saliency: Tensor, v: Tensor, grid_size: list[int], kernel_size: int) -> Tensor:
    """:func:`linvit.ops.local_context` by the kernels."""
    check_neighbourhoods(saliency, v, grid_size, kernel_size)
    heads = saliency.shape[2]
    check_supported(v, v.shape[2] // heads)
    return merge_heads(_local(saliency, split_heads(v, heads), grid_size[0], grid_size[1], kernel_size))
