"""linvit export: what it writes is checked against the model, or is not left behind."""

import dataclasses
import sys

import pytest

from linvit.deploy import FORMATS


def test_command_checks_on_real_images_and_reports(linvit_command, run_folder, photos, tmp_path):
    out = tmp_path / "new" / "model.onnx"
    said = linvit_command("export", run_folder, "--to", "onnx", "--out", out, "--images", f"{photos}/val/ant", "--json")
    assert said.code == 0
    assert said.json["images"] == 3
    assert said.json["top1_agreement"] == 1.0
    assert said.json["max_error"] < 1e-5
    assert out.is_file()


def test_default_images_are_the_digits_and_pixels_are_uint8(linvit_command, run_folder, tmp_path):
    said = linvit_command(
        "export", run_folder, "--to", "torch", "--out", tmp_path / "m.pt2", "--with-preprocessing", "--no-fuse"
    )
    assert said.code == 0
    assert "12 images" in said.out
    assert "same top-1" in said.out


def test_beyond_the_bound_is_exit_code_2(linvit_command, run_folder, tmp_path):
    said = linvit_command("export", run_folder, "--to", "torch", "--out", tmp_path / "m.pt2", "--bound", "1e-14")
    assert said.code == 2
    assert "differs from the model by" in said.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--to", "tflite"], "--to must be one of coreml, executorch, litert, onnx, openvino, torch, web, got"),
        (
            ["--to", "onnx", "--precision", "int4"],
            "--precision must be one of float32, float16, bfloat16, int8, int8-full,",
        ),
        (["--to", "onnx", "--precision", "int8"], "--precision int8 needs --calibration IMAGE..."),
        (["--to", "onnx", "--sensitivity"], "--sensitivity needs --calibration IMAGE..."),
    ],
)
def test_wrong_arguments_are_named(linvit_command, run_folder, args, line):
    said = linvit_command("export", run_folder, *args)
    assert said.code == 2
    assert line in said.err


def test_a_missing_library_is_one_line(linvit_command, run_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    said = linvit_command("export", run_folder, "--to", "openvino")
    assert said.code == 2
    assert said.err == 'linvit: error: OpenVINO needs openvino: pip install "linvit[deploy]"\n'


def test_an_export_for_any_size_is_compared_at_a_size_that_it_takes(linvit_command, run_folder, tmp_path):
    args = ("--to", "torch", "--out", tmp_path / "m.pt2", "--dynamic-size", "--img-size", "48")
    said = linvit_command("export", run_folder, *args, "--json")
    assert said.code == 0, said.err
    assert said.json["top1_agreement"] == 1.0


def test_a_failing_runtime_is_one_line(linvit_command, run_folder, monkeypatch, tmp_path):
    def fail(path, threads=None, precision="float32"):
        raise RuntimeError("the first line\nmany more")

    monkeypatch.setitem(FORMATS, "torch", dataclasses.replace(FORMATS["torch"], loader=fail))
    said = linvit_command("export", run_folder, "--to", "torch", "--out", tmp_path / "m.pt2")
    assert said.code == 2
    assert said.err == "linvit: error: PyTorch cannot load m.pt2: RuntimeError: the first line many more\n"
    assert not list(tmp_path.iterdir())


def test_report_tells_which_layers_lose_in_8_bits(linvit_command, run_folder, photos, tmp_path):
    options = ["--to", "torch", "--out", tmp_path / "m.pt2", "--images", f"{photos}/val/ant"]
    said = linvit_command("export", run_folder, *options, "--sensitivity", "--calibration", "mnist5k", "--json")
    assert said.code == 0
    losses = said.json["sensitivity"]
    assert any(loss["layer"] == "images" for loss in losses)
    assert all(0 <= loss["error"] < 1 and 0 <= loss["top1_agreement"] <= 1 for loss in losses)
    assert any(loss["layer"] == "stages.2.blocks.0.mix matmul" for loss in losses)
