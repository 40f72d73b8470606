"""Softmax attention in windows through PyTorch's fused kernel."""

import torch
import torch.nn.functional as F
from torch.fx.experimental.symbolic_shapes import has_static_value

from linvit.ops.dispatch import operator
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
    qkv = qkv.reshape(B * down, rows, across, cols * 3 * C).transpose(1, 2)
    q, k, v = qkv.reshape(B * num_windows, tokens, 3 * C).chunk(3, dim=2)

    mask = bias
    if padded or shifted:
        partition = [rows, cols], [down, across], [shift_rows, shift_cols]
        allowed = _same_region([H, W], partition[0], partition[1], partition[2], qkv.device)  # [windows, n, n]
        allowed = allowed.repeat(B, 1, 1).unsqueeze(1)
        if bias is None:
            mask = allowed
        else:
            mask = torch.where(allowed, bias, torch.full_like(bias[:1, :1, :1], float("-inf")))

    heads = [t.reshape(B * num_windows, tokens, num_heads, C // num_heads).transpose(1, 2) for t in (q, k, v)]
    x = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=mask)
    x = x.transpose(1, 2).reshape(B * num_windows, rows, cols, C)
    if local_weight is not None:
        v = v.reshape(B * num_windows, rows, cols, C).permute(0, 3, 1, 2)
        x = x + F.conv2d(v, local_weight, local_bias, padding=1, groups=C).permute(0, 2, 3, 1)

    x = x.reshape(B * down, across, rows, cols * C).transpose(1, 2).reshape(B, down * rows, across * cols, C)
    if shifted:
        x = torch.roll(x, (shift_rows, shift_cols), (1, 2))
    return _crop(x, H, W) if padded else x


def _partition(size: int, window: int, shift: int) -> tuple[int, int, int]:
    """Return of an axis the length of its windows, their number, and by how much they are shifted."""
    if window == 0:
        return size, 1, 0
    if not torch.jit.is_scripting():  # noqa: SIM102 -- TorchScript skips the block for this test alone
        if not _is_number(size):
            return _partition_symbol(size, window, shift)
    return window, (size + window - 1) // window, shift if size > window else 0


@torch.jit.unused
def _partition_symbol(size: int, window: int, shift: int) -> tuple[int, int, int]:
    """Do the same for a size that is a symbol, by expressions in place of decisions.

    There are two windows at least, the second of nothing but padding where one would do: a graph for one window is
    another one than for many, as PyTorch treats an axis of length 1 in its own way.
    """
    count = torch.sym_max((size + window - 1) // window, 2)
    return window, count, shift * torch.sym_min(torch.sym_max(size - window, 0), 1)


@torch.jit.unused
def _is_number(size: int) -> bool:
    """Tell a number from a symbol: the size of an export, or of a compiled graph, for any size."""
    return bool(has_static_value(size))


def _may_differ(size: int, other: int) -> bool:
    """Tell whether a size differs from a number, or could as it is a symbol."""
    if not torch.jit.is_scripting():  # noqa: SIM102 -- TorchScript skips the block for this test alone
        if not _is_number(size):
            return True
    return size != other


def _crop(x: torch.Tensor, H: int, W: int) -> torch.Tensor:
    """Return the first H rows and W columns of maps ``[B, H', W', C]``."""
    if not torch.jit.is_scripting():  # noqa: SIM102 -- TorchScript skips the block for this test alone
        if not (_is_number(H) and _is_number(W)):  # a slice asks whether a symbol lies within the axis
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
    window = torch.arange(count[0] * count[1], device=device)
    rows, cols = regions[0][torch.div(window, count[1], rounding_mode="floor")], regions[1][window % count[1]]
    joint = (4 * rows.unsqueeze(2) + cols.unsqueeze(1)).flatten(1)
    return joint.unsqueeze(1) == joint.unsqueeze(2)
