"""The Triton kernels at the edges: what does not fit, no tokens, NaN and infinity, epsilon 0, some gradients alone.

In Triton's interpreter; on a machine with a GPU they run there, with ``-m gpu``.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

launch = pytest.importorskip("linvit.ops.launch", reason="Triton is for Linux alone")

from linvit import ops
from tests.ops.kernel_cases import compare_linear, random

DEVICE, pytestmark = ("cpu", []) if launch.INTERPRETED else ("cuda", [pytest.mark.gpu])
BOTH = pytest.mark.parametrize("backend", ["torch", "triton"])


def heads(tokens: int = 20) -> list[torch.Tensor]:
    """Features, which are positive, and values."""
    q, k, v = (random(1, 2, tokens, 8, dtype=torch.float32, device=DEVICE, seed=i) for i in range(3))
    return [q.abs(), k.abs(), v]


def tokens() -> list[torch.Tensor]:
    qkv = [random(2, 20, 16, dtype=torch.float32, device=DEVICE, seed=i) for i in range(3)]
    return [*qkv, torch.zeros(16, device=DEVICE)]


@BOTH
@pytest.mark.parametrize(
    ("name", "shapes", "settings", "message"),
    [
        ("linear_attention", [(1, 2, 9, 8), (1, 2, 5, 8), (1, 2, 9, 8)], {}, r"k \[1, 2, 5, 8\] and v \[1, 2, 9, 8\]"),
        ("linear_attention", [(2, 2, 9, 8), (1, 2, 9, 8), (1, 2, 9, 8)], {}, r"got q \[2, 2, 9, 8\]"),
        ("linear_attention", [(1, 2, 9, 8)] * 3, {"feature_map": "exp"}, "must be None, 'elu1' or 'relu', got 'exp'"),
        ("focused_linear_attention", [(1, 9, 8)] * 3 + [(4,)], {"num_heads": 2}, r"scale \[4\]"),
        ("focused_linear_attention", [(1, 9, 8), (1, 9, 8), (1, 5, 8), (8,)], {"num_heads": 2}, r"v \[1, 5, 8\]"),
        ("focused_linear_attention", [(1, 9, 8)] * 3 + [(8,)], {"num_heads": 3}, "divide the 8 channels, got 3"),
        ("global_context", [(1, 5, 2), (1, 9, 8)], {}, r"saliency \[1, 5, 2\] and v \[1, 9, 8\]"),
        ("local_context", [(1, 9, 2), (1, 9, 8)], {"grid_size": [3, 4], "kernel_size": 3}, "for a grid of 3 x 4"),
        ("local_context", [(1, 9, 2), (1, 9, 8)], {"grid_size": [3, 3], "kernel_size": 2}, "must be odd, got 2"),
    ],
)
def test_what_does_not_fit_is_named_before_memory_is_read(name, shapes, settings, message, backend):
    tensors = [torch.rand(shape, device=DEVICE) for shape in shapes]
    with pytest.raises(ValueError, match=message):
        getattr(ops, name)(*tensors, **settings, backend=backend)


@pytest.mark.parametrize("shape", [(2, 20, 16), (20, 16), (1, 1, 16)])
def test_positions_are_broadcast_as_pytorch_does(shape):
    q, k, v, scale = tokens()
    positions = torch.randn(shape, device=DEVICE, requires_grad=True)
    results = []
    for backend in ("torch", "triton"):
        out = ops.focused_linear_attention(q, k, v, scale, 2, positions=positions, backend=backend)
        results.append((out, *torch.autograd.grad(out.square().sum(), positions)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@BOTH
def test_no_keys_are_zeros(backend):
    q, k, v = heads()
    assert not ops.linear_attention(q, k[:, :, :0], v[:, :, :0], backend=backend).any()
    q, k, v, scale = tokens()
    assert not ops.focused_linear_attention(q, k[:, :0], v[:, :0], scale, 2, backend=backend).any()


@BOTH
@pytest.mark.parametrize("feature_map", ["elu1", "relu"])
def test_a_nan_is_not_hidden(feature_map, backend):
    """What is not a number in one query spoils its row; in one key, all rows of its head."""
    q, k, v = heads()
    q[0, 0, 3, 2] = torch.nan
    out = ops.linear_attention(q, k, v, 1e-6, feature_map, backend)
    assert out[0, 0, 3].isnan().all()
    assert out.isnan().sum() == 8
    out = ops.linear_attention(k, q, v, 1e-6, feature_map, backend)
    assert out[0, 0].isnan().all()
    assert out.isnan().sum() == 20 * 8


@BOTH
def test_a_nan_is_not_hidden_in_focused_features(backend):
    q, k, v, scale = tokens()
    q[0, 3, 2] = torch.nan
    out = ops.focused_linear_attention(q, k, v, scale, 2, backend=backend)
    assert out[0, 3].isnan().all()
    assert out.isnan().sum() == 16


@BOTH
def test_tokens_of_saliency_minus_infinity_have_no_weight(backend):
    """As many as to fill whole tiles and shares of a program."""
    s, v = (random(1, 300, width, dtype=torch.float32, device=DEVICE, seed=width) for width in (2, 8))
    s[:, :200] = -torch.inf
    v.requires_grad_()
    out = ops.global_context(s, v, backend)
    torch.testing.assert_close(out, ops.global_context(s[:, 200:], v[:, 200:]))
    gradient = torch.autograd.grad(out.sum(), v)[0]
    assert gradient.isfinite().all()
    assert not gradient[:, :200].any()


def test_epsilon_may_be_zero():
    """The last tile is not full: what a normaliser of 0 gives beyond the last token must not be summed up."""
    inputs = [x.requires_grad_() for x in heads(37)]
    results = []
    for backend in ("torch", "triton"):
        out = ops.linear_attention(*inputs, 0.0, "elu1", backend)
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)


@BOTH
def test_sums_of_products_that_fit_do_not_overflow(backend):
    q, k, v = (torch.full((1, 1, n, 8), x, device=DEVICE) for n, x in ((1, 1.0), (1000, 1e19), (1000, 1e18)))
    torch.testing.assert_close(ops.linear_attention(q, k, v, backend=backend), v[:, :, :1], rtol=1e-4, atol=0)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_one_gradient_alone(wanted):
    inputs = heads()
    inputs[wanted].requires_grad_()
    actual, expected = (
        torch.autograd.grad(ops.linear_attention(*inputs, 1e-6, "elu1", backend).square().sum(), inputs[wanted])
        for backend in ("triton", "torch")
    )
    torch.testing.assert_close(actual, expected)


def test_one_token_expanded_to_many():
    """A stride of 0, in inputs and in the gradient of a sum."""
    q, k, v = heads()
    results = []
    for backend in ("triton", "torch"):
        one = v[:, :, :1].clone().requires_grad_()
        out = ops.linear_attention(q, k, one.expand(-1, -1, 20, -1), 1e-6, "elu1", backend)
        results.append((out, *torch.autograd.grad(out.sum(), one)))
    torch.testing.assert_close(*results)


def test_a_second_derivative_is_refused_in_one_line():
    q, k, v = heads()
    q.requires_grad_()
    out = ops.linear_attention(q, k, v, 1e-6, "elu1", "triton")
    (gradient,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once; backend='torch' can be so any number of times"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", ["linear_attention", "focused_linear_attention"])
def test_products_are_counted_as_of_pytorch(name):
    inputs = heads() if name == "linear_attention" else tokens()
    settings = {} if name == "linear_attention" else {"num_heads": 2}
    inputs = [x.requires_grad_() for x in inputs]
    counts = []
    for backend in ("torch", "triton"):
        with FlopCounterMode(display=False) as counter:
            getattr(ops, name)(*inputs, **settings, backend=backend).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_more_images_than_an_axis_of_a_grid_has(monkeypatch):
    """Only the first axis may be longer than 65,535, and images are on it."""
    grids = []

    def note(kernel, grid, device, **arguments):
        grids.append(grid)

    from linvit.ops.focused import fused as focused
    from linvit.ops.key_only import fused as key_only
    from linvit.ops.linear import fused as linear

    for module in (linear, focused, key_only):
        monkeypatch.setattr(module, "launch", note)
    many = 70_000
    q = torch.zeros(many, 1, 1, 8, device=DEVICE).requires_grad_()
    ops.linear_attention(q, q, q, backend="triton").sum().backward()
    x = torch.zeros(many, 1, 8, device=DEVICE).requires_grad_()
    ops.focused_linear_attention(x, x, x, torch.zeros(8, device=DEVICE), 1, backend="triton").sum().backward()
    ops.global_context(x[..., :1], x, "triton").sum().backward()
    ops.local_context(x[..., :1], x, [1, 1], 1, "triton").sum().backward()
    assert len(grids) == 4 + 8 + 3 + 3
    assert all(grid[0] == many and max(grid[1:]) < 10 for grid in grids)
    with pytest.raises(ValueError, match="pool takes at most 65535 heads"):
        launch.launch(key_only.kernels.pool, (1, 1, many), torch.device(DEVICE))


@pytest.mark.parametrize(("d", "e"), [(8, 8), (128, 128)])
def test_one_query_of_the_smallest_and_largest_heads(d, e):
    compare_linear(torch.float16, "elu1", "contiguous", 1, 2, d, e, device=DEVICE)
