"""Several processes compute what one computes with the same total batch, and count every held-out image once."""

import csv
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from PIL import Image
from torch.multiprocessing.spawn import ProcessException

from linvit.data import ClassificationData
from linvit.tasks import ClassificationTask
from linvit.tasks.callbacks import KeepBest, LastCheckpoint
from linvit.tasks.faults import SkipNotFinite, StepSeed
from linvit.tasks.run_folder import AtomicCheckpointIO, MetricsCsv, newest_checkpoint, steps_done

HELD_OUT = 11  # per class: no multiple of anything


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise; one held-out image cannot be read."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", HELD_OUT)):
        for level, name in enumerate(("one", "two")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                values = random.integers(0, 200, (32, 32, 3)) + 50 * level
                Image.fromarray(values.astype(np.uint8)).save(root / part / name / f"{number}.png")
    (root / "val" / "two" / "0.png").write_bytes(b"broken")
    return root


def trained(
    photos: Path, out: Path, devices: int, total: int = 8, accumulate: int = 1, strategy: Any = None, **settings: Any
) -> Any:
    """Train two epochs, or go on with them; return the figures of the run and its weights."""
    torch.manual_seed(0)
    out.mkdir(exist_ok=True)
    last = newest_checkpoint(out)
    small = {"img_size": 32, "depth": 1, "embed_dim": 32, "num_heads": 2}  # LayerNorm: no statistics over a batch
    task = ClassificationTask(2, name="vit_tiny_patch16_224", model_args=small, lr_batch=8, **settings)
    data = ClassificationData(
        str(photos), img_size=32, batch_size=total // devices // accumulate, workers=0, crop_pct=1.0
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy or ("ddp_fork" if devices > 1 else "auto"),
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        logger=[MetricsCsv(out, steps_done(last) if last else 0)],
        plugins=[AtomicCheckpointIO()],
        callbacks=[
            StepSeed(0),
            SkipNotFinite(),
            KeepBest(out, data.classes, data.input_config()),
            LastCheckpoint(out, steps=2, minutes=1),
        ],
    )
    trainer.fit(task, data, ckpt_path=last)
    return figures(out)


def figures(out: Path) -> Any:
    """Return the figures of a run by epoch, and its weights."""
    with (out / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return rows, torch.load(out / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def alone(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one process computes."""
    return trained(photos, tmp_path_factory.mktemp("runs") / "alone", 1)


def same(ours: Any, theirs: Any) -> None:
    """Compare two runs: in float32, sums in another order differ by 1e-7 each, and Adam divides by small numbers."""
    for mine, yours in zip(ours[0], theirs[0], strict=True):
        for name in ("train/loss", "val/loss"):
            assert float(mine[name]) == pytest.approx(float(yours[name]), rel=1e-4), name
        for name in ("val/top1", "lr", "step"):
            assert mine[name] == yours[name], name
    for name, value in theirs[1].items():
        mine, yours = ours[1][name], value
        # A softmax does not feel the keys' bias: its gradient is rounding, which Adam enlarges.
        if name.endswith("qkv.bias"):
            mine, yours = (torch.cat([bias[:32], bias[64:]]) for bias in (mine, yours))
        torch.testing.assert_close(mine, yours, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("devices", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_learn_what_one_learns(photos: Path, tmp_path: Path, alone: Any, devices: int) -> None:
    same(trained(photos, tmp_path / "run", devices), alone)
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_held_out_images_count_once(photos: Path, tmp_path: Path, alone: Any) -> None:
    readable = 2 * HELD_OUT - 1
    for rows, _ in (alone, trained(photos, tmp_path / "run", 2)):
        for row in rows:
            right = float(row["val/top1"]) * readable
            assert right == pytest.approx(round(right), abs=1e-4)


def test_accumulated_gradients_are_those_of_the_whole_batch(photos: Path, tmp_path: Path, alone: Any) -> None:
    same(trained(photos, tmp_path / "run", 1, accumulate=2), alone)


def test_activation_checkpointing_changes_nothing(photos: Path, tmp_path: Path, alone: Any) -> None:
    same(trained(photos, tmp_path / "run", 1, grad_checkpointing=True), alone)


@pytest.mark.slow
def test_compiling_changes_nothing(photos: Path, tmp_path: Path, alone: Any) -> None:
    same(trained(photos, tmp_path / "run", 1, compile=True), alone)


def torchrun(work: Callable[[], Any]) -> list[int]:
    """Do something in two processes as torchrun would start them; return their exit codes, 130 for Ctrl-C."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
                meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "none"}
                os.environ.update({name: str(value) for name, value in (place | meeting).items()})
                work()
                code = 0
            except SystemExit:  # which Lightning makes of Ctrl-C
                code = 130
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def interrupting(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """Press Ctrl-C on one of the devices in the eighth update."""
    step = ClassificationTask.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 7 and self.global_rank == rank:
            next(one for one in self.trainer.callbacks if isinstance(one, LastCheckpoint)).interrupted = True
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ClassificationTask, "training_step", training_step)


def test_a_sharded_run_that_is_stopped_and_resumed_is_that_of_one_process(
    photos: Path, tmp_path: Path, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=False)
        trained(photos, tmp_path / "run", 2, strategy=strategy)

    interrupting(monkeypatch, rank=1)
    assert torchrun(work) == [130, 130]
    assert steps_done(tmp_path / "run" / "last.ckpt") == 8
    monkeypatch.undo()
    assert torchrun(work) == [0, 0]
    same(figures(tmp_path / "run"), alone)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_that_is_told_to_stop_stops_all_and_the_run_goes_on(
    photos: Path, tmp_path: Path, alone: Any, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    interrupting(monkeypatch, rank)
    with pytest.raises(ProcessException):
        trained(photos, tmp_path / "run", 2)
    assert steps_done(tmp_path / "run" / "last.ckpt") == 8, "the update under way was finished"
    monkeypatch.undo()
    same(trained(photos, tmp_path / "run", 2), alone)
