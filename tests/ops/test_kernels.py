"""The Triton kernels in Triton's interpreter, on a CPU: values, gradients, layouts, and what compilers ask of them."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

launch = pytest.importorskip("linvit.ops.launch", reason="Triton is for Linux alone")
if not launch.INTERPRETED:
    pytest.skip("on a GPU, test_kernels_gpu.py runs them compiled", allow_module_level=True)

from linvit import ops
from linvit.ops.focused import fused as focused  # registers operators, as do the next two
from linvit.ops.key_only import fused as key_only
from linvit.ops.linear import fused as linear
from tests.ops.kernel_cases import compare_focused, compare_linear, compare_pools, lay_out, random

F16, B16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize(
    ("dtype", "feature_map", "layout", "n", "m", "d", "e"),
    [
        (F64, None, "contiguous", 37, 45, 20, 24),
        (F32, "elu1", "channels first", 70, 33, 16, 8),
        (F32, None, "projection", 20, 18, 100, 128),  # the values in slices
        (B16, "relu", "projection", 1, 5, 8, 8),
        (F16, "elu1", "gaps", 33, 64, 24, 40),
    ],
)
def test_linear_attention(dtype, feature_map, layout, n, m, d, e):
    compare_linear(dtype, feature_map, layout, n, m, d, e)


@pytest.mark.parametrize(
    ("dtype", "power", "n", "m", "heads", "d", "positions"),
    [
        (F64, 2.5, 5, 37, 3, 6, True),
        (F32, 3.0, 34, 35, 2, 20, True),
        (B16, 4.0, 33, 1, 1, 16, False),
        (F16, 3.0, 9, 9, 2, 8, True),
    ],
)
def test_focused_attention(dtype, power, n, m, heads, d, positions):
    compare_focused(dtype, power, n, m, heads, d, positions=positions)


@pytest.mark.parametrize(
    ("dtype", "height", "width", "kernel_size"), [(F64, 9, 8, 3), (F32, 3, 5, 5), (B16, 7, 10, 3), (F16, 1, 1, 1)]
)
def test_pools(dtype, height, width, kernel_size):
    compare_pools(dtype, height, width, heads=2, d=7, kernel_size=kernel_size)


@pytest.mark.parametrize("dtype", [F16, B16, F32])
def test_extreme_magnitudes(dtype):
    """Values at the end of float16's range, keys without a positive feature, a scale of 1e4 between rows."""
    q, k = random(1, 40, 16, dtype=dtype) * 1e4, random(1, 40, 16, dtype=dtype, seed=1) * 1e-4
    q[:, 0], k[:, :9] = -1, -1
    v = torch.full((1, 40, 16), 6e4, dtype=dtype)
    scale = torch.linspace(-5, 5, 16).to(dtype)
    out = ops.focused_linear_attention(q, k, v, scale, 2, backend="triton")
    expected = ops.focused_linear_attention_reference(*(t.double() for t in (q, k, v, scale)), 2)
    assert out.isfinite().all()
    assert ((out.double() - expected).abs().max() / 6e4).item() < 4 * max(torch.finfo(dtype).eps, 1e-6)


def test_gradients_against_finite_differences():
    q, k, v = (random(1, 1, n, 2, dtype=F64, seed=n).requires_grad_() for n in (2, 3, 3))
    assert torch.autograd.gradcheck(
        lambda *t: ops.linear_attention(*t, 1e-6, "elu1", "triton"), (q, k, v), fast_mode=True
    )
    shapes = [(1, 2, 4), (1, 3, 4), (1, 3, 4), (4,), (1, 3, 4)]
    tensors = tuple(random(*shape, dtype=F64, seed=i).requires_grad_() for i, shape in enumerate(shapes))
    assert torch.autograd.gradcheck(
        lambda *t: ops.focused_linear_attention(*t[:4], 2, 3.0, 1e-6, t[4], "triton"), tensors, fast_mode=True
    )
    s, v = random(1, 4, 2, dtype=F64).requires_grad_(), random(1, 4, 4, dtype=F64, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, v: ops.global_context(s, v, "triton"), (s, v), fast_mode=True)
    assert torch.autograd.gradcheck(lambda s, v: ops.local_context(s, v, [2, 2], 3, "triton"), (s, v), fast_mode=True)


def operator_calls() -> dict[str, tuple]:
    """Return arguments of every registered operator that has a gradient."""
    q, k, v = (lay_out(random(1, 2, n, 4, dtype=F32, seed=n), "projection").requires_grad_() for n in (3, 4, 4))
    gain, positions = torch.rand(8, requires_grad=True), torch.randn(1, 4, 8, requires_grad=True)
    saliency = torch.randn(1, 4, 2, requires_grad=True)
    return {
        "linear_attention": (q, k, v, "elu1", 1e-6),
        "focused_linear_attention": (q, k, v, gain, positions, 3.0, 1e-6),
        "global_context": (saliency, v),
        "local_context": (saliency, v, 2, 2, 3),
    }


@pytest.mark.parametrize("name", ["linear_attention", "focused_linear_attention", "global_context", "local_context"])
def test_registration(name):
    """Schema, fake tensors, autograd and ahead-of-time dispatch, as torch's own check sees them."""
    torch.library.opcheck(getattr(torch.ops.linvit, name).default, operator_calls()[name])


