"""Triton kernels of key-only pooling, over all tokens and over a neighbourhood, in both directions.

Values are seen as heads ``[B, h, N, d]`` of any strides, saliencies as ``[B, N, h]`` of any strides. A softmax over
tokens is kept as its largest saliency and its sum relative to that, and united from parts in a fixed order. Layouts
and what may change from call to call without another binary are as in :mod:`linvit.ops.linear.kernels`.
"""

import triton
import triton.language as tl

from linvit.ops.linear.kernels import RUNTIME, load, share_of, where_in

__all__ = ["local_measure", "local_pool", "local_pool_gradient", "pool", "pool_gradient", "unite"]

RUNTIME = [*RUNTIME, "s_b", "s_n", "s_h", "programs", "height", "width", "reach"]


@triton.jit
def _finite(top):
    """Return what saliencies are taken relative to, 0 where all are -inf so far: those have no weight."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit(do_not_specialize=RUNTIME)
def pool(
    s, v, part, tokens, share, heads, s_b: tl.int64, s_n, s_h, v_b: tl.int64, v_n, v_h, v_d,
    E: tl.constexpr, EP: tl.constexpr, BN: tl.constexpr, V_LAYOUT: tl.constexpr, V_ALIGN: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Write a share's largest saliency, sum of weights and weighted sum of values, ``part [programs, B, h, 2 + d]``.

    The grid is (B, programs, heads).
    """
    b, program, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    e = tl.arange(0, EP)
    first, last = share_of(tokens, share)
    s += b.to(tl.int64) * s_b + head * s_h
    v += b.to(tl.int64) * (v_b * V_ALIGN) + head * (v_h * V_ALIGN)
    top = tl.full((), float("-inf"), ACC)
    mass = tl.zeros((), ACC)
    total = tl.zeros((EP,), ACC)
    for start in range(first, last, BN):
        n = start + tl.arange(0, BN)
        saliency = tl.load(s + n * s_n, n < tokens, other=float("-inf")).to(ACC)
        values = load(v, n, e, (n < tokens)[:, None] & (e < E)[None, :], v_n, v_d, V_LAYOUT, V_ALIGN, ACC)
        larger = tl.maximum(top, tl.max(saliency, axis=0))
        base = _finite(larger)
        weights = tl.exp(saliency - base)
        shrink = tl.exp(top - base)
        mass = mass * shrink + tl.sum(weights, axis=0)
        total = total * shrink + tl.sum(weights[:, None] * values, axis=0)
        top = larger
    part += ((program * tl.num_programs(0) + b) * heads + head).to(tl.int64) * (E + 2)
    tl.store(part, top)
    tl.store(part + 1, mass)
    tl.store(part + 2 + e, total, e < E)


