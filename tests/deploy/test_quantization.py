"""Whole graphs in 8 bits: nothing is left in float, files compute what was calibrated, the report names what loses."""

import copy

import onnx
import pytest
import timm
import torch

import linvit
from linvit.deploy import export_model, find_format, fuse
from linvit.deploy.quantization import QuantizedModel, quantize, sensitivity
from linvit.deploy.quantization.model import fake_quantized
from tests.conftest import CLASSES


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


def test_file_in_8_bits_computes_what_was_calibrated(model, quantized, tmp_path):
    options = {"precision": "int8-full", "calibration": images(24), "img_size": (32, 32), "classes": CLASSES}
    export_model(model, tmp_path / "m.onnx", "onnx", images(), **options)
    (logits,) = find_format("onnx").load(tmp_path / "m.onnx", threads=1)(images(5))
    with torch.no_grad():
        assert error(logits, quantized(images(5))) < 0.02
    kernels = [t for t in onnx.load(tmp_path / "m.onnx").graph.initializer if len(t.dims) == 4 and t.dims[0] > 1]
    assert len(kernels) > 20
    assert {tensor.data_type for tensor in kernels} == {onnx.TensorProto.INT8}


def test_trained_in_8_bits_it_is_saved_loaded_and_exported_with_its_ranges(quantized, tmp_path):
    trained = copy.deepcopy(quantized)
    trained.train()
    trained(3 * images(8))  # other ranges than calibrated ones
    trained.eval()
    linvit.save_model(trained, tmp_path / "run", classes=CLASSES)
    again = linvit.load_model(tmp_path / "run")
    assert isinstance(again, QuantizedModel)
    with torch.no_grad():
        torch.testing.assert_close(again(images()), trained(images()))
    export = export_model(again, tmp_path / "m.onnx", "onnx", images(), precision="int8-full")
    assert export.check.mean_error < 0.02
    with pytest.raises(ValueError, match="was trained in 8 bits: export its logits, at its size, with --precision"):
        export_model(again, tmp_path / "n.onnx", "onnx", images())
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
def test_deit_goes_through_with_its_class_token():
    model = timm.create_model("flatten_deit_tiny", img_size=32, depth=2, embed_dim=48, num_classes=3).eval()
    with torch.no_grad():
        assert quantize(model, (32, 32), images(24))(images()).isfinite().all()
