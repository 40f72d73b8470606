"""Triton kernels of focused linear attention that the plain one has no use for: norms over all heads, and gradients.

The other passes are those of :mod:`linvit.ops.linear.kernels`, where layouts and tiles are explained.
"""

import triton
import triton.language as tl

from linvit.ops.linear.kernels import (
    RUNTIME,
    gain_of,
    load,
    matrix_of,
    positive,
    power_of,
    saturated,
    share_of,
    stats_of,
    vector_of,
    where_in,
)

__all__ = ["key_gradient", "measure", "query_gradient"]


@triton.jit
def _focus_gradient(g, x, gain, top, t_norm, y_norm, along, mask, EPS: tl.constexpr, POWER: tl.constexpr):
    """Return the gradients of x, and of the gain by every entry, for a gradient ``g`` of ``phi(x)``.

    ``phi = top |t| y / |y|`` with ``y = t^p``; it does not depend on top, as ``t = u / top``. ``along`` is the sum of
    ``g phi`` over all heads.
    """
    t = positive(x, gain, EPS) / top[:, None]
    along /= top * t_norm  # now the sum of g y / |y|
    du = (along / t_norm)[:, None] * t
    du += (
        (t_norm / y_norm * POWER)[:, None]
        * power_of(t, POWER - 1)
        * (g - power_of(t, POWER) * (along / y_norm)[:, None])
    )
    du = tl.where(mask, du, 0.0)
    return tl.where((x > 0) & (x < 65504.0), du * gain[None, :], 0.0), du * (saturated(x) + EPS)


@triton.jit
def _along(along, b, n, tokens):
    """Load the sums of ``phi . dphi`` over all heads, ``[B, N]``."""
    return tl.load(along + b.to(tl.int64) * tokens + n, n < tokens, other=0.0)