@triton.jit(do_not_specialize=RUNTIME)
def unite(
    part, context, level, programs, heads, E: tl.constexpr, EP: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Unite the parts of all programs to the context ``[B, h, d]``, and ``level [B, h, 2]``.

    That is the largest saliency and 1 over the sum of weights relative to it: the logarithm of both in one would round
    weights by the size of the saliencies.
    """
    b, head = tl.program_id(0), tl.program_id(1)
    e = tl.arange(0, EP)
    row = (b * heads + head).to(tl.int64)
    size = tl.num_programs(0) * heads
    top = tl.full((), float("-inf"), ACC)
    mass = tl.zeros((), ACC)
    total = tl.zeros((EP,), ACC)
    for program in range(programs):
        one = part + (program * size + row) * (E + 2)
        its_top = tl.load(one)
        larger = tl.maximum(top, its_top)
        base = _finite(larger)
        shrink, weight = tl.exp(top - base), tl.exp(its_top - base)
        mass = mass * shrink + tl.load(one + 1) * weight
        total = total * shrink + tl.load(one + 2 + e, e < E, other=0.0) * weight
        top = larger
    tl.store(context + row * E + e, total / mass, e < E)
    tl.store(level + 2 * row, top)
    tl.store(level + 2 * row + 1, 1 / mass)


@triton.jit(do_not_specialize=RUNTIME)
def pool_gradient(
    s, v, g, context, level, ds, dv, tokens, share, heads, s_b: tl.int64, s_n, s_h, v_b: tl.int64, v_n, v_h, v_d,
    dv_b: tl.int64, dv_n, dv_h, dv_d,
    E: tl.constexpr, EP: tl.constexpr, BN: tl.constexpr, V_LAYOUT: tl.constexpr, V_ALIGN: tl.constexpr,
    DV_LAYOUT: tl.constexpr, DV_ALIGN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Write ``dv_j = w_j g`` and ``ds_j = w_j g . (v_j - c)``, the latter as ``[B, h, N]``; the grid is pool's."""
    b, head = tl.program_id(0), tl.program_id(2)
    e = tl.arange(0, EP)
    first, last = share_of(tokens, share)
    row = (b * heads + head).to(tl.int64)
    s += b.to(tl.int64) * s_b + head * s_h
    v += b.to(tl.int64) * (v_b * V_ALIGN) + head * (v_h * V_ALIGN)
    dv += b.to(tl.int64) * (dv_b * DV_ALIGN) + head * (dv_h * DV_ALIGN)
    grad = tl.load(g + row * E + e, e < E, other=0.0)
    mean = tl.load(context + row * E + e, e < E, other=0.0)
    top, inverse = tl.load(level + 2 * row), tl.load(level + 2 * row + 1)
    for start in range(first, last, BN):
        n = start + tl.arange(0, BN)
        mask = (n < tokens)[:, None] & (e < E)[None, :]
        weights = tl.exp(tl.load(s + n * s_n, n < tokens, other=float("-inf")).to(ACC) - top) * inverse
        values = load(v, n, e, mask, v_n, v_d, V_LAYOUT, V_ALIGN, ACC)
        # A token that has nearly all the weight is nearly the context: the difference first, or its digits are lost.
        slope = weights * tl.sum((values - mean[None, :]) * grad[None, :], axis=1)
        tl.store(ds + row * tokens + n, slope.to(ds.dtype.element_ty), n < tokens)
        where = where_in(n, e, dv_n, dv_d, DV_LAYOUT, DV_ALIGN)
        tl.store(dv + where, (weights[:, None] * grad[None, :]).to(dv.dtype.element_ty), mask)


@triton.jit
def _neighbour(n, dy, dx, height, width, tokens):
    """Return the token ``(dy, dx)`` away, and whether there is one."""
    row, column = n // width + dy, n % width + dx
    inside = (n < tokens) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return tl.where(inside, row * width + column, 0), inside


@triton.jit
def _largest(s, s_n, n, height, width, tokens, reach, ACC: tl.constexpr):
    """Return the largest saliency in the neighbourhood of each token."""
    top = tl.load(s + n * s_n, n < tokens, other=0.0).to(ACC)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            m, inside = _neighbour(n, dy, dx, height, width, tokens)
            top = tl.maximum(top, tl.load(s + m * s_n, inside, other=float("-inf")).to(ACC))
    return top


@triton.jit(do_not_specialize=RUNTIME)
def local_pool(
    s, v, out, tokens, heads, height, width, reach, s_b: tl.int64, s_n, s_h, v_b: tl.int64, v_n, v_h, v_d,
    out_b: tl.int64, out_n, out_h, out_d,
    E: tl.constexpr, EP: tl.constexpr, BN: tl.constexpr, V_LAYOUT: tl.constexpr, V_ALIGN: tl.constexpr,
    OUT_LAYOUT: tl.constexpr, OUT_ALIGN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Average the values of each neighbourhood: grid (B, blocks of tokens, heads), as of the other two."""
    b, head = tl.program_id(0), tl.program_id(2)
    e, n = tl.arange(0, EP), tl.program_id(1) * BN + tl.arange(0, BN)
    s += b.to(tl.int64) * s_b + head * s_h
    v += b.to(tl.int64) * (v_b * V_ALIGN) + head * (v_h * V_ALIGN)
    top = _largest(s, s_n, n, height, width, tokens, reach, ACC)
    mass = tl.zeros((BN,), ACC)
    total = tl.zeros((BN, EP), ACC)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            m, inside = _neighbour(n, dy, dx, height, width, tokens)
            weights = tl.exp(tl.load(s + m * s_n, inside, other=float("-inf")).to(ACC) - top)
            mass += weights
            values = load(v, m, e, inside[:, None] & (e < E)[None, :], v_n, v_d, V_LAYOUT, V_ALIGN, ACC)
            total += weights[:, None] * values
    out += b.to(tl.int64) * (out_b * OUT_ALIGN) + head * (out_h * OUT_ALIGN)
    where = where_in(n, e, out_n, out_d, OUT_LAYOUT, OUT_ALIGN)
    # The token of the largest saliency has weight 1; past the last token there is none.
    read = (total / tl.maximum(mass, 1.0)[:, None]).to(out.dtype.element_ty)
    tl.store(out + where, read, (n < tokens)[:, None] & (e < E)[None, :])


@triton.jit(do_not_specialize=RUNTIME)
def local_measure(
    s, v, g, level, tokens, heads, height, width, reach, s_b: tl.int64, s_n, s_h, v_b: tl.int64, v_n, v_h, v_d,
    g_b: tl.int64, g_n, g_h, g_d,
    E: tl.constexpr, EP: tl.constexpr, BN: tl.constexpr, V_LAYOUT: tl.constexpr, V_ALIGN: tl.constexpr,
    G_LAYOUT: tl.constexpr, G_ALIGN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Write what the gradient needs of each neighbourhood, ``level [B, h, 3, N]``.

    That is the largest saliency, 1 over the sum of weights relative to it, and ``g_i . o_i``, here not with the output,
    which was rounded, but as the average of ``g_i . v_j``: what is subtracted from these must have their digits.
    """
    b, head = tl.program_id(0), tl.program_id(2)
    e, n = tl.arange(0, EP), tl.program_id(1) * BN + tl.arange(0, BN)
    s += b.to(tl.int64) * s_b + head * s_h
    v += b.to(tl.int64) * (v_b * V_ALIGN) + head * (v_h * V_ALIGN)
    g += b.to(tl.int64) * (g_b * G_ALIGN) + head * (g_h * G_ALIGN)
    top = _largest(s, s_n, n, height, width, tokens, reach, ACC)
    grad = load(g, n, e, (n < tokens)[:, None] & (e < E)[None, :], g_n, g_d, G_LAYOUT, G_ALIGN, ACC)
    mass = tl.zeros((BN,), ACC)
    along = tl.zeros((BN,), ACC)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            m, inside = _neighbour(n, dy, dx, height, width, tokens)
            weights = tl.exp(tl.load(s + m * s_n, inside, other=float("-inf")).to(ACC) - top)
            mass += weights
            values = load(v, m, e, inside[:, None] & (e < E)[None, :], v_n, v_d, V_LAYOUT, V_ALIGN, ACC)
            along += weights * tl.sum(grad * values, axis=1)
    inverse = 1 / tl.maximum(mass, 1.0)
    level += (b * heads + head).to(tl.int64) * 3 * tokens
    tl.store(level + n, top, n < tokens)
    tl.store(level + tokens + n, inverse, n < tokens)
    tl.store(level + 2 * tokens + n, along * inverse, n < tokens)


@triton.jit(do_not_specialize=RUNTIME)
def local_pool_gradient(
    s, v, g, level, ds, dv, tokens, heads, height, width, reach, s_b: tl.int64, s_n, s_h, v_b: tl.int64, v_n, v_h, v_d,
    g_b: tl.int64, g_n, g_h, g_d, dv_b: tl.int64, dv_n, dv_h, dv_d,
    E: tl.constexpr, EP: tl.constexpr, BN: tl.constexpr, V_LAYOUT: tl.constexpr, V_ALIGN: tl.constexpr,
    G_LAYOUT: tl.constexpr, G_ALIGN: tl.constexpr, DV_LAYOUT: tl.constexpr, DV_ALIGN: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Gather, over the neighbourhoods that a token is in, ``dv_j = sum_i w_ij g_i`` and
    ``ds_j = sum_i w_ij (g_i . v_j - g_i . o_i)``.
    """
    b, head = tl.program_id(0), tl.program_id(2)
    e, n = tl.arange(0, EP), tl.program_id(1) * BN + tl.arange(0, BN)
    mask = (n < tokens)[:, None] & (e < E)[None, :]
    s += b.to(tl.int64) * s_b + head * s_h
    v += b.to(tl.int64) * (v_b * V_ALIGN) + head * (v_h * V_ALIGN)
    g += b.to(tl.int64) * (g_b * G_ALIGN) + head * (g_h * G_ALIGN)
    level += (b * heads + head).to(tl.int64) * 3 * tokens
    own = tl.load(s + n * s_n, n < tokens, other=0.0).to(ACC)
    values = load(v, n, e, mask, v_n, v_d, V_LAYOUT, V_ALIGN, ACC)
    total = tl.zeros((BN, EP), ACC)
    slope = tl.zeros((BN,), ACC)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            m, inside = _neighbour(n, dy, dx, height, width, tokens)
            weights = tl.exp(own - tl.load(level + m, inside, other=float("inf")))
            weights *= tl.load(level + tokens + m, inside, other=0.0)
            grad = load(g, m, e, inside[:, None] & (e < E)[None, :], g_n, g_d, G_LAYOUT, G_ALIGN, ACC)
            total += weights[:, None] * grad
            slope += weights * (tl.sum(grad * values, axis=1) - tl.load(level + 2 * tokens + m, inside, other=0.0))
    ds += (b * heads + head).to(tl.int64) * tokens
    tl.store(ds + n, slope.to(ds.dtype.element_ty), n < tokens)
    dv += b.to(tl.int64) * (dv_b * DV_ALIGN) + head * (dv_h * DV_ALIGN)
    where = where_in(n, e, dv_n, dv_d, DV_LAYOUT, DV_ALIGN)
    tl.store(dv + where, total.to(dv.dtype.element_ty), mask)
