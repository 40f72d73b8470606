"""Training meets what goes wrong in long runs: killed processes, NaN, dead loading processes."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from linvit.cli.main import main
from linvit.data import remote
from linvit.data.datasets import ImageFolder
from linvit.tasks import ClassificationTask
from tests.shards import pack, serve

BATCH, UPDATES = 8, 6


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for part, count in (("train", BATCH * UPDATES // 2), ("val", 5)):
        for name in ("one", "two"):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                values = random.integers(0, 256, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(values).save(root / part / name / f"{number}.png")
    return root


def arguments(photos: Path, out: Path, *more: str) -> list[str]:
    """Return the arguments of a training in which everything is random that can be."""
    return [
        "train",
        f"--data.root={photos}",
        f"--out={out}",
        f"--data.batch_size={BATCH}",
        "--data.img_size=32",
        "--data.workers=0",
        "--data.auto_augment=rand-m9-mstd0.5-inc1",
        "--data.reprob=0.5",
        "--model.name=test_efficientnet",
        "--model.model_args={drop_path_rate: 0.2, drop_rate: 0.2}",
        "--model.mixup=0.4",
        "--model.cutmix=1.0",
        "--model.ema_decay=0.8",
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=2",
        "--trainer.log_every_n_steps=1",
        *more,
    ]


def metrics(folder: Path) -> list[dict[str, str]]:
    """Read ``metrics.csv`` without the speed."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: row[key] for key in row if "per_second" not in key} for row in csv.DictReader(file)]


def checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "last.ckpt", weights_only=True)


def killed_at(call: int, arguments: list[str], task: Any = ClassificationTask) -> None:
    """Train in a process that kills itself in the ``call``-th training step, as a lost machine would."""
    child = os.fork()
    if child == 0:
        step, calls = task.training_step, iter(range(1, call))

        def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
            if next(calls, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, batch, batch_idx)

        task.training_step = training_step
        main(arguments)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main(arguments(photos, out)) == 0
    return out


