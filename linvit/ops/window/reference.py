"""Softmax attention in windows over all pairs of pixels of the map, masked where they share no window."""

import torch

__all__ = ["window_attention_reference"]


def window_attention_reference(
    qkv: torch.Tensor,
    num_heads: int,
    window: list[int],
    shift: list[int],
    bias: torch.Tensor | None = None,
    local_weight: torch.Tensor | None = None,
    local_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend with ``H W x H W`` logits, minus infinity where two pixels share no window; for tests and for reading."""
    B, H, W, _, C = qkv.shape
    window_rows, window_cols = window[0] or H, window[1] or W
    down, row, below = (t.repeat_interleave(W).to(qkv.device) for t in _places(H, window_rows, shift[0]))
    across, col, right = (t.repeat(H).to(qkv.device) for t in _places(W, window_cols, shift[1]))
    together = (down[:, None] == down) & (across[:, None] == across)  # [N, N]
    visible = together & (below[:, None] == below) & (right[:, None] == right)

    q, k, v = qkv.reshape(B, H * W, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if bias is not None:
        place = row * window_cols + col
        logits = logits + bias[..., place[:, None], place]
    x = logits.masked_fill(~visible, -torch.inf).softmax(dim=-1) @ v
    x = x.transpose(1, 2).flatten(2)

    if local_weight is not None:  # a depthwise 3x3 convolution that sees its window alone
        dy, dx = row - row[:, None], col - col[:, None]
        near = together & (dy.abs() <= 1) & (dx.abs() <= 1)
        kernel = local_weight[:, 0, dy.clamp(-1, 1) + 1, dx.clamp(-1, 1) + 1] * near  # [C, N, N]
        x = x + torch.einsum("cij,bjc->bic", kernel, qkv[:, :, :, 2].flatten(1, 2))
        if local_bias is not None:
            x = x + local_bias
    return x.reshape(B, H, W, C)


def _places(size: int, length: int, shift: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return of each row (or column) its window, its place in it, and the edge of the cyclic tear it lies at."""
    index = torch.arange(size)
    if size <= length:
        shift = 0
    shifted = (index - shift) % (size + -size % length)
    return shifted // length, shifted % length, index < shift
