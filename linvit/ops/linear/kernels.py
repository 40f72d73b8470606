"""Triton kernels of linear attention over features that are computed in registers, plain or focused, both directions.

A program takes one image of the batch, one head and a share of the tokens, in tiles ``[tokens, channels]`` padded to
powers of two. Images are the first axis of the grid, the only one that may be longer than 65,535. What a program sums
over tokens it keeps in registers, in float32 (float64 for float64), and writes once; the partial sums of all programs
are added up in a fixed order afterwards: a run gives the same bits as the one before.

Focus takes its norms over all heads. They are measured before (:mod:`linvit.ops.focused.kernels`), as three numbers a
token, ``stats [B, 3, N]``: the largest feature, and with t the features over it the norms of ``t`` and ``t^p``.

The summary of the keys, ``[B, h, d (e + 1)]``, is ``mean_j phi(k_j) v_j^T``, followed by ``mean_j phi(k_j)``.

Nothing that depends on the number of tokens is a compile-time constant, and none is specialised on: another image size
runs the same binary. A layout says which axis of a tensor has stride 1: channels (0), tokens (1) or neither (2). With
layout 0 the strides of tokens and heads come divided by an alignment, so that the compiler knows what divides them.
"""

import triton
import triton.language as tl

__all__ = ["RUNTIME", "key_backward", "look_up", "query_backward", "summarise"]

# Arguments that change with the image size: an alignment or a value of 1 must not make a second binary of them.
RUNTIME = [
    *("tokens", "share", "heads"),
    *(f"{name}_{axis}" for name in ("x", "v", "g", "out", "dx", "dv") for axis in "bnhd"),
]


@triton.jit
def load(pointer, n, c, mask, stride_n, stride_c, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr):
    """Load a tile ``[N, C]``."""
    return tl.load(pointer + where_in(n, c, stride_n, stride_c, LAYOUT, ALIGN), mask, other=0.0).to(ACC)


@triton.jit
def where_in(n, c, stride_n, stride_c, LAYOUT: tl.constexpr, ALIGN: tl.constexpr):
    """Return the offsets of a tile ``[N, C]`` from its head's first entry."""
    if LAYOUT == 0:
        return n[:, None] * (stride_n * ALIGN) + c[None, :]
    elif LAYOUT == 1:
        return n[:, None] + c[None, :] * stride_c
    else:
        return n[:, None] * stride_n + c[None, :] * stride_c


@triton.jit
def power_of(t, POWER: tl.constexpr):
    """Return ``t ** POWER`` for t from 0 to 1."""
    if POWER == 0.0:
        return tl.full(t.shape, 1.0, t.dtype)
    elif POWER == 1.0:
        return t
    elif POWER == 2.0:
        return t * t
    elif POWER == 3.0:
        return t * t * t
    else:
        return tl.where(t > 0, tl.exp2(POWER * tl.log2(tl.where(t > 0, t, 1.0))), 0.0)


