"""Softmax attention in windows through PyTorch's fused kernel."""

import torch
import torch.nn.functional as F

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
    rows = window[0] if window[0] > 0 else H
    cols = window[1] if window[1] > 0 else W
    shift_rows = shift[0] if rows < H else 0
    shift_cols = shift[1] if cols < W else 0
    pad_rows, pad_cols = -H % rows, -W % cols
    qkv = qkv.flatten(3)  # no tensor has more than four axes from here: GPUs and NPUs of phones take no more
    padded = pad_rows > 0 or pad_cols > 0
    shifted = shift_rows > 0 or shift_cols > 0
    if padded:
        qkv = F.pad(qkv, (0, 0, 0, pad_cols, 0, pad_rows))
    if shifted:
        qkv = torch.roll(qkv, (-shift_rows, -shift_cols), (1, 2))
    down, across = (H + pad_rows) // rows, (W + pad_cols) // cols
    num_windows, tokens = down * across, rows * cols

    # One copy brings q, k and v into windows; heads stay a view.
    qkv = qkv.reshape(B * down, rows, across, cols * 3 * C).transpose(1, 2)
    q, k, v = qkv.reshape(B * num_windows, tokens, 3 * C).chunk(3, dim=2)

    mask = bias
    if padded or shifted:
        allowed = _same_region(H, W, [rows, cols], [shift_rows, shift_cols], qkv.device)  # [windows, n, n]
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

    x = x.reshape(B * down, across, rows, cols * C).transpose(1, 2).reshape(B, H + pad_rows, W + pad_cols, C)
    if shifted:
        x = torch.roll(x, (shift_rows, shift_cols), (1, 2))
    return x[:, :H, :W] if padded else x


def _same_region(H: int, W: int, window: list[int], shift: list[int], device: torch.device) -> torch.Tensor:
    """Return which tokens of a window may see each other: same side of the tear, both real or both padding.

    Padding sees padding so that no row of the softmax is empty.

    Returns:
        ``[windows, n, n]``, boolean.
    """
    regions = []
    for size, length, offset in ((H, window[0], shift[0]), (W, window[1], shift[1])):
        index = torch.arange(size + -size % length, device=device)
        region = (index < offset).to(torch.long) + 2 * (index >= size).to(torch.long)
        regions.append(torch.roll(region, -offset, 0).reshape(-1, length))
    joint = 4 * regions[0][:, None, :, None] + regions[1][None, :, None, :]  # [down, across, rows, cols]
    joint = joint.flatten(2).flatten(0, 1)
    return joint.unsqueeze(1) == joint.unsqueeze(2)
