"""KeyOnlyAttention against plain transcriptions of its three readings, in outputs and gradients."""

import pytest
import torch
import torch.nn.functional as F

from linvit.attention import INTERACTIONS, KeyOnlyAttention
from linvit.ops import global_context_reference, key_saliency_reference, local_context_reference

DIM, HEADS, GRID = 12, 3, (4, 5)
every_interaction = pytest.mark.parametrize("interaction", INTERACTIONS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(interaction: str, **kwargs) -> KeyOnlyAttention:
    """Draw every parameter anew, so that none can hide an error."""
    module = KeyOnlyAttention(DIM, GRID, HEADS, interaction=interaction, **kwargs)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.double()


def tokens(height: int, width: int, prefix: int = 0) -> torch.Tensor:
    return torch.randn(2, prefix + height * width, DIM, dtype=torch.float64)


def reference(module: KeyOnlyAttention, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The module step by step, with keys, and with explicit weights in the neighbourhoods."""
    prefix = module.num_prefix_tokens
    *gate, k, v = F.linear(x, module.qkv.weight, module.qkv.bias).split(DIM, dim=-1)
    bias = None if module.qkv.bias is None else module.qkv.bias[-2 * DIM : -DIM]
    s = key_saliency_reference(x, module.qkv.weight[-2 * DIM : -DIM], bias, module.u, HEADS)
    torch.testing.assert_close(s, (k * module.u).unflatten(2, (HEADS, -1)).sum(-1))
    c = global_context_reference(s, v)
    if module.interaction == "modulate":
        out = v * c
    elif module.interaction == "gate":
        out = gate[0].sigmoid() * c + v
    else:
        local = local_context_reference(s[:, prefix:], v[:, prefix:], list(grid), module.kernel_size)
        out = torch.cat((v[:, :prefix], local), dim=1) + c
    return F.linear(out, module.proj.weight, module.proj.bias)


@every_interaction
@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("grid", [GRID, (7, 2), (1, 1)])
@pytest.mark.parametrize("args", [{}, {"kernel_size": 5, "qkv_bias": False}])
def test_equals_the_transcription_in_outputs_and_gradients(interaction, prefix, grid, args):
    module = build(interaction, num_prefix_tokens=prefix, **args)
    x = tokens(*grid, prefix).requires_grad_()
    wanted = {"x": x} | dict(module.named_parameters())
    target = torch.randn_like(x)
    output, expected = module(x, list(grid)), reference(module, x, grid)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-11)
    actual = torch.autograd.grad((output * target).sum(), list(wanted.values()))
    expected = torch.autograd.grad((expected * target).sum(), list(wanted.values()))
    for name, a, b in zip(wanted, actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@every_interaction
def test_every_token_reaches_every_token(interaction):
    module = build(interaction, num_prefix_tokens=1)
    x = tokens(*GRID, prefix=1).requires_grad_()
    for row in (0, 7):
        (grad,) = torch.autograd.grad(module(x)[:, row].sum(), x)
        assert (grad.abs().sum(dim=-1) > 0).all()


@every_interaction
def test_tokens_keep_their_own_content(interaction):
    """The context alone is the same everywhere; two tokens must not come out alike."""
    y = build(interaction)(tokens(*GRID))
    assert (y[:, 0] - y[:, -1]).abs().amax() > 0.1


def test_projections():
    sizes = {name: sum(p.numel() for p in build(name).parameters()) for name in INTERACTIONS}
    assert sizes["modulate"] == sizes["local_global"] == 3 * DIM**2 + 4 * DIM
    assert sizes["gate"] == 4 * DIM**2 + 5 * DIM


@every_interaction
@pytest.mark.parametrize("magnitude", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(interaction, magnitude, dtype):
    """65,536 tokens in pure half precision, parameters included."""
    module = KeyOnlyAttention(8, 256, 2, interaction=interaction).to(dtype)
    x = (torch.randn(1, 65536, 8) * magnitude).clamp(-6e4, 6e4).to(dtype)
    with torch.no_grad():
        assert module(x).isfinite().all()


@every_interaction
def test_interface_of_the_siblings(interaction):
    module = KeyOnlyAttention(
        DIM, 4, HEADS, interaction=interaction, qkv_bias=False, proj_drop=0.1, num_prefix_tokens=2, dtype=torch.float64
    )
    assert module.qkv.bias is None
    x = tokens(4, 4, prefix=2)
    assert module(x).shape == module(x, [4, 4]).shape == x.shape
    module.set_grid_size((2, 3))
    assert module(x[:, :8]).shape == (2, 8, DIM)
    scripted = torch.jit.script(module.eval())
    torch.testing.assert_close(scripted(x[:, :8], [2, 3]), module(x[:, :8]))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="interaction must be one of modulate, gate, local_global, got 'add'"):
        KeyOnlyAttention(DIM, GRID, HEADS, interaction="add")
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        KeyOnlyAttention(DIM, GRID, HEADS, kernel_size=4)
    with pytest.raises(ValueError, match="dim 12 is not a multiple of num_heads 5"):
        KeyOnlyAttention(DIM, GRID, 5)
    with pytest.raises(ValueError, match="got 19 tokens for a grid of 4 x 5"):
        build("local_global")(tokens(*GRID)[:, 1:])
