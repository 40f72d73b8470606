"""FocusedLinearAttention and its siblings against plain transcriptions, in outputs and gradients."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from linvit.attention import (
    FocusedLinearAttention,
    KeyOnlyAttention,
    LinearAttention,
    RankRestoredLinearAttention,
    SoftmaxAttention,
    StripeAttention,
    WindowAttention,
)
from linvit.ops import elu_plus_one, focused_linear_attention_reference, linear_attention_reference, relu

DIM, HEADS, GRID = 12, 3, (4, 5)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def awake(module: torch.nn.Module) -> torch.nn.Module:
    """Draw every parameter anew, so that none of those that start at zero can hide an error."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.double()


def tokens(height: int, width: int, prefix: int = 0) -> torch.Tensor:
    return torch.randn(2, prefix + height * width, DIM, dtype=torch.float64)


def reference(module: FocusedLinearAttention, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The module step by step: heads laid out, kernels applied head by head, quadratic attention."""
    prefix = module.num_prefix_tokens
    q, k, v = F.linear(x, module.qkv.weight, module.qkv.bias).split(DIM, dim=-1)
    positions = module.positional_encoding.reshape(1, *module.grid_size, DIM).permute(0, 3, 1, 2)
    positions = F.interpolate(positions, size=grid, mode="bilinear").flatten(2).transpose(1, 2)
    k = torch.cat((k[:, :prefix], k[:, prefix:] + positions), dim=1)
    out = focused_linear_attention_reference(q, k, v, module.scale, module.num_heads, module.power)
    v = v[:, prefix:].transpose(1, 2).reshape(-1, DIM, *grid)
    local = torch.cat([module.dwc(head) for head in v.split(DIM // module.num_heads, dim=1)], dim=1)
    if module.get_v is not None:
        local = local + module.get_v(v)
    local = local.flatten(2).transpose(1, 2)
    out = torch.cat((out[:, :prefix], out[:, prefix:] + local), dim=1)
    return F.linear(out, module.proj.weight, module.proj.bias)


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("grid", [GRID, (7, 2), (1, 1)])
@pytest.mark.parametrize("kernels", [(5, None), (5, 3), (3, 3), (7, 1)])
def test_equals_the_transcription_in_outputs_and_gradients(prefix, grid, kernels):
    module = FocusedLinearAttention(
        DIM, GRID, HEADS, kernel_size=kernels[0], local_kernel_size=kernels[1], num_prefix_tokens=prefix
    )
    awake(module)
    x = tokens(*grid, prefix).requires_grad_()
    wanted = {"x": x} | dict(module.named_parameters())
    target = torch.randn_like(x)
    output, expected = module(x, list(grid)), reference(module, x, grid)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-10)
    actual = torch.autograd.grad((output * target).sum(), list(wanted.values()))
    expected = torch.autograd.grad((expected * target).sum(), list(wanted.values()))
    for name, a, b in zip(wanted, actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_prefix_tokens_attend_and_are_attended_to():
    module = awake(FocusedLinearAttention(DIM, GRID, HEADS, num_prefix_tokens=1))
    x = tokens(*GRID, prefix=1).requires_grad_()
    for row in (0, 7):
        (grad,) = torch.autograd.grad(module(x)[:, row].sum(), x)
        assert (grad.abs().sum(dim=-1) > 0).all()


def test_native_grid_is_the_default():
    module = awake(FocusedLinearAttention(DIM, GRID, HEADS))
    x = tokens(*GRID)
    assert torch.equal(module(x), module(x, list(GRID)))
    with pytest.raises(ValueError, match="got 21 tokens for 0 prefix tokens and a grid of 4 x 5"):
        module(torch.cat((x, x[:, :1]), dim=1))


def test_setting_the_grid_is_interpolating_on_the_fly():
    module = awake(FocusedLinearAttention(DIM, GRID, HEADS))
    x = tokens(9, 3)
    expected = module(x, [9, 3])
    module.set_grid_size((9, 3))
    assert module.positional_encoding.shape == (1, 27, DIM)
    assert module.positional_encoding.requires_grad
    torch.testing.assert_close(module(x), expected)


def test_starts_as_published():
    module = FocusedLinearAttention(64, 14, 2)
    assert (module.positional_encoding == 0).all()
    assert (module.scale == 0).all()
    assert module.scale.shape == (1, 1, 64)
    assert module.dwc.weight.shape == (32, 1, 5, 5)  # one kernel for all heads
    assert 0.015 < module.qkv.weight.std() < 0.025
    assert (module.qkv.bias == 0).all()


@pytest.mark.parametrize("magnitude", [1e-4, 1e-2, 1.0, 1e2, 1e4])
@pytest.mark.parametrize("build", [FocusedLinearAttention, LinearAttention])
def test_float16_is_finite(build, magnitude):
    """65,536 tokens in pure float16, parameters included."""
    module = build(8, 256, 2).half()
    x = (torch.randn(1, 65536, 8) * magnitude).clamp(-6e4, 6e4).half()
    with torch.no_grad():
        assert module(x).isfinite().all()


@pytest.mark.parametrize("feature_map", ["elu", "relu"])
def test_linear_sibling(feature_map):
    module = awake(LinearAttention(DIM, GRID, HEADS, feature_map=feature_map))
    x = tokens(*GRID)
    phi = {"elu": elu_plus_one, "relu": relu}[feature_map]
    q, k, v = (t.reshape(2, 20, HEADS, 4).transpose(1, 2) for t in module.qkv(x).chunk(3, dim=-1))
    expected = module.proj(linear_attention_reference(phi(q), phi(k), v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(x, list(GRID)), expected)


@pytest.mark.parametrize(("feature_map", "prefix"), [("elu", 0), ("relu", 2)])
def test_rank_restored_sibling_adds_the_convolution_of_the_values_alone(feature_map, prefix):
    module = awake(
        RankRestoredLinearAttention(DIM, GRID, HEADS, feature_map=feature_map, num_prefix_tokens=prefix, kernel_size=3)
    )
    x = torch.cat((tokens(1, prefix), tokens(*GRID)), dim=1) if prefix else tokens(*GRID)
    v = module.qkv(x).chunk(3, dim=-1)[2][:, prefix:]
    maps = v.transpose(1, 2).reshape(2 * HEADS, DIM // HEADS, *GRID)
    local = module.dwc(maps).reshape(2, DIM, -1).transpose(1, 2)
    local = torch.cat((local.new_zeros(2, prefix, DIM), local), dim=1)
    plain = LinearAttention(DIM, GRID, HEADS, feature_map=feature_map, num_prefix_tokens=prefix).to(x.dtype)
    plain.load_state_dict(module.state_dict(), strict=False)
    torch.testing.assert_close(module(x), plain(x) + F.linear(local, module.proj.weight))
    assert torch.equal(module(x, list(GRID)), module(x))
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        RankRestoredLinearAttention(DIM, GRID, HEADS, kernel_size=4)


def test_softmax_sibling():
    module = awake(SoftmaxAttention(DIM, GRID, HEADS, num_prefix_tokens=1))
    x = tokens(*GRID, prefix=1)
    q, k, v = (t.reshape(2, 21, HEADS, 4).transpose(1, 2) for t in module.qkv(x).chunk(3, dim=-1))
    expected = module.proj(((q @ k.transpose(-2, -1) / 2).softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(x, list(GRID)), expected)


@pytest.mark.parametrize("build", [FocusedLinearAttention, LinearAttention, SoftmaxAttention])
def test_one_interface(build):
    module = build(DIM, 4, HEADS, qkv_bias=False, proj_drop=0.1, num_prefix_tokens=2, dtype=torch.float64)
    assert module.qkv.bias is None
    x = tokens(4, 4, prefix=2)
    assert module(x).shape == module(x, [4, 4]).shape == x.shape
    module.set_grid_size((2, 3))
    assert module(x[:, :8]).shape == (2, 8, DIM)
    scripted = torch.jit.script(module.eval())
    torch.testing.assert_close(scripted(x[:, :8], [2, 3]), module(x[:, :8]))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="dim 12 is not a multiple of num_heads 5"):
        FocusedLinearAttention(DIM, GRID, 5)
    with pytest.raises(ValueError, match="got 4 and None"):
        FocusedLinearAttention(DIM, GRID, HEADS, kernel_size=4)
    with pytest.raises(ValueError, match="got 3 and 5"):
        FocusedLinearAttention(DIM, GRID, HEADS, kernel_size=3, local_kernel_size=5)
    with pytest.raises(ValueError, match="feature_map must be 'elu' or 'relu', got 'gelu'"):
        LinearAttention(DIM, GRID, HEADS, feature_map="gelu")


@pytest.mark.parametrize("build", [FocusedLinearAttention, KeyOnlyAttention, LinearAttention, SoftmaxAttention])
def test_shared_arguments_have_one_order(build):
    """What only one mechanism has is named: nothing of another's goes into it unseen."""
    shared = ["dim", "grid_size", "num_heads", "qkv_bias", "proj_drop", "num_prefix_tokens"]
    parameters = inspect.signature(build).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == shared
    module = build(DIM, GRID, HEADS, False, 0.1, 2, dtype=torch.float64)
    assert (module.qkv.bias, module.proj_drop.p, module.num_prefix_tokens) == (None, 0.1, 2)


@pytest.mark.parametrize("build", [StripeAttention, WindowAttention])
def test_windows_have_no_prefix_tokens(build):
    assert list(inspect.signature(build).parameters)[:5] == ["dim", "grid_size", "num_heads", "qkv_bias", "proj_drop"]
    with pytest.raises(TypeError):
        build(DIM, GRID, HEADS, False, 0.1, 2)
