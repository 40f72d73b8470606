"""Focused linear attention by the Triton kernels, as registered operators with their gradients."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from linvit.ops.focused import kernels
from linvit.ops.focused.fast import check_shapes
from linvit.ops.heads import merge_heads, split_heads
from linvit.ops.launch import accumulator, alike, check_supported, launch, once, shares, strides, tile
from linvit.ops.linear.fused import Call, count_products

__all__ = ["focused_linear_attention"]


def _measure(call: Call, x: Tensor, gain: Tensor, positions: Tensor | None = None) -> Tensor:
    """Return the largest feature of every token, and the norms that focus needs, ``[B, 3, N]``."""
    tokens = x.shape[2]
    stats = torch.empty(call.batch, 3, tokens, dtype=call.dtype, device=call.device)
    constants = tile(call.d, call.e, "measure", call.input_type, focus=True)
    programs, share = shares(tokens, call.batch, constants["BN"], call.device)
    arguments = {"tokens": tokens, "share": share, "heads": call.heads, "POSITIONS": positions is not None}
    tensors = {"x": x, "positions": x if positions is None else positions, "gain": gain, "stats": stats}
    launch(
        kernels.measure,
        (call.batch, programs),
        call.device,
        **(call.constants | constants | arguments | tensors | strides(x=x)),
    )
    return stats


@torch.library.custom_op("linvit::focused_linear_attention", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, gain: Tensor, positions: Tensor | None, power: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = Call(q, v.shape[3], "focus", power, eps)
    q_stats, k_stats = _measure(call, q, gain), _measure(call, k, gain, positions)
    out, summary = call.forward(q, k, v, positions=positions, gain=gain, q_stats=q_stats, k_stats=k_stats)
    return out, summary, q_stats, k_stats


@_forward.register_fake
def _(q, k, v, gain, positions, power, eps):
    def empty(*shape):
        return q.new_empty(shape, dtype=accumulator(q.dtype)[0])

    summary = empty(*q.shape[:2], q.shape[3] * (v.shape[3] + 1))
    return alike(q, v.shape[3], v.dtype), summary, empty(q.shape[0], 3, q.shape[2]), empty(k.shape[0], 3, k.shape[2])


@torch.library.custom_op("linvit::focused_linear_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gain: Tensor,
    positions: Tensor | None,
    summary: Tensor,
    q_stats: Tensor,
    k_stats: Tensor,
    power: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = Call(q, v.shape[3], "focus", power, eps)
    N, M = q.shape[2], k.shape[2]
    weights = torch.empty(call.batch, call.heads, 2, N, dtype=call.dtype, device=call.device)
    dsummary = call.query_backward(q, grad, summary, weights=weights, gain=gain, stats=q_stats)
    # phi_i . dphi_i of a head is epsilon (g_i . o_i) / n_i: scaling a query changes its output by epsilon alone.
    along = weights[:, :, 1].sum(dim=1) * -eps
    dq, q_gains = alike(q, call.d), call.partial(N, "query_gradient", call.d)
    tensors = {"gain": gain, "stats": q_stats, "summary": summary, "weights": weights, "along": along, "dgain": q_gains}
    call.run(kernels.query_gradient, N, {"x": q, "g": grad, "dx": dq}, **tensors)

    agreements = torch.empty(call.batch, call.heads, M, dtype=call.dtype, device=call.device)
    dv = call.key_backward(k, v, dsummary, along=agreements, positions=positions, gain=gain, stats=k_stats)
    dk, k_gains = alike(k, call.d), call.partial(M, "key_gradient", call.d)
    tensors = {"gain": gain, "stats": k_stats, "dsummary": dsummary, "along": agreements.sum(dim=1), "dgain": k_gains}
    call.run(kernels.key_gradient, M, {"x": k, "v": v, "dx": dk}, positions=positions, **tensors)
    return dq, dk, dv, (q_gains.sum(dim=(0, 1)) + k_gains.sum(dim=(0, 1))).flatten()


@_backward.register_fake
def _(grad, q, k, v, gain, positions, summary, q_stats, k_stats, power, eps):
    dgain = q.new_empty(q.shape[1] * q.shape[3], dtype=accumulator(q.dtype)[0])
    return alike(q, q.shape[3]), alike(k, k.shape[3]), alike(v, v.shape[3]), dgain


once(_backward)


@register_flop_formula(torch.ops.linvit.focused_linear_attention_backward)
def _(grad, q, k, v, *_, **__):
    return 2 * count_products(q, k, v)


register_flop_formula(torch.ops.linvit.focused_linear_attention)(count_products)


def _setup(ctx: Any, inputs, output) -> None:
    q, k, v, gain, positions, ctx.power, ctx.eps = inputs
    ctx.save_for_backward(q, k, v, gain, positions, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradient(ctx: Any, grad: Tensor, *_):
    q, k, v, gain, positions, *kept = ctx.saved_tensors
    dq, dk, dv, dgain = _backward(grad, q, k, v, gain, positions, *kept, ctx.power, ctx.eps)
    dpositions = None
    if positions is not None and ctx.needs_input_grad[4]:
        dpositions = merge_heads(dk).sum(dim=0, keepdim=True, dtype=dgain.dtype).to(positions.dtype)
    return dq, dk, dv, dgain, dpositions, None, None


_forward.register_autograd(_gradient, setup_context=_setup)


def focused_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    num_heads: int,
    power: float = 3.0,
    eps: float = 1e-6,
    positions: Tensor | None = None,
) -> Tensor:
    """:func:`linvit.ops.focused_linear_attention` by the kernels."""
    check_shapes(q, k, v, scale, num_heads)
    check_supported(q, q.shape[2] // num_heads)
    if positions is not None and positions.shape != (1, *k.shape[1:]):  # one for every image, or for all tokens
        k, positions = k + positions, None
    gain = (1 / F.softplus(scale.to(accumulator(q.dtype)[0]))).flatten()
    q, k, v = split_heads(q, num_heads), split_heads(k, num_heads), split_heads(v, num_heads)
    positions = None if positions is None else positions.contiguous()
    return merge_heads(_forward(q, k, v, gain, positions, float(power), float(eps))[0])
