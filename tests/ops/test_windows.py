"""Window attention on maps of any size against softmax over all pairs of pixels."""

import pytest
import torch
import torch.nn.functional as F

from linvit.ops import window_attention, window_attention_reference


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
    torch.testing.assert_close(window_attention(*args, bias), window_attention_reference(*args, bias))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [[0, 3], [3, 0], [0, 0]])
def test_stripes(size, window):
    args = (a_map(*size), 2, window, [0, 0])
    torch.testing.assert_close(window_attention(*args), window_attention_reference(*args))


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
    args = (qkv, 2, window, [0, 0], None, weight, bias)
    torch.testing.assert_close(window_attention(*args), window_attention_reference(*args))


def test_padding_leaves_no_nan_in_gradients():
    qkv = a_map(7, 5).requires_grad_()
    window_attention(qkv, 2, [6, 6], [3, 3]).square().sum().backward()
    assert qkv.grad.isfinite().all()


class Windows(torch.nn.Module):
    """``window_attention`` with windows of 3 pixels and a position bias, or stripes with a convolution inside."""

    def __init__(self, window: list[int], shift: int):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.window, self.shift = window, [shift, shift]
        self.bias, self.kernel = None, None
        if 0 in window:
            self.kernel = torch.randn(4, 1, 3, 3, dtype=torch.float64, generator=generator)
        else:
            self.bias = torch.randn(2, 9, 9, dtype=torch.float64, generator=generator)

    def forward(self, qkv: torch.Tensor) -> torch.Tensor:
        return window_attention(qkv, 2, self.window, self.shift, self.bias, self.kernel)


@pytest.mark.parametrize(("window", "shift"), [([3, 3], 1), ([3, 3], 0), ([0, 3], 0), ([3, 0], 0)])
def test_one_exported_graph_for_all_sizes(window, shift):
    """No decision by size becomes a condition of the graph: one window or many, padded or not, shifted or not."""
    model = Windows(window, shift)
    sizes = {0: torch.export.Dim("B", min=1, max=8)} | {i: torch.export.Dim(f"side{i}", min=2, max=64) for i in (1, 2)}
    exported = torch.export.export(model, (a_map(5, 7),), dynamic_shapes=(sizes,), strict=True).module()
    for size in [*SIZES, (64, 9)]:
        if min(size) > 1:
            qkv = a_map(*size)
            torch.testing.assert_close(exported(qkv), model(qkv))
            torch.testing.assert_close(exported(qkv[:1]), model(qkv[:1]))
