"""What every operator gets from the dispatcher: symbolic tracing, no autocast inside, a choice of backend."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from linvit import ops
from linvit.attention import (
    INTERACTIONS,
    CareTokenMixer,
    FocusedLinearAttention,
    KeyOnlyAttention,
    LinearAttention,
    SoftmaxAttention,
    StripeAttention,
    WindowAttention,
)

# How each operator is called with tensors. One that is missing here fails the first test.
heads = tuple(torch.rand(2, 3, 6, 4) for _ in range(3))
tokens = tuple(torch.randn(2, 6, 12) for _ in range(3))
CALLS = {
    "attend": heads,
    "attend_columns": heads,
    "elu_plus_one": tokens[:1],
    "focus": (tokens[0].abs(),),
    "focus_folded": (tokens[0], torch.full((12,), 1e-6), 3.0),
    "focused_linear_attention": (*tokens, torch.zeros(1, 1, 12), 3),
    "global_context": (torch.randn(2, 6, 3), tokens[0]),
    "key_saliency": (tokens[0], torch.randn(12, 12), torch.randn(12), 3),
    "linear_attention": heads,
    "local_context": (torch.randn(2, 6, 3), tokens[0], [2, 3], 3),
    "local_context_by_heads": (torch.randn(2, 6, 3), tokens[0], [2, 3], 3),
    "modulate": (tokens[0], tokens[1][:, :1]),
    "positions_on_grid": (tokens[0][:1], [2, 3], [4, 5], 21, 1),
    "relu": tokens[:1],
    "resize_positions": (tokens[0][:1], [2, 3], [4, 5]),
    "window_attention": (torch.randn(1, 4, 5, 3, 6), 2, [2, 2], [1, 1]),
}
CHOICES = (
    "focus",
    "focused_linear_attention",
    "global_context",
    "linear_attention",
    "local_context",
    "window_attention",
)
every_operator = pytest.mark.parametrize("name", CALLS)


def test_every_operator_is_tried_here():
    public = {name for name in ops.__all__ if callable(getattr(ops, name)) and not name.endswith("_reference")}
    assert public - {"accumulation_dtype", "use_backend"} == set(CALLS)


@every_operator
def test_symbolic_tracing_needs_nothing_of_the_caller(name):
    tensor, *rest = CALLS[name]

    def call(x):
        return getattr(ops, name)(x, *rest)

    graph = torch.fx.symbolic_trace(call)
    torch.testing.assert_close(graph(tensor), call(tensor))
    calls = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert getattr(ops, name) in calls or name in ("elu_plus_one", "relu")


MECHANISMS = {
    "care": CareTokenMixer(8, head_dim=4),
    "focused": FocusedLinearAttention(12, (4, 5), 3),
    "linear": LinearAttention(12, (4, 5), 3),
    "softmax": SoftmaxAttention(12, (4, 5), 3),
    "window": WindowAttention(12, (4, 5), 3, window_size=2, shift=True),
    "stripe": StripeAttention(12, (4, 5), 2, stripe_width=2),
} | {name: KeyOnlyAttention(12, (4, 5), 3, interaction=name) for name in INTERACTIONS}


@pytest.mark.parametrize("name", MECHANISMS)
def test_every_mechanism_traces_symbolically(name):
    module = MECHANISMS[name].eval()
    x = torch.randn(2, 24, 4, 5) if name == "care" else torch.randn(2, 20, 12)
    graph = torch.fx.symbolic_trace(module, concrete_args=None if name == "care" else {"grid_size": None})
    expected = module(x)
    torch.testing.assert_close(graph(x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.testing.assert_close(torch.jit.script(module)(x), expected)


@pytest.mark.parametrize("name", CHOICES)
def test_backends_agree(name):
    function = getattr(ops, name)
    arguments = [a.double() if isinstance(a, torch.Tensor) else a for a in CALLS[name]]
    assert torch.equal(function(*arguments), function(*arguments, backend="torch"))
    torch.testing.assert_close(function(*arguments, backend="reference"), function(*arguments, backend="torch"))


def test_a_backend_for_a_while():
    with ops.use_backend("reference"):
        double = [x.double() for x in heads]
        assert torch.equal(ops.linear_attention(*double), ops.linear_attention_reference(*double))
        assert torch.equal(
            ops.linear_attention(*double, backend="torch"), ops.linear_attention(*double, 1e-6, None, "torch")
        )
    assert torch.equal(ops.linear_attention(*double), ops.linear_attention(*double, backend="torch"))


def test_wrong_backends_are_named():
    with pytest.raises(ValueError, match="backend must be one of auto, reference, torch, triton, got 'cuda'"):
        ops.linear_attention(*heads, backend="cuda")
    with pytest.raises(ValueError, match="window_attention has no kernels"):
        ops.window_attention(*CALLS["window_attention"], backend="triton")
    with pytest.raises(ValueError, match="got 'fast'"), ops.use_backend("fast"):
        pass
    code = "import torch, linvit.ops as ops; ops.linear_attention(*torch.rand(3, 1, 1, 2, 2).unbind())"
    environment = os.environ | {"LINVIT_KERNELS": "fast"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "ValueError: LINVIT_KERNELS must be one of auto, reference, torch, triton, got 'fast'" in result.stderr


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["attend", "attend_columns", "focus_folded", "linear_attention", "key_saliency"])
def test_autocast_changes_nothing(name, dtype):
    function, arguments = getattr(ops, name), CALLS[name]
    expected = function(*arguments)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(function(*arguments), expected, rtol=0, atol=0)


def test_kernels_are_imported_when_they_are_asked_for():
    """And a CPU is told what they need."""
    code = """
import sys, torch, linvit.ops as ops
tensors = torch.rand(3, 1, 1, 20, 2).requires_grad_().unbind()
ops.linear_attention(*tensors).sum().backward()
print([name for name in sys.modules if name.startswith("linvit")])
ops.linear_attention(*tensors, backend="triton")
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "linvit.ops.linear.fast" in result.stdout
    assert "linvit.ops.launch" not in result.stdout
    assert "backend 'triton' needs a GPU (or TRITON_INTERPRET=1 in the environment)" in result.stderr
