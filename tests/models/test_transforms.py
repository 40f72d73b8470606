"""What transforms a model follows, on a tiny one of each family: tracing, export and compilation, functorch."""

import io
import warnings
from typing import Any

import pytest
import timm
import torch
from torch._dynamo.testing import CompileCounter
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.models import FAMILIES

SMALL: dict[str, dict[str, Any]] = {
    "care_s0": {"depths": (1, 1, 1, 1), "dims": (4, 4, 8, 8), "head_dims": (None, None, 4, 8)},
    "flatten_cswin_tiny": {"depths": (1, 1, 1, 1), "embed_dim": 16},
    "flatten_deit_tiny": {"depth": 2, "embed_dim": 24},
    "flatten_pvt_tiny": {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 40, 64)},
    "flatten_pvt_v2_b0": {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 40, 64)},
    "flatten_swin_tiny": {"depths": (1, 1, 2, 1), "embed_dim": 12, "window_size": 3},
    "linglo_b0": {"depths": (2, 2, 2, 2), "embed_dims": (8, 16, 40, 64)},
}
every_small_family = pytest.mark.parametrize("name", SMALL)
QUICK = {"care_s0", "flatten_deit_tiny"}
"""The exporter takes up to a quarter of a minute for the others; tests/ops/test_windows.py has their windows alone."""
every_open_family = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SMALL]
)
SIZES = [(1, 64, 64), (4, 333, 200), (2, 224, 224), (1, 65, 1013)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def images(batch: int, height: int = 32, width: int = 32, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, dtype=dtype)


def tiny(name: str, img_size: int = 32, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    model = timm.create_model(name, num_classes=3, img_size=img_size, dtype=dtype, **SMALL[name]).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(("gamma", "positional_encoding", "scale")):
            torch.nn.init.normal_(parameter, std=0.5)  # no block may hide an error
    return model


def test_every_family_is_here():
    assert sorted(SMALL) == FAMILIES


@every_small_family
def test_traced_with_gradients_saved_and_loaded(name):
    """As old scripts and FiftyOne, Triton's server or ``torch_tensorrt`` take models."""
    model = tiny(name, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it
        traced = torch.jit.trace(model, images(2, 64, 64))
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        loaded = torch.jit.load(file)
    x = images(2, 64, 64).requires_grad_()
    torch.testing.assert_close(loaded(x), model(x))
    gradients = [torch.autograd.grad(m(x).square().sum(), x)[0] for m in (loaded, model)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@every_open_family
def test_exported_for_any_batch(name):
    model = tiny(name)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (images(2),), dynamic_shapes=({0: batch},), strict=True).module()
    for n in (1, 5):
        x = images(n)
        torch.testing.assert_close(exported(x), model(x))


@every_open_family
def test_exported_for_any_size(name):
    """Height and width are open from 64 pixels on: no decision by size became a condition of the graph."""
    model = tiny(name, 64)
    batch, height, width = (torch.export.Dim(side, min=64 * (side != "B"), max=4096) for side in "BHW")
    shapes = ({0: batch, 2: height, 3: width},)
    exported = torch.export.export(model, (images(2, 96, 128),), dynamic_shapes=shapes, strict=True).module()
    for size in SIZES:
        x = images(*size)
        torch.testing.assert_close(exported(x), model(x))


@every_open_family
def test_compiled_once_for_any_size(name):
    model = tiny(name, 64)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=counter)
    with torch.no_grad():
        for size in SIZES[1:]:
            x = images(*size)
            torch.testing.assert_close(compiled(x), model(x))
    assert counter.frame_count <= 2  # a batch of 1 has a graph of its own
    torch._dynamo.reset()


@every_small_family
def test_gradients_of_each_image(name):
    model = tiny(name)
    parameters = {key: parameter.detach() for key, parameter in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        return functional_call(model, (parameters, buffers), (image[None],)).square().sum()

    x = images(2)
    found = vmap(grad(loss), (None, 0))(parameters, x)
    for i, image in enumerate(x):
        model.zero_grad()
        model(image[None]).square().sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            scale = parameter.grad.abs().max()
            assert (found[key][i] - parameter.grad).abs().max() <= 1e-4 * scale + 1e-7, key


@every_small_family
@sdpa_kernel(SDPBackend.MATH)
def test_forward_and_second_derivatives(name):
    """Against differences of the outputs and of the first gradients, in float64; float32 stays near them.

    PyTorch's fused softmax attention has neither, here and in timm's models: the windows ask it for the plain one.
    """
    model = tiny(name, dtype=torch.float64)
    x, tangent = images(1, dtype=torch.float64), images(1, dtype=torch.float64)
    step = 1e-6

    def gradient(x: torch.Tensor, create_graph: bool = False) -> torch.Tensor:
        x = x if x.requires_grad else x.clone().requires_grad_()
        return torch.autograd.grad(model(x).square().sum(), x, create_graph=create_graph)[0]

    def second(x: torch.Tensor, tangent: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad((gradient(x, create_graph=True) * tangent).sum(), x)[0]

    with torch.no_grad():
        slope = (model(x + step * tangent) - model(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(jvp(model, (x,), (tangent,))[1], slope, rtol=1e-5, atol=1e-7)
    curvature = (gradient(x + step * tangent) - gradient(x - step * tangent)) / (2 * step)
    exact = second(x, tangent)
    largest = exact.abs().max()
    assert largest > 0
    assert (exact - curvature).abs().max() < 1e-5 * largest
    model.float()
    assert (second(x.float(), tangent.float()) - exact).abs().max() < 1e-3 * largest