def test_compilers_checkpointing_and_autocast():
    class Attend(torch.nn.Module):
        def forward(self, q, k, v, scale):
            return ops.focused_linear_attention(q, k, v, scale, 2, backend="triton")

    tensors = [random(1, 5, 8, dtype=F32, seed=i).requires_grad_() for i in range(3)] + [torch.randn(8)]
    expected = Attend()(*tensors)
    gradient = torch.autograd.grad(expected.sum(), tensors[0])[0]
    compiled = torch.compile(Attend(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(*tensors).sum(), tensors[0])[0], gradient)
    recomputed = checkpoint(Attend(), *tensors, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(recomputed.sum(), tensors[0])[0], gradient)
    with torch.no_grad():
        exported = torch.export.export(Attend(), tuple(tensors), strict=True)
        assert any("linvit.focused" in str(node.target) for node in exported.graph.nodes)
        torch.testing.assert_close(exported.module()(*tensors), expected)
        with torch.autocast("cpu", B16):
            assert torch.equal(Attend()(*tensors), expected)


def test_the_same_bits_in_every_run():
    q, k, v = (random(1, 2, 130, 8, dtype=F32, seed=i).requires_grad_() for i in range(3))
    runs = []
    for _ in range(2):
        out = ops.linear_attention(q, k, v, feature_map="elu1", backend="triton")
        runs.append((out, *torch.autograd.grad(out.sum(), (q, k, v))))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("name", "shapes", "settings"),
    [
        ("linear_attention", [(0, 2, 9, 8)] * 3, (1e-6, "relu")),
        ("focused_linear_attention", [(0, 9, 8)] * 3 + [(8,)], (2,)),
        ("global_context", [(0, 9, 2), (0, 9, 8)], ()),
        ("local_context", [(0, 9, 2), (0, 9, 8)], ([3, 3], 3)),
    ],
)
def test_an_empty_batch_is_an_empty_result(name, shapes, settings):
    tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]
    out = getattr(ops, name)(*tensors, *settings, backend="triton")
    gradients = torch.autograd.grad(out.sum(), tensors)
    assert out.shape == ((0, 1, 8) if name == "global_context" else (*shapes[0][:-1], 8))
    for gradient, shape in zip(gradients, shapes, strict=True):
        assert gradient.shape == shape
        assert not gradient.any()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("tokens", [1000, 65536])
def test_many_tokens(tokens, monkeypatch):
    """Split over programs of several tiles each; 65,536 in larger tiles, as the interpreter takes its time by tiles."""
    if tokens > 1000:
        for module, name in ((linear, "tile"), (focused, "tile"), (key_only, "pool_tile")):
            chosen = getattr(module, name)
            monkeypatch.setattr(
                module, name, lambda *args, chosen=chosen, **named: chosen(*args, **named) | {"BN": 1024}
            )
    compare_linear(
        B16, "elu1", "projection", tokens, tokens, 8, 8, heads=1, exact=lambda *a: ops.linear_attention(*a, "torch")
    )
    compare_focused(
        *(F32, 3.0, tokens, tokens, 1, 8),
        exact=lambda *a, **k: ops.focused_linear_attention(*a, **k, backend="torch"),
    )
    height = 2 ** (tokens.bit_length() // 2) if tokens > 1000 else 25
    compare_pools(B16, height, tokens // height, 1, 8, 3)


def test_what_kernels_cannot_take_is_named():
    with pytest.raises(ValueError, match="takes heads of up to 128 channels, got 160"):
        ops.linear_attention(*torch.rand(3, 1, 1, 4, 160).unbind(), backend="triton")
    with pytest.raises(ValueError, match=r"images of fewer than 2\^31 entries, got x \[1, 1, 4, 1073741824\]"):
        launch.strides(x=torch.empty(1, 1, 4, 2**30, device="meta"))
    with pytest.raises(ValueError, match=r"takes floating-point tensors, got torch.int64"):
        ops.linear_attention(*torch.ones(3, 1, 1, 4, 8, dtype=torch.long).unbind(), backend="triton")


@pytest.mark.parametrize("layout", ["contiguous", "projection", "channels first"])
def test_another_image_size_is_the_same_binary(layout, monkeypatch):
    """No compile-time constant differs, and no argument that differs is specialised on."""
    from linvit.ops.linear import kernels

    seen: list[list] = []

    def record(kernel, grid, device, **arguments):
        constants = {name: arguments[name] for name in arguments if name.isupper() or name == "num_warps"}
        changing = {name for name, value in arguments.items() if isinstance(value, int) and name not in constants}
        assert changing & set(kernel.arg_names) <= set(kernels.RUNTIME), kernel
        seen[-1].append((kernel, constants))

    monkeypatch.setattr(linear, "launch", record)
    for tokens in (1, 49, 196, 784, 3136):
        seen.append([])
        q, k, v = (lay_out(random(1, 2, tokens, 32, dtype=B16), layout).requires_grad_() for _ in range(3))
        ops.linear_attention(q, k, v, feature_map="elu1", backend="triton").sum().backward()
        assert len(seen[-1]) == 4
        assert tokens == 1 or seen[-1] == seen[1]
