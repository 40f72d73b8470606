"""Exported files are evaluated and predict like the model they were made of; other uses and other files are refused."""

import onnx
import pytest
import torch

import linvit
from linvit.deploy import export_model
from tests.conftest import CLASSES

OPTIONS = {"img_size": (32, 32), "classes": CLASSES}


def images(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(run_folder):
    return linvit.load_model(run_folder)


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "m.onnx"
    export_model(model, path, "onnx", images(), precision="int8", calibration=images(8), **OPTIONS)
    return path


def test_file_is_evaluated_beside_its_model(linvit_command, run_folder, photos, file):
    said = linvit_command("eval", run_folder, photos, "--against", file, "--json", "--workers", "0")
    assert said.code == 0, said
    ours, theirs = said.json
    assert theirs["precision"] == "int8 (ONNX)"
    assert theirs["device"] == "cpu"
    assert theirs["img_size"] == [32, 32]
    assert 0 < abs(theirs["loss"] / ours["loss"] - 1) < 0.05
    said = linvit_command("predict", file, photos / "val" / CLASSES[0], "--json", "--top", "2")
    assert [each["class"] in CLASSES for each in said.json[0]["top"]] == [True, True]


@pytest.mark.parametrize("format", ["openvino", pytest.param("executorch", marks=pytest.mark.slow)])
def test_every_format_that_says_what_it_holds_is_taken(model, tmp_path, format):
    suffix = {"openvino": ".xml", "executorch": ".pte"}[format]
    export_model(model, tmp_path / f"m{suffix}", format, images(), **OPTIONS)
    again = linvit.load_model(tmp_path / f"m{suffix}", exported=True)
    with torch.no_grad():
        torch.testing.assert_close(again(images(5)), model(images(5)), rtol=1e-4, atol=1e-4)
    assert again.pretrained_cfg["label_names"] == CLASSES
    assert again.num_classes == 3


def test_what_a_file_cannot_do_is_said_in_one_line(linvit_command, run_folder, photos, file, model, tmp_path):
    def refused(*arguments: object) -> str:
        said = linvit_command(*map(str, arguments))
        assert said.code == 2
        assert said.err.count("\n") == 1
        return said.err

    assert "m.onnx was exported to ONNX; files (.pte, .tflite, .onnx, .xml) of classifiers are for" in refused(
        "export", file, "--to", "openvino"
    )
    assert "leave out device and precision, got 'cpu' and 'bfloat16'" in refused(
        "eval", file, photos, "--device", "cpu", "--precision", "bfloat16"
    )
    export_model(model, tmp_path / "m.pt2", "torch", images(), **OPTIONS)
    assert "was exported to PyTorch; files" in refused("eval", tmp_path / "m.pt2", photos)
    export_model(model, tmp_path / "maps.onnx", "onnx", images(), features=True, **OPTIONS)
    assert "returns map0, map1, map2, map3: export a classifier" in refused("eval", tmp_path / "maps.onnx", photos)
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07broken")
    assert "ONNX cannot load broken.onnx" in refused("eval", tmp_path / "broken.onnx", photos)
    (tmp_path / "bare.xml").write_text("<net/>")
    assert "OpenVINO cannot load bare.xml" in refused("eval", tmp_path / "bare.xml", photos)


@pytest.mark.parametrize("lost", ["crop_pct", "outputs", "classes"])
def test_file_that_does_not_say_what_it_holds_is_refused_but_for_the_names_of_classes(file, tmp_path, lost):
    proto = onnx.load(file)
    kept = {each.key: each.value for each in proto.metadata_props if each.key != lost}
    onnx.helper.set_model_props(proto, kept)
    onnx.save(proto, tmp_path / "m.onnx")
    if lost == "classes":
        assert linvit.load_model(tmp_path / "m.onnx", exported=True).num_classes == 3
        return
    with pytest.raises(ValueError, match=rf"m.onnx has no description of its model, as linvit export .*: '{lost}'"):
        linvit.load_model(tmp_path / "m.onnx", exported=True)
