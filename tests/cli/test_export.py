"""linvit export: what it writes is checked against the model, or is not left behind."""

import torch


def test_command_checks_on_real_images_and_reports(linvit_command, run_folder, photos, tmp_path):
    out = tmp_path / "new" / "model.onnx"
    said = linvit_command("export", run_folder, "--to", "onnx", "--out", out, "--images", f"{photos}/val/ant", "--json")
    assert said.code == 0
    assert said.json["images"] == 3
    assert said.json["top1_agreement"] == 1.0
    assert said.json["max_error"] < 1e-5
    assert out.is_file()


def test_a_file_that_computes_something_else_is_not_kept(linvit_command, run_folder, tmp_path, monkeypatch):
    def export_another(model, path, *args):
        from linvit.deploy import onnx as real

        torch.nn.init.normal_(model.head.fc.bias)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        real.export_onnx(model, path, *args)
        torch.nn.init.normal_(model.head.fc.bias)
        assert not torch.equal(before["head.fc.bias"], model.head.fc.bias)

    (tmp_path / "model.onnx").write_text("an earlier export")
    monkeypatch.setattr("linvit.deploy.export_onnx", export_another)
    said = linvit_command("export", run_folder, "--to", "onnx", "--out", tmp_path / "model.onnx")
    assert said.code == 2
    assert "differs from the model by" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "an earlier export"


def test_unknown_format_is_named(linvit_command, run_folder):
    said = linvit_command("export", run_folder, "--to", "tflite")
    assert said.code == 2
    assert "--to must be one of onnx, got 'tflite'" in said.err
