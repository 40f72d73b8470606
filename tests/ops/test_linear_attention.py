"""linear_attention against its explicit N x M form, its symmetries, and its behaviour at the edges of precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linvit.ops import linear_attention, linear_attention_reference


def features(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    """Non-negative random features."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def qkv(n: int = 7, m: int = 9, d: int = 4, e: int = 5, **kwargs) -> tuple[torch.Tensor, ...]:
    v = features(2, 3, m, e, seed=3, **kwargs) - 0.5
    return features(2, 3, n, d, seed=1, **kwargs), features(2, 3, m, d, seed=2, **kwargs), v


sizes = st.integers(min_value=1, max_value=12)


@settings(deadline=None, max_examples=50)
@given(n=sizes, m=sizes, d=sizes, e=sizes, eps=st.sampled_from([1e-6, 1e-3, 1.0]))
def test_equals_the_explicit_form(n, m, d, e, eps):
    q, k, v = qkv(n, m, d, e)
    actual, expected = linear_attention(q, k, v, eps), linear_attention_reference(q, k, v, eps)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


def test_value_by_hand():
    q, k, v = torch.tensor([[[[2.0]]]]), torch.tensor([[[[1.0], [3.0]]]]), torch.tensor([[[[4.0], [8.0]]]])
    # numerator 2 * (1 * 4 + 3 * 8) / 2 = 28, normaliser 2 * (1 + 3) / 2 = 4, plus eps 3
    assert linear_attention(q, k, v, eps=3.0).item() == pytest.approx(4.0)


def test_gradients():
    inputs = tuple(t.requires_grad_() for t in qkv(4, 5, 2, 3))
    assert torch.autograd.gradcheck(linear_attention, inputs)


def test_gradients_equal_the_explicit_form():
    inputs = tuple(t.requires_grad_() for t in qkv(30, 20))
    target = features(2, 3, 30, 5, seed=4)
    actual = torch.autograd.grad((linear_attention(*inputs) * target).sum(), inputs)
    expected = torch.autograd.grad((linear_attention_reference(*inputs) * target).sum(), inputs)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.randoms(use_true_random=False))
def test_order_of_keys_does_not_matter_and_queries_keep_theirs(random):
    q, k, v = qkv()
    out = linear_attention(q, k, v)
    keys, queries = list(range(k.shape[2])), list(range(q.shape[2]))
    random.shuffle(keys)
    random.shuffle(queries)
    torch.testing.assert_close(linear_attention(q, k[:, :, keys], v[:, :, keys]), out)
    torch.testing.assert_close(linear_attention(q[:, :, queries], k, v), out[:, :, queries])


def test_repeated_tokens_change_nothing():
    q, k, v = qkv()
    twice = linear_attention(q, torch.cat((k, k), dim=2), torch.cat((v, v), dim=2))
    torch.testing.assert_close(twice, linear_attention(q, k, v))


@pytest.mark.parametrize("magnitude", [1e-4, 1.0, 1e2, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_close(dtype, magnitude):
    """65,536 tokens: the plain sum of keys alone would pass float16's largest number, 65,504."""
    q, k, v = (t.to(dtype) * magnitude for t in qkv(n=64, m=65536, d=16, e=16))
    out = linear_attention(q, k, v)
    assert out.dtype == dtype
    assert out.isfinite().all()
    expected = linear_attention_reference(q.double(), k.double(), v.double())
    # Only the rounding of the result is left: half a unit in the last place of the largest value.
    torch.testing.assert_close(out.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-3 * v.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_lower_the_accumulation(dtype):
    q, k, v = qkv(n=16, m=4096, dtype=torch.float32)
    expected = linear_attention(q, k, v)
    with torch.autocast("cpu", dtype):
        assert torch.equal(linear_attention(q, k, v), expected)


def test_extreme_magnitudes_in_float32():
    q, k, v = qkv(dtype=torch.float32)
    for scale_q, scale_k, scale_v in [(1e10, 1e10, 1e10), (1e-30, 1e-30, 1.0), (0.0, 1.0, 1.0), (1.0, 0.0, 1e30)]:
        assert linear_attention(q * scale_q, k * scale_k, v * scale_v).isfinite().all()
    assert (linear_attention(q * 0, k, v) == 0).all()


def test_float64_stays_float64():
    assert linear_attention(*qkv()).dtype == torch.float64


def test_shapes_that_do_not_fit_are_named():
    q, k, v = qkv()
    with pytest.raises(ValueError, match=r"q \[2, 3, 7, 3\]"):
        linear_attention(q[..., :3], k, v)
    with pytest.raises(ValueError, match=r"v \[2, 3, 8, 5\]"):
        linear_attention(q, k, v[:, :, 1:])
    with pytest.raises(ValueError, match=r"q \[2, 3, 7\]"):
        linear_attention(q[..., 0], k, v)
