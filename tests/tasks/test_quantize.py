"""Quantization-aware training: it starts from the original, learns with the rounding, and ends in a run like others."""

import pytest
import torch
from PIL import Image

import linvit
from linvit.deploy.quantization import QuantizedModel
from linvit.tasks.quantize import QuantizeTask
from tests.conftest import CLASSES, COLORS


@pytest.fixture
def folder(tmp_path):
    """Train and val, three classes of plain colours, eight images each."""
    for part in ("train", "val"):
        for name, color in COLORS.items():
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (32, 32), tuple(c + i for c in color)).save(
                    tmp_path / "data" / part / name / f"{i}.png"
                )
    return tmp_path / "data"


@pytest.mark.slow
def test_command_trains_and_the_run_is_found_by_the_others(linvit_command, run_folder, folder, tmp_path):
    settings = ["--data.img_size", 32, "--data.batch_size", 12, "--data.workers", 0, "--trainer.max_epochs", 1]
    options = ["--config", "quantize", "--model.name", run_folder, "--data.root", folder, "--out", tmp_path / "run"]
    said = linvit_command("train", *options, *settings, "--json")
    assert said.code == 0, said.err
    model = linvit.load_model(tmp_path / "run")
    assert isinstance(model, QuantizedModel)
    assert model.img_size == (32, 32)
    said = linvit_command("eval", tmp_path / "run", f"{folder}/val", "--json")
    assert said.code == 0, said.err
    said = linvit_command("export", tmp_path / "run", "--to", "onnx", "--precision", "int8-full", "--json")
    assert said.code == 0, said.err
    assert said.json["max_error"] < 0.1


def test_wrong_originals_are_refused_in_one_line(run_folder):
    with pytest.raises(ValueError, match="the original tells 3 classes apart, the data has 4"):
        QuantizeTask(4, name=str(run_folder), img_size=32)
    with pytest.raises(ValueError, match="follow must be from 0 to 1"):
        QuantizeTask(3, name=str(run_folder), img_size=32, follow=2.0)


def test_it_starts_as_the_original_and_ranges_come_from_the_first_batch(run_folder):
    task = QuantizeTask(len(CLASSES), name=str(run_folder), img_size=32)
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    task.model.calibrate(images)
    expected = linvit.load_model(run_folder)(images)
    assert ((task.eval()(images) - expected).abs().mean() / expected.abs().max()).item() < 0.1
    assert task.teacher is not None
    assert not any("teacher" in name for name, _ in task.named_parameters())
