"""The Triton kernels compiled, on a GPU: every type, up to 65,536 tokens, any head size and layout. ``-m gpu``."""

import pytest
import torch

from linvit import ops
from tests.ops.kernel_cases import compare_focused, compare_linear, compare_pools, random

pytestmark = pytest.mark.gpu
every_type = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
every_length = pytest.mark.parametrize("tokens", [1, 7, 49, 196, 1000, 3136, 16384, 65536])


def exact_linear(q, k, v, eps, feature_map):
    return ops.linear_attention(q, k, v, eps, feature_map, "torch")


def exact_focused(*args, **kwargs):
    return ops.focused_linear_attention(*args, **kwargs, backend="torch")


@every_type
@every_length
@pytest.mark.parametrize("feature_map", [None, "elu1", "relu"])
def test_linear_attention(dtype, tokens, feature_map):
    compare_linear(dtype, feature_map, "projection", tokens, tokens, 32, 32, 2, 3, "cuda", exact_linear)


@every_type
@pytest.mark.parametrize("layout", ["contiguous", "projection", "channels first", "gaps"])
@pytest.mark.parametrize(("d", "e"), [(8, 8), (20, 24), (64, 64), (100, 72), (128, 128)])
def test_head_sizes_and_layouts(dtype, layout, d, e):
    compare_linear(dtype, "elu1", layout, 333, 777, d, e, 2, 3, "cuda", exact_linear)


@every_type
@every_length
@pytest.mark.parametrize("power", [3.0, 4.0])
def test_focused_attention(dtype, tokens, power):
    compare_focused(dtype, power, tokens, tokens, 3, 32, 2, True, "cuda", exact_focused)


@every_type
@pytest.mark.parametrize(("heads", "d"), [(1, 8), (5, 64), (12, 64), (3, 100), (2, 128)])
def test_focused_head_sizes(dtype, heads, d):
    compare_focused(dtype, 3.0, 333, 777, heads, d, 2, False, "cuda", exact_focused)


@every_type
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (56, 56), (256, 256)])
def test_pools(dtype, size):
    compare_pools(dtype, *size, 3, 21, 3, 2, "cuda")


def test_more_images_than_an_axis_of_a_grid_has():
    compare_linear(torch.float32, "elu1", "contiguous", 3, 5, 8, 8, 70_000, 1, "cuda", exact_linear)
    compare_focused(torch.float32, 3.0, 3, 5, 1, 8, 70_000, False, "cuda", exact_focused)
    compare_pools(torch.float32, 2, 2, 1, 8, 3, 70_000, "cuda")


def test_auto_is_the_kernels():
    q, k, v = (random(1, 2, 300, 32, dtype=torch.bfloat16, device="cuda", seed=i) for i in range(3))
    assert torch.equal(
        ops.linear_attention(q, k, v, 1e-6, "elu1"), ops.linear_attention(q, k, v, 1e-6, "elu1", "triton")
    )


def test_compiled_for_any_length():
    """In one graph by inductor; another length compiles no kernel again."""
    from linvit.ops.linear import kernels

    attend = torch.compile(
        lambda q, k, v: ops.linear_attention(q, k, v, 1e-6, "elu1") * 2, fullgraph=True, dynamic=True
    )
    for tokens in (300, 301, 1024):
        q, k, v = (random(1, 2, tokens, 32, dtype=torch.bfloat16, device="cuda", seed=i) for i in range(3))
        torch.testing.assert_close(attend(q, k, v), ops.linear_attention(q, k, v, 1e-6, "elu1") * 2)
        binaries = sum(len(cache[0]) for cache in kernels.look_up.device_caches.values())
        if tokens == 300:
            first = binaries
    assert binaries == first