@triton.jit
def saturated(x):
    """Return ``min(relu(x), 65504)``; a NaN stays one, as everywhere: a model that diverges has to show it."""
    return tl.clamp(x, 0.0, 65504.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def positive(x, gain, EPS: tl.constexpr):
    """Return ``(relu(x) + eps) * gain``, saturated at float16's largest number as in eager mode."""
    return (saturated(x) + EPS) * gain[None, :]


@triton.jit
def gain_of(gain, head, d, D: tl.constexpr, FEATURES: tl.constexpr, ACC: tl.constexpr):
    """Return the gains of a head's channels, ``[D]``."""
    if FEATURES == "focus":
        return tl.load(gain + head * D + d, d < D, other=0.0).to(ACC)
    else:
        return tl.full(d.shape, 1.0, ACC)


@triton.jit
def stats_of(stats, b, n, tokens, FEATURES: tl.constexpr, ACC: tl.constexpr):
    """Return the largest feature and the norms of t and ``t^p``, ``[N]`` each."""
    if FEATURES == "focus":
        stats += b.to(tl.int64) * 3 * tokens
        mask = n < tokens
        top = tl.load(stats + n, mask, other=1.0)
        return top, tl.load(stats + tokens + n, mask, other=1.0), tl.load(stats + 2 * tokens + n, mask, other=1.0)
    else:
        one = tl.full(n.shape, 1.0, ACC)
        return one, one, one


@triton.jit
def _features(x, gain, top, t_norm, y_norm, mask,
              FEATURES: tl.constexpr, EPS: tl.constexpr, POWER: tl.constexpr):  # fmt: skip
    """Return ``phi(x)``, 0 where the mask is."""
    if FEATURES == "focus":
        t = positive(x, gain, EPS) / top[:, None]
        x = power_of(t, POWER) * (t_norm / y_norm * top)[:, None]
    elif FEATURES == "elu1":
        x = tl.where(x > 0, x + 1, tl.exp(x))
    elif FEATURES == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(mask, x, 0.0)


@triton.jit
def _plain_gradient(g, x, FEATURES: tl.constexpr):
    """Return the gradient of x for a gradient ``g`` of ``phi(x)``, of all features but focus."""
    if FEATURES == "elu1":
        return tl.where(x > 0, g, g * tl.exp(x))
    elif FEATURES == "relu":
        return tl.where(x > 0, g, 0.0)
    else:
        return g


@triton.jit
def matrix_of(summary, d, e, D: tl.constexpr, E: tl.constexpr):
    """Load the summary's matrix, ``[D, E]``."""
    return tl.load(summary + d[:, None] * E + e[None, :], (d < D)[:, None] & (e < E)[None, :], other=0.0)


@triton.jit
def vector_of(summary, d, D: tl.constexpr, E: tl.constexpr):
    """Load the summary's vector, ``[D]``."""
    return tl.load(summary + D * E + d, d < D, other=0.0)


@triton.jit
def _store_summary(summary, matrix, vector, d, e, D: tl.constexpr, E: tl.constexpr):
    tl.store(summary + d[:, None] * E + e[None, :], matrix, (d < D)[:, None] & (e < E)[None, :])
    tl.store(summary + D * E + d, vector, d < D)  # of several slices, all have the same


@triton.jit
def share_of(tokens, share):
    """Return the program's first token, and the one after its last."""
    first = tl.program_id(1) * share
    return first, tl.minimum(first + share, tokens)


@triton.jit(do_not_specialize=RUNTIME)
def summarise(
    x, v, positions, gain, stats, summary,
    tokens, share, heads, x_b: tl.int64, x_n, x_h, x_d, v_b: tl.int64, v_n, v_h, v_d,
    D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr, SLICES: tl.constexpr, BN: tl.constexpr,
    FEATURES: tl.constexpr, EPS: tl.constexpr, POWER: tl.constexpr, POSITIONS: tl.constexpr,
    X_LAYOUT: tl.constexpr, X_ALIGN: tl.constexpr, V_LAYOUT: tl.constexpr, V_ALIGN: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write a share's part of the keys' summary: grid (B, programs, heads x slices of the values)."""
    b, program, head = tl.program_id(0), tl.program_id(1), tl.program_id(2) // SLICES
    d, e = tl.arange(0, DP), tl.program_id(2) % SLICES * EP + tl.arange(0, EP)
    first, last = share_of(tokens, share)
    x += b.to(tl.int64) * (x_b * X_ALIGN) + head * (x_h * X_ALIGN)
    v += b.to(tl.int64) * (v_b * V_ALIGN) + head * (v_h * V_ALIGN)
    scale = gain_of(gain, head, d, D, FEATURES, ACC)
    weight = 1 / tokens.to(ACC)
    matrix = tl.zeros((DP, EP), ACC)
    vector = tl.zeros((DP,), ACC)
    for start in range(first, last, BN):
        n = start + tl.arange(0, BN)
        mask = (n < tokens)[:, None] & (d < D)[None, :]
        v_mask = (n < tokens)[:, None] & (e < E)[None, :]
        tile = load(x, n, d, mask, x_n, x_d, X_LAYOUT, X_ALIGN, ACC)
        if POSITIONS:
            tile += tl.load(positions + head * D + n[:, None] * (heads * D) + d[None, :], mask, other=0.0).to(ACC)
        top, t_norm, y_norm = stats_of(stats, b, n, tokens, FEATURES, ACC)
        phi = _features(tile, scale, top, t_norm, y_norm, mask, FEATURES, EPS, POWER)
        # Divided before they are summed: a sum of products that fit float32 need not fit itself.
        values = load(v, n, e, v_mask, v_n, v_d, V_LAYOUT, V_ALIGN, ACC) * weight
        vector += tl.sum(phi, axis=0) * weight
        matrix = tl.dot(tl.trans(phi), values, matrix, input_precision=PRECISION, out_dtype=ACC)
    summary += ((program * tl.num_programs(0) + b) * heads + head).to(tl.int64) * (D * (E + 1))
    _store_summary(summary, matrix, vector, d, e, D, E)


@triton.jit(do_not_specialize=RUNTIME)
def look_up(
    x, gain, stats, summary, out,
    tokens, share, heads, x_b: tl.int64, x_n, x_h, x_d, out_b: tl.int64, out_n, out_h, out_d,
    D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr, BN: tl.constexpr,
    FEATURES: tl.constexpr, EPS: tl.constexpr, POWER: tl.constexpr,
    X_LAYOUT: tl.constexpr, X_ALIGN: tl.constexpr, OUT_LAYOUT: tl.constexpr, OUT_ALIGN: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write what the queries read from the summary: grid (B, programs, heads)."""
    b, head = tl.program_id(0), tl.program_id(2)
    d = tl.arange(0, DP)
    first, last = share_of(tokens, share)
    x += b.to(tl.int64) * (x_b * X_ALIGN) + head * (x_h * X_ALIGN)
    out += b.to(tl.int64) * (out_b * OUT_ALIGN) + head * (out_h * OUT_ALIGN)
    summary += (b * heads + head).to(tl.int64) * (D * (E + 1))
    scale = gain_of(gain, head, d, D, FEATURES, ACC)
    vector = vector_of(summary, d, D, E)
    for start in range(first, last, BN):
        n = start + tl.arange(0, BN)
        mask = (n < tokens)[:, None] & (d < D)[None, :]
        tile = load(x, n, d, mask, x_n, x_d, X_LAYOUT, X_ALIGN, ACC)
        top, t_norm, y_norm = stats_of(stats, b, n, tokens, FEATURES, ACC)
        phi = _features(tile, scale, top, t_norm, y_norm, mask, FEATURES, EPS, POWER)
        normaliser = tl.sum(phi * vector[None, :], axis=1) + EPS
        for column in range(0, E, EP):
            e = column + tl.arange(0, EP)
            read = tl.dot(phi, matrix_of(summary, d, e, D, E), input_precision=PRECISION, out_dtype=ACC)
            read /= normaliser[:, None]
            where = where_in(n, e, out_n, out_d, OUT_LAYOUT, OUT_ALIGN)
            tl.store(out + where, read.to(out.dtype.element_ty), (n < tokens)[:, None] & (e < E)[None, :])


@triton.jit(do_not_specialize=RUNTIME)
def query_backward(
    x, g, gain, stats, summary, dx, weights, dsummary,
    tokens, share, heads, x_b: tl.int64, x_n, x_h, x_d, g_b: tl.int64, g_n, g_h, g_d, dx_b: tl.int64, dx_n, dx_h, dx_d,
    D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr, SLICES: tl.constexpr, BN: tl.constexpr,
    FEATURES: tl.constexpr, EPS: tl.constexpr, POWER: tl.constexpr,
    X_LAYOUT: tl.constexpr, X_ALIGN: tl.constexpr, G_LAYOUT: tl.constexpr, G_ALIGN: tl.constexpr,
    DX_LAYOUT: tl.constexpr, DX_ALIGN: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write a share's part of the summary's gradient, and the queries': grid (B, programs, heads).

    With S and z the summary, ``n_i`` the normaliser and ``o_i`` the output::

        dphi_i = (S g_i - (g_i . o_i) z) / n_i
        dS = sum_i phi_i g_i^T / n_i            dz = -sum_i phi_i (g_i . o_i) / n_i

    With focus the gradient of a query needs all heads: ``1 / n_i`` and ``-(g_i . o_i) / n_i`` are kept instead, as
    ``weights [B, h, 2, N]``, for query_gradient.
    """
    b, program, head = tl.program_id(0), tl.program_id(1), tl.program_id(2) // SLICES
    d, own = tl.arange(0, DP), tl.program_id(2) % SLICES * EP + tl.arange(0, EP)
    first, last = share_of(tokens, share)
    x += b.to(tl.int64) * (x_b * X_ALIGN) + head * (x_h * X_ALIGN)
    g += b.to(tl.int64) * (g_b * G_ALIGN) + head * (g_h * G_ALIGN)
    dx += b.to(tl.int64) * (dx_b * DX_ALIGN) + head * (dx_h * DX_ALIGN)
    weights += (b * heads + head).to(tl.int64) * 2 * tokens
    summary += (b * heads + head).to(tl.int64) * (D * (E + 1))
    scale = gain_of(gain, head, d, D, FEATURES, ACC)
    vector = vector_of(summary, d, D, E)
    dmatrix = tl.zeros((DP, EP), ACC)
    dvector = tl.zeros((DP,), ACC)
    for start in range(first, last, BN):
        n = start + tl.arange(0, BN)
        mask = (n < tokens)[:, None] & (d < D)[None, :]
        tile = load(x, n, d, mask, x_n, x_d, X_LAYOUT, X_ALIGN, ACC)
        top, t_norm, y_norm = stats_of(stats, b, n, tokens, FEATURES, ACC)
        phi = _features(tile, scale, top, t_norm, y_norm, mask, FEATURES, EPS, POWER)
        # Beyond the last token the normaliser is eps, which may be 0.
        inverse = tl.where(n < tokens, 1 / (tl.sum(phi * vector[None, :], axis=1) + EPS), 0.0)
        grad = load(g, n, own, (n < tokens)[:, None] & (own < E)[None, :], g_n, g_d, G_LAYOUT, G_ALIGN, ACC)
        grad *= inverse[:, None]
        dmatrix = tl.dot(tl.trans(phi), grad, dmatrix, input_precision=PRECISION, out_dtype=ACC)
        agreement = tl.zeros((BN,), ACC)  # g . o
        dphi = tl.zeros((BN, DP), ACC)
        for column in range(0, E, EP):
            e = column + tl.arange(0, EP)
            if SLICES > 1:
                grad = load(g, n, e, (n < tokens)[:, None] & (e < E)[None, :], g_n, g_d, G_LAYOUT, G_ALIGN, ACC)
                grad *= inverse[:, None]
            read = tl.dot(phi, matrix_of(summary, d, e, D, E), input_precision=PRECISION, out_dtype=ACC)
            agreement += tl.sum(grad * read, axis=1)
            if FEATURES != "focus":
                turned = tl.trans(matrix_of(summary, d, e, D, E))
                dphi = tl.dot(grad, turned, dphi, input_precision=PRECISION, out_dtype=ACC)
        second = -agreement * inverse
        dvector += tl.sum(phi * second[:, None], axis=0)
        if FEATURES == "focus":
            tl.store(weights + n, inverse, n < tokens)
            tl.store(weights + tokens + n, second, n < tokens)
        else:
            dphi = _plain_gradient(dphi + second[:, None] * vector[None, :], tile, FEATURES)
            where = where_in(n, d, dx_n, dx_d, DX_LAYOUT, DX_ALIGN)
            tl.store(dx + where, dphi.to(dx.dtype.element_ty), mask)
    dsummary += ((program * tl.num_programs(0) + b) * heads + head).to(tl.int64) * (D * (E + 1))
    _store_summary(dsummary, dmatrix, dvector, d, own, D, E)


@triton.jit(do_not_specialize=RUNTIME)
def key_backward(
    x, v, positions, gain, stats, dsummary, dx, dv, along,
    tokens, share, heads, x_b: tl.int64, x_n, x_h, x_d, v_b: tl.int64, v_n, v_h, v_d,
    dx_b: tl.int64, dx_n, dx_h, dx_d, dv_b: tl.int64, dv_n, dv_h, dv_d,
    D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr, BN: tl.constexpr,
    FEATURES: tl.constexpr, EPS: tl.constexpr, POWER: tl.constexpr, POSITIONS: tl.constexpr,
    X_LAYOUT: tl.constexpr, X_ALIGN: tl.constexpr, V_LAYOUT: tl.constexpr, V_ALIGN: tl.constexpr,
    DX_LAYOUT: tl.constexpr, DX_ALIGN: tl.constexpr, DV_LAYOUT: tl.constexpr, DV_ALIGN: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the values' gradient ``dS^T phi_j / M`` and the keys', by ``dphi_j = (dS v_j + dz) / M``.

    With focus the gradient of a key needs all heads: ``phi_j . dphi_j`` is kept instead, ``along [B, h, N]``.
    """
    b, head = tl.program_id(0), tl.program_id(2)
    d = tl.arange(0, DP)
    first, last = share_of(tokens, share)
    x += b.to(tl.int64) * (x_b * X_ALIGN) + head * (x_h * X_ALIGN)
    v += b.to(tl.int64) * (v_b * V_ALIGN) + head * (v_h * V_ALIGN)
    dx += b.to(tl.int64) * (dx_b * DX_ALIGN) + head * (dx_h * DX_ALIGN)
    dv += b.to(tl.int64) * (dv_b * DV_ALIGN) + head * (dv_h * DV_ALIGN)
    along += (b * heads + head).to(tl.int64) * tokens
    dsummary += (b * heads + head).to(tl.int64) * (D * (E + 1))
    scale = gain_of(gain, head, d, D, FEATURES, ACC)
    dvector = vector_of(dsummary, d, D, E)
    weight = 1 / tokens.to(ACC)
    for start in range(first, last, BN):
        n = start + tl.arange(0, BN)
        mask = (n < tokens)[:, None] & (d < D)[None, :]
        tile = load(x, n, d, mask, x_n, x_d, X_LAYOUT, X_ALIGN, ACC)
        if POSITIONS:
            tile += tl.load(positions + head * D + n[:, None] * (heads * D) + d[None, :], mask, other=0.0).to(ACC)
        top, t_norm, y_norm = stats_of(stats, b, n, tokens, FEATURES, ACC)
        phi = _features(tile, scale, top, t_norm, y_norm, mask, FEATURES, EPS, POWER) * weight
        agreement = tl.sum(phi * dvector[None, :], axis=1)
        dphi = tl.zeros((BN, DP), ACC) + dvector[None, :]
        for column in range(0, E, EP):
            e = column + tl.arange(0, EP)
            v_mask = (n < tokens)[:, None] & (e < E)[None, :]
            values = load(v, n, e, v_mask, v_n, v_d, V_LAYOUT, V_ALIGN, ACC)
            grad = tl.dot(phi, matrix_of(dsummary, d, e, D, E), input_precision=PRECISION, out_dtype=ACC)
            where = where_in(n, e, dv_n, dv_d, DV_LAYOUT, DV_ALIGN)
            tl.store(dv + where, grad.to(dv.dtype.element_ty), v_mask)
            if FEATURES == "focus":
                agreement += tl.sum(grad * values, axis=1)
            else:
                turned = tl.trans(matrix_of(dsummary, d, e, D, E))
                dphi = tl.dot(values, turned, dphi, input_precision=PRECISION, out_dtype=ACC)
        if FEATURES == "focus":
            tl.store(along + n, agreement, n < tokens)
        else:
            dphi = _plain_gradient(dphi * weight, tile, FEATURES)
            where = where_in(n, d, dx_n, dx_d, DX_LAYOUT, DX_ALIGN)
            tl.store(dx + where, dphi.to(dx.dtype.element_ty), mask)