@triton.jit(do_not_specialize=RUNTIME)
def measure(
    x, positions, gain, stats, tokens, share, heads, x_b: tl.int64, x_n, x_h, x_d,
    D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, EPS: tl.constexpr, POWER: tl.constexpr,
    POSITIONS: tl.constexpr, X_LAYOUT: tl.constexpr, X_ALIGN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Write the stats of focus: grid (B, programs)."""
    b, d = tl.program_id(0), tl.arange(0, DP)
    first, last = share_of(tokens, share)
    x += b.to(tl.int64) * (x_b * X_ALIGN)
    stats += b.to(tl.int64) * 3 * tokens
    for start in range(first, last, BN):
        n = start + tl.arange(0, BN)
        mask = (n < tokens)[:, None] & (d < D)[None, :]
        top = tl.zeros((BN,), ACC)
        t_square = tl.zeros((BN,), ACC)
        y_square = tl.zeros((BN,), ACC)
        for head in range(heads):
            tile = load(x + head * (x_h * X_ALIGN), n, d, mask, x_n, x_d, X_LAYOUT, X_ALIGN, ACC)
            if POSITIONS:
                tile += tl.load(positions + head * D + n[:, None] * (heads * D) + d[None, :], mask, other=0.0).to(ACC)
            u = positive(tile, gain_of(gain, head, d, D, "focus", ACC), EPS)
            larger = tl.maximum(tl.maximum(top, tl.max(u, axis=1)), 1.1754943508222875e-38)
            shrink = top / larger  # what was summed up so far was relative to a smaller one
            t = u / larger[:, None]
            y = power_of(t, POWER)
            t_square = t_square * shrink * shrink + tl.sum(t * t, axis=1)
            y_square = y_square * power_of(shrink * shrink, POWER) + tl.sum(y * y, axis=1)
            top = larger
        tl.store(stats + n, top, n < tokens)
        tl.store(stats + tokens + n, tl.sqrt(t_square), n < tokens)
        tl.store(stats + 2 * tokens + n, tl.sqrt(y_square), n < tokens)


@triton.jit(do_not_specialize=RUNTIME)
def query_gradient(
    x, g, gain, stats, summary, weights, along, dx, dgain,
    tokens, share, heads, x_b: tl.int64, x_n, x_h, x_d, g_b: tl.int64, g_n, g_h, g_d, dx_b: tl.int64, dx_n, dx_h, dx_d,
    D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr, BN: tl.constexpr,
    EPS: tl.constexpr, POWER: tl.constexpr,
    X_LAYOUT: tl.constexpr, X_ALIGN: tl.constexpr, G_LAYOUT: tl.constexpr, G_ALIGN: tl.constexpr,
    DX_LAYOUT: tl.constexpr, DX_ALIGN: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the queries' gradient, and a share's part of the gain's: grid (B, programs, heads)."""
    b, program, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    d = tl.arange(0, DP)
    first, last = share_of(tokens, share)
    x += b.to(tl.int64) * (x_b * X_ALIGN) + head * (x_h * X_ALIGN)
    g += b.to(tl.int64) * (g_b * G_ALIGN) + head * (g_h * G_ALIGN)
    dx += b.to(tl.int64) * (dx_b * DX_ALIGN) + head * (dx_h * DX_ALIGN)
    weights += (b * heads + head).to(tl.int64) * 2 * tokens
    summary += (b * heads + head).to(tl.int64) * (D * (E + 1))
    scale = gain_of(gain, head, d, D, "focus", ACC)
    vector = vector_of(summary, d, D, E)
    gains = tl.zeros((DP,), ACC)
    for start in range(first, last, BN):
        n = start + tl.arange(0, BN)
        mask = (n < tokens)[:, None] & (d < D)[None, :]
        inverse = tl.load(weights + n, n < tokens, other=0.0)
        second = tl.load(weights + tokens + n, n < tokens, other=0.0)
        dphi = tl.zeros((BN, DP), ACC)
        for column in range(0, E, EP):
            e = column + tl.arange(0, EP)
            grad = load(g, n, e, (n < tokens)[:, None] & (e < E)[None, :], g_n, g_d, G_LAYOUT, G_ALIGN, ACC)
            turned = tl.trans(matrix_of(summary, d, e, D, E))
            dphi = tl.dot(grad, turned, dphi, input_precision=PRECISION, out_dtype=ACC)
        dphi = dphi * inverse[:, None] + second[:, None] * vector[None, :]
        tile = load(x, n, d, mask, x_n, x_d, X_LAYOUT, X_ALIGN, ACC)
        top, t_norm, y_norm = stats_of(stats, b, n, tokens, "focus", ACC)
        tile, entries = _focus_gradient(
            dphi, tile, scale, top, t_norm, y_norm, _along(along, b, n, tokens), mask, EPS, POWER
        )
        tl.store(dx + where_in(n, d, dx_n, dx_d, DX_LAYOUT, DX_ALIGN), tile.to(dx.dtype.element_ty), mask)
        gains += tl.sum(entries, axis=0)
    dgain += ((program * tl.num_programs(0) + b) * heads + head).to(tl.int64) * D
    tl.store(dgain + d, gains, d < D)


@triton.jit(do_not_specialize=RUNTIME)
def key_gradient(
    x, v, positions, gain, stats, dsummary, along, dx, dgain,
    tokens, share, heads, x_b: tl.int64, x_n, x_h, x_d, v_b: tl.int64, v_n, v_h, v_d, dx_b: tl.int64, dx_n, dx_h, dx_d,
    D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr, BN: tl.constexpr,
    EPS: tl.constexpr, POWER: tl.constexpr, POSITIONS: tl.constexpr,
    X_LAYOUT: tl.constexpr, X_ALIGN: tl.constexpr, V_LAYOUT: tl.constexpr, V_ALIGN: tl.constexpr,
    DX_LAYOUT: tl.constexpr, DX_ALIGN: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the keys' gradient, and a share's part of the gain's: grid (B, programs, heads)."""
    b, program, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    d = tl.arange(0, DP)
    first, last = share_of(tokens, share)
    x += b.to(tl.int64) * (x_b * X_ALIGN) + head * (x_h * X_ALIGN)
    v += b.to(tl.int64) * (v_b * V_ALIGN) + head * (v_h * V_ALIGN)
    dx += b.to(tl.int64) * (dx_b * DX_ALIGN) + head * (dx_h * DX_ALIGN)
    dsummary += (b * heads + head).to(tl.int64) * (D * (E + 1))
    scale = gain_of(gain, head, d, D, "focus", ACC)
    dvector = vector_of(dsummary, d, D, E)
    gains = tl.zeros((DP,), ACC)
    for start in range(first, last, BN):
        n = start + tl.arange(0, BN)
        mask = (n < tokens)[:, None] & (d < D)[None, :]
        dphi = tl.zeros((BN, DP), ACC) + dvector[None, :]
        for column in range(0, E, EP):
            e = column + tl.arange(0, EP)
            values = load(v, n, e, (n < tokens)[:, None] & (e < E)[None, :], v_n, v_d, V_LAYOUT, V_ALIGN, ACC)
            turned = tl.trans(matrix_of(dsummary, d, e, D, E))
            dphi = tl.dot(values, turned, dphi, input_precision=PRECISION, out_dtype=ACC)
        dphi /= tokens.to(ACC)
        tile = load(x, n, d, mask, x_n, x_d, X_LAYOUT, X_ALIGN, ACC)
        if POSITIONS:
            tile += tl.load(positions + head * D + n[:, None] * (heads * D) + d[None, :], mask, other=0.0).to(ACC)
        top, t_norm, y_norm = stats_of(stats, b, n, tokens, "focus", ACC)
        tile, entries = _focus_gradient(
            dphi, tile, scale, top, t_norm, y_norm, _along(along, b, n, tokens), mask, EPS, POWER
        )
        tl.store(dx + where_in(n, d, dx_n, dx_d, DX_LAYOUT, DX_ALIGN), tile.to(dx.dtype.element_ty), mask)
        gains += tl.sum(entries, axis=0)
    dgain += ((program * tl.num_programs(0) + b) * heads + head).to(tl.int64) * D
    tl.store(dgain + d, gains, d < D)
