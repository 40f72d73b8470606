"""Learning features on several devices, sharded, compiled, in bfloat16 and stopped in between: what one run learns.

Every run is a command in processes of its own.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tasks.test_pretrain import photos, teacher

__all__ = ["photos", "teacher"]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pretrain_devices")]

# LayerNorm: no statistics over a batch
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SHARDED = (
    "--trainer.strategy=ModelParallelStrategy",
    "--trainer.strategy.data_parallel_size=2",
    "--trainer.strategy.tensor_parallel_size=1",
    "--trainer.strategy.save_distributed_checkpoint=false",
)


def command(photos: Path, teacher: Path, out: Path, devices: int = 1, *more: str) -> list[str]:
    given = {
        "task": "pretrain",
        "data.root": photos,
        "data.img_size": 32,
        "data.batch_size": 8 // devices,
        "data.workers": 0,
        "data.val_share": 0.2,
        "model.name": "vit_tiny_patch16_224",
        "model.model_args": json.dumps(VIT),
        "model.teacher": teacher,
        "model.lr": 1e-3,
        "trainer.accelerator": "cpu",
        "trainer.devices": devices,
        "trainer.max_epochs": 3,
        "out": out,
    }
    return [sys.executable, "-m", "linvit", "train", *(f"--{name}={value}" for name, value in given.items()), *more]


def learnt(photos: Path, teacher: Path, out: Path, devices: int = 1, *more: str) -> Any:
    """Learn for three epochs; return the metrics by epoch, and the weights."""
    done = subprocess.run(command(photos, teacher, out, devices, *more), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return results(out)


def results(out: Path) -> Any:
    with (out / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val/loss"]]
    return rows, torch.load(out / "last.ckpt", weights_only=True)["state_dict"]


def same(ours: Any, theirs: Any, loss: float = 1e-4, weights: float = 1e-4) -> None:
    assert len(ours[0]) == len(theirs[0]) == 3
    for mine, yours in zip(ours[0], theirs[0], strict=True):
        for name in ("train/loss", "val/loss", "val/explained"):
            assert float(mine[name]) == pytest.approx(float(yours[name]), rel=loss, abs=loss), name
        assert mine["step"] == yours["step"]
    for name, value in theirs[1].items():
        if not name.endswith("qkv.bias"):  # a softmax does not feel the keys': its gradient is rounding
            torch.testing.assert_close(ours[1][name], value, rtol=1e-3, atol=weights, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def alone(photos: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one process learns."""
    return learnt(photos, teacher, tmp_path_factory.mktemp("runs") / "alone")


def test_two_processes_learn_what_one_learns(photos: Path, teacher: Path, tmp_path: Path, alone: Any) -> None:
    same(learnt(photos, teacher, tmp_path / "run", 2), alone)
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_sharded_over_two_processes_too(photos: Path, teacher: Path, tmp_path: Path, alone: Any) -> None:
    same(learnt(photos, teacher, tmp_path / "run", 2, *SHARDED), alone)


def test_compiling_changes_nothing(photos: Path, teacher: Path, tmp_path: Path, alone: Any) -> None:
    same(learnt(photos, teacher, tmp_path / "run", 1, "--model.compile=true"), alone)


def test_bfloat16_learns_the_same_but_for_its_rounding(photos: Path, teacher: Path, tmp_path: Path, alone: Any) -> None:
    same(learnt(photos, teacher, tmp_path / "run", 1, "--trainer.precision=bf16-mixed"), alone, 0.02, 3e-3)


def test_killed_it_goes_on_bit_for_bit(photos: Path, teacher: Path, tmp_path: Path) -> None:
    cached = ("--model.cache=true", "--data.views=2", "--checkpoint.steps=1")
    whole = learnt(photos, teacher, tmp_path / "whole", 1, *cached)
    out = tmp_path / "run"
    first = subprocess.Popen(command(photos, teacher, out, 1, *cached), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not (out / "last.ckpt").is_file() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    again = [sys.executable, "-m", "linvit", "train", "--resume", str(out)]
    subprocess.run(again, check=True, capture_output=True, timeout=900)
    rows, weights = results(out)
    for mine, yours in zip(rows, whole[0], strict=True):
        for name in ("train/loss", "val/loss", "val/explained"):
            assert mine[name] == yours[name], name
    assert all(torch.equal(weights[name], value) for name, value in whole[1].items())
