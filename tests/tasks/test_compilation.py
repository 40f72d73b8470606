"""``compile: auto``: which trainings are compiled, what is said, and that a resumed run goes on as it began."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from linvit.tasks import base, compilation

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of four images for training and for validation."""
    root = tmp_path_factory.mktemp("photos")
    for part in ("train", "val"):
        for name, colour in (("dark", 40), ("light", 200)):
            (root / part / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (32, 32), (colour, colour + i, colour)).save(root / part / name / f"{i}.png")
    return root


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record which networks are compiled, instead of compiling them; the compiler is there."""
    found: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: found.append(type(self).__name__))
    monkeypatch.setattr(base, "compiler_error", lambda: None)
    return found


@pytest.fixture
def train(linvit_command: Command, data: Path) -> Command:
    def run(out: Path, *more: str) -> Any:
        settings = ["--data.batch_size=4", "--data.img_size=32", "--data.workers=0", "--model.name=test_efficientnet"]
        settings += ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
        return linvit_command("train", f"--data.root={data}", f"--out={out}", *settings, *more)

    return run


def test_a_short_training_is_not_compiled(compiled: list[str], train: Command, tmp_path: Path) -> None:
    said = train(tmp_path / "run")
    assert said.code == 0
    assert compiled == []
    assert "compil" not in said.err


def test_a_long_training_is_compiled_and_says_so(
    compiled: list[str], train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "WORTHWHILE", 0.0)
    said = train(tmp_path / "run")
    assert said.code == 0
    assert compiled == ["EfficientNet"]
    assert "hours of training: compiling" in said.err


@pytest.mark.parametrize("began_compiled", [True, False])
def test_a_resumed_training_goes_on_as_it_began(
    began_compiled: bool,
    compiled: list[str],
    train: Command,
    linvit_command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "WORTHWHILE", 0.0 if began_compiled else 1e9)
    assert train(tmp_path / "run").code == 0
    compiled.clear()
    monkeypatch.setattr(base, "WORTHWHILE", 1e9 if began_compiled else 0.0)
    said = linvit_command("train", "--resume", tmp_path / "run", "--trainer.max_epochs=2")
    assert said.code == 0
    assert compiled == ["EfficientNet"] * began_compiled


def test_without_a_compiler_auto_goes_on_and_true_is_one_line(
    compiled: list[str], train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "WORTHWHILE", 0.0)
    monkeypatch.setattr(base, "compiler_error", lambda: "no C++ compiler")
    said = train(tmp_path / "auto")
    assert said.code == 0
    assert "training goes on without torch.compile, which does not work here: no C++ compiler" in said.err
    said = train(tmp_path / "needed", "--model.compile=true")
    assert said.code == 2
    assert "compile must be false or auto" in said.err
    assert compiled == []


def test_a_missing_compiler_is_found_and_named(tmp_path: Path) -> None:
    code = "from linvit.tasks.compilation import compiler_error; print(compiler_error())"
    environment = os.environ | {"CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=200
    )
    (line,) = done.stdout.splitlines()
    assert "compiler" in line.lower()


def test_the_estimate_counts_three_passes_of_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.BatchNorm2d(8)).train()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    macs = 3 * 8 * 16 * 16
    assert compilation.estimate_seconds(model, (3, 16, 16), 10) == pytest.approx(3 * 10 * macs / 60e9)
    assert model.training
    assert model[1].num_batches_tracked == 0


def test_imagenet_is_worth_compiling_and_the_demo_is_not() -> None:
    care = timm.create_model("care_s0")
    assert compilation.estimate_seconds(care, (3, 224, 224), 1_281_167) > compilation.WORTHWHILE
    assert compilation.estimate_seconds(care, (3, 48, 48), 6 * 4_000) < compilation.WORTHWHILE


@pytest.mark.slow
def test_a_compiled_training_that_was_killed_repeats_the_undisturbed_one(
    train: Command, linvit_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "WORTHWHILE", 0.0)
    drawing = "--model.model_args={drop_path_rate: 0.2, drop_rate: 0.2}"
    assert train(tmp_path / "whole", drawing, "--trainer.max_epochs=3", "--checkpoint.steps=1").code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base.VisionTask, "log_training", dies_at(3, base.VisionTask.log_training))
        said = train(tmp_path / "killed", drawing, "--trainer.max_epochs=3", "--checkpoint.steps=1")
        assert said.code != 0
    assert linvit_command("train", "--resume", tmp_path / "killed").code == 0
    whole, killed = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert (tmp_path / "whole/metrics.csv").read_text().count("\n") > 3


def dies_at(update: int, log_training: Callable[..., None]) -> Callable[..., None]:
    """Let the training fail at an update, as a full disk would."""

    def log_or_die(self: Any, *args: Any) -> None:
        if self.global_step == update:
            raise OSError("no space left")
        log_training(self, *args)

    return log_or_die
