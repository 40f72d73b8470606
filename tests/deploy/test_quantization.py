"""Whole graphs in 8 bits: nothing is left in float, files compute what was calibrated, the report names what loses."""

import copy
import subprocess
import sys

import onnx
import pytest
import timm
import torch

import linvit
from linvit.deploy import export_model, find_format, fuse
from linvit.deploy.job import Job
from linvit.deploy.quantization import QuantizedModel, quantize, sensitivity
from linvit.deploy.quantization.model import calibrate, converted, fake_quantized, unrounded
from tests.conftest import CLASSES
from tests.deploy.layers import Normalised
from tests.deploy.test_families import SMALL


def images(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(run_folder):
    return linvit.load_model(run_folder)


@pytest.fixture(scope="module")
def quantized(model):
    return quantize(model, (32, 32), images(24))


@torch.no_grad()
def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().mean() / expected.abs().max()).item()


def test_all_that_is_computed_is_rounded(model):
    graph = fake_quantized(fuse(copy.deepcopy(model)), images(2))
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, torch.Tensor) and value.is_floating_point():
            assert all("range_of" in str(user.target) for user in node.users), node


def test_calibrated_it_is_near_the_model_in_any_batch_and_its_conversion_is_the_same(model, quantized):
    with torch.no_grad():
        for batch in (1, 5):
            assert 0 < error(quantized(images(batch)), model(images(batch))) < 0.1
        torch.testing.assert_close(quantized.converted()(images(5)), quantized(images(5)))


def test_nothing_is_divided_by_zero(quantized):
    with torch.no_grad():
        assert quantized(torch.zeros(2, 3, 32, 32)).isfinite().all()
        assert quantized(100 * images(2)).isfinite().all()


def gradient(model: torch.nn.Module, logits: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    logits.square().sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def test_it_learns_by_the_gradient_of_the_model_where_rounded_numbers_are_divided():
    torch.manual_seed(0)
    model = quantize(timm.create_model("flatten_pvt_tiny", **SMALL["flatten_pvt_tiny"]), (32, 32), images(16))
    model.freeze()
    model.train()
    rounded = model(images(16))
    learned = gradient(model, rounded)
    torch.testing.assert_close(rounded, model.eval()(images(16)))
    through = gradient(model, model.graph(images(16)))
    with unrounded(model.graph):
        expected = gradient(model, model.graph(images(16)))
    assert torch.cosine_similarity(learned, expected, dim=0) > 0.9
    assert torch.cosine_similarity(through, expected, dim=0) < 0.5  # what rounding by rounding comes to


@pytest.mark.parametrize("training", [torch.enable_grad, torch.no_grad])
def test_ranges_that_are_found_in_training_are_those_of_batches_of_16(model, training):
    together = quantize(model, (32, 32), images(16)).train()
    apart = copy.deepcopy(together)
    x = 10 * images(32)
    with training():
        together(x)
        apart(x[:16])
        apart(x[16:])
    others = apart.state_dict()
    for name, tensor in together.state_dict().items():
        torch.testing.assert_close(tensor, others[name], msg=name)


@pytest.mark.parametrize("end", [QuantizedModel.freeze, QuantizedModel.eval])
def test_floors_are_those_of_the_ranges(model, end):
    quantized = quantize(model, (32, 32), images(16)).train()
    quantized(10 * images(16))
    end(quantized)
    floored = quantized.graph.graph.find_nodes(op="call_function", target=torch.ops.aten.maximum.default)
    assert floored
    for node in floored:
        (rounding,) = node.users
        floor = quantized.graph.get_buffer(node.args[1].target)
        assert floor == quantized.graph.get_submodule(rounding.target).scale[0]


def test_a_training_step_that_is_stopped_leaves_the_rounding_on(model):
    quantized = quantize(model, (32, 32), images(16)).train()
    quantized.freeze()
    expected = copy.deepcopy(quantized).eval()(images())

    def stop(graph, images, logits):
        if logits.requires_grad:  # the pass without rounding
            raise KeyboardInterrupt

    hook = quantized.graph.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        quantized(images())
    hook.remove()
    torch.testing.assert_close(quantized.eval()(images()), expected)


def test_file_in_8_bits_computes_what_was_calibrated(model, quantized, tmp_path):
    options = {"precision": "int8-full", "calibration": images(24), "img_size": (32, 32), "classes": CLASSES}
    export_model(model, tmp_path / "m.onnx", "onnx", images(), **options)
    (logits,) = find_format("onnx").load(tmp_path / "m.onnx", threads=1)(images(5))
    with torch.no_grad():
        assert error(logits, quantized(images(5))) < 0.02
    kernels = [t for t in onnx.load(tmp_path / "m.onnx").graph.initializer if len(t.dims) == 4 and t.dims[0] > 1]
    assert len(kernels) > 20
    assert {tensor.data_type for tensor in kernels} == {onnx.TensorProto.INT8}


@pytest.mark.parametrize("format", ["onnx", pytest.param("executorch", marks=pytest.mark.slow)])
def test_trained_in_8_bits_it_is_saved_loaded_and_exported_with_its_ranges(format, quantized, tmp_path):
    trained = copy.deepcopy(quantized)
    trained.train()
    trained(3 * images(8))  # other ranges than calibrated ones
    trained.eval()
    linvit.save_model(trained, tmp_path / "run", classes=CLASSES)
    again = linvit.load_model(tmp_path / "run")
    assert isinstance(again, QuantizedModel)
    with torch.no_grad():
        torch.testing.assert_close(again(images()), trained(images()))
    export = export_model(again, tmp_path / "m", format, images(), precision="int8-full")
    assert export.check.mean_error < 0.02
    with pytest.raises(ValueError, match="was trained in 8 bits: export its logits, at its size, with --precision"):
        export_model(again, tmp_path / "n", format, images())
    with pytest.raises(ValueError, match="images of one size, 32x32, got 64x64"):
        again(torch.zeros(1, 3, 64, 64))


def test_ranges_follow_in_training_until_frozen(quantized):
    trained = copy.deepcopy(quantized).train()
    ranges = {name: value.clone() for name, value in trained.state_dict().items() if name.endswith("max_val")}

    def moved() -> bool:
        now = trained.state_dict()
        return any(not torch.equal(now[name], value) for name, value in ranges.items())

    trained.freeze()
    trained.train()
    trained(5 * images(8))
    assert not moved()
    trained.frozen = False
    trained.train()
    trained(5 * images(8)).sum().backward()
    assert moved()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.parameters() if p.grad is not None)
    assert sum(p.grad is not None for p in trained.parameters()) > 20


