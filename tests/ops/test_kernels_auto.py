"""``auto`` takes the kernels where they agree with the reference; here a CPU plays the GPU, in Triton's interpreter."""

import warnings
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

launch = pytest.importorskip("linvit.ops.launch", reason="Triton is for Linux alone")
if not launch.INTERPRETED:
    pytest.skip("on a GPU, test_kernels_gpu.py runs them compiled", allow_module_level=True)

from linvit import ops
from linvit.ops import agreement, dispatch
from linvit.ops.key_only import fused


@pytest.fixture(autouse=True)
def _cpu_plays_gpu(monkeypatch):
    agreement._check.cache_clear()
    monkeypatch.setattr(dispatch, "_kernel_devices", ("cpu",))
    yield
    agreement._check.cache_clear()


@pytest.fixture
def checks(monkeypatch):
    """Return what the kernels are checked on, as a list that grows; they are always found to agree."""
    seen = []

    def note(name, device, types, sizes, **settings):
        seen.append((name, types, sizes, settings))
        return 0.0

    monkeypatch.setattr(agreement, "largest_error", note)
    return seen


@contextmanager
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def pool_inputs(tokens: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(1, tokens, 2), torch.randn(1, tokens, 8)


def focused_inputs() -> list[torch.Tensor]:
    return [torch.randn(1, 20, 16) for _ in range(3)] + [torch.zeros(16)]


def test_agreeing_kernels_are_used():
    s, v = pool_inputs()
    with no_warnings():
        assert torch.equal(ops.global_context(s, v), ops.global_context(s, v, "triton"))
    few = ops.global_context(s[:, :3], v[:, :3])
    assert torch.equal(few, ops.global_context(s[:, :3], v[:, :3], "torch"))
    double = ops.global_context(s.double(), v.double())
    assert torch.equal(double, ops.global_context(s.double(), v.double(), "torch"))


@pytest.mark.parametrize("fault", ["wrong", "raises", "NaN"])
def test_others_are_not_and_one_line_says_so(fault, monkeypatch):
    def wrong(saliency, v):
        if fault == "raises":
            raise RuntimeError("no such instruction\nmore")
        return ops.global_context(saliency, v, "torch") * (1.01 if fault == "wrong" else torch.nan)

    monkeypatch.setattr(fused, "global_context", wrong)
    s, v = pool_inputs()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        results = [ops.global_context(s, v) for _ in range(3)]
    assert all(torch.equal(result, ops.global_context(s, v, "torch")) for result in results)
    (message,) = (str(warning.message) for warning in seen)
    assert message.startswith("linvit uses no kernels for global_context in torch.float32 with heads of 4 on cpu: ")
    assert "\n" not in message


def test_a_check_is_of_the_kind_that_is_called(checks):
    """Types, head sizes, feature map, power, epsilon, positions: each makes another binary."""
    q, k, v, scale = focused_inputs()
    positions = torch.randn(1, 20, 16)
    for _ in range(2):
        ops.focused_linear_attention(q, k, v, scale, 2, eps=1e-5)
        ops.focused_linear_attention(q, k, v, scale, 4, 4)
        ops.focused_linear_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), scale, 2, positions=positions)
        ops.linear_attention(*torch.rand(3, 1, 2, 20, 8).unbind(), feature_map="relu")
        ops.global_context(torch.randn(1, 20, 2), v.half())
    name, F32 = "focused_linear_attention", torch.float32
    plain = dict.fromkeys(("q", "k", "v", "scale"), F32)
    mixed = dict.fromkeys(("q", "k", "v"), torch.bfloat16) | {"scale": F32, "positions": F32}
    assert checks == [
        (name, plain, (8, 8), {"power": 3.0, "eps": 1e-5}),
        (name, plain, (4, 4), {"power": 4, "eps": 1e-6}),
        (name, mixed, (8, 8), {"power": 3.0, "eps": 1e-6}),
        ("linear_attention", dict.fromkeys("qkv", F32), (8, 8), {"feature_map": "relu", "eps": 1e-6}),
        ("global_context", {"saliency": F32, "v": torch.float16}, (8, 8), {}),
    ]


