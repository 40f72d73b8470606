"""LinGlo: sizes, layouts, what it costs in memory, and that its options are what they say."""

from itertools import chain

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from linvit.attention import INTERACTIONS, KeyOnlyAttention, SoftmaxAttention
from linvit.models.linglo import SeparableConv

PARAMETERS = {"linglo_b0": 3.4e6, "linglo_b1": 13.1e6, "linglo_b2": 25.4e6}
SMALL = {"depths": (2, 2, 2, 2), "embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4), "num_classes": 5}
every_interaction = pytest.mark.parametrize("interaction", INTERACTIONS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small(**kwargs) -> torch.nn.Module:
    return timm.create_model("linglo_b0", **SMALL | kwargs)


def count(name: str, **kwargs) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name, **kwargs).parameters())


def mixers(model: torch.nn.Module) -> list[list[type]]:
    return [[type(block.mixer) for block in stage.blocks] for stage in model.stages]


@pytest.mark.parametrize("interaction", [None, *INTERACTIONS])
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name, interaction):
    args = {} if interaction is None else {"interaction": interaction}
    assert count(name, **args) == pytest.approx(PARAMETERS[name], rel=0.03)


def test_layouts():
    assert mixers(small()) == [[SeparableConv, KeyOnlyAttention]] * 4
    assert mixers(small(depths=(3, 1, 2, 2)))[0] == [SeparableConv, KeyOnlyAttention, SeparableConv]
    assert mixers(small(layout="grafted")) == [[SeparableConv] * 2] * 2 + [[KeyOnlyAttention] * 2] * 2
    assert mixers(small(attention="softmax")) == [[SeparableConv, SoftmaxAttention]] * 4
    for name in PARAMETERS:
        assert count(name, layout="grafted") == pytest.approx(count(name), rel=0.01)


@pytest.mark.parametrize(
    "args", [*({"interaction": name} for name in INTERACTIONS), {"layout": "grafted"}, {"attention": "softmax"}]
)
def test_every_parameter_moves_the_output(args):
    """A parameter whose gradient is all zero would be dead weight in the count."""
    model = small(**args).double().train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model(torch.randn(2, 3, 64, 96, dtype=torch.float64)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, name


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation returns, in the backward pass, too."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        sizes = (leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))
        self.elements = max(chain([self.elements], sizes))
        return output


def largest_tensor(model: torch.nn.Module, side: int) -> int:
    with torch.device("meta"), LargestTensor() as largest:
        model(torch.empty(1, 3, side, side)).sum().backward()
    return largest.elements


@every_interaction
def test_no_tensor_grows_faster_than_the_number_of_pixels(interaction):
    """Forward and backward; the softmax sibling, with its N x N weights written out, shows that this can fail."""
    args = {"interaction": interaction, "img_size": 512, "device": "meta"}
    assert largest_tensor(small(**args), 1024) == 4 * largest_tensor(small(**args), 512)
    quadratic = small(attention="softmax", device="meta")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert largest_tensor(quadratic, 1024) > 8 * largest_tensor(quadratic, 512)


@every_interaction
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(interaction, dtype):
    model = small(interaction=interaction).eval()
    x = torch.randn(1, 3, 75, 203)
    with torch.no_grad():
        expected = model.double()(x.double())
        output = model.to(dtype)(x.to(dtype))
    torch.testing.assert_close(
        output.double(), expected, rtol=0, atol=32 * torch.finfo(dtype).eps * expected.abs().max().item()
    )


@every_interaction
def test_float32_equals_float64(interaction):
    model = small(interaction=interaction).eval()
    x = torch.randn(1, 3, 75, 203)
    with torch.no_grad():
        output, expected = model(x), model.double()(x.double())
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@every_interaction
def test_scripted_at_any_size(interaction):
    model = small(interaction=interaction).eval()
    scripted = torch.jit.script(model)
    for size in ((32, 32), (37, 101)):
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(scripted(x), model(x))


def test_native_size_is_only_a_default():
    model = small().eval()
    x = torch.randn(1, 3, 64, 96)
    expected = model(x)
    model.set_input_size((64, 96))
    assert model.stages[1].blocks[1].mixer.grid_size == [8, 12]
    assert torch.equal(model(x), expected)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="layout must be 'alternate' or 'grafted', got 'mixed'"):
        small(layout="mixed")
    with pytest.raises(ValueError, match="attention must be 'key_only' or 'softmax', got 'linear'"):
        small(attention="linear")
    with pytest.raises(ValueError, match="interaction must be one of modulate, gate, local_global, got 'add'"):
        small(interaction="add")
