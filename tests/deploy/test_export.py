"""What an exported file computes is what the model computes, and a file that does not is not kept."""

import copy
import json

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import timm
import torch

import linvit
from linvit.deploy import export_model, find_format
from linvit.deploy.formats.onnx import _reuse
from linvit.deploy.job import INTEGER, Job, make_job
from linvit.ops import window_attention
from tests.conftest import CLASSES

OPTIONS = {"img_size": (32, 32), "classes": CLASSES}


def images(batch: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(run_folder):
    return linvit.load_model(run_folder)


@pytest.mark.parametrize(
    ("format", "precision"),
    [
        ("onnx", "float32"),
        ("onnx", "float16"),
        ("openvino", "float32"),
        pytest.param("openvino", "float16", marks=pytest.mark.slow),
        ("torch", "float32"),
        pytest.param("torch", "bfloat16", marks=pytest.mark.slow),
        pytest.param("executorch", "float32", marks=pytest.mark.slow),
        pytest.param("executorch", "int8", marks=pytest.mark.slow),
        pytest.param("openvino", "int8", marks=pytest.mark.slow),
    ],
)
def test_file_agrees_with_the_model_in_other_batches_too(model, tmp_path, format, precision):
    calibration = images(8) if precision in INTEGER else None
    export = export_model(
        model, tmp_path / "new" / "m.x", format, images(), precision=precision, calibration=calibration, **OPTIONS
    )
    assert export.check.top1_agreement == 1.0
    assert export.check.max_error < {"float32": 1e-5, "float16": 1e-2}.get(precision, 0.1)
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == sorted(file.name for file in export.files)
    assert export.bytes == sum(file.stat().st_size for file in export.files)
    path = next(file for file in export.files if file.suffix == find_format(format).suffix)
    (one,) = find_format(format).load(path, threads=1)(images(1))
    with torch.no_grad():
        torch.testing.assert_close(one, model(images(1)), rtol=0.1, atol=0.1 * model(images(1)).abs().max().item())


def test_onnx_int8_takes_layers_with_arithmetic(tmp_path):
    """A stem, a depthwise convolution, a wide one, a linear layer and a product of activations."""

    class Layers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.depthwise = torch.nn.Conv2d(3, 128, 4, 4), torch.nn.Conv2d(128, 128, 3, groups=128)
            self.wide, self.linear = torch.nn.Conv2d(128, 256, 1), torch.nn.Linear(256, 256)

        def forward(self, images):
            x = self.wide(self.depthwise(self.stem(images))).flatten(2).transpose(1, 2)
            return self.linear(x) @ x.transpose(1, 2)

    torch.manual_seed(0)
    layers = Layers().eval()
    for precision in ("float32", "int8"):
        job = Job(layers, layers, images(), ("logits",), precision, calibration=images(8))
        find_format("onnx").write(job, tmp_path / f"{precision}.onnx")
    weights = onnx.load(tmp_path / "int8.onnx").graph.initializer
    sizes = {tuple(weight.dims) for weight in weights if weight.data_type == onnx.TensorProto.INT8 and weight.dims}
    assert {size for size in sizes if len(size) > 1} == {(256, 128, 1, 1), (256, 256)}
    assert (tmp_path / "int8.onnx").stat().st_size < 0.6 * (tmp_path / "float32.onnx").stat().st_size


@pytest.mark.parametrize(
    ("operator", "weight", "attributes", "reuse"),
    [
        ("Conv", [64, 1, 3, 3], {"group": 64}, 4.5),
        ("Conv", [256, 64, 1, 1], {}, 51.2),
        ("Conv", [64, 3, 4, 4], {"strides": [4, 4]}, 27.43),
        ("MatMul", [64, 64], {}, 32),
        ("MatMul", [64], {}, 0),
        ("MatMul", None, {}, 0),
    ],
)
def test_onnx_int8_counts_the_arithmetic_of_a_layer(operator, weight, attributes, reuse):
    node = onnx.helper.make_node(operator, ["x", "weight"], ["y"], **attributes)
    assert _reuse(node, weight) == pytest.approx(reuse, rel=1e-3)


def test_onnx_int8_says_how_far_it_is(model, tmp_path):
    plain = export_model(model, tmp_path / "plain.onnx", "onnx", images(), **OPTIONS)
    small = export_model(
        model, tmp_path / "small.onnx", "onnx", images(), precision="int8", calibration=images(8), **OPTIONS
    )
    assert small.check.max_error > 10 * plain.check.max_error
    with pytest.raises(ValueError, match="int8 needs calibration images"):
        export_model(model, tmp_path / "none.onnx", "onnx", images(), precision="int8", **OPTIONS)


def test_features_are_the_maps(model, tmp_path):
    export_model(model, tmp_path / "m.pt2", "torch", images(), features=True, **OPTIONS)
    maps = find_format("torch").load(tmp_path / "m.pt2")(images(2))
    with torch.no_grad():
        expected = model.forward_intermediates(images(2), intermediates_only=True)
    for one, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_metadata_names_the_classes(model, tmp_path):
    export_model(model, tmp_path / "m.onnx", "onnx", images(), **OPTIONS)
    properties = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(properties["classes"]) == CLASSES
    assert json.loads(properties["input_size"]) == [3, 32, 32]
    export_model(model, tmp_path / "m.xml", "openvino", images(), **OPTIONS)
    read = openvino.Core().read_model(tmp_path / "m.xml")
    assert json.loads(read.get_rt_info(["linvit", "classes"]).value) == CLASSES


def test_preprocessing_takes_pixels_and_gives_probabilities(model, tmp_path):
    pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    export_model(model, tmp_path / "m.onnx", "onnx", pixels, preprocessing=True, **OPTIONS)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (probabilities,) = session.run(["probabilities"], {"images": pixels.numpy()})
    normalised = (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25  # what the run folder says
    with torch.no_grad():
        expected = model(normalised).softmax(1)
    np.testing.assert_allclose(probabilities, expected.numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_dynamic_size_and_features(model, tmp_path, format):
    export = export_model(model, tmp_path / "m.x", format, images(), features=True, dynamic_size=True, **OPTIONS)
    path = next(file for file in export.files if file.suffix == find_format(format).suffix)
    assert export.check.top1_agreement is None
    large = images(2, 96, 64)
    maps = find_format(format).load(path)(large)
    with torch.no_grad():
        expected = model.forward_intermediates(large, intermediates_only=True)
    for one, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_sides_that_are_no_multiples_of_32_are_refused_by_the_runtime(model, tmp_path, format):
    module = find_format(format)
    export = export_model(model, tmp_path / "m.x", format, images(1, 64, 64), dynamic_size=True, **OPTIONS)
    run = module.load(next(file for file in export.files if file.suffix == module.suffix))
    assert run(images(1, 64, 96))[0].shape == (1, 3)
    with pytest.raises(ValueError, match=r"cannot run m\.\w+ on images of 1x3x37x1013: .*Reshape"):
        run(images(1, 37, 1013))


@pytest.mark.slow
def test_dynamic_size_interpolates_positions(tmp_path):
    model = timm.create_model(
        "flatten_pvt_v2_b0", depths=(1, 1, 1, 1), embed_dims=(8, 16, 40, 64), num_classes=4
    ).eval()
    export_model(model, tmp_path / "m.onnx", "onnx", images(2, 64, 64), img_size=(64, 64), dynamic_size=True)
    run = find_format("onnx").load(tmp_path / "m.onnx")
    for size in ((224, 224), (96, 160)):
        with torch.no_grad():
            torch.testing.assert_close(run(images(1, *size))[0], model(images(1, *size)), rtol=1e-3, atol=1e-5)


def test_windows_fix_the_size(tmp_path):
    model = timm.create_model("flatten_swin_tiny", depths=(1, 1, 1, 1), embed_dim=24, img_size=64)
    with pytest.raises(ValueError, match="FlattenSwin attends in windows"):
        export_model(model, tmp_path / "m.onnx", "onnx", images(1, 64, 64), dynamic_size=True)


def test_coreml_is_checked_by_its_structure(model, tmp_path):
    export = export_model(model, tmp_path / "m.mlpackage", "coreml", images(), precision="float16", **OPTIONS)
    assert export.check is None
    assert "images 1x3x32x32 to logits" in export.structure
    again = export_model(model, tmp_path / "m.mlpackage", "coreml", images(), precision="float16", **OPTIONS)
    assert again.files == [tmp_path / "m.mlpackage"]  # a folder takes the place of a folder


def test_a_file_beyond_the_bound_does_not_replace_a_good_one(model, tmp_path):
    (tmp_path / "m.onnx").write_text("an earlier export")
    with pytest.raises(ValueError, match=r"differs from the model by .* \(bound 1e-12\): .* was not written"):
        export_model(model, tmp_path / "m.onnx", "onnx", images(), bound=1e-12, **OPTIONS)
    assert (tmp_path / "m.onnx").read_text() == "an earlier export"
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_what_a_format_lacks_is_named(model, tmp_path):
    with pytest.raises(ValueError, match="precision for coreml must be one of float32, float16, got 'int8'"):
        export_model(model, tmp_path / "m", "coreml", images(), precision="int8")
    with pytest.raises(ValueError, match=r"format must be one of coreml, executorch, .*, got 'tflite'"):
        export_model(model, tmp_path / "m", "tflite", images())


def test_executorch_normalises_wide_layers_in_float32(tmp_path):
    norms = torch.nn.Sequential(torch.nn.LayerNorm(512), torch.nn.GroupNorm(1, 49)).eval()
    x = torch.randn(1, 49, 512, generator=torch.Generator().manual_seed(0))
    job = Job(norms.half(), norms, x.half(), ("logits",), "float16")
    find_format("executorch").write(job, tmp_path / "m.pte")
    (y,) = find_format("executorch").load(tmp_path / "m.pte")(x.half())
    assert (y - norms.float()(x)).abs().max() < 1e-2


def test_executorch_takes_windows_of_softmax_attention(tmp_path):
    class Windows(torch.nn.Module):
        def __init__(self, window, local):
            super().__init__()
            self.window, self.local = window, torch.nn.Conv2d(16, 16, 3, groups=16) if local else None
            self.bias = None if local else torch.nn.Parameter(torch.randn(2, 16, 16))

        def forward(self, qkv):
            kernel = (self.local.weight, self.local.bias) if self.local else ()
            return window_attention(qkv, 2, self.window, [0, 0], self.bias, *kernel)

    torch.manual_seed(0)
    for windows in (Windows([4, 4], False), Windows([0, 3], True)):
        qkv = torch.randn(1, 7, 7, 3, 16)
        find_format("executorch").write(Job(windows, windows, qkv, ("y",)), tmp_path / "m.pte")
        (y,) = find_format("executorch").load(tmp_path / "m.pte")(qkv)
        torch.testing.assert_close(y, windows(qkv))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("cpubone_nano", {}), ("flatten_swin_tiny", {"img_size": 96}), ("flatten_cswin_tiny", {"img_size": 96})],
)
def test_executorch_takes_softmax_attention_whose_maps_are_reshaped(tmp_path, name, options):
    """At 96 pixels windows are padded, so that masks take part: numbers in Swin, booleans in CSwin."""
    model = timm.create_model(name, **options).eval()
    export = export_model(model, tmp_path / "m.pte", "executorch", images(2, 96, 96), img_size=(96, 96))
    assert export.check.max_error < 1e-5


def test_models_in_channels_last_are_exported_in_the_usual_layout(model):
    job = make_job(copy.deepcopy(model).to(memory_format=torch.channels_last), (32, 32))
    assert all(parameter.is_contiguous() for parameter in job.model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_and_training_stays_as_it_is(model, dtype):
    trained = copy.deepcopy(model).to(dtype).train()
    before = {key: tensor.clone() for key, tensor in trained.state_dict().items()}
    job = make_job(trained, (32, 32))
    assert all(module.training for module in trained.modules())
    assert {tensor.dtype for tensor in trained.parameters()} == {dtype}
    for key, tensor in trained.state_dict().items():
        assert torch.equal(tensor, before[key])
    assert job.reference(images(1)).dtype == torch.float32
    torch.testing.assert_close(job.model(images(1)), job.reference(images(1)), rtol=1e-3, atol=1e-5)
