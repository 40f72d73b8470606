"""Focused linear attention in time and memory linear in the number of tokens."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from linvit.ops.dispatch import operator
from linvit.ops.feature_maps import focus
from linvit.ops.focused.reference import focused_linear_attention_reference
from linvit.ops.heads import merge_heads, split_heads
from linvit.ops.precision import accumulation_dtype

__all__ = ["check_shapes", "focused_linear_attention"]


def _kernels() -> Callable[..., torch.Tensor]:
    from linvit.ops.focused.fused import focused_linear_attention as kernels

    return kernels


@operator(reference=focused_linear_attention_reference, kernels=_kernels)
def focused_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: torch.Tensor,
    num_heads: int,
    power: float = 3.0,
    eps: float = 1e-6,
    positions: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Attend in linear time with features ``focus((relu(x) + 1e-6) / softplus(scale))``, norms over all heads.

    Everything between the inputs and the result is computed in at least float32, under autocast too. For powers up to
    3 the result is finite and accurate for every finite input: features saturate at 65,504, the largest float16.

    Args:
        q: Queries ``[B, N, C]``.
        k: Keys ``[B, M, C]``.
        v: Values ``[B, M, C]``.
        scale: The learned scale before its softplus, ``C`` entries.
        num_heads: Heads; each takes a contiguous block of ``C / num_heads`` channels.
        power: The focusing power p.
        eps: Added to the features and to the normaliser.
        positions: A positional encoding that is added to the keys, ``[1, M, C]``.
        backend: What computes it (:data:`linvit.ops.BACKENDS`).

    Returns:
        ``[B, N, C]`` in the type of ``v``.

    Raises:
        ValueError: The shapes do not fit together, or the heads do not share the channels.
    """
    if not torch.jit.is_scripting():
        check_shapes(q, k, v, scale, num_heads)
    if positions is not None:
        k = k + positions
    acc = accumulation_dtype(v)
    gain = 1 / F.softplus(scale.to(acc))
    # Focus is homogeneous: only the ratios of the gains enter the power, their size waits in a factor of each row.
    size = gain.detach().amax()
    gain = gain / size
    if not torch.jit.is_scripting():  # noqa: SIM102 -- TorchScript skips the block for this test alone
        if _is_eager_inference() and v.device.type == "cpu":  # before any size, which could become a condition
            rows = max(1, _CHUNK // max(1, v.shape[0] * v.shape[2]))
            if rows < max(q.shape[1], k.shape[1]):
                return _in_chunks(q, k, v, gain, size, num_heads, power, eps, rows)
    context, k_mean = _summarise(k, v, gain, size / k.shape[1], num_heads, power, eps)
    return _look_up(q, context, k_mean, gain, size, power, eps).to(v.dtype)


def check_shapes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: torch.Tensor, num_heads: int) -> None:
    """Raise a ValueError if the shapes do not fit together; kernels would read beyond the tensors."""
    if torch.jit.is_tracing():  # sizes are tensors there
        return
    fits = (
        q.ndim == k.ndim == v.ndim == 3
        and q.shape[0] == k.shape[0] == v.shape[0]
        and k.shape[1] == v.shape[1]
        and q.shape[2] == k.shape[2] == v.shape[2] == scale.numel()
    )
    if not fits:
        raise ValueError(
            "focused_linear_attention takes q [B, N, C], k and v [B, M, C] and a scale of C entries, "
            f"got q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)} and scale {list(scale.shape)}"
        )
    if q.shape[2] % num_heads != 0:
        raise ValueError(f"num_heads must divide the {q.shape[2]} channels, got {num_heads}")


_CHUNK = 2**18
"""Entries of the chunks that eager inference on the CPU works in: what lies between the passes stays in its cache."""


def _is_eager_inference() -> bool:
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing())


def _in_chunks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    gain: torch.Tensor,
    size: torch.Tensor,
    num_heads: int,
    power: float,
    eps: float,
    rows: int,
) -> torch.Tensor:
    context, k_mean = torch.zeros((), dtype=gain.dtype), torch.zeros((), dtype=gain.dtype)
    for k_part, v_part in zip(k.split(rows, dim=1), v.split(rows, dim=1), strict=True):
        part = _summarise(k_part, v_part, gain, size / k.shape[1], num_heads, power, eps)
        context, k_mean = part[0] + context, part[1] + k_mean
    out = v.new_empty(q.shape)
    for q_part, out_part in zip(q.split(rows, dim=1), out.split(rows, dim=1), strict=True):
        out_part.copy_(_look_up(q_part, context, k_mean, gain, size, power, eps))
    return out