class Masked(torch.nn.Module):
    """The mask of windows and the padding of neighbourhoods."""

    def __init__(self):
        super().__init__()
        self.qk = torch.nn.Conv2d(3, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k = self.qk(x).flatten(2).transpose(1, 2).chunk(2, dim=2)
        logits = q @ k.transpose(1, 2)
        near = torch.arange(16).unsqueeze(1) >= torch.arange(16)
        weights = torch.where(near, logits, torch.full_like(logits, float("-inf"))).softmax(dim=2)
        top = torch.nn.functional.pad(logits, (1, 0), value=float("-inf"))
        highest = torch.maximum(top.narrow(2, 0, 16), logits)
        return torch.cat((weights, torch.exp(logits - highest), logits), dim=1).mean(dim=2)


def test_masks_of_minus_infinity_spoil_no_range():
    torch.manual_seed(0)
    model, x = Masked().eval(), torch.randn(16, 3, 4, 4)
    graph = fake_quantized(model, x[:2])
    calibrate(graph, x)
    with torch.no_grad():
        assert 0 < error(graph(x), model(x)) < 0.02
        torch.testing.assert_close(converted(graph)(x), graph(x))


def test_tokens_of_small_weights_are_not_rounded_away():
    model, x = Normalised().eval(), 1 + torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = fake_quantized(model, x[:2])
    calibrate(graph, x)
    with torch.no_grad():
        assert (graph(x) - model(x)).abs().max() < 0.03 * model(x).max()  # 0.06 with products in 8 bits


class Small(torch.nn.Module):
    """What XNNPACK refuses in 8 bits: different scales side by side, and 16 bits under a fraction."""

    def __init__(self):
        super().__init__()
        self.expand, self.local = torch.nn.Conv2d(3, 16, 1), torch.nn.Conv2d(16, 16, 3, padding=1, groups=16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide, positive = self.expand(x).chunk(2, dim=1)
        y = torch.cat((10 * wide, positive.relu()), dim=1)
        weights = torch.nn.functional.gelu(self.local(y)).flatten(2).exp()
        return (weights / (weights.sum(dim=2, keepdim=True) + 1e-6) * y.flatten(2)).sum(dim=2)


def test_executorch_computes_what_was_calibrated_in_its_own_kernels(tmp_path):
    torch.manual_seed(0)
    model, x = Small().eval(), torch.randn(16, 3, 4, 4)
    graph = fake_quantized(model, x[:2])
    calibrate(graph, x)
    job = Job(converted(graph), model, x[:2], ("logits",), precision="int8-full")
    find_format("executorch").write(job, tmp_path / "m.pte")
    # In a process of its own: the runtime must find the kernels by itself.
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import pathlib, sys, torch; from linvit.deploy import find_format; folder = pathlib.Path(sys.argv[1]);"
        "run = find_format('executorch').load(folder / 'm.pte');"
        "torch.save(run(torch.load(folder / 'x.pt')), folder / 'y.pt')"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, capture_output=True)
    (y,) = torch.load(tmp_path / "y.pt")
    with torch.no_grad():
        assert error(y, graph(x)) < 0.01


@pytest.mark.slow
def test_executorch_runs_linglo_that_pads_what_was_rounded(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("linglo_b0", img_size=96, num_classes=5, **SMALL["linglo_b0"]).eval()
    x = torch.randn(8, 3, 96, 96)
    options = {"img_size": (96, 96), "precision": "int8", "calibration": x}
    assert export_model(model, tmp_path / "m.pte", "executorch", x[:4], **options).check.max_error < 0.2


def test_report_names_the_layer_that_loses_most(model):
    spoilt = copy.deepcopy(model)
    with torch.no_grad():  # one large channel leaves the others few steps
        spoilt.stages[3].blocks[0].inter_layer.inter1_fc1.bias[0] = 3000.0
    count, found = sensitivity(fuse(spoilt), images(8), images(8))
    losses = list(found)
    assert len(losses) == count
    assert len({loss.layer for loss in losses}) == count
    worst = max(losses, key=lambda loss: loss.error)
    assert worst.layer.startswith("stages.3.blocks.0")
    assert any(loss.layer == "images" for loss in losses)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_family_goes_through(name):
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=96, num_classes=5, **SMALL[name]).eval()
    photos = torch.randn(24, 3, 96, 96)
    with torch.no_grad():
        assert 0 < error(quantize(model, (96, 96), photos)(photos[:5]), model(photos[:5])) < 0.1
