"""LiteRT: every family goes through, no tensor has more than four axes, and phones' GPUs know every operator."""

import contextlib
import io
import json
import os
import tempfile

import pytest
import timm
import torch
import torch.nn.functional as F

import linvit
from linvit.deploy import FORMATS, export_model
from linvit.deploy.job import Job
from linvit.deploy.quantization import quantize
from tests.conftest import CLASSES
from tests.deploy.layers import Normalised
from tests.deploy.test_families import SMALL

pytest.importorskip("litert_torch", reason="LiteRT has an environment of its own: make test-litert")


def images(batch: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def tensors(path) -> list[list[int]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    return [list(detail["shape"]) for detail in interpreter.get_tensor_details()]


def refused_by_gpus(path) -> str:
    """Return what LiteRT's own analyzer says of operators that the GPU delegate does not take."""
    from ai_edge_litert import _pywrap_analyzer_wrapper as analyzer

    saved = os.dup(1)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 1)
        try:
            text = analyzer.ModelAnalyzer(str(path), True, True) or ""
        finally:
            os.dup2(saved, 1)
        said.seek(0)
        text += said.read().decode()
    assert "compatible with GPU delegate" in text or "GPU COMPATIBILITY WARNING" in text
    return "\n".join(line for line in text.splitlines() if "COMPATIBILITY WARNING" in line)


PRODUCTS = {"BATCH_MATMUL", "FULLY_CONNECTED", "RESHAPE", "TRANSPOSE"}
DIVISION = {*PRODUCTS, "ADD", "DIV", "MEAN", "RSQRT", "SQUARED_DIFFERENCE", "SUM"}
IN_FLOAT = {*DIVISION, "MINIMUM", "EXP", "DEQUANTIZE"}
"""What a division needs, an exponential of what is below zero, which has no kernel in 8 bits, and the output."""


def left_in_float(path) -> set[str]:
    """Return the kinds of operators that return numbers in float32."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    (graph,) = model.subgraphs
    kinds = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    codes = [kinds[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]
    in_float = [each for each in graph.operators if graph.tensors[each.outputs[0]].type == schema.TensorType.FLOAT32]
    return {codes[each.opcodeIndex] for each in in_float}


def test_what_was_trained_in_8_bits_is_exported_with_ranges_found_anew(run_folder, tmp_path):
    model = quantize(linvit.load_model(run_folder), (32, 32))
    with torch.no_grad():
        for parameter in model.graph.parameters():  # other weights than those that it began with
            parameter.add_(
                parameter.abs().mean() * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
            )
    model.calibrate(images(24))
    with pytest.raises(ValueError, match="LiteRT finds ranges anew, of trained models, too: give --calibration"):
        export_model(model, tmp_path / "m.tflite", "litert", images(), precision="int8-full")
    options = {"precision": "int8-full", "calibration": images(24)}
    export_model(model, tmp_path / "m.tflite", "litert", images(), **options)
    (logits,) = FORMATS["litert"].load(tmp_path / "m.tflite")(images(5))
    with torch.no_grad():
        expected = model(images(5))
    assert ((logits - expected).abs().mean() / expected.abs().max()).item() < 0.1


def test_elu_of_large_numbers_keeps_its_steps_below_zero(tmp_path):
    class Features(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.elu(x)

    model, x = Features().eval(), 12 * images()
    calibration = 12 * images(24)
    job = Job(model, model, x, ("features",), precision="int8-full", calibration=calibration)
    FORMATS["litert"].write(job, tmp_path / "m.tflite")
    (y,) = FORMATS["litert"].load(tmp_path / "m.tflite")(x)
    step = (calibration.max() + 1).item() / 255
    assert (y - F.elu(x)).abs().max() < 2 * step  # one half for each rounding; 1, where exponentials overflow the rest


def test_tokens_of_small_weights_are_not_rounded_away(tmp_path):
    model, x = Normalised().eval(), 1 + torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    job = Job(model, model, x[:1], ("y",), precision="int8-full", calibration=x)
    FORMATS["litert"].write(job, tmp_path / "m.tflite")
    (y,) = FORMATS["litert"].load(tmp_path / "m.tflite")(x)
    assert (y - model(x)).abs().max() < 0.03 * model(x).max()  # 0.06 with products in 8 bits


@pytest.mark.slow
def test_masks_of_windows_hide_in_8_bits_too(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("flatten_swin_tiny", img_size=96, num_classes=5, **SMALL["flatten_swin_tiny"]).eval()
    options = {"precision": "int8-full", "calibration": images(24, 96), "img_size": (96, 96)}
    export = export_model(model, tmp_path / "m.tflite", "litert", images(5, 96), **options)
    assert export.check.max_error < 0.1  # 0.23 where masks are rounded


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_family_goes_through_in_tensors_and_operators_that_phones_take(name, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=96, num_classes=5, **SMALL[name])
    export = export_model(model, tmp_path / "m.tflite", "litert", images(2, 96), img_size=(96, 96))
    assert export.check.max_error < 1e-4
    assert max(map(len, tensors(tmp_path / "m.tflite"))) <= 4
    assert refused_by_gpus(tmp_path / "m.tflite") == ""


def test_files_of_each_precision(run_folder, tmp_path):
    model = linvit.load_model(run_folder)
    sizes = {}
    for precision, bound in (("float32", 1e-5), ("float16", 1e-2), ("int8", 0.2), ("int8-full", 0.2)):
        calibration = images(8) if precision.startswith("int8") else None
        export = export_model(
            model,
            tmp_path / f"{precision}.tflite",
            "litert",
            images(),
            precision=precision,
            bound=bound,
            img_size=(32, 32),
            classes=CLASSES,
            calibration=calibration,
        )
        sizes[precision] = (tmp_path / f"{precision}.tflite").stat().st_size
        assert export.check.top1_agreement == 1.0
    assert left_in_float(tmp_path / "int8-full.tflite") <= IN_FLOAT
    assert sizes["int8"] < sizes["float16"] < 0.8 * sizes["float32"]
    assert json.loads(json.loads((tmp_path / "int8.json").read_text())["classes"]) == CLASSES


def test_outputs_keep_their_order_and_a_batch_is_run_image_by_image(run_folder, tmp_path):
    model = linvit.load_model(run_folder)
    export_model(model, tmp_path / "m.tflite", "litert", images(), features=True, img_size=(32, 32))
    maps = FORMATS["litert"].load(tmp_path / "m.tflite", threads=1)(images(2))
    with torch.no_grad():
        expected = model.forward_intermediates(images(2), intermediates_only=True)
    for one, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_nothing_is_said_on_the_way(run_folder, tmp_path, capfd):
    with contextlib.redirect_stdout(io.StringIO()):
        model = linvit.load_model(run_folder)
    export_model(model, tmp_path / "m.tflite", "litert", images(), img_size=(32, 32))
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err == ""