@pytest.mark.parametrize(
    ("name", "types", "sizes", "settings"),
    [
        ("linear_attention", dict.fromkeys("qkv", torch.float16), (8, 20), {"feature_map": "elu1", "eps": 1e-3}),
        ("linear_attention", dict.fromkeys("qkv", torch.float32), (5, 5), {"feature_map": None, "eps": 1e-6}),
        (
            "focused_linear_attention",
            dict.fromkeys(("q", "k", "v"), torch.bfloat16) | {"scale": torch.float32},
            (9, 9),
            {"power": 4, "eps": 1e-6},
        ),
        ("local_context", {"saliency": torch.float32, "v": torch.bfloat16}, (12, 12), {}),
    ],
)
def test_every_kind_can_be_checked(name, types, sizes, settings):
    error = agreement.largest_error(name, "cpu", types, sizes, **settings)
    assert 0 < error <= max(agreement.TOLERANCES[dtype] for dtype in types.values())


def test_heads_that_kernels_do_not_take_are_left_to_torch():
    q, k, v = torch.rand(3, 1, 1, 20, 160).unbind()
    with pytest.warns(UserWarning, match="with heads of 160 on cpu: ValueError: backend 'triton' takes heads of up to"):
        out = ops.linear_attention(q, k, v)
    assert torch.equal(out, ops.linear_attention(q, k, v, backend="torch"))


@pytest.mark.parametrize("surroundings", [torch.inference_mode(), torch.device("meta"), torch.autocast("cpu")])
def test_surroundings_do_not_fail_the_check(surroundings):
    s, v = pool_inputs()
    with no_warnings(), surroundings:
        out = ops.global_context(s, v)
    assert torch.equal(out, ops.global_context(s, v, "triton"))


def test_a_check_is_not_counted_as_operations_of_the_model():
    q, k, v = torch.rand(3, 1, 2, 20, 8).unbind()
    counts = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            ops.linear_attention(q, k, v, feature_map="elu1")
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


def test_fake_tensors_leave_the_kernels_to_real_ones():
    s, v = pool_inputs()
    with no_warnings(), FakeTensorMode() as mode:
        assert ops.global_context(mode.from_tensor(s), mode.from_tensor(v)).shape == (1, 1, 8)
    assert torch.equal(ops.global_context(s, v), ops.global_context(s, v, "triton"))


def test_transforms_traces_and_exports_keep_to_torch():
    s, v = torch.randn(2, 1, 20, 2), torch.randn(2, 1, 20, 8)
    mapped = torch.func.vmap(ops.global_context)(s, v)
    assert torch.equal(mapped[0], ops.global_context(s[0], v[0], "torch"))
    traced = torch.jit.trace(ops.global_context, (s[0], v[0]))
    assert "linvit::" not in str(traced.graph)


def test_tangents_keep_to_torch():
    """Both ways of differentiating forwards: kernels would drop the tangent."""
    s, v = pool_inputs()
    tangent = torch.randn_like(v)
    with forward_ad.dual_level():
        out = ops.global_context(s, forward_ad.make_dual(v, tangent))
        ahead = forward_ad.unpack_dual(out).tangent
    torch.testing.assert_close(ahead, ops.global_context(s, tangent))  # linear in the values
    _, other = torch.func.jvp(lambda v: ops.global_context(s, v), (v,), (tangent,))
    torch.testing.assert_close(other, ahead)


def test_missing_arguments_are_named():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'v'"):
        ops.global_context(torch.randn(1, 20, 2))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_in_one_graph(dynamic):
    s, v = pool_inputs()
    compiled = torch.compile(
        lambda s, v: ops.global_context(s, v=v) + 1, fullgraph=True, backend="eager", dynamic=dynamic
    )
    assert torch.equal(compiled(s, v), ops.global_context(s, v, "triton") + 1)
