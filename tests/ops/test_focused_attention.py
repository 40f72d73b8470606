"""Focused linear attention for all heads at once against the formula with its N x M weights, to the edges of range."""

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linvit.ops import focused_linear_attention, focused_linear_attention_reference


def inputs(n: int = 11, m: int = 9, channels: int = 12, seed: int = 0) -> list[torch.Tensor]:
    """q, k, v and scale in float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, n, channels), (2, m, channels), (2, m, channels), (1, 1, channels)]
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    heads=st.sampled_from([1, 2, 3, 4]),
    power=st.sampled_from([1.0, 2.0, 3.0, 3.5, 5.0]),
    seed=st.integers(0, 100),
)
def test_equals_the_formula(n, m, heads, power, seed):
    q, k, v, scale = inputs(n, m, seed=seed)
    actual = focused_linear_attention(q, k, v, scale, heads, power)
    expected = focused_linear_attention_reference(q, k, v, scale, heads, power)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("power", [3.0, 4.0])
def test_gradients_equal_the_formula(power):
    tensors = [t.requires_grad_() for t in inputs()]
    target = torch.randn(2, 11, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for function in (focused_linear_attention, focused_linear_attention_reference):
        loss = (function(*tensors, 3, power) * target).sum()
        grads = torch.autograd.grad(loss, tensors)
        if function is focused_linear_attention:
            actual = grads
    for a, b in zip(actual, grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("magnitude", [1e-4, 1.0, 1e2])
def test_gradients_of_tokens_without_a_positive_feature(magnitude):
    """Their features are epsilons, whose powers are at the edge of float32."""
    tensors = [t * magnitude if i < 2 else t for i, t in enumerate(inputs())]
    tensors[0][:, :4], tensors[1][:, :4] = -tensors[0][:, :4].abs(), -tensors[1][:, :4].abs()
    target = torch.randn(2, 11, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    single = [t.float().requires_grad_() for t in tensors]
    double = [t.detach().double().requires_grad_() for t in single]
    actual = torch.autograd.grad((focused_linear_attention(*single, 3) * target.float()).sum(), single)
    expected = torch.autograd.grad((focused_linear_attention_reference(*double, 3) * target).sum(), double)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


def test_both_epsilons_count():
    """A query and keys that are negative throughout leave the epsilons alone: the result is known by hand."""
    q, k, v, scale = inputs()
    scale = torch.zeros_like(scale)
    gain = 1 / torch.nn.functional.softplus(scale[0, 0, 0])
    out = focused_linear_attention(-q.abs(), -k.abs(), v, scale, 1)
    product = 12 * (1e-6 * gain) ** 2  # of a query with any key
    expected = v.mean(dim=1, keepdim=True) * product / (product + 1e-6)
    torch.testing.assert_close(out, expected.expand_as(out), rtol=1e-9, atol=0)


@pytest.mark.parametrize("magnitude", [1e-4, 1.0, 1e2, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale_value", [-5.0, 0.0, 5.0])
def test_finite_and_close_at_every_magnitude(dtype, magnitude, scale_value):
    """With 65,536 keys; the plain power overflows float16 at 41, the plain sum of keys at 65,504."""
    q, k, v, scale = inputs(n=64, m=65536, channels=16)
    q, k, v = ((t * magnitude).clamp(-6e4, 6e4).to(dtype) for t in (q, k, v))
    q[0, 0] = k[0, 0] = -1  # nothing is left of them but epsilon
    q[0, 1] = 0
    scale = (scale + scale_value).to(dtype)
    out = focused_linear_attention(q, k, v, scale, 2)
    assert out.dtype == dtype
    assert out.isfinite().all()
    expected = focused_linear_attention_reference(*(t.double() for t in (q[:, :8], k, v, scale)), 2)
    bound = 8 * max(torch.finfo(dtype).eps, 1e-6) * v.double().abs().max()
    assert (out[:, :8].double() - expected).abs().max() < bound


@pytest.mark.parametrize("value", [1e30, 3e38])
def test_huge_float32_saturates(value):
    q, k, v, scale = (t.float() for t in inputs())
    assert focused_linear_attention(q * value, k * value, v, scale, 3).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_lower_the_precision(dtype):
    tensors = [t.float() for t in inputs()]
    expected = focused_linear_attention(*tensors, 3)
    with torch.autocast("cpu", dtype):
        assert torch.equal(focused_linear_attention(*tensors, 3), expected)


@pytest.mark.parametrize(("n", "m"), [(3000, 2999), (5, 3000), (3000, 5)])
def test_inference_in_chunks_equals_the_whole(n, m):
    """More tokens than one chunk takes, in float64 and with fewer of one side than of the other."""
    q, k, v, scale = inputs(n, m, channels=48)
    whole = focused_linear_attention(q.requires_grad_(), k, v, scale, 3).detach()
    with torch.no_grad():
        chunked = focused_linear_attention(q, k, v, scale, 3)
        half = focused_linear_attention(q.half(), k.half(), v.half(), scale.half(), 3)
    assert half.dtype == torch.float16
    torch.testing.assert_close(chunked, whole, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(half.double(), whole, rtol=0, atol=0.02)


def test_positions_are_added_to_the_keys():
    q, k, v, scale = inputs()
    positions = torch.randn(1, 9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = focused_linear_attention(q, k + positions, v, scale, 3)
    for backend in ("torch", "reference"):
        actual = focused_linear_attention(q, k, v, scale, 3, positions=positions, backend=backend)
        torch.testing.assert_close(actual, expected)


def test_the_gradient_by_hand_is_that_of_the_formula_twice_and_forwards():
    tensors = tuple(t.requires_grad_() for t in inputs(3, 4, channels=4))

    def attend(*tensors):
        return focused_linear_attention(*tensors, 2)

    assert torch.autograd.gradcheck(attend, tensors, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(attend, tensors)


def test_functorch_goes_through():
    q, k, v, scale = inputs(3, 4, channels=4)

    def loss(q, k, v):
        return focused_linear_attention(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), scale, 2).square().sum()

    batched = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(q, k, v)
    for i in range(2):
        for a, b in zip(batched, torch.func.grad(loss, argnums=(0, 1, 2))(q[i], k[i], v[i]), strict=True):
            torch.testing.assert_close(a[i], b)
    _, tangent = torch.func.jvp(lambda q: loss(q, k[0], v[0]), (q[0],), (torch.ones_like(q[0]),))
    torch.testing.assert_close(tangent, torch.func.grad(loss)(q[0], k[0], v[0]).sum())


def test_tracing_with_gradients_on():
    """The trace holds the formula, so it can be checked, saved and differentiated."""
    tensors = [t.float().requires_grad_() for t in inputs()]
    traced = torch.jit.trace(lambda *t: focused_linear_attention(*t, 3), tuple(tensors))
    saved = io.BytesIO()
    torch.jit.save(traced, saved)
    saved.seek(0)
    torch.testing.assert_close(torch.jit.load(saved)(*tensors), focused_linear_attention(*tensors, 3))
    for a, b in zip(
        torch.autograd.grad(traced(*tensors).sum(), tensors),
        torch.autograd.grad(focused_linear_attention(*tensors, 3).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("grad", [True, False])
def test_sizes_leave_no_condition_in_an_export(grad):
    class Attend(torch.nn.Module):
        def forward(self, q, k, v, scale):
            return focused_linear_attention(q, k, v, scale, 3)

    tensors = tuple(t.float() for t in inputs(3000, 3000))
    batch, tokens = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("tokens", min=2, max=2**16)
    shapes = {"q": {0: batch, 1: tokens}, "k": {0: batch, 1: tokens}, "v": {0: batch, 1: tokens}, "scale": None}
    with torch.set_grad_enabled(grad):
        program = torch.export.export(Attend(), tensors, dynamic_shapes=shapes, strict=True)
    small = tuple(t.float() for t in inputs(7, 7))
    torch.testing.assert_close(program.module()(*small), focused_linear_attention(*small, 3))


def test_an_empty_batch_is_an_empty_result():
    q, k, v, scale = inputs()
    with torch.no_grad():
        assert focused_linear_attention(q[:0], k[:0], v[:0], scale, 3).shape == (0, 11, 12)
