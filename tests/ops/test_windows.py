"""Window attention on maps of any size against softmax over explicitly listed pairs of pixels."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from linvit.ops import window_attention


def sides(size: int, window: int, shift: int) -> list[tuple[tuple[int, bool], int]]:
    """For each row (or column): its window, with the side of the cyclic tear it lies on, and its place therein."""
    window = window or size
    shift = shift if size > window else 0
    padded = size + -size % window
    shifted = [(i - shift) % padded for i in range(size)]
    return [((s // window, i < shift), s % window) for i, s in enumerate(shifted)]


def reference(qkv, num_heads, window, shift, bias=None):
    """Attend over all pixels, with -inf for pairs that share no window."""
    B, H, W, _, C = qkv.shape
    pixels = list(itertools.product(sides(H, window[0], shift[0]), sides(W, window[1], shift[1])))
    cols = window[1] or W
    logits = torch.full((num_heads, H * W, H * W), -torch.inf, dtype=qkv.dtype)
    for i, ((row_i, y_i), (col_i, x_i)) in enumerate(pixels):
        for j, ((row_j, y_j), (col_j, x_j)) in enumerate(pixels):
            if (row_i, col_i) == (row_j, col_j):
                logits[:, i, j] = 0 if bias is None else bias[:, y_i * cols + x_i, y_j * cols + x_j]
    q, k, v = qkv.reshape(B, H * W, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + logits).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).reshape(B, H, W, C)


def a_map(height: int, width: int, channels: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, height, width, 3, channels, generator=generator, dtype=torch.float64)


SIZES = [(6, 6), (3, 3), (7, 5), (1, 1), (2, 10), (4, 3)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("biased", [False, True])
def test_square_windows(size, shift, biased):
    qkv = a_map(*size)
    bias = torch.randn(2, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) if biased else None
    args = (qkv, 2, [3, 3], [shift, shift])
    torch.testing.assert_close(window_attention(*args, bias), reference(*args, bias))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [[0, 3], [3, 0], [0, 0]])
def test_stripes(size, window):
    args = (a_map(*size), 2, window, [0, 0])
    torch.testing.assert_close(window_attention(*args), reference(*args))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [[0, 3], [3, 0], [0, 0]])
def test_local_convolution_stays_inside_its_stripe(size, window):
    qkv = a_map(*size)
    weight, bias = torch.randn(4, 1, 3, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    local = window_attention(qkv, 2, window, [0, 0], None, weight, bias) - window_attention(qkv, 2, window, [0, 0])
    v = qkv[:, :, :, 2].permute(0, 3, 1, 2)
    for rows in range(0, size[0], window[0] or size[0]):
        for cols in range(0, size[1], window[1] or size[1]):
            here = (slice(rows, rows + (window[0] or size[0])), slice(cols, cols + (window[1] or size[1])))
            expected = F.conv2d(v[:, :, *here], weight, bias, padding=1, groups=4).permute(0, 2, 3, 1)
            torch.testing.assert_close(local[:, *here], expected)


def test_padding_leaves_no_nan_in_gradients():
    qkv = a_map(7, 5).requires_grad_()
    window_attention(qkv, 2, [6, 6], [3, 3]).square().sum().backward()
    assert qkv.grad.isfinite().all()
