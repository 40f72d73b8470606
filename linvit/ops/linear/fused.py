"""Linear attention by the Triton kernels, as registered operators with their gradients.

How many programs share the tokens follows from the sizes of a call. The operators are opaque to compilers, so no such
decision can become a condition of a compiled graph.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from linvit.ops.feature_maps import check_feature_map
from linvit.ops.launch import accumulator, alike, check_supported, launch, once, precision, shares, strides, tile
from linvit.ops.linear import kernels
from linvit.ops.linear.fast import check_shapes

__all__ = ["Call", "count_products", "linear_attention"]


class Call:
    """What all launches of one call have in common, and the passes that plain and focused attention share."""

    def __init__(self, q: Tensor, e: int, features: str, power: float, eps: float):
        self.batch, self.heads, _, self.d = q.shape
        self.e, self.device, self.input_type = e, q.device, q.dtype
        self.dtype, acc = accumulator(q.dtype)
        self.constants = {"D": self.d, "E": e, "FEATURES": features, "EPS": eps, "POWER": power, "ACC": acc}
        self.constants |= {"PRECISION": precision(q.dtype), "POSITIONS": False}

    def grid(self, tokens: int, kernel: str) -> tuple[tuple[int, int, int], dict[str, Any]]:
        """Return the grid of a kernel, and the arguments that follow from it."""
        constants = tile(self.d, self.e, kernel, self.input_type, self.constants["FEATURES"] == "focus")
        parts = self.heads * (constants["SLICES"] if kernel in ("summarise", "query_backward") else 1)
        programs, share = shares(tokens, self.batch * parts, constants["BN"], self.device)
        return (self.batch, programs, parts), {"tokens": tokens, "share": share, "heads": self.heads} | constants

    def run(self, kernel, tokens: int, strided: dict[str, Tensor], **tensors: Tensor | None) -> None:
        """Launch a kernel; ``strided`` are the tensors whose strides it takes. One it does not use may be None."""
        grid, arguments = self.grid(tokens, kernel.__name__)
        unused = next(iter(strided.values()))
        arguments |= {name: unused if x is None else x for name, x in tensors.items()}
        launch(kernel, grid, self.device, **(self.constants | arguments | strided | strides(**strided)))

    def partial(self, tokens: int, kernel: str, *sizes: int) -> Tensor:
        """Return room for what every program of a kernel sums up, ``[programs, B, h, ...]``."""
        (_, programs, _), _ = self.grid(tokens, kernel)
        return torch.empty(programs, self.batch, self.heads, *sizes, dtype=self.dtype, device=self.device)

    def forward(self, q, k, v, *, positions=None, gain=None, q_stats=None, k_stats=None) -> tuple[Tensor, Tensor]:
        """Return the output ``[B, h, N, e]`` and the summary of the keys."""
        parts = self.partial(k.shape[2], "summarise", self.d * (self.e + 1))
        self.constants["POSITIONS"] = positions is not None
        tensors = {"positions": positions, "gain": gain, "stats": k_stats, "summary": parts}
        self.run(kernels.summarise, k.shape[2], {"x": k, "v": v}, **tensors)
        summary, out = parts.sum(dim=0), alike(q, self.e, v.dtype)
        self.run(kernels.look_up, q.shape[2], {"x": q, "out": out}, gain=gain, stats=q_stats, summary=summary)
        return out, summary

    def query_backward(self, q, grad, summary, dq=None, weights=None, gain=None, stats=None) -> Tensor:
        """Return the summary's gradient; fill ``dq``, or the weights of focus."""
        parts = self.partial(q.shape[2], "query_backward", self.d * (self.e + 1))
        tensors = {"gain": gain, "stats": stats, "summary": summary, "weights": weights, "dsummary": parts}
        self.run(kernels.query_backward, q.shape[2], {"x": q, "g": grad, "dx": q if dq is None else dq}, **tensors)
        return parts.sum(dim=0)

    def key_backward(self, k, v, dsummary, dk=None, along=None, positions=None, gain=None, stats=None) -> Tensor:
        """Return the values' gradient; fill ``dk``, or what focus needs for it."""
        dv = alike(v, self.e)
        self.constants["POSITIONS"] = positions is not None
        tensors = {"positions": positions, "gain": gain, "stats": stats, "dsummary": dsummary, "along": along}
        self.run(kernels.key_backward, k.shape[2], {"x": k, "v": v, "dx": k if dk is None else dk, "dv": dv}, **tensors)
        return dv


@torch.library.custom_op("linvit::linear_attention", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, features: str, eps: float) -> tuple[Tensor, Tensor]:
    return Call(q, v.shape[3], features, 1.0, eps).forward(q, k, v)


@_forward.register_fake
def _(q, k, v, features, eps):
    summary = q.new_empty(*q.shape[:2], q.shape[3] * (v.shape[3] + 1), dtype=accumulator(q.dtype)[0])
    return alike(q, v.shape[3], v.dtype), summary


@torch.library.custom_op("linvit::linear_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, summary: Tensor, features: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(q, v.shape[3], features, 1.0, eps)
    dq, dk = alike(q, call.d), alike(k, call.d)
    dsummary = call.query_backward(q, grad, summary, dq)
    return dq, dk, call.key_backward(k, v, dsummary, dk)


@_backward.register_fake
def _(grad, q, k, v, summary, features, eps):
    return alike(q, q.shape[3]), alike(k, k.shape[3]), alike(v, v.shape[3])


once(_backward)


def count_products(q: list[int], k: list[int], v: list[int], *_, out_shape=None, **__) -> int:
    """Return the operations of the forward pass's products, as torch's ``FlopCounterMode`` counts them."""
    B, h, N, d = q
    return 2 * B * h * d * (k[2] * v[3] + N * v[3] + N)


@register_flop_formula(torch.ops.linvit.linear_attention_backward)
def _(grad, q, k, v, *_, **__):
    return 2 * count_products(q, k, v)


register_flop_formula(torch.ops.linvit.linear_attention)(count_products)


def _setup(ctx: Any, inputs, output) -> None:
    q, k, v, ctx.features, ctx.eps = inputs
    ctx.save_for_backward(q, k, v, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, grad: Tensor, _):
    q, k, v, summary = ctx.saved_tensors
    return *_backward(grad, q, k, v, summary, ctx.features, ctx.eps), None, None


_forward.register_autograd(_gradient, setup_context=_setup)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, eps: float = 1e-6, feature_map: str | None = None) -> Tensor:
    """:func:`linvit.ops.linear_attention` by the kernels."""
    check_shapes(q, k, v)
    check_feature_map(feature_map)
    check_supported(q, q.shape[3], v.shape[3])
    return _forward(q, k, v, feature_map or "none", float(eps))[0]