def _summarise(
    k: torch.Tensor, v: torch.Tensor, gain: torch.Tensor, weight: torch.Tensor, num_heads: int, power: float, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``sum_j k_j v_j^T [B, h, d, d]`` and ``sum_j k_j [B, h, d, 1]`` of the focused keys times ``weight``."""
    k, factor = _focus(k.to(gain.dtype), gain, power, eps)
    k = split_heads(k * (factor * weight), num_heads)
    return k.transpose(-2, -1) @ split_heads(v.to(gain.dtype), num_heads), k.sum(dim=-2).unsqueeze(-1)


def _look_up(
    q: torch.Tensor,
    context: torch.Tensor,
    k_mean: torch.Tensor,
    gain: torch.Tensor,
    size: torch.Tensor,
    power: float,
    eps: float,
) -> torch.Tensor:
    """Return what the focused queries read from the keys' summary."""
    # A factor of a query cancels in the quotient, but for epsilon: dividing that one saves a pass over the queries.
    q, factor = _focus(q.to(gain.dtype), gain, power, eps)
    q = split_heads(q, context.shape[1])
    normaliser = q @ k_mean + (eps / (factor * size)).unsqueeze(1)
    # A product with the reciprocal has a shorter backward pass than a quotient.
    return merge_heads(q @ context * normaliser.reciprocal())


def _focus(x: torch.Tensor, gain: torch.Tensor, power: float, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``y ** p`` and the factor of each row that restores the norm, for ``y = (relu(x) + eps) * gain``."""
    if power > 3.0:  # the power could overflow
        x = focus(_features(x, gain, eps), power)
        return x, torch.ones_like(x[..., :1])
    if not torch.jit.is_scripting():  # noqa: SIM102 -- TorchScript skips the block for this test alone
        # Compilers fuse autograd's passes themselves, and a trace keeps the formula.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
            y, norm, power_norm = _Focus.apply(x, gain, power, eps)
            return y, norm / power_norm
    y, norm, power_norm = _sharpen(x, gain, power, eps)
    return y, norm / power_norm


def _features(x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    # With p = 3, the sixth power of any entry between 1e-6 and 65504 is a normal float32.
    return torch.addcmul(gain * eps, F.hardtanh(x, 0.0, 65504.0), gain)


def _sharpen(
    x: torch.Tensor, gain: torch.Tensor, power: float, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``u ** p`` of the features u, and the norms of u and of its power."""
    x = _features(x, gain, eps)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    x = x**power
    return x, norm, torch.linalg.vector_norm(x, dim=-1, keepdim=True)


class _Focus(torch.autograd.Function):
    """``_sharpen`` with its gradient by hand: a third of autograd's passes over the tokens, and ``x`` alone is kept.

    It can be differentiated again, forwards, and under ``torch.vmap``: all that backward uses are inputs and outputs.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, gain: torch.Tensor, power: float, eps: float):
        return _sharpen(x, gain, power, eps)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, gain, ctx.power, ctx.eps = inputs
        ctx.save_for_backward(x, gain, *output)
        ctx.save_for_forward(x, gain, *output)

    @staticmethod
    def backward(ctx, grad_y: torch.Tensor, grad_norm: torch.Tensor, grad_power_norm: torch.Tensor):
        x, gain, y, norm, power_norm = ctx.saved_tensors
        p = ctx.power
        u = _features(x, gain, ctx.eps)
        # With y = u^p, du = p u^(p-1) (dy + d|y| y / |y|) + d|u| u / |u|.
        du = torch.addcmul(grad_y, y / power_norm, grad_power_norm)
        if torch.is_grad_enabled():  # this is differentiated itself
            du = p * u ** (p - 1) * du + u * (grad_norm / norm)
        else:
            du.mul_(u ** (p - 1)).addcmul_(u, grad_norm / (p * norm)).mul_(p)
        grad_gain, grad_x = None, None
        if ctx.needs_input_grad[1]:
            grad_gain = (u * du).sum(dim=tuple(range(u.ndim - 1)), keepdim=True).reshape(gain.shape) / gain
        if ctx.needs_input_grad[0]:
            grad_x = torch.where((x > 0) & (x < 65504.0), du * gain, 0.0)
        return grad_x, grad_gain, None, None

    @staticmethod
    def jvp(ctx, tangent_x: torch.Tensor | None, tangent_gain: torch.Tensor | None, *_):
        x, gain, y, norm, power_norm = ctx.saved_tensors
        u = _features(x, gain, ctx.eps)
        tangent = torch.zeros_like(u)
        if tangent_x is not None:
            tangent = tangent + torch.where((x > 0) & (x < 65504.0), tangent_x * gain, 0.0)
        if tangent_gain is not None:
            tangent = tangent + u / gain * tangent_gain
        tangent_y = ctx.power * u ** (ctx.power - 1) * tangent
        along, power_along = (u * tangent).sum(dim=-1, keepdim=True), (y * tangent_y).sum(dim=-1, keepdim=True)
        return tangent_y, along / norm, power_along / power_norm