@pytest.mark.parametrize(("call", "workers"), [(5, 0), (UPDATES + 4, 2)])
def test_killed_within_an_epoch_and_resumed_it_repeats_the_undisturbed_run_bit_by_bit(
    whole: Path, photos: Path, tmp_path: Path, call: int, workers: int
) -> None:
    out = tmp_path / "run"
    killed_at(call, arguments(photos, out, "--checkpoint.steps=2", f"--data.workers={workers}"))
    assert checkpoint(out)["global_step"] == (call - 1) // 2 * 2, "written within the epoch"
    assert len(metrics(out)) == call - 1
    assert main(["train", "--resume", str(out)]) == 0
    assert metrics(out) == metrics(whole)
    assert [int(row["step"]) for row in metrics(out)] == list(range(2 * UPDATES))
    ours, theirs = checkpoint(out), checkpoint(whole)
    for part in ("state_dict", "current_model_state"):
        for name, value in theirs[part].items():
            assert torch.equal(ours[part][name], value), name
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_run_from_shards_behind_http_is_resumed_to_the_same_end_as_one_from_folders(
    whole: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    monkeypatch.setattr(remote, "WAITS", (0.0,) * len(remote.WAITS))
    out = tmp_path / "run"
    with serve(pack(photos, tmp_path / "shards")) as served:
        given = arguments(photos, out, "--checkpoint.steps=2", "--data.workers=2", "--data.hflip=0.5")
        given += [
            f"--data.root={served.address}/train-{{0..1}}.tar",
            f"--data.val_root={served.address}/val-{{0..1}}.tar",
        ]
        killed_at(UPDATES + 4, given)
        assert main(["train", "--resume", str(out)]) == 0
        assert metrics(out) == metrics(whole)
        served.ranges = False
        assert main(["train", "--resume", str(out), "--trainer.max_epochs=3"]) == 2
    assert "gives out whole files only" in capsys.readouterr().err.splitlines()[-1]


def test_accumulated_gradients_are_never_cut_in_two(photos: Path, tmp_path: Path) -> None:
    accumulate = ("--trainer.accumulate_grad_batches=3", "--trainer.val_check_interval=2")
    given = arguments(photos, tmp_path / "whole", *accumulate)
    assert main(given) == 0
    out = tmp_path / "run"
    killed_at(UPDATES + 5, arguments(photos, out, *accumulate, "--checkpoint.steps=1"))
    assert checkpoint(out)["global_step"] == 3
    assert main(["train", "--resume", str(out)]) == 0
    assert metrics(out) == metrics(tmp_path / "whole")


def test_resuming_within_an_epoch_wants_the_same_total_batch(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    killed_at(4, arguments(photos, out, "--checkpoint.steps=2"))
    assert main(["train", "--resume", str(out), "--data.batch_size=4"]) == 2
    assert "stopped within an epoch of batches of 8 images, not 4" in capsys.readouterr().err


SHARDED = (
    "--trainer.strategy=ModelParallelStrategy",
    "--trainer.strategy.data_parallel_size=2",
    "--trainer.strategy.tensor_parallel_size=1",
    "--trainer.strategy.save_distributed_checkpoint=false",
    "--model.ema_decay=0",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "number"),
    [((), signal.SIGINT), ((), signal.SIGTERM), (SHARDED, signal.SIGINT)],
    ids=["ddp", "ddp-sigterm", "fsdp2"],
)
def test_ctrl_c_stops_two_processes_of_the_command_line_and_the_run_goes_on(
    photos: Path, tmp_path: Path, strategy: tuple[str, ...], number: int
) -> None:
    def start(*given: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "linvit.cli.main", *given]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def two(out: Path) -> list[str]:
        return arguments(photos, out, *strategy, "--trainer.devices=2", "--data.batch_size=4", "--trainer.max_epochs=6")

    whole, out = tmp_path / "whole", tmp_path / "run"
    assert start(*two(whole)).wait() == 0
    run = start(*two(out))
    while not (out / "metrics.csv").is_file() or len(metrics(out)) < UPDATES + 2:
        assert run.poll() is None
        time.sleep(0.01)
    os.killpg(run.pid, number)  # as a terminal, or SLURM, does
    said = run.communicate()[1]
    assert run.returncode == 130, said
    assert f"interrupted; go on with: linvit train --resume {out}" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert UPDATES < checkpoint(out)["global_step"] < 6 * UPDATES
    assert start("train", "--resume", str(out)).wait() == 0
    assert metrics(out) == metrics(whole)
    for name, value in checkpoint(whole)["state_dict"].items():
        assert torch.equal(checkpoint(out)["state_dict"][name], value), name


def poisoned(monkeypatch: pytest.MonkeyPatch, calls: set[int]) -> None:
    """Put a NaN into the images of some training steps, counted from 1."""
    step, count = ClassificationTask.training_step, iter(range(1, 1000))

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if next(count) in calls:
            batch["image"][0, 0, 0, 0] = torch.nan
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ClassificationTask, "training_step", training_step)


def test_a_batch_with_nan_changes_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    once = ("--trainer.max_epochs=1", "--model.ema_decay=0", "--model.warmup_epochs=0", "--model.min_lr=0.001")
    poisoned(monkeypatch, {UPDATES})
    assert main(arguments(photos, tmp_path / "run", *once, "--json")) == 0
    said = capsys.readouterr()
    assert '"skipped_updates": 1' in said.out
    assert "1 update was skipped: its gradients were not finite" in said.err
    monkeypatch.undo()
    assert main(arguments(photos, tmp_path / "short", *once, f"--trainer.limit_train_batches={UPDATES - 1}")) == 0
    for name, value in checkpoint(tmp_path / "short")["state_dict"].items():
        assert torch.equal(checkpoint(tmp_path / "run")["state_dict"][name], value), name
    assert metrics(tmp_path / "run")[-1]["train/loss"] == metrics(tmp_path / "short")[-1]["train/loss"]


def test_nan_after_nan_ends_the_training_and_spares_the_checkpoint(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    poisoned(monkeypatch, set(range(UPDATES + 2, 1000)))
    assert main(arguments(photos, out, "--max_not_finite=4", "--checkpoint.steps=1", "--trainer.max_epochs=9")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("linvit: error: the gradients of 4 updates in a row were not finite: the training diverged")
    assert checkpoint(out)["global_step"] == UPDATES + 2, "the one before the second NaN in a row"
    for value in checkpoint(out)["state_dict"].values():
        assert value.isfinite().all()


def test_a_loading_process_that_dies_is_one_clear_line(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = os.getpid()

    def die(self: Any, index: int) -> Any:
        if os.getpid() != trainer:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ImageFolder, "__getitem__", die)
    assert main(arguments(photos, tmp_path / "run", "--data.workers=1")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("linvit: error: a process that loads images was killed (")
    assert "--data.workers" in error
