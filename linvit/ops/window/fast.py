"""Softmax attention in windows through PyTorch's fused kernel."""

import torch
import torch.nn.functional as F

from linvit.ops.dispatch import operator
from linvit.ops.sizes import is_number
from linvit.ops.window.reference import window_attention_reference

__all__ = ["window_attention"]


@operator(reference=window_attention_reference, autocast=True)
def window_attention(
    qkv: torch.Tensor,
    num_heads: int,
    window: list[int],
    shift: list[int],
    bias: torch.Tensor | None = None,
    local_weight: torch.Tensor | None = None,
    local_bias: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Attend inside windows, shifted along every side that is longer than the window.

    Args:
        qkv: Queries, keys and values of a map, ``[B, H, W, 3, C]``.
        num_heads: Heads; each takes a contiguous block of channels.
        window: Height and width of a window; 0 spans the whole map.
        shift: Rows and columns by which the windows are shifted, cyclically; what the border tears apart is masked.
        bias: Added to the logits, ``[h, n, n]`` for the n tokens of a window.
        local_weight: Kernel ``[C, 1, 3, 3]`` of a depthwise convolution of v inside the window, which is added.
        local_bias: ``[C]``.
        backend: What computes it (:data:`linvit.ops.BACKENDS`).

    Returns:
        ``[B, H, W, C]``.
    """
    B, H, W, _, C = qkv.shape
    rows, down, shift_rows = _partition(H, window[0], shift[0])
    cols, across, shift_cols = _partition(W, window[1], shift[1])
    pad_rows, pad_cols = down * rows - H, across * cols - W
    qkv = qkv.flatten(3)  # no tensor has more than four axes from here: GPUs and NPUs of phones take no more
    padded = _may_differ(pad_rows, 0) or _may_differ(pad_cols, 0)
    shifted = _may_differ(shift_rows, 0) or _may_differ(shift_cols, 0)
    if padded:
        qkv = F.pad(qkv, (0, 0, 0, pad_cols, 0, pad_rows))
    if shifted:
        qkv = torch.roll(qkv, (-shift_rows, -shift_cols), (1, 2))
    num_windows, tokens = down * across, rows * cols

    # One copy brings q, k and v into windows; heads stay a view.
    qkv = _reshape(qkv, [B * down, rows, across, cols * 3 * C]).transpose(1, 2)
    q, k, v = _reshape(qkv, [B * num_windows, tokens, 3 * C]).chunk(3, dim=2)

    mask = bias
    if padded or shifted:
        size, length, count = [H, W], [rows, cols], [down, across]
        if shifted:
            allowed = _same_region(size, length, count, [shift_rows, shift_cols], qkv.device)  # [windows, n, n]
        else:
            allowed = _seen(size, length, count, qkv.device)  # [windows, 1, n]
        allowed = allowed.repeat(B, 1, 1).unsqueeze(1)
        if bias is None:
            mask = allowed
        else:
            mask = torch.where(allowed, bias, torch.full_like(bias[:1, :1, :1], float("-inf")))

    heads = [t.unflatten(2, (num_heads, C // num_heads)).transpose(1, 2) for t in (q, k, v)]
    x = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=mask)
    x = _reshape(x.transpose(1, 2), [B * num_windows, rows, cols, C])
    if local_weight is not None:
        v = _reshape(v, [B * num_windows, rows, cols, C]).permute(0, 3, 1, 2)
        x = x + F.conv2d(v, local_weight, local_bias, padding=1, groups=C).permute(0, 2, 3, 1)

    x = _reshape(x, [B * down, across, rows, cols * C]).transpose(1, 2)
    x = _reshape(x, [B, down * rows, across * cols, C])
    if shifted:
        x = torch.roll(x, (shift_rows, shift_cols), (1, 2))
    return _crop(x, H, W) if padded else x


def _partition(size: int, window: int, shift: int) -> tuple[int, int, int]:
    """Return of an axis the length of its windows, their number, and by how much they are shifted."""
    if window == 0:
        return size, 1, 0
    if not torch.jit.is_scripting():  # noqa: SIM102 -- TorchScript skips the block for this test alone
        if not is_number(size):
            return _partition_symbol(size, window, shift)
    return window, (size + window - 1) // window, shift if size > window else 0


@torch.jit.unused
def _partition_symbol(size: int, window: int, shift: int) -> tuple[int, int, int]:
    """Do the same for a size that is a symbol, by expressions in place of decisions.

    There are two windows at least, the second of nothing but padding where one would do: a graph for one window is
    another one than for many, as PyTorch treats an axis of length 1 in its own way.
    """
    count = torch.sym_max((size + window - 1) // window, 2)
    return window, count, shift * torch.sym_min(torch.sym_max(size - window, 0), 1)  # type: ignore[return-value]


def _may_differ(size: int, other: int) -> bool:
    """Tell whether a size differs from a number, or could as it is a symbol."""
    if not torch.jit.is_scripting():  # noqa: SIM102 -- TorchScript skips the block for this test alone
        if not is_number(size):
            return True
    return size != other


def _reshape(x: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """Reshape, by way of one axis where a size is a symbol: merging axes, PyTorch asks which of them divide others."""
    if not torch.jit.is_scripting():  # noqa: SIM102 -- TorchScript skips the block for this test alone
        if not all([is_number(size) for size in shape]):  # noqa: C419 -- no generators in graphs
            x = x.contiguous().flatten()
    return x.reshape(shape)


def _crop(x: torch.Tensor, H: int, W: int) -> torch.Tensor:
    """Return the first H rows and W columns of maps ``[B, H', W', C]``."""
    if not torch.jit.is_scripting():  # noqa: SIM102 -- TorchScript skips the block for this test alone
        if not (is_number(H) and is_number(W)):  # a slice asks whether a symbol lies within the axis
            x = x.index_select(1, torch.arange(H, device=x.device))
            return x.index_select(2, torch.arange(W, device=x.device))
    return x[:, :H, :W]


def _same_region(
    size: list[int], length: list[int], count: list[int], shift: list[int], device: torch.device
) -> torch.Tensor:
    """Return which tokens of a window may see each other: same side of the tear, both real or both padding.

    Padding sees padding so that no row of the softmax is empty.

    Args:
        size: Height and width of the map.
        length: Height and width of a window.
        count: Windows down and across.
        shift: Rows and columns by which they are shifted.
        device: Where the result lies.

    Returns:
        ``[windows, n, n]``, boolean.
    """
    regions = []
    for axis in range(2):
        padded = count[axis] * length[axis]
        index = (torch.arange(padded, device=device) + shift[axis]) % padded
        region = (index < shift[axis]).to(torch.long) + 2 * (index >= size[axis]).to(torch.long)
        regions.append(region.reshape(count[axis], length[axis]))
    joint = _combine(4 * regions[0], regions[1])
    return joint.unsqueeze(1) == joint.unsqueeze(2)


def _seen(size: list[int], length: list[int], count: list[int], device: torch.device) -> torch.Tensor:
    """Return which tokens the others of their window may see where nothing is shifted: real ones.

    Padding is seen where there is nothing but padding, so that no row of the softmax is empty.

    Args:
        size: Height and width of the map.
        length: Height and width of a window.
        count: Windows down and across.
        device: Where the result lies.

    Returns:
        ``[windows, 1, n]``, boolean.
    """
    hidden = []
    for axis in range(2):
        index = torch.arange(count[axis] * length[axis], device=device).reshape(count[axis], length[axis])
        hidden.append(((index >= size[axis]) & (index[:, :1] < size[axis])).to(torch.long))
    return (_combine(hidden[0], hidden[1]) == 0).unsqueeze(1)


def _combine(rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
    """Add numbers of rows ``[down, r]`` and columns ``[across, c]`` of windows to those of tokens, ``[windows, n]``."""
    down, across = rows.shape[0], cols.shape[0]
    window = torch.arange(down * across, device=rows.device)
    rows, cols = rows[torch.div(window, across, rounding_mode="floor")], cols[window % across]
    return _reshape(rows.unsqueeze(2) + cols.unsqueeze(1), [down * across, rows.shape[1] * cols.shape[1]])
