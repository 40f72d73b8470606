"""Feature maps: their values, and the focused map where the plain power would overflow."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linvit.ops import elu_plus_one, focus, focus_reference, relu


def test_elu_plus_one():
    x = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(elu_plus_one(x), torch.tensor([-2.0, 0.0, 0.0], dtype=torch.float64).exp() + x.relu())


def test_relu():
    assert relu(torch.tensor([-1.0, 0.0, 2.0])).tolist() == [0.0, 0.0, 2.0]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=8), st.sampled_from([1.0, 2.0, 3.0, 4.5]))
def test_focused_equals_the_formula_and_keeps_the_norm(values, power):
    x = torch.tensor(values, dtype=torch.float64)
    y = focus(x, power)
    torch.testing.assert_close(y, focus_reference(x, power), rtol=1e-9, atol=0)
    torch.testing.assert_close(y.norm(), x.norm())
    assert y.argmax() == x.argmax() or x[y.argmax()] == x.max()


def test_focused_sharpens():
    assert focus(torch.tensor([1.0, 2.0])).tolist() == pytest.approx([5**0.5 / 65**0.5, 8 * 5**0.5 / 65**0.5])


def test_focused_gradients():
    x = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1e-3
    assert torch.autograd.gradcheck(focus, x.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("magnitude", [1e-6, 1e-3, 1.0, 50.0, 1e4])
def test_focused_in_half_precision(dtype, magnitude):
    """The plain power overflows float16 at 41 and vanishes below 0.004."""
    x = (torch.rand(64, 32, generator=torch.Generator().manual_seed(0)) * magnitude).to(dtype)
    y = focus(x)
    assert y.isfinite().all()
    expected = focus_reference(x.double().clamp(min=1e-300))
    torch.testing.assert_close(
        y.double(), expected, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).smallest_normal
    )


def test_focused_keeps_zero():
    assert (focus(torch.zeros(2, 4)) == 0).all()
