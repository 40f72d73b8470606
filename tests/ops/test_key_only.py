"""Key-only pooling against its formulas, in outputs and gradients, and at the edges of precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linvit.ops import (
    global_context,
    global_context_reference,
    key_saliency,
    key_saliency_reference,
    local_context,
    local_context_by_heads,
    local_context_reference,
    modulate,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(actual, expected, inputs) -> None:
    """Compare outputs and gradients in float64."""
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    target = random(*expected.shape, seed=9)
    for a, b in zip(*(torch.autograd.grad((y * target).sum(), inputs) for y in (actual, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


sizes = st.integers(min_value=1, max_value=7)


@settings(deadline=None, max_examples=25)
@given(tokens=sizes, heads=sizes, width=sizes)
def test_saliency_equals_the_formula_up_to_what_softmax_drops(tokens, heads, width):
    dim = heads * width
    x, weight, u = (
        random(*shape, seed=i).requires_grad_() for i, shape in enumerate([(2, tokens, dim), (dim, dim), (dim,)])
    )
    assert_same(key_saliency(x, weight, u, heads), key_saliency_reference(x, weight, None, u, heads), (x, weight, u))
    biased = key_saliency_reference(x, weight, random(dim, seed=5), u, heads)
    torch.testing.assert_close(biased.softmax(dim=1), key_saliency(x, weight, u, heads).softmax(dim=1))


@settings(deadline=None, max_examples=25)
@given(tokens=sizes, heads=sizes, width=sizes)
def test_global_context_equals_the_formula(tokens, heads, width):
    s, v = random(2, tokens, heads, seed=1).requires_grad_(), random(2, tokens, heads * width, seed=2).requires_grad_()
    assert_same(global_context(s, v), global_context_reference(s, v), (s, v))


@settings(deadline=None, max_examples=40)
@given(height=sizes, width=sizes, heads=st.integers(1, 3), kernel_size=st.sampled_from([1, 3, 5, 9]))
def test_local_context_equals_the_formula(height, width, heads, kernel_size):
    s = random(2, height * width, heads, seed=1).requires_grad_()
    v = random(2, height * width, heads * 2, seed=2).requires_grad_()
    expected = local_context_reference(s, v, [height, width], kernel_size)
    assert_same(local_context(s, v, [height, width], kernel_size), expected, (s, v))
    assert torch.equal(
        local_context_by_heads(s, v, [height, width], kernel_size), local_context(s, v, [height, width], kernel_size)
    )


def test_gradients_against_finite_differences():
    s, v = random(1, 6, 2, seed=1).requires_grad_(), random(1, 6, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(global_context, (s, v))
    assert torch.autograd.gradcheck(lambda s, v: local_context(s, v, [2, 3], 3), (s, v))


def test_values_by_hand():
    s, v = torch.tensor([[[0.0], [3.0]]]).log1p(), torch.tensor([[[10.0], [20.0]]])  # weights 1 and 4
    assert global_context(s, v).item() == pytest.approx(18.0)
    assert local_context(s, v, [1, 2], 1).flatten().tolist() == [10.0, 20.0]
    assert local_context(s, v, [1, 2], 3).flatten().tolist() == pytest.approx([18.0, 18.0])


def test_a_kernel_over_the_whole_map_makes_local_global():
    s, v = random(2, 20, 3, seed=1), random(2, 20, 6, seed=2)
    torch.testing.assert_close(local_context(s, v, [4, 5], 9), global_context(s, v).expand(-1, 20, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_saliencies_spread_over_twenty_thousand(dtype):
    """One maximum for the map would leave 0/0 in most neighbourhoods; each has to be as accurate as alone."""
    s = ((torch.rand(2, 13 * 17, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1) * 1e4).requires_grad_()
    v = random(2, 13 * 17, 4, seed=2).to(dtype).requires_grad_()
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-6}
    for output, expected in (
        (local_context(s, v, [13, 17], 3), local_context_reference(s.double(), v.double(), [13, 17], 3)),
        (global_context(s, v), s.double().softmax(dim=1).repeat_interleave(2, dim=2).mul(v).sum(dim=1, keepdim=True)),
    ):
        assert output.dtype == dtype
        torch.testing.assert_close(output.double(), expected, **tolerance)
        for gradient in torch.autograd.grad(output.float().square().sum(), (s, v)):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("magnitude", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_close_for_65536_tokens(dtype, magnitude):
    """The plain sum of weights would pass float16's largest number, and each weight vanish in it."""
    s = random(1, 65536, 2, seed=1).to(dtype) * magnitude
    v = ((random(1, 65536, 4, seed=2) + 1) * min(max(magnitude, 1.0), 1e3)).to(dtype)  # no subnormals
    scale = v.abs().max().item()
    c = global_context(s, v)
    assert c.dtype == dtype
    weights = s.double().softmax(dim=1).repeat_interleave(2, dim=2)
    expected = (weights * v.double()).sum(dim=1, keepdim=True)
    torch.testing.assert_close(c.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5 * scale)
    local = local_context(s, v, [256, 256], 3)
    assert local.dtype == dtype
    corner = [0, 1, 2, 256, 257, 258, 512, 513, 514]  # the 3 x 3 tokens around position (1, 1)
    expected = local_context(s[:, corner].double(), v[:, corner].double(), [3, 3], 3)[:, 4]
    torch.testing.assert_close(local[:, 257].double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5 * scale)
    assert local.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_lowers_nothing(dtype):
    x, weight, u = random(2, 30, 4).float(), random(4, 4, seed=1).float(), random(4, seed=2).float()
    s = key_saliency(x, weight, u, 2)
    c, local = global_context(s, x), local_context(s, x, [5, 6], 3)
    with torch.autocast("cpu", dtype):
        assert torch.equal(key_saliency(x, weight, u, 2), s)
        assert torch.equal(global_context(s, x), c)
        assert torch.equal(local_context(s, x, [5, 6], 3), local)


def test_modulation_saturates_in_float16_alone():
    v = torch.tensor([512.0, -512.0, 2.0])
    assert modulate(v.half(), v[:1].half()).tolist() == [65504.0, -65504.0, 1024.0]
    assert modulate(v, v[:1]).tolist() == [2.0**18, -(2.0**18), 1024.0]


def test_shapes_that_do_not_fit_are_named():
    s, v = random(1, 6, 2), random(1, 6, 4)
    with pytest.raises(ValueError, match=r"saliency \[1, 5, 2\] and v \[1, 6, 4\]"):
        global_context(s[:, 1:], v)
    with pytest.raises(ValueError, match=r"v \[1, 6, 3\]"):
        local_context(s, v[..., 1:], [2, 3], 3)
    with pytest.raises(ValueError, match="got 6 tokens for a grid of 2 x 2"):
        local_context(s, v, [2, 2], 3)
